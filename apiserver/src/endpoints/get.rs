//! GET of one object, its status or its scale.

use super::scope::Endpoint;
use super::{ApiContext, Call, response};
use crate::negotiation::ResponseKind;
use crate::registry::{Answer, Part};
use crate::request::options::GetOptions;
use crate::status::ApiError;
use axum::body::Body;
use http::Response;

pub(super) async fn serve(
    api: &ApiContext,
    endpoint: Endpoint,
    call: Call,
) -> Result<Response<Body>, ApiError> {
    let scope = endpoint.scope;
    let representation = response::negotiate(&call, &scope, ResponseKind::Object)?;
    let options = GetOptions::parse(&call.context.query)?;
    let encoder = response::encoder(api, &call, &scope, &representation)?;
    let answer = match scope.part {
        Part::Scale => api.registry().get_scale(&scope, &options).await?,
        _ => Answer::Stored(api.registry().get(&scope, &options).await?),
    };
    response::compressed_object(&call, encoder, &answer)
}
