//! Keywords of a CRD's schema that are unknown, contradict each other, or may not be combined: kinds of lists and
//! maps, keys, and the shape of CEL rules. What the rules say is for the schema to find out.

use super::{additional, branches, is_set, items, properties, schema_at};
use crate::resources::definition::{flag, list, text};
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::Value;

const TYPES: &[&str] = &["array", "boolean", "integer", "number", "object", "string"];

/// What a CEL rule may give as the reason of a fault.
const REASONS: &[&str] = &[
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// Keywords of JSON Schema that CRDs do not have.
const UNSUPPORTED: &[&str] = &[
    "id",
    "additionalItems",
    "patternProperties",
    "definitions",
    "dependencies",
    "$ref",
];

/// Keywords that are unknown, contradict each other, or may not be combined. `no_defaults` says where defaults are
/// not allowed, and why.
pub(super) fn keywords(
    schema: &Value,
    path: &str,
    root: bool,
    no_defaults: Option<&str>,
    causes: &mut Vec<StatusCause>,
) {
    let kind = text(schema, "/type");
    if kind == "null" {
        causes.push(field::forbidden(
            format!("{path}.type"),
            "type cannot be set to null, use nullable as an alternative",
        ));
    }
    if !kind.is_empty() && !TYPES.contains(&kind) {
        causes.push(field::not_supported(format!("{path}.type"), kind, TYPES));
    }
    if let Some(place) =
        no_defaults.filter(|_| schema.get("default").is_some_and(|default| !default.is_null()))
    {
        causes.push(field::forbidden(
            format!("{path}.default"),
            &format!("must not be set {place}"),
        ));
    }
    let unsupported = UNSUPPORTED
        .iter()
        .filter(|name| schema.get(**name).is_some_and(is_set));
    causes.extend(
        unsupported
            .map(|name| field::forbidden(format!("{path}.{name}"), &format!("{name} is not supported"))),
    );
    if schema.get("items").is_some_and(Value::is_array) {
        causes.push(field::forbidden(
            format!("{path}.items"),
            "items must be a schema object and not an array",
        ));
    }
    if flag(schema, "/uniqueItems") {
        let detail = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        causes.push(field::forbidden(format!("{path}.uniqueItems"), detail));
    }
    let values = schema
        .get("additionalProperties")
        .filter(|values| !values.is_null());
    if values.is_some_and(|values| *values != Value::Bool(true)) && properties(schema).next().is_some() {
        causes.push(field::forbidden(
            format!("{path}.additionalProperties"),
            "additionalProperties and properties are mutual exclusive",
        ));
    }
    if schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(false)) {
        causes.push(field::invalid(
            format!("{path}.x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        ));
    }
    list_and_map_types(schema, path, causes);
    rules(schema, path, causes);
    if let Some(values) = additional(schema) {
        keywords(
            values,
            &format!("{path}.additionalProperties"),
            false,
            no_defaults,
            causes,
        );
    }
    if let Some(items) = items(schema) {
        keywords(items, &format!("{path}.items"), false, no_defaults, causes);
    }
    for (name, property) in properties(schema) {
        let meta = root && matches!(name.as_str(), "metadata" | "kind" | "apiVersion");
        let place = format!("in top-level {name}");
        keywords(
            property,
            &format!("{path}.properties[{name}]"),
            false,
            if meta { Some(&place) } else { no_defaults },
            causes,
        );
    }
    for (branch_path, branch) in branches(schema, path) {
        keywords(branch, &branch_path, false, no_defaults, causes);
    }
}

fn list_and_map_types(schema: &Value, path: &str, causes: &mut Vec<StatusCause>) {
    let kind = text(schema, "/type");
    let (list_type, map_type) = (
        text(schema, "/x-kubernetes-list-type"),
        text(schema, "/x-kubernetes-map-type"),
    );
    let type_path = format!("{path}.type");
    let wrong_type = |detail: &str| {
        if kind.is_empty() {
            field::required(&type_path, detail)
        } else {
            field::invalid(&type_path, kind, detail)
        }
    };
    if !map_type.is_empty() && kind != "object" {
        causes.push(wrong_type("must be object if x-kubernetes-map-type is specified"));
    }
    if !matches!(map_type, "" | "atomic" | "granular") {
        causes.push(field::not_supported(
            format!("{path}.x-kubernetes-map-type"),
            map_type,
            &["atomic", "granular"],
        ));
    }
    if !list_type.is_empty() && kind != "array" {
        causes.push(wrong_type("must be array if x-kubernetes-list-type is specified"));
    }
    if !matches!(list_type, "" | "atomic" | "set" | "map") {
        causes.push(field::not_supported(
            format!("{path}.x-kubernetes-list-type"),
            list_type,
            &["atomic", "set", "map"],
        ));
    }
    let item = items(schema);
    let item_type = item.map_or("", |item| text(item, "/type"));
    if list_type == "set" {
        let atomic = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let of = |keyword: &str| item.map_or("", |item| text(item, keyword));
        let or_null = |value: &str| {
            if value.is_empty() {
                Value::Null
            } else {
                value.into()
            }
        };
        if item_type == "array" && !matches!(of("/x-kubernetes-list-type"), "" | "atomic") {
            causes.push(field::invalid(
                format!("{path}.items.x-kubernetes-list-type"),
                of("/x-kubernetes-list-type"),
                atomic,
            ));
        }
        if item_type == "object" && of("/x-kubernetes-map-type") != "atomic" {
            causes.push(field::invalid(
                format!("{path}.items.x-kubernetes-map-type"),
                or_null(of("/x-kubernetes-map-type")),
                atomic,
            ));
        }
    }
    if matches!(list_type, "set" | "map") && item.is_some_and(|item| flag(item, "/nullable")) {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {list_type}");
        causes.push(field::forbidden(format!("{path}.items.nullable"), &detail));
    }
    map_keys(schema, path, causes);
}

fn map_keys(schema: &Value, path: &str, causes: &mut Vec<StatusCause>) {
    let keys = list(schema, "/x-kubernetes-list-map-keys");
    let list_type = text(schema, "/x-kubernetes-list-type");
    let keys_path = format!("{path}.x-kubernetes-list-map-keys");
    if list_type != "map" {
        let type_path = format!("{path}.x-kubernetes-list-type");
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        if !keys.is_empty() {
            causes.push(if list_type.is_empty() {
                field::required(type_path, detail)
            } else {
                field::invalid(type_path, list_type, detail)
            });
        }
        return;
    }
    if keys.is_empty() {
        causes.push(field::required(
            &keys_path,
            "must not be empty if x-kubernetes-list-type is map",
        ));
    }
    let Some(item) = items(schema) else {
        causes.push(field::required(
            format!("{path}.items"),
            "must have a schema if x-kubernetes-list-type is map",
        ));
        return;
    };
    if text(item, "/type") != "object" {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        causes.push(field::invalid(
            format!("{path}.items.type"),
            text(item, "/type"),
            detail,
        ));
        return;
    }
    for (index, key) in keys.iter().enumerate() {
        if keys.iter().take(index).any(|earlier| earlier == key) {
            causes.push(field::invalid(
                &keys_path,
                keys.to_vec(),
                "must not contain duplicate entries",
            ));
        }
        let name = key.as_str().unwrap_or_default();
        let property_path = format!("{path}.items.properties[{name}]");
        let Some(property) = item.get("properties").and_then(|properties| properties.get(name)) else {
            causes.push(field::invalid(
                &keys_path,
                keys.to_vec(),
                "entries must all be names of item properties",
            ));
            continue;
        };
        if matches!(text(property, "/type"), "array" | "object") {
            let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            causes.push(field::invalid(
                format!("{property_path}.type"),
                text(property, "/type"),
                detail,
            ));
        }
        if !list(item, "/required").contains(key) && property.get("default").is_none_or(Value::is_null) {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            causes.push(field::required(format!("{property_path}.default"), detail));
        }
        if flag(property, "/nullable") {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            causes.push(field::forbidden(format!("{property_path}.nullable"), detail));
        }
    }
}

/// The shape of CEL rules; what they say is for the schema to find out.
fn rules(schema: &Value, path: &str, causes: &mut Vec<StatusCause>) {
    for (index, rule) in list(schema, "/x-kubernetes-validations").iter().enumerate() {
        let path = format!("{path}.x-kubernetes-validations[{index}]");
        let (expression, message) = (text(rule, "/rule").trim(), text(rule, "/message"));
        let broken = |text: &str| text.contains(['\n', '\r']);
        if expression.is_empty() {
            causes.push(field::required(format!("{path}.rule"), "rule is not specified"));
        } else if !message.is_empty() && message.trim().is_empty() {
            causes.push(field::invalid(
                format!("{path}.message"),
                message,
                "must be non-empty if specified",
            ));
        } else if broken(message.trim()) {
            causes.push(field::invalid(
                format!("{path}.message"),
                message,
                "must not contain line breaks",
            ));
        } else if broken(expression) && message.trim().is_empty() {
            causes.push(field::required(
                format!("{path}.message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        let message_expression = text(rule, "/messageExpression");
        if !message_expression.is_empty() && message_expression.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            causes.push(field::required(format!("{path}.messageExpression"), detail));
        }
        let reason = text(rule, "/reason");
        if rule.get("reason").is_some_and(|reason| !reason.is_null()) && !REASONS.contains(&reason) {
            causes.push(field::not_supported(format!("{path}.reason"), reason, REASONS));
        }
        causes.extend(field_path(
            schema,
            text(rule, "/fieldPath"),
            &format!("{path}.fieldPath"),
        ));
    }
}

/// Where a rule says that the fault lies. Paths in brackets are not followed.
fn field_path(schema: &Value, field_path: &str, path: &str) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    if !field_path.is_empty() && field_path.trim().is_empty() {
        causes.push(field::invalid(path, field_path, "must be non-empty if specified"));
    }
    if field_path.contains(['\n', '\r']) {
        causes.push(field::invalid(path, field_path, "must not contain line breaks"));
    }
    if !field_path.is_empty() && !field_path.contains('[') && schema_at(schema, field_path).is_err() {
        causes.push(field::invalid(path, field_path, "must be a valid path"));
    }
    causes
}
