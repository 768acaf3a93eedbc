//! Adds `UserInfo`: who asks. What proved it is taken out of the request.

use crate::authentication::{authenticate, is_proof};
use crate::request::context::{Connection, LoopbackUser};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderName;

/// Finds out who asks, or refuses.
pub async fn authentication(mut request: Request, next: Next) -> Response {
    let extensions = request.extensions();
    let user = authenticate(
        extensions.get::<LoopbackUser>(),
        extensions.get::<Connection>(),
        request.headers(),
    );
    match user {
        Ok(user) => {
            let proofs: Vec<HeaderName> = request
                .headers()
                .keys()
                .filter(|name| is_proof(name))
                .cloned()
                .collect();
            proofs
                .iter()
                .for_each(|name| drop(request.headers_mut().remove(name)));
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}
