//! Adds `WarningRecorder`, and what it collected to the response as `Warning` headers.

use crate::request::context::WarningRecorder;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http::header::WARNING;

/// Collects warnings until the head of the response is there.
pub async fn warning(mut request: Request, next: Next) -> Response {
    let recorder = WarningRecorder::default();
    request.extensions_mut().insert(recorder.clone());
    let mut response = next.run(request).await;
    for warning in recorder.headers() {
        response.headers_mut().append(WARNING, warning);
    }
    response
}
