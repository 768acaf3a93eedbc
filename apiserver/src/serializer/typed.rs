//! The built-in kinds have types: what JSON or YAML says of them must fit. Pure.
//!
//! Upstream reads such bodies into structs. So a value of another type is refused, a field that the type does not have is
//! left out and reported, null is the same as nothing, times have one spelling, and zero values that JSON would not have
//! are left out. The types are the tables of `protobuf/descriptors.rs`: what is accepted here can be written there.

use super::protobuf::descriptors::{Field, Kind, Message, SCHEMA, Shape, message_of};
use super::{Expected, type_name};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value};

/// How many unknown fields are reported.
const UNKNOWN_MAX: usize = 100;

/// Makes an object of a built-in kind conform to its type, and returns `unknown field "spec.foo"` for what was left out.
/// Objects of other kinds are not touched.
///
/// # Errors
/// What has another type. A body like that is 400, a patch that makes such an object is 422.
pub fn conform(expected: Expected<'_>, object: &mut Map<String, Value>) -> Result<Vec<String>, String> {
    // A CRD may call its kind DeleteOptions; nothing is known of that one.
    let known = expected.kind != "DeleteOptions" || matches!(expected.api_version, "v1" | "meta.k8s.io/v1");
    let Some(message) = message_of(expected.api_version, expected.kind).filter(|_| known) else {
        return Ok(Vec::new());
    };
    let mut reader = Reader { unknown: Vec::new() };
    let names: Vec<(&str, Option<Value>)> =
        ["apiVersion", "kind"].map(|key| (key, object.remove(key))).into();
    let read = reader.read_message(message, object, "");
    for (key, value) in names {
        if let Some(value) = value {
            object.insert(key.to_owned(), value);
        }
    }
    read.map(|()| reader.unknown)
}

struct Reader {
    unknown: Vec<String>,
}

impl Reader {
    fn read_message(
        &mut self,
        message: &Message,
        object: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), String> {
        let given = std::mem::take(object);
        for (key, value) in given {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            match message.fields.iter().find(|f| f.name == key) {
                Some(field) => {
                    if let Some(value) = self.read_field(field, value, &path)? {
                        object.insert(key, value);
                    }
                }
                None if self.unknown.len() < UNKNOWN_MAX => {
                    self.unknown.push(format!("unknown field {path:?}"))
                }
                None => {}
            }
        }
        Ok(())
    }

    fn read_field(&mut self, field: &Field, value: Value, path: &str) -> Result<Option<Value>, String> {
        Ok(match (field.shape, value) {
            (_, Value::Null) => None,
            (Shape::Kept, value) => Some(self.read_value(field.kind, value, path)?),
            (Shape::One, value) => Some(self.read_value(field.kind, value, path)?).filter(|v| !is_zero(v)),
            (Shape::Many, Value::Array(list)) => {
                let read = |(at, value)| self.read_value(field.kind, value, &format!("{path}[{at}]"));
                let list: Vec<Value> = list.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
                (!list.is_empty()).then_some(Value::Array(list))
            }
            (Shape::Map, Value::Object(map)) => {
                let read = |(key, value)| {
                    let value = self.read_value(field.kind, value, &format!("{path}.{key}"))?;
                    Ok::<_, String>((key, value))
                };
                let map: Map<String, Value> = map.into_iter().map(read).collect::<Result<_, _>>()?;
                (!map.is_empty()).then_some(Value::Object(map))
            }
            (Shape::Many, value) => return Err(mismatch(&value, path, "list")),
            (Shape::Map, value) => return Err(mismatch(&value, path, "map")),
        })
    }

    fn read_value(&mut self, kind: Kind, value: Value, path: &str) -> Result<Value, String> {
        match (kind, value) {
            (Kind::RawJson, value) => Ok(value),
            // An element that is null is the element's zero value.
            (Kind::String | Kind::Bytes, Value::Null) => Ok("".into()),
            (Kind::Message(_), Value::Null) => Ok(Value::Object(Map::new())),
            (Kind::String, value @ Value::String(_))
            | (Kind::Bool, value @ Value::Bool(_))
            | (Kind::Double, value @ Value::Number(_)) => Ok(value),
            (Kind::Int, Value::Number(n)) if n.is_i64() => Ok(Value::Number(n)),
            (Kind::Bytes, Value::String(text)) => match STANDARD.decode(&text) {
                Ok(_) => Ok(Value::String(text)),
                Err(base64::DecodeError::InvalidByte(at, _)) => {
                    Err(format!("illegal base64 data at input byte {at}"))
                }
                Err(_) => Err(format!("illegal base64 data at input byte {}", text.len())),
            },
            (Kind::Time | Kind::MicroTime, Value::String(text)) => {
                let time: Timestamp = text.parse().map_err(|_| {
                    format!("parsing time {text:?} of {path} as \"2006-01-02T15:04:05Z07:00\"")
                })?;
                Ok(if matches!(kind, Kind::MicroTime) {
                    format!("{:.6}", micros(time))
                } else {
                    format!("{:.0}", seconds(time))
                }
                .into())
            }
            (Kind::Message(message), Value::Object(mut object)) => {
                self.read_message(message, &mut object, path)?;
                Ok(Value::Object(object))
            }
            (Kind::SchemaOrBool, value @ Value::Bool(_)) => Ok(value),
            (Kind::SchemaOrArray, Value::Array(list)) => {
                let read =
                    |(at, value)| self.read_value(Kind::Message(SCHEMA), value, &format!("{path}[{at}]"));
                Ok(Value::Array(
                    list.into_iter().enumerate().map(read).collect::<Result<_, _>>()?,
                ))
            }
            (Kind::Strings | Kind::SchemaOrStringArray, Value::Array(list)) => {
                let read = |(at, value)| self.read_value(Kind::String, value, &format!("{path}[{at}]"));
                Ok(Value::Array(
                    list.into_iter().enumerate().map(read).collect::<Result<_, _>>()?,
                ))
            }
            (
                Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStringArray,
                value @ Value::Object(_),
            ) => self.read_value(Kind::Message(SCHEMA), value, path),
            (kind, value) => Err(mismatch(&value, path, type_of(kind))),
        }
    }
}

fn mismatch(value: &Value, path: &str, expected: &str) -> String {
    format!(
        "json: cannot unmarshal {} into Go struct field {path} of type {expected}",
        type_name(value)
    )
}

fn type_of(kind: Kind) -> &'static str {
    match kind {
        Kind::String => "string",
        Kind::Bytes => "[]byte",
        Kind::Bool => "bool",
        Kind::Int => "int64",
        Kind::Double => "float64",
        Kind::Time | Kind::MicroTime => "time",
        Kind::Strings => "[]string",
        Kind::Message(_)
        | Kind::RawJson
        | Kind::SchemaOrArray
        | Kind::SchemaOrBool
        | Kind::SchemaOrStringArray => "object",
    }
}

/// A scalar that Go's JSON leaves out.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Number(n) => n.as_i64() == Some(0),
        Value::Bool(b) => !b,
        _ => false,
    }
}

/// Fractions are cut, not rounded.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_nanosecond().div_euclid(1_000_000_000) as i64).unwrap_or(time)
}

fn micros(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_nanosecond().div_euclid(1000) as i64).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NAMESPACE: Expected<'static> = Expected {
        api_version: "v1",
        kind: "Namespace",
    };
    const CRD: Expected<'static> = Expected {
        api_version: "apiextensions.k8s.io/v1",
        kind: "CustomResourceDefinition",
    };

    fn check(expected: Expected<'_>, given: Value, expect: Value, unknown: &[&str]) {
        let mut object = given.as_object().expect("an object").clone();
        let got = conform(expected, &mut object);
        assert_eq!(
            got,
            Ok(unknown.iter().map(|f| format!("unknown field {f:?}")).collect())
        );
        assert_eq!(Value::Object(object), expect);
    }

    #[test]
    fn what_fits_stays() {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"b": ""}, "generation": 2}, "spec": {}});
        check(NAMESPACE, namespace.clone(), namespace, &[]);
        let other = json!({"any": {"thing": [1]}});
        for kind in ["Status", "DeleteOptions"] {
            check(
                Expected {
                    api_version: "g/v1",
                    kind,
                },
                other.clone(),
                other.clone(),
                &[],
            );
        }
        check(
            Expected {
                api_version: "g/v1",
                kind: "Application",
            },
            other.clone(),
            other,
            &[],
        );
        let schema = json!({"spec": {"versions": [{"name": "v1", "served": false, "schema": {"openAPIV3Schema": {
            "items": [{"type": "string"}], "default": {"a": null}, "additionalProperties": true, "properties": {"x": {"not": {}, "maximum": 1.5}}}}}]}});
        check(CRD, schema.clone(), schema, &[]);
    }

    #[test]
    fn what_does_not_exist_is_left_out_and_reported() {
        check(
            NAMESPACE,
            json!({"metadata": {"name": "a", "clusterName": "x", "labels": null, "annotations": {}, "generateName": ""}, "foo": 1}),
            json!({"metadata": {"name": "a"}}),
            &["foo", "metadata.clusterName"],
        );
        check(
            CRD,
            json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"properties": {"a": {"typ": "x"}}}}}]}}),
            json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"properties": {"a": {}}}}}]}}),
            &["spec.versions[0].schema.openAPIV3Schema.properties.a.typ"],
        );
    }

    #[test]
    fn times_have_one_spelling() {
        let lease = Expected {
            api_version: "coordination.k8s.io/v1",
            kind: "Lease",
        };
        check(
            lease,
            json!({"metadata": {"creationTimestamp": "2026-11-22T12:00:00.9+01:00"}, "spec": {"renewTime": "2026-11-22T12:00:00.1234567Z"}}),
            json!({"metadata": {"creationTimestamp": "2026-11-22T11:00:00Z"}, "spec": {"renewTime": "2026-11-22T12:00:00.123456Z"}}),
            &[],
        );
    }

    #[test]
    fn other_types_are_refused() {
        let refuse = |given: Value, expect: &str| {
            let error =
                conform(NAMESPACE, &mut given.as_object().expect("an object").clone()).expect_err("refused");
            assert!(error.contains(expect), "{error}");
        };
        refuse(
            json!({"metadata": []}),
            "json: cannot unmarshal array into Go struct field metadata of type object",
        );
        refuse(
            json!({"metadata": {"name": 1}}),
            "json: cannot unmarshal number into Go struct field metadata.name of type string",
        );
        refuse(
            json!({"metadata": {"labels": {"a": true}}}),
            "metadata.labels.a of type string",
        );
        refuse(
            json!({"metadata": {"finalizers": "x"}}),
            "metadata.finalizers of type list",
        );
        refuse(
            json!({"metadata": {"generation": 1.5}}),
            "metadata.generation of type int64",
        );
        refuse(
            json!({"metadata": {"creationTimestamp": "yesterday"}}),
            "parsing time \"yesterday\"",
        );
        let secret = Expected {
            api_version: "v1",
            kind: "Secret",
        };
        let mut given = json!({"data": {"a": "!"}})
            .as_object()
            .expect("an object")
            .clone();
        assert_eq!(
            conform(secret, &mut given),
            Err("illegal base64 data at input byte 0".to_owned())
        );
    }
}
