//! Adds `Authorized`: the proof that the user may.

use super::{Info, earlier};
use crate::authentication::UserInfo;
use crate::authorization::Authorizer;
use crate::metrics::auth::AuthMetrics;
use crate::request::Query;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use tokio::time::Instant;

/// What the filter needs.
#[derive(Clone)]
pub struct Authorization {
    /// Who decides.
    pub authorizer: Authorizer,
    /// Where it counts.
    pub metrics: AuthMetrics,
}

/// Decides, or refuses.
pub async fn authorization(State(state): State<Authorization>, mut request: Request, next: Next) -> Response {
    let (user, info): (Arc<UserInfo>, Info) = match (earlier(&request), earlier(&request)) {
        (Ok(user), Ok(info)) => (user, info),
        (Err(response), _) | (_, Err(response)) => return *response,
    };
    let query: Arc<Query> = match earlier(&request) {
        Ok(query) => query,
        Err(response) => return *response,
    };
    let started = Instant::now();
    let decision = state.authorizer.authorize(&user, &info, &query).await;
    let result = match &decision {
        Ok(_) => "allowed",
        Err(error) if error.code == 403 => "no-opinion",
        Err(_) => "error",
    };
    state.metrics.authorized(result, started.elapsed());
    match decision {
        Ok(authorized) => {
            request.extensions_mut().insert(authorized);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}
