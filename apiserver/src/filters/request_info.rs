//! Adds `RequestInfo` and `Query`: what the request asks.

use crate::request::request_info::RequestInfoError;
use crate::request::{Query, RequestInfo};
use crate::status::plain_text;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::StatusCode;
use std::sync::Arc;

/// Parses method and URL; a URL without meaning is answered here.
pub async fn request_info(mut request: Request, next: Next) -> Response {
    let query = Query::of(request.uri());
    match RequestInfo::parse(request.method(), request.uri().path(), &query) {
        Ok(info) => {
            request.extensions_mut().insert(Arc::new(info));
            request.extensions_mut().insert(Arc::new(query));
            next.run(request).await
        }
        Err(RequestInfoError::Undecodable(_)) => plain_text(StatusCode::BAD_REQUEST, "400 Bad Request"),
        // Upstream blames itself, and clients have got used to it.
        Err(error @ RequestInfoError::NothingToWatch(_)) => {
            let uri = request.uri().path_and_query().map_or("/", |uri| uri.as_str());
            let text = format!("Internal Server Error: {uri:?}: failed to create RequestInfo: {error}\n");
            plain_text(StatusCode::INTERNAL_SERVER_ERROR, text)
        }
    }
}
