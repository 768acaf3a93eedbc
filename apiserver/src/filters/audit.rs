//! Adds `AuditId` and its header, by which the request can be found in every log it passed; and the rule that nobody
//! caches an answer that depended on who asked.

use crate::request::context::AuditId;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue};

/// The header.
pub const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Takes the client's id or makes one.
pub async fn audit(mut request: Request, next: Next) -> Response {
    let given = request
        .headers()
        .get(AUDIT_ID)
        .filter(|id| !id.is_empty())
        .cloned();
    let id = given.or_else(|| HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).ok());
    let Some(id) = id else {
        return next.run(request).await;
    };
    request.extensions_mut().insert(AuditId(id.clone()));
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(AUDIT_ID).or_insert(id);
    headers
        .entry(CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-cache, private"));
    response
}
