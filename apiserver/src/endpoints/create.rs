//! POST to a collection.

use super::scope::Endpoint;
use super::{ApiContext, Call, response};
use crate::negotiation::{ResponseKind, negotiate_input};
use crate::request::body::{REQUEST_BODY_BYTES_MAX, read_body};
use crate::request::options::WriteOptions;
use crate::serializer::{Expected, decode, strict_decoding_error};
use crate::status::ApiError;
use axum::body::Body;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};

pub(super) async fn serve(
    api: &ApiContext,
    endpoint: Endpoint,
    mut call: Call,
) -> Result<Response<Body>, ApiError> {
    let mut scope = endpoint.scope;
    let definition = scope.definition.clone();
    let representation = response::negotiate(&call, &scope, ResponseKind::Object)?;
    let media_type = negotiate_input(call.header(CONTENT_TYPE), definition.builtin.is_some())?;
    let body = read_body(
        &call.headers,
        std::mem::take(&mut call.body),
        REQUEST_BODY_BYTES_MAX,
    )
    .await?;
    let options = WriteOptions::parse_create(&call.context.query)?;
    let expected = Expected {
        api_version: &definition.api_version(),
        kind: &definition.kind,
    };
    let decoded = decode(media_type, &body, expected)?;
    response::check_kind(&scope, &decoded.object, &body)?;
    drop(body);
    let strict = |problems: &[String]| strict_decoding_error(&definition.version, &definition.kind, problems);
    response::check_duplicates(&scope, options.field_validation, decoded.duplicates, strict)?;
    scope.dry_run = options.dry_run;
    let encoder = response::encoder(api, &call, &scope, &representation)?;
    let answer = api.registry().create(&scope, decoded.object).await?;
    response::object(encoder, StatusCode::CREATED, &answer)
}
