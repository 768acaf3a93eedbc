//! Adds `UserInfo`: who asks. What proved it is taken out of the request.

use crate::authentication::{ALL_UNAUTHENTICATED, Authenticator, Proofs};
use crate::metrics::auth::AuthMetrics;
use crate::request::context::{CloseConnection, Connection, LoopbackUser};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, Version};
use tokio::time::Instant;

/// What the filter needs.
#[derive(Clone)]
pub struct Authentication {
    /// Who finds out.
    pub authenticator: Authenticator,
    /// Where it counts.
    pub metrics: AuthMetrics,
}

/// Finds out who asks, or refuses.
pub async fn authentication(State(state): State<Authentication>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let (mut head, body) = request.into_parts();
    let proofs = Proofs {
        loopback: head.extensions.get::<LoopbackUser>(),
        connection: head.extensions.get::<Connection>(),
        headers: &head.headers,
        path: head.uri.path(),
    };
    let user = state.authenticator.authenticate(proofs).await;
    let name = user.as_ref().ok().map(|user| user.name.as_str());
    state.metrics.authenticated(name, started.elapsed());
    // Who has shown nothing may not keep an HTTP/2 connection, on which requests are cheaper for them than for us. The
    // front proxy keeps its own, whomever it speaks for.
    let is_nobody = user.as_ref().map_or(true, |user| user.is_in(ALL_UNAUTHENTICATED));
    let connection = head.extensions.get::<Connection>();
    let shows_nothing = connection.is_some_and(|connection| connection.peer.is_none());
    let is_http2 = head.version == Version::HTTP_2;
    let ends = is_nobody && shows_nothing && is_http2 && state.authenticator.is_delegating();
    let mut response = match user {
        Ok(user) => {
            let names = head
                .headers
                .keys()
                .filter(|name| state.authenticator.is_proof(name));
            let proofs: Vec<HeaderName> = names.cloned().collect();
            for proof in proofs {
                head.headers.remove(proof);
            }
            head.extensions.insert(user);
            next.run(Request::from_parts(head, body)).await
        }
        Err(error) => error.into_response(),
    };
    if ends {
        response.extensions_mut().insert(CloseConnection);
    }
    response
}
