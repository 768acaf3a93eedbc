//! The scale subresource: `autoscaling/v1 Scale`, read from and written to the paths that the CRD names. Pure.

use super::object_meta::{metadata, text};
use super::{Answer, Registry, RequestScope, Unstructured, value_of};
use crate::request::options::GetOptions;
use crate::resources::definition::{PrinterColumn, ResourceDefinition, ScalePaths};
use crate::resources::field;
use crate::status::{ApiError, StatusCause};
use serde_json::{Map, Value, json};

const API_VERSION: &str = "autoscaling/v1";
const KIND: &str = "Scale";
/// Says in a Scale that the object has no replicas: the smallest int32, which nobody may write.
const UNSET: i64 = i32::MIN as i64;

impl Registry {
    /// The object's scale.
    ///
    /// # Errors
    /// 404, and 500 when the object says nothing of replicas.
    pub async fn get_scale(&self, scope: &RequestScope, options: &GetOptions) -> Result<Answer, ApiError> {
        let object = value_of(scope, &self.get(scope, options).await?)?;
        let (scale, found) = of_object(scope, &object)?;
        if !found {
            let path = &paths(scope)?.spec_replicas;
            return Err(ApiError::internal(format!(
                "the spec replicas field {path:?} does not exist"
            )));
        }
        Ok(Answer::Value(scale))
    }
}

/// The scale of an object, and whether the object says how many replicas it wants.
fn of_object(scope: &RequestScope, object: &Unstructured) -> Result<(Unstructured, bool), ApiError> {
    let paths = paths(scope)?;
    let number = |path: &str| replicas(object, path).map_err(ApiError::internal);
    let (spec, status) = (number(&paths.spec_replicas)?, number(&paths.status_replicas)?);
    let mut kept = Map::new();
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata(object).get(name) {
            kept.insert(name.to_owned(), value.clone());
        }
    }
    let mut scale_status = json!({"replicas": status.unwrap_or_default()});
    if let Some(path) = &paths.label_selector
        && let Some(selector) = at(object, path).and_then(Value::as_str).filter(|s| !s.is_empty())
    {
        scale_status["selector"] = selector.into();
    }
    let mut scale_spec = Map::new();
    if let Some(replicas) = spec.filter(|n| *n != 0) {
        scale_spec.insert("replicas".to_owned(), replicas.into());
    }
    let scale = [
        ("apiVersion", API_VERSION.into()),
        ("kind", KIND.into()),
        ("metadata", Value::Object(kept)),
        ("spec", Value::Object(scale_spec)),
        ("status", scale_status),
    ];
    Ok((
        scale.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
        spec.is_some(),
    ))
}

/// The scale of an object, for a patch: it says when the object has no replicas.
pub(super) fn of_object_or_unset(
    scope: &RequestScope,
    object: &Unstructured,
) -> Result<Unstructured, ApiError> {
    let (mut scale, found) = of_object(scope, object)?;
    if !found {
        scale.insert("spec".to_owned(), json!({"replicas": UNSET}));
    }
    Ok(scale)
}

/// The object with the replicas of `scale`.
pub(super) fn apply(
    scope: &RequestScope,
    current: &Unstructured,
    scale: &Unstructured,
) -> Result<Unstructured, ApiError> {
    let path = &paths(scope)?.spec_replicas;
    let wanted = scale.get("spec").and_then(|s| s.get("replicas")?.as_i64());
    let wanted = wanted.unwrap_or_default();
    if wanted == UNSET {
        return Err(ApiError::bad_request(format!(
            "the spec replicas field {path:?} cannot be empty"
        )));
    }
    let mut object = current.clone();
    put(&mut object, path, wanted.into());
    // A version in the scale is the parent's.
    let version = text(scale, "resourceVersion");
    if !version.is_empty() {
        super::object_meta::metadata_mut(&mut object).insert("resourceVersion".to_owned(), version.into());
    }
    Ok(object)
}

/// The body is a Scale.
pub(super) fn check_type(object: &Unstructured) -> Result<(), ApiError> {
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    match (text("apiVersion"), text("kind")) {
        (API_VERSION | "", KIND | "") => Ok(()),
        (API_VERSION | "", kind) => Err(ApiError::bad_request(format!(
            "{kind} in version \"v1\" cannot be handled as a {KIND}"
        ))),
        (other, _) => Err(ApiError::bad_request(format!(
            "the API version in the data ({other}) does not match the expected API version ({API_VERSION})"
        ))),
    }
}

/// The number of replicas is one.
///
/// # Errors
/// The text of the decoding error.
pub(super) fn check_replicas(object: &Unstructured) -> Result<(), String> {
    let got = match object.get("spec").and_then(|s| s.get("replicas")) {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => return Ok(()),
        Some(Value::Number(n)) => format!("number {n}"),
        Some(Value::String(_)) => "string".to_owned(),
        Some(Value::Bool(_)) => "bool".to_owned(),
        Some(Value::Array(_)) => "array".to_owned(),
        Some(Value::Object(_)) => "object".to_owned(),
    };
    Err(format!(
        "json: cannot unmarshal {got} into Go struct field ScaleSpec.spec.replicas of type int32"
    ))
}

/// The scale of an object that an update answered with.
pub(super) fn answer(scope: &RequestScope, answer: Answer) -> Result<Answer, ApiError> {
    let object = match answer {
        Answer::Stored(object) => value_of(scope, &object)?,
        Answer::Value(object) => object,
    };
    Ok(Answer::Value(of_object(scope, &object)?.0))
}

/// What is wrong with the number of replicas at `path`.
pub(super) fn validate_replicas(object: &Unstructured, path: &str) -> Option<StatusCause> {
    match replicas(object, path) {
        Err(error) => Some(field::invalid(path, 0, &error)),
        Ok(Some(n)) if n < 0 => Some(field::invalid(path, n, "should be a non-negative integer")),
        Ok(Some(n)) if n > i64::from(i32::MAX) => Some(field::invalid(
            path,
            n,
            &format!("should be less than or equal to {}", i32::MAX),
        )),
        Ok(_) => None,
    }
}

/// What the representations of a Scale need to know of it: its columns are not its parent's.
#[must_use]
pub fn definition(parent: &ResourceDefinition) -> ResourceDefinition {
    let column = |name: &str, kind: &str, json_path: &str, description: &str| PrinterColumn {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: String::new(),
        description: description.to_owned(),
        priority: 0,
        json_path: json_path.to_owned(),
    };
    ResourceDefinition {
        group: "autoscaling".to_owned(),
        version: "v1".to_owned(),
        kind: KIND.to_owned(),
        list_kind: "ScaleList".to_owned(),
        builtin: None,
        columns: vec![
            column(
                "Desired",
                "integer",
                ".spec.replicas",
                "Number of desired replicas",
            ),
            column(
                "Available",
                "integer",
                ".status.replicas",
                "Number of actual replicas",
            ),
            column(
                "Age",
                "date",
                ".metadata.creationTimestamp",
                "When the object was created",
            ),
        ],
        ..parent.clone()
    }
}

fn paths(scope: &RequestScope) -> Result<&ScalePaths, ApiError> {
    scope
        .definition
        .scale
        .as_ref()
        .ok_or_else(|| ApiError::internal("the kind has no scale"))
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('.').unwrap_or(path).split('.')
}

fn at<'a>(object: &'a Unstructured, path: &str) -> Option<&'a Value> {
    let mut segments = segments(path);
    let first = object.get(segments.next()?)?;
    segments.try_fold(first, |value, segment| value.get(segment))
}

fn replicas(object: &Unstructured, path: &str) -> Result<Option<i64>, String> {
    match at(object, path) {
        None => Ok(None),
        Some(value) => match value.as_i64() {
            Some(n) => Ok(Some(n)),
            None => Err(format!(
                "{path} accessor error: {value} is of the wrong type, expected int64"
            )),
        },
    }
}

fn put(object: &mut Unstructured, path: &str, value: Value) {
    let mut map = object;
    let mut segments = segments(path).peekable();
    while let Some(segment) = segments.next() {
        if segments.peek().is_none() {
            map.insert(segment.to_owned(), value);
            return;
        }
        let next = map.entry(segment).or_insert(Value::Null);
        if !next.is_object() {
            *next = Value::Object(Map::new());
        }
        match next {
            Value::Object(inner) => map = inner,
            _ => return,
        }
    }
}
