//! The server as an in-process service: controllers reach the same chain of filters without a socket, as the server's
//! own user.

use super::handler_chain::HandlerChain;
use crate::authentication::UserInfo;
use crate::request::context::LoopbackUser;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::Request;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::{BoxError, Service, ServiceExt};

/// The chain for requests from inside. `kube::Client` takes it as its transport.
#[derive(Clone)]
pub struct Loopback {
    chain: HandlerChain,
    user: Arc<UserInfo>,
}

impl Loopback {
    /// Requests through `chain` as the server itself.
    #[must_use]
    pub fn new(chain: HandlerChain) -> Self {
        Self {
            chain,
            user: Arc::new(UserInfo::api_server()),
        }
    }
}

impl<B> Service<Request<B>> for Loopback
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut request = request.map(Body::new);
        request
            .extensions_mut()
            .insert(LoopbackUser(Arc::clone(&self.user)));
        Box::pin(self.chain.clone().oneshot(request))
    }
}
