//! Adds `Authorized`: the proof that the user may.

use super::{Info, earlier};
use crate::authentication::UserInfo;
use crate::authorization::authorize;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;

/// Decides, or refuses.
pub async fn authorization(mut request: Request, next: Next) -> Response {
    let (user, info): (Arc<UserInfo>, Info) = match (earlier(&request), earlier(&request)) {
        (Ok(user), Ok(info)) => (user, info),
        (Err(response), _) | (_, Err(response)) => return *response,
    };
    match authorize(&user, &info) {
        Ok(authorized) => {
            request.extensions_mut().insert(authorized);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}
