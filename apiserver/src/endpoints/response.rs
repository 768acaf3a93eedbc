//! Answers: objects and documents, in the representation that the client accepts.

use super::{ApiContext, Call};
use crate::negotiation::{Representation, ResponseKind, negotiate_output};
use crate::registry::{Answer, Part, RequestScope, Unstructured, scale};
use crate::request::options::{FieldValidation, IncludeObject};
use crate::serializer::gzip::{BodyCompressor, ContentEncoding, accepts_gzip};
use crate::serializer::{self, ObjectEncoder, Source};
use crate::status::ApiError;
use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, USER_AGENT, VARY};
use http::{HeaderValue, Response, StatusCode};
use serde_json::Value;
use std::sync::Arc;

/// The representation of an answer.
pub(super) fn negotiate(
    call: &Call,
    scope: &RequestScope,
    kind: ResponseKind,
) -> Result<Representation, ApiError> {
    let has_protobuf = scope.definition.builtin.is_some();
    negotiate_output(
        call.header(ACCEPT),
        call.header(USER_AGENT),
        call.context.query.first("pretty"),
        kind,
        has_protobuf,
    )
}

/// What encodes the answer.
pub(super) fn encoder(
    api: &ApiContext,
    call: &Call,
    scope: &RequestScope,
    representation: &Representation,
) -> Result<ObjectEncoder, ApiError> {
    let include = match IncludeObject::parse(&call.context.query)? {
        IncludeObject::None => serializer::IncludeObject::None,
        IncludeObject::Metadata => serializer::IncludeObject::Metadata,
        IncludeObject::Object => serializer::IncludeObject::Object,
    };
    let definition = match scope.part {
        Part::Scale => Arc::new(scale::definition(&scope.definition)),
        _ => scope.definition.clone(),
    };
    Ok(ObjectEncoder::new(
        representation,
        &definition,
        include,
        api.now(),
    ))
}

/// One object.
pub(super) fn object(
    encoder: ObjectEncoder,
    code: StatusCode,
    answer: &Answer,
) -> Result<Response<Body>, ApiError> {
    Ok(object_bytes(encoder, code, answer)?.map(Body::from))
}

fn object_bytes(
    mut encoder: ObjectEncoder,
    code: StatusCode,
    answer: &Answer,
) -> Result<Response<Bytes>, ApiError> {
    let source = match answer {
        Answer::Stored(object) => Source::Stored(object),
        Answer::Value(value) => Source::Value(value),
    };
    let mut response = Response::new(encoder.encode_object(source)?);
    *response.status_mut() = code;
    let content_type = HeaderValue::from_static(encoder.content_type());
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

/// One object, compressed when it is long and the client accepts that.
pub(super) fn compressed_object(
    call: &Call,
    encoder: ObjectEncoder,
    answer: &Answer,
) -> Result<Response<Body>, ApiError> {
    compressed(call, object_bytes(encoder, StatusCode::OK, answer)?)
}

/// A whole body, compressed when it is long and the client accepts that.
pub(super) fn compressed(call: &Call, response: Response<Bytes>) -> Result<Response<Body>, ApiError> {
    let mut compressor = BodyCompressor::new(accepts_gzip(call.header(ACCEPT_ENCODING)));
    compressor.write(response.body()).map_err(ApiError::internal)?;
    let (encoding, bytes) = compressor.finish().map_err(ApiError::internal)?;
    let mut response = response.map(|_| Body::from(bytes));
    set_encoding(&mut response, encoding);
    Ok(response)
}

/// The headers of a body that is, or might have been, compressed.
pub(super) fn set_encoding(response: &mut Response<Body>, encoding: ContentEncoding) {
    if encoding == ContentEncoding::Gzip {
        response
            .headers_mut()
            .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// A body says what it is; those of built-in kinds need not.
pub(super) fn check_kind(scope: &RequestScope, object: &Unstructured, body: &[u8]) -> Result<(), ApiError> {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default();
    if !kind.is_empty() || scope.definition.builtin.is_some() || scope.part == Part::Scale {
        return Ok(());
    }
    let cause = format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body));
    Err(serializer::unrecognized(&scope.definition.kind, &cause, body))
}

/// Duplicate fields of a body: errors or warnings, as the request asks.
pub(super) fn check_duplicates(
    scope: &RequestScope,
    validation: FieldValidation,
    duplicates: Vec<String>,
    strict: impl FnOnce(&[String]) -> ApiError,
) -> Result<(), ApiError> {
    match validation {
        FieldValidation::Strict if !duplicates.is_empty() => Err(strict(&duplicates)),
        FieldValidation::Warn => {
            duplicates
                .into_iter()
                .for_each(|duplicate| scope.warnings.add(duplicate));
            Ok(())
        }
        FieldValidation::Strict | FieldValidation::Ignore => Ok(()),
    }
}
