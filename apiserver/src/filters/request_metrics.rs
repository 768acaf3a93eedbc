//! Counts and times each request, up to its last byte.

use super::observed_body::observe;
use super::{Info, earlier};
use crate::metrics::{ApiMetrics, RequestLabels};
use crate::request::{Query, RequestInfo};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::CONTENT_TYPE;
use std::sync::Arc;
use tokio::time::Instant;

/// Tells whether a request's resource is one that the server knows: only those become labels.
pub type IsServed = Arc<dyn Fn(&RequestInfo) -> bool + Send + Sync>;

/// What the filter needs.
#[derive(Clone)]
pub struct RequestMetrics {
    /// Where it counts.
    pub metrics: ApiMetrics,
    /// Which resources are known.
    pub is_served: IsServed,
}

/// Counts the request at its end.
pub async fn request_metrics(
    State(state): State<RequestMetrics>,
    mut request: Request,
    next: Next,
) -> Response {
    let (info, query): (Info, Arc<Query>) = match (earlier(&request), earlier(&request)) {
        (Ok(info), Ok(query)) => (info, query),
        (Err(response), _) | (_, Err(response)) => return *response,
    };
    let started = Instant::now();
    let is_apply = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/apply-patch"));
    let labels = RequestLabels::new(&info, &query, is_apply, (state.is_served)(&info));
    let series = state.metrics.request(&labels);
    let long_running = info.is_long_running().then(|| series.long_running());
    request.extensions_mut().insert(state.metrics);
    let response = next.run(request).await;
    let code = response.status().as_u16();
    observe(response, move |end| {
        drop(long_running);
        series.answered(code, started.elapsed(), end.bytes);
        match code {
            429 | 504 => series.terminated(code),
            _ if !end.complete => series.aborted(),
            _ => {}
        }
    })
}
