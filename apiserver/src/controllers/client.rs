//! A `kube::Client` on our own router: requests of the server's controllers without a socket.
//!
//! They pass the same filters as everybody's, authenticated by an extension that only this process can add.

use crate::authentication::UserInfo;
use crate::request::context::LoopbackUser;
use axum::body::Body;
use http::{Request, Response};
use std::sync::Arc;
use tower::{BoxError, Service, ServiceExt};

/// A client whose requests go to `router` and come from the server itself, a member of `system:masters`.
///
/// Must be called inside the runtime: `kube` spawns the task that hands requests over.
pub fn in_process<S>(router: S) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    let user = LoopbackUser(Arc::new(UserInfo::api_server()));
    let service = router.map_request(move |request: Request<kube::client::Body>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(user.clone());
        request
    });
    kube::Client::new(service, "default")
}
