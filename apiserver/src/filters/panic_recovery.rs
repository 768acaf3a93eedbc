//! A panic ends its request with 500 and nothing else: neither the connection nor the process.

use crate::status::ApiError;
use axum::body::Body;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::FutureExt;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

/// Carries the request out; a panic becomes a Status.
pub async fn panic_recovery(request: Request, next: Next) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    // Nothing of a request that panicked is looked at again.
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response.map(|inner| Body::new(CaughtBody { inner })),
        Err(panic) => {
            tracing::error!(%method, %uri, panic = text(panic.as_ref()), "apiserver panic'd");
            let message = "This request caused apiserver to panic. Look in the logs for details.";
            ApiError::new(500, "InternalError", message).into_response()
        }
    }
}

/// A body whose panic is an error: the stream is reset, the connection lives on.
struct CaughtBody {
    inner: Body,
}

/// A body that panicked.
#[derive(Debug, thiserror::Error)]
#[error("the response panicked")]
struct BodyPanicked;

impl HttpBody for CaughtBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let poll = AssertUnwindSafe(|| Pin::new(&mut self.inner).poll_frame(cx));
        match catch_unwind(poll) {
            Ok(frame) => frame,
            Err(panic) => {
                tracing::error!(
                    panic = text(panic.as_ref()),
                    "apiserver panic'd while it sent a response"
                );
                self.inner = Body::empty();
                Poll::Ready(Some(Err(axum::Error::new(BodyPanicked))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
