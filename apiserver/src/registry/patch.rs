//! What a patch makes of an object: JSON patch and merge patch, on values. Strategic merge is `serializer`'s.
//!
//! Pure. It knows the limits that keep a small patch from making a huge object, and nothing of what may be changed.

use super::json_patch;
use crate::negotiation::PatchType;
use crate::status::{ApiError, StatusDetails};
use serde_json::{Map, Value};

/// Operations in one JSON patch.
const JSON_PATCH_OPERATIONS_MAX: usize = 10_000;
/// What all `copy` operations of one JSON patch may add, in bytes: as much as a request may hold.
const JSON_PATCH_COPY_BYTES_MAX: usize = crate::request::body::REQUEST_BODY_BYTES_MAX;

/// A patch that is well formed.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902. What an operation says is found out when it is its turn, as upstream.
    Json(Vec<Map<String, Value>>),
    /// RFC 7386.
    Merge(Map<String, Value>),
    /// Kubernetes' own, for built-in kinds.
    StrategicMerge(Map<String, Value>),
}

impl Patch {
    /// Reads a patch.
    ///
    /// # Errors
    /// 400 for what is malformed, 413 for too many operations, 415 for server-side apply.
    pub fn parse(patch_type: PatchType, body: Value) -> Result<Self, ApiError> {
        let object = |body: Value| match body {
            Value::Object(map) => Ok(map),
            other => Err(cannot_unmarshal(&other, "map[string]interface {}")),
        };
        match patch_type {
            PatchType::Merge => Ok(Self::Merge(object(body)?)),
            PatchType::StrategicMerge => Ok(Self::StrategicMerge(object(body)?)),
            PatchType::Json => {
                let operations = match body {
                    Value::Array(operations) => operations,
                    Value::Null => Vec::new(),
                    other => return Err(cannot_unmarshal(&other, "[]handlers.jsonPatchOp")),
                };
                let count = operations.len();
                if count > JSON_PATCH_OPERATIONS_MAX {
                    return Err(ApiError::request_entity_too_large(format!(
                        "The allowed maximum operations in a JSON patch is {JSON_PATCH_OPERATIONS_MAX}, got {count}"
                    )));
                }
                let operation = |value: Value| match value {
                    Value::Object(operation) => Ok(operation),
                    Value::Null => Ok(Map::new()),
                    other => Err(cannot_unmarshal(&other, "handlers.jsonPatchOp")),
                };
                Ok(Self::Json(
                    operations.into_iter().map(operation).collect::<Result<_, _>>()?,
                ))
            }
            PatchType::Apply => Err(ApiError::unsupported_media_type(&[
                PatchType::Json.as_str(),
                PatchType::Merge.as_str(),
            ])),
        }
    }

    /// The object after a JSON patch or a merge patch.
    ///
    /// # Errors
    /// 422 when the patch does not apply, or makes something that is no object.
    pub fn apply(&self, object: &Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
        let mut value = Value::Object(object.clone());
        match self {
            Self::Json(operations) => apply_json(&mut value, operations)?,
            Self::Merge(patch) | Self::StrategicMerge(patch) => merge(&mut value, patch),
        }
        match value {
            Value::Object(map) => Ok(map),
            _ => Err(does_not_apply()),
        }
    }
}

/// The fields of a JSON patch's operations that mean nothing, for the fieldValidation of the request.
#[must_use]
pub fn unknown_fields(body: &Value) -> Vec<String> {
    let operations = body.as_array().into_iter().flatten().enumerate();
    let unknown = operations.flat_map(|(i, operation)| {
        let names = operation.as_object().into_iter().flatten().map(|(name, _)| name);
        names
            .filter(|name| !["op", "path", "from", "value"].contains(&name.as_str()))
            .map(move |name| format!("unknown field \"[{i}].{name}\""))
    });
    unknown.collect()
}

fn cannot_unmarshal(value: &Value, into: &str) -> ApiError {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    ApiError::bad_request(format!(
        "error decoding patch: json: cannot unmarshal {kind} into Go value of type {into}"
    ))
}

fn apply_json(value: &mut Value, operations: &[Map<String, Value>]) -> Result<(), ApiError> {
    let mut copied = 0;
    for operation in operations {
        let text = |name: &str| operation.get(name).and_then(Value::as_str);
        if text("op") == Some("copy") {
            let source = text("from").and_then(|from| json_patch::get(value, from));
            copied += source.map_or(0, |source| source.to_string().len());
            if copied > JSON_PATCH_COPY_BYTES_MAX {
                return Err(does_not_apply());
            }
        }
        json_patch::apply(value, operation).ok_or_else(does_not_apply)?;
    }
    Ok(())
}

/// kube-apiserver says no more than this, whatever the reason.
fn does_not_apply() -> ApiError {
    let mut error = ApiError::new(
        422,
        "Invalid",
        "the server rejected our request due to an error in our request",
    );
    error.details = Some(Box::new(StatusDetails::default()));
    error
}

fn merge(value: &mut Value, patch: &Map<String, Value>) {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let Value::Object(object) = value else { return };
    for (key, change) in patch {
        match change {
            Value::Null => {
                object.remove(key);
            }
            Value::Object(inner) => merge(object.entry(key.as_str()).or_insert(Value::Null), inner),
            other => {
                object.insert(key.clone(), without_nulls(other));
            }
        }
    }
}

/// A list of a merge patch as kube-apiserver stores it: fields that are null go there too, elements that are null stay.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        Value::Object(fields) => {
            let set = fields.iter().filter(|(_, value)| !value.is_null());
            set.map(|(key, value)| (key.clone(), without_nulls(value)))
                .collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(patch_type: PatchType, patch: Value, expect: Result<Value, u16>) {
        let Value::Object(object) = json!({"a": {"b": 1, "c": [1, 2, 3]}, "d": "x"}) else {
            panic!("an object")
        };
        let got = Patch::parse(patch_type, patch.clone()).and_then(|p| p.apply(&object));
        assert_eq!(got.map(Value::Object).map_err(|e| e.code), expect, "{patch}");
    }

    #[test]
    fn merge_patches() {
        let check = |patch, expect| check(PatchType::Merge, patch, expect);
        check(
            json!({"d": null, "e": {"f": null, "g": 1}}),
            Ok(json!({"a": {"b": 1, "c": [1, 2, 3]}, "e": {"g": 1}})),
        );
        check(
            json!({"a": {"c": [[{"q": null}, {"r": {"s": null, "t": [null]}}], null]}}),
            Ok(json!({"a": {"b": 1, "c": [[{}, {"r": {"t": [null]}}], null]}, "d": "x"})),
        );
        check(
            json!({"a": {"c": []}}),
            Ok(json!({"a": {"b": 1, "c": []}, "d": "x"})),
        );
        check(
            json!({"a": 9007199254740993_i64, "d": {"e": 1}}),
            Ok(json!({"a": 9007199254740993_i64, "d": {"e": 1}})),
        );
        check(json!([]), Err(400));
        check(json!("x"), Err(400));
    }

    #[test]
    fn json_patches() {
        let check = |patch, expect| check(PatchType::Json, patch, expect);
        check(
            json!([{"op": "test", "path": "/a/b", "value": 1.0}, {"op": "remove", "path": "/a"}]),
            Ok(json!({"d": "x"})),
        );
        check(
            json!([{"op": "add", "path": "/a/c/-", "value": 4}, {"op": "move", "from": "/d", "path": "/a/b"}]),
            Ok(json!({"a": {"b": "x", "c": [1, 2, 3, 4]}})),
        );
        check(json!([{"op": "test", "path": "/a/b", "value": 2}]), Err(422));
        check(json!([{"op": "remove", "path": "/x"}]), Err(422));
        check(json!([{"op": "replace", "path": "", "value": 1}]), Err(422));
        check(json!([{"op": "frobnicate", "path": "/a"}]), Err(422));
        check(json!([{"op": "remove"}]), Err(422));
        check(json!([1]), Err(400));
        check(json!([null]), Err(422));
        check(json!(null), Ok(json!({"a": {"b": 1, "c": [1, 2, 3]}, "d": "x"})));
        check(json!({"op": "remove"}), Err(400));
        let many = vec![json!({"op": "test", "path": "/d", "value": "x"}); JSON_PATCH_OPERATIONS_MAX + 1];
        check(many.into(), Err(413));
    }

    #[test]
    fn copies_do_not_make_an_object_huge() {
        let doubling = |i: usize| json!({"op": "copy", "from": "/a", "path": format!("/a/copy{i}")});
        let bomb: Vec<Value> = (0..24).map(doubling).collect();
        let patch = Patch::parse(PatchType::Json, bomb.into());
        let Value::Object(object) = json!({"a": {"b": "x".repeat(1000)}}) else {
            panic!("an object")
        };
        assert_eq!(patch.and_then(|p| p.apply(&object)).map_err(|e| e.code), Err(422));
    }
}
