//! Replaces `UserInfo` by the user in whose name a request wishes to be carried out, if who asks may do that.

use super::earlier;
use crate::authentication::UserInfo;
use crate::authentication::impersonation::{Impersonation, is_wish};
use crate::authorization::Authorizer;
use crate::status::ApiError;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::HeaderName;
use std::sync::Arc;

/// Carries the request out in another's name, or refuses.
pub async fn impersonation(
    State(authorizer): State<Authorizer>,
    mut request: Request,
    next: Next,
) -> Response {
    let wish = match Impersonation::of(request.headers()) {
        Ok(None) => return next.run(request).await,
        Ok(Some(wish)) => wish,
        Err(error) => return error.into_response(),
    };
    let user: Arc<UserInfo> = match earlier(&request) {
        Ok(user) => user,
        Err(response) => return *response,
    };
    if let Err(error) = permit(&authorizer, &user, &wish).await {
        return error.into_response();
    }
    tracing::debug!(
        user = user.name,
        impersonated = wish.user.name,
        "is impersonating"
    );
    let wishes: Vec<HeaderName> = request
        .headers()
        .keys()
        .filter(|name| is_wish(name))
        .cloned()
        .collect();
    for wish in wishes {
        request.headers_mut().remove(wish);
    }
    request.extensions_mut().insert(Arc::new(wish.user));
    next.run(request).await
}

async fn permit(authorizer: &Authorizer, user: &UserInfo, wish: &Impersonation) -> Result<(), ApiError> {
    for need in &wish.needs {
        authorizer.permit(user, need).await?;
    }
    Ok(())
}
