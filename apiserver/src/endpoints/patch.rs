//! PATCH of an object, its status or its scale.

use super::scope::Endpoint;
use super::{ApiContext, Call, response};
use crate::negotiation::{PatchType, ResponseKind, patch_type};
use crate::registry::patch::{Patch, unknown_fields};
use crate::registry::{Part, Unstructured};
use crate::request::body::{REQUEST_BODY_BYTES_MAX, read_body};
use crate::request::options::PatchOptions;
use crate::resources::field;
use crate::serializer::{decode_patch, strategic_merge};
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
    let patch_type = patch_type(call.header(CONTENT_TYPE), scope.definition.builtin.is_some())?;
    let representation = response::negotiate(&call, &scope, ResponseKind::Object)?;
    let body = read_body(
        &call.headers,
        std::mem::take(&mut call.body),
        REQUEST_BODY_BYTES_MAX,
    )
    .await?;
    let options = PatchOptions::parse(&call.context.query, false)?;
    let (value, mut problems) = decode_patch(&body)?;
    if patch_type == PatchType::Json {
        problems = unknown_fields(&value)
            .into_iter()
            .chain(problems)
            .map(|p| format!("json patch {p}"))
            .collect();
    }
    let strict = |problems: &[String]| {
        let text = String::from_utf8_lossy(&body).into_owned();
        let cause = field::invalid(
            "patch",
            text,
            &format!("strict decoding error: {}", problems.join(", ")),
        );
        ApiError::invalid("", "", "", vec![cause])
    };
    response::check_duplicates(&scope, options.write.field_validation, problems, strict)?;
    drop(body);
    let patch = Patch::parse(patch_type, value)?;
    scope.dry_run = options.write.dry_run;
    let encoder = response::encoder(api, &call, &scope, &representation)?;
    let answer = match scope.part {
        Part::Scale => api.registry().patch_scale(&scope, &patch).await?,
        _ => {
            let builtin = scope.definition.builtin;
            let merge = move |current: &Unstructured, patch: &Unstructured| match builtin {
                Some(builtin) => strategic_merge::apply(builtin, current, patch),
                None => Err(ApiError::unsupported_media_type(&[])),
            };
            api.registry().patch(&scope, &patch, &merge).await?
        }
    };
    response::object(encoder, StatusCode::OK, &answer)
}
