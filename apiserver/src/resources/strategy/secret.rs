//! Secrets: the default type, `stringData`, base64, what each type must hold, and immutability.

use super::{Object, at, object_in, text_at};
use crate::registry::names;
use crate::resources::field;
use crate::status::StatusCause;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// Sum of the values in `data`.
const SECRET_BYTES_MAX: usize = 1024 * 1024;
const SERVICE_ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";
const REDACTED: &str = "<secret contents redacted>";

pub(super) fn prepare_for_create(object: &mut Object) {
    take_string_data(object);
    if text_at(object, &["type"]).is_empty() {
        object.insert("type".to_owned(), "Opaque".into());
    }
}

pub(super) fn prepare_for_update(new: &mut Object, old: &Object) {
    if text_at(new, &["type"]).is_empty() {
        let old_type = text_at(old, &["type"]);
        new.insert(
            "type".to_owned(),
            if old_type.is_empty() { "Opaque" } else { old_type }.into(),
        );
    }
    take_string_data(new);
}

/// Null in `data` is an empty value.
pub(super) fn fill_data(object: &mut Object) {
    if let Some(Value::Object(data)) = object.get_mut("data") {
        data.values_mut()
            .filter(|value| value.is_null())
            .for_each(|value| *value = "".into());
    }
}

/// `stringData` is for writing only: it overwrites `data`, encoded.
fn take_string_data(object: &mut Object) {
    let Some(Value::Object(texts)) = object.remove("stringData") else {
        return;
    };
    if texts.is_empty() {
        return;
    }
    let data = object_in(object, "data");
    for (key, text) in texts {
        data.insert(key, STANDARD.encode(text.as_str().unwrap_or_default()).into());
    }
}

pub(super) fn validate(object: &Object) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let mut bytes = 0_usize;
    let none = Object::new();
    let data = at(object, &["data"]).and_then(Value::as_object).unwrap_or(&none);
    for (key, value) in data {
        let path = format!("data[{key}]");
        causes.extend(
            names::is_config_map_key(key)
                .iter()
                .map(|complaint| field::invalid(&path, key.as_str(), complaint)),
        );
        match decode(value) {
            Some(decoded) => bytes += decoded.len(),
            None => causes.push(field::invalid(path, REDACTED, "must be base64")),
        }
    }
    if bytes > SECRET_BYTES_MAX {
        causes.push(field::too_long("data", SECRET_BYTES_MAX));
    }
    causes.extend(validate_type(object, data));
    causes
}

pub(super) fn validate_update(new: &Object, old: &Object) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    if text_at(new, &["type"]) != text_at(old, &["type"]) {
        causes.push(field::immutable("type", text_at(new, &["type"])));
    }
    let immutable = |object: &Object| object.get("immutable") == Some(&Value::Bool(true));
    if immutable(old) {
        if !immutable(new) {
            causes.push(field::forbidden(
                "immutable",
                "field is immutable when `immutable` is set",
            ));
        }
        if at(new, &["data"]) != at(old, &["data"]) {
            causes.push(field::forbidden(
                "data",
                "field is immutable when `immutable` is set",
            ));
        }
    }
    causes.extend(validate(new));
    causes
}

/// What a Secret of this type must hold.
fn validate_type(object: &Object, data: &Object) -> Vec<StatusCause> {
    let missing = |key: &str| (!data.contains_key(key)).then(|| field::required(format!("data[{key}]"), ""));
    match text_at(object, &["type"]) {
        "kubernetes.io/service-account-token" => {
            let account = text_at(object, &["metadata", "annotations", SERVICE_ACCOUNT_ANNOTATION]);
            let path = format!("metadata.annotations[{SERVICE_ACCOUNT_ANNOTATION}]");
            if account.is_empty() {
                vec![field::required(path, "")]
            } else {
                Vec::new()
            }
        }
        "kubernetes.io/dockercfg" => validate_json(data, ".dockercfg").into_iter().collect(),
        "kubernetes.io/dockerconfigjson" => validate_json(data, ".dockerconfigjson").into_iter().collect(),
        "kubernetes.io/basic-auth" => match (missing("username"), missing("password")) {
            (Some(username), Some(password)) => vec![username, password],
            _ => Vec::new(),
        },
        "kubernetes.io/ssh-auth" => {
            let key = "ssh-privatekey";
            let empty = text_at(data, &[key]).is_empty();
            if empty {
                vec![field::required(format!("data[{key}]"), "")]
            } else {
                Vec::new()
            }
        }
        "kubernetes.io/tls" => [missing("tls.crt"), missing("tls.key")]
            .into_iter()
            .flatten()
            .collect(),
        _ => Vec::new(),
    }
}

fn validate_json(data: &Object, key: &str) -> Option<StatusCause> {
    let path = format!("data[{key}]");
    let Some(value) = data.get(key) else {
        return Some(field::required(path, ""));
    };
    let parsed = serde_json::from_slice::<Object>(&decode(value).unwrap_or_default());
    parsed
        .err()
        .map(|error| field::invalid(path, REDACTED, &error.to_string()))
}

fn decode(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(text) => STANDARD.decode(text).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            _ => panic!("not an object"),
        }
    }

    #[track_caller]
    fn check(secret: Value, fields: &[&str]) {
        let causes = validate(&object(secret));
        assert_eq!(
            causes
                .iter()
                .map(|cause| cause.field.as_str())
                .collect::<Vec<_>>(),
            fields
        );
    }

    #[test]
    fn string_data_becomes_data() {
        let mut secret = object(json!({"data": {"a": "YQ==", "b": "Yg=="}, "stringData": {"b": "c"}}));
        prepare_for_create(&mut secret);
        assert_eq!(
            Value::from(secret),
            json!({"type": "Opaque", "data": {"a": "YQ==", "b": "Yw=="}})
        );
    }

    #[test]
    fn secrets_hold_what_their_type_says() {
        check(json!({"type": "Opaque", "data": {"a": "YQ=="}}), &[]);
        check(json!({"data": {"a/b": "YQ=="}}), &["data[a/b]"]);
        check(json!({"data": {"a": "not base64"}}), &["data[a]"]);
        check(
            json!({"data": {"a": STANDARD.encode(vec![0; SECRET_BYTES_MAX])}}),
            &[],
        );
        check(
            json!({"data": {"a": STANDARD.encode(vec![0; SECRET_BYTES_MAX + 1])}}),
            &["data"],
        );
        check(
            json!({"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
            &["data[tls.key]"],
        );
        check(
            json!({"type": "kubernetes.io/basic-auth"}),
            &["data[username]", "data[password]"],
        );
        check(
            json!({"type": "kubernetes.io/basic-auth", "data": {"username": ""}}),
            &[],
        );
        check(
            json!({"type": "kubernetes.io/ssh-auth", "data": {"ssh-privatekey": ""}}),
            &["data[ssh-privatekey]"],
        );
        check(json!({"type": "kubernetes.io/dockercfg"}), &["data[.dockercfg]"]);
        check(
            json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}),
            &[],
        );
        check(
            json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "ew=="}}),
            &["data[.dockerconfigjson]"],
        );
        check(
            json!({"type": "kubernetes.io/service-account-token"}),
            &["metadata.annotations[kubernetes.io/service-account.name]"],
        );
    }

    #[test]
    fn immutable_secrets_stay_as_they_are() {
        let old = object(json!({"type": "Opaque", "immutable": true, "data": {"a": "YQ=="}}));
        let fields = |new: Value| {
            validate_update(&object(new), &old)
                .into_iter()
                .map(|cause| cause.field)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            fields(json!({"type": "Opaque", "immutable": true, "data": {"a": "YQ=="}, "metadata": {}})),
            Vec::<String>::new()
        );
        assert_eq!(
            fields(json!({"type": "x", "data": {"a": "Yg=="}})),
            ["type", "immutable", "data"]
        );
    }
}
