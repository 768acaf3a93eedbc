//! Writes the Status of a refusal in the encoding that the client accepts. Whoever refuses need not know of encodings.

use crate::negotiation::{MediaType, negotiate_status};
use crate::request::Query;
use crate::serializer::encode_status;
use crate::status::ErrorBehind;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Encodes errors that are still plain JSON.
pub async fn error_encoding(request: Request, next: Next) -> Response {
    let accept = text(request.headers(), ACCEPT);
    let user_agent = text(request.headers(), USER_AGENT);
    let uri = request.uri().clone();
    let mut response = next.run(request).await;
    let Some(ErrorBehind(error)) = response.extensions().get::<ErrorBehind>().cloned() else {
        return response;
    };
    let query = Query::of(&uri);
    let wanted = negotiate_status(accept.as_deref(), user_agent.as_deref(), query.first("pretty"));
    if wanted.media_type == MediaType::Json && !wanted.pretty {
        return response;
    }
    *response.body_mut() = Body::from(encode_status(&error, &wanted));
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(wanted.content_type()));
    response
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}
