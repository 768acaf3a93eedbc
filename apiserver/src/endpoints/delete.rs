//! DELETE of one object.

use super::scope::Endpoint;
use super::{ApiContext, Call, response};
use crate::negotiation::{ResponseKind, negotiate_input};
use crate::registry::Answer;
use crate::registry::delete::DeleteAnswer;
use crate::request::body::{REQUEST_BODY_BYTES_MAX, read_body};
use crate::request::options::DeleteOptions;
use crate::serializer::{Expected, decode};
use crate::status::ApiError;
use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use serde_json::Value;

pub(super) async fn serve(
    api: &ApiContext,
    endpoint: Endpoint,
    mut call: Call,
) -> Result<Response<Body>, ApiError> {
    let mut scope = endpoint.scope;
    let representation = response::negotiate(&call, &scope, ResponseKind::Object)?;
    let options = delete_options(&mut call).await?;
    scope.dry_run = options.dry_run;
    let encoder = response::encoder(api, &call, &scope, &representation)?;
    let deleted = api.registry().delete(&scope, &options).await?;
    // As upstream: only who asked for it in the old way is told that the object is still there.
    let code = match (deleted.gone, options.orphan_dependents) {
        (false, Some(false)) => StatusCode::ACCEPTED,
        _ => StatusCode::OK,
    };
    match deleted.answer {
        DeleteAnswer::Status(status) => response::object(encoder, code, &Answer::Value(status)),
        DeleteAnswer::Object(answer) => response::object(encoder, code, &answer),
    }
}

/// The options, from the body or, when that is empty, from the query.
pub(super) async fn delete_options(call: &mut Call) -> Result<DeleteOptions, ApiError> {
    let body = read_body(
        &call.headers,
        std::mem::take(&mut call.body),
        REQUEST_BODY_BYTES_MAX,
    )
    .await?;
    if body.is_empty() {
        return DeleteOptions::from_query(&call.context.query);
    }
    let media_type = negotiate_input(call.header(CONTENT_TYPE), true)?;
    let decoded = decode(
        media_type,
        &body,
        Expected {
            api_version: "meta.k8s.io/v1",
            kind: "DeleteOptions",
        },
    )?;
    DeleteOptions::from_object(&Value::Object(decoded.object))
}
