//! Limits requests in flight, reads and writes apart. What does not fit is refused at once: nothing queues.

use super::observed_body::hold;
use super::{Info, earlier};
use crate::authentication::{SYSTEM_MASTERS, UserInfo};
use crate::metrics::ApiMetrics;
use crate::request::context::LoopbackUser;
use crate::status::ApiError;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How soon a refused client should come back, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

/// The limits, and the places that are free.
#[derive(Clone)]
pub struct MaxInFlight {
    read_only: Arc<Semaphore>,
    mutating: Arc<Semaphore>,
    masters_pass: bool,
    metrics: ApiMetrics,
}

impl MaxInFlight {
    /// Limits in requests; 0 for none, as upstream.
    #[must_use]
    pub fn new(read_only_max: usize, mutating_max: usize, metrics: ApiMetrics) -> Self {
        let places = |max: usize| {
            let max = if max == 0 { Semaphore::MAX_PERMITS } else { max };
            Arc::new(Semaphore::new(max))
        };
        Self {
            read_only: places(read_only_max),
            mutating: places(mutating_max),
            masters_pass: false,
            metrics,
        }
    }

    /// The same; `system:masters` pass when there is no place, if `pass` says so. In a control plane they are few, and
    /// the probe that decides whether our APIs are available is one of them.
    #[must_use]
    pub fn masters_pass(self, pass: bool) -> Self {
        Self {
            masters_pass: pass,
            ..self
        }
    }
}

/// Takes a place until the last byte of the response is sent. Long-running requests need none, and neither do those from
/// inside: controllers must not starve behind clients.
pub async fn max_in_flight(State(limits): State<MaxInFlight>, request: Request, next: Next) -> Response {
    let info: Info = match earlier(&request) {
        Ok(info) => info,
        Err(response) => return *response,
    };
    if info.is_long_running() || request.extensions().get::<LoopbackUser>().is_some() {
        return next.run(request).await;
    }
    // As upstream: a path that is no resource has the verb `get` and is a read like it.
    let mutating = !info.is_read_only();
    let places = if mutating {
        &limits.mutating
    } else {
        &limits.read_only
    };
    let Ok(place) = Arc::clone(places).try_acquire_owned() else {
        let user = request.extensions().get::<Arc<UserInfo>>();
        if limits.masters_pass && user.is_some_and(|user| user.is_in(SYSTEM_MASTERS)) {
            return next.run(request).await;
        }
        return ApiError::too_many_requests(
            "Too many requests, please try again later.",
            RETRY_AFTER_SECONDS,
        )
        .into_response();
    };
    let counted = limits.metrics.in_flight(mutating);
    hold(next.run(request).await, (place, counted))
}
