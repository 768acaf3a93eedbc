//! One filter a file; their order and the reasons stand in `server/handler_chain.rs`.

pub mod audit;
pub mod authentication;
pub mod authorization;
pub mod error_encoding;
pub mod goaway;
pub mod http_log;
pub mod impersonation;
pub mod max_in_flight;
pub mod observed_body;
pub mod panic_recovery;
pub mod request_deadline;
pub mod request_info;
pub mod request_metrics;
pub mod warning;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// A value that an earlier filter has put into the request.
fn earlier<T: Clone + Send + Sync + 'static>(request: &Request) -> Result<T, Box<Response>> {
    request.extensions().get::<T>().cloned().ok_or_else(|| {
        let what = std::any::type_name::<T>();
        let error = crate::status::ApiError::internal(format!(
            "no {what} found in the request, handler chain must be wrong"
        ));
        Box::new(error.into_response())
    })
}

type Info = Arc<crate::request::RequestInfo>;
