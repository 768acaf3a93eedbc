//! Whether a CRD's schema is structural: every value has a known type, and the logical junctors (allOf, anyOf, oneOf,
//! not) only restrict what is declared outside of them. With kube-apiserver's messages. Pure.
//!
//! Not judged here: defaults against the schema, regular expressions and CEL rules.

mod keywords;

use crate::resources::definition::{flag, list, text};
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::{Map, Value, json};

/// What may stand at the root when the status is validated on its own.
const ROOT_FIELDS: &[&str] = &[
    "description",
    "type",
    "format",
    "title",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "multipleOf",
    "required",
    "items",
    "properties",
    "externalDocs",
    "example",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];

/// What a junctor's branch may not say, and what it must do instead.
const FORBIDDEN_IN_JUNCTORS: &[(&str, &str)] = &[
    ("type", "must be empty to be structural"),
    ("additionalProperties", "must be undefined to be structural"),
    ("default", "must be undefined to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("nullable", "must be false to be structural"),
    (
        "x-kubernetes-preserve-unknown-fields",
        "must be false to be structural",
    ),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
    ("x-kubernetes-validations", "must be empty to be structural"),
];

/// Where in the schema a value stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Item,
    Field,
}

/// What is wrong with a schema that stands at `path`. `status`: whether the version has the status subresource.
#[must_use]
pub fn validate(schema: &Value, path: &str, status: bool) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    if status {
        causes.extend(validate_root(schema, path));
    }
    if flag(schema, "/nullable") {
        causes.push(field::forbidden(
            format!("{path}.nullable"),
            "nullable cannot be true at the root",
        ));
    }
    let mut structural = Vec::new();
    invariants(schema, Level::Root, path, &mut structural);
    completeness(schema, path, &mut structural);
    structural.sort_by(|a, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
    causes.extend(structural);
    keywords::keywords(schema, path, true, None, &mut causes);
    causes
}

/// The schema of the field that a simple JSONPath (`.spec.tier`) leads to. The error is kube-apiserver's text.
pub fn schema_at<'a>(schema: &'a Value, json_path: &str) -> Result<&'a Value, String> {
    let Some(rest) = json_path.strip_prefix('.') else {
        let first = json_path.split(['.', '[']).next().unwrap_or_default();
        return Err(format!("expected [ or . but got: {first}"));
    };
    if json_path.contains('[') {
        return Err("array notation is not allowed".to_owned());
    }
    rest.split('.').try_fold(schema, |schema, name| {
        if name.is_empty() && json_path.ends_with('.') {
            return Err("unexpected end of JSON path".to_owned());
        }
        let properties = schema
            .get("properties")
            .and_then(|properties| properties.get(name));
        let values = || {
            schema
                .get("additionalProperties")
                .filter(|values| values.is_object())
        };
        properties
            .or_else(values)
            .ok_or_else(|| "does not refer to a valid field".to_owned())
    })
}

fn validate_root(schema: &Value, path: &str) -> Option<StatusCause> {
    if !matches!(text(schema, "/type"), "" | "object") {
        let detail = r#"only "object" is allowed as the type at the root of the schema if the status subresource is enabled"#;
        return Some(field::invalid(
            format!("{path}.type"),
            text(schema, "/type"),
            detail,
        ));
    }
    let other = schema.as_object()?.iter().find(|(name, value)| {
        // These two say something whenever they are there.
        let there = matches!(name.as_str(), "additionalProperties" | "default") && !value.is_null();
        (there || is_set(value)) && !ROOT_FIELDS.contains(&name.as_str())
    })?;
    let detail = format!(
        "only [{}] fields are allowed at the root of the schema if the status subresource is enabled",
        ROOT_FIELDS.join(" ")
    );
    Some(field::invalid(path, other.0.as_str(), &detail))
}

/// Whether a keyword says something: what it is in a Go struct with `omitempty`.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::iter)
}

/// The schema of further values of a map, if there is one.
fn additional(schema: &Value) -> Option<&Value> {
    schema
        .get("additionalProperties")
        .filter(|additional| additional.is_object())
}

fn items(schema: &Value) -> Option<&Value> {
    schema.get("items").filter(|items| items.is_object())
}

fn invariants(schema: &Value, level: Level, path: &str, causes: &mut Vec<StatusCause>) {
    let kind = text(schema, "/type");
    if kind == "array" && schema.get("items").is_none_or(Value::is_null) {
        causes.push(field::required(format!("{path}.items"), "must be specified"));
    }
    if let Some(items) = items(schema) {
        invariants(items, Level::Item, &format!("{path}.items"), causes);
    }
    for (name, property) in properties(schema) {
        invariants(
            property,
            Level::Field,
            &format!("{path}.properties[{name}]"),
            causes,
        );
    }
    if schema
        .get("additionalProperties")
        .is_some_and(|additional| !additional.is_null())
        && level == Level::Root
    {
        causes.push(field::forbidden(
            format!("{path}.additionalProperties"),
            "must not be used at the root",
        ));
    }
    if let Some(values) = additional(schema) {
        invariants(
            values,
            Level::Field,
            &format!("{path}.additionalProperties"),
            causes,
        );
    }
    extensions(schema, level, path, causes);
    junctors(schema, path, causes);
    metadata(schema, level, path, causes);
}

fn extensions(schema: &Value, level: Level, path: &str, causes: &mut Vec<StatusCause>) {
    let kind = text(schema, "/type");
    let int_or_string = flag(schema, "/x-kubernetes-int-or-string");
    let preserve = flag(schema, "/x-kubernetes-preserve-unknown-fields");
    let embedded = flag(schema, "/x-kubernetes-embedded-resource");
    let not_beside = "must be false if x-kubernetes-int-or-string is true";
    if int_or_string && preserve {
        causes.push(field::invalid(
            format!("{path}.x-kubernetes-preserve-unknown-fields"),
            true,
            not_beside,
        ));
    }
    if int_or_string && embedded {
        causes.push(field::invalid(
            format!("{path}.x-kubernetes-embedded-resource"),
            true,
            not_beside,
        ));
    }
    let type_path = format!("{path}.type");
    if embedded && kind != "object" {
        let detail = "must be object if x-kubernetes-embedded-resource is true";
        causes.push(if kind.is_empty() {
            field::required(type_path, detail)
        } else {
            field::invalid(type_path, kind, detail)
        });
    } else if kind.is_empty() && !int_or_string && !preserve {
        let place = match level {
            Level::Root => "must not be empty at the root",
            Level::Item => "must not be empty for specified array items",
            Level::Field => "must not be empty for specified object fields",
        };
        causes.push(field::required(type_path, place));
    } else if level == Level::Root && !kind.is_empty() && kind != "object" {
        causes.push(field::invalid(type_path, kind, "must be object at the root"));
    }
    if embedded
        && schema
            .get("additionalProperties")
            .is_some_and(|additional| !additional.is_null())
    {
        causes.push(field::forbidden(
            format!("{path}.additionalProperties"),
            "must not be used if x-kubernetes-embedded-resource is set",
        ));
    }
    if embedded && !preserve && properties(schema).next().is_none() {
        let detail = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
        causes.push(field::required(format!("{path}.properties"), detail));
    }
}

/// `metadata`, `kind` and `apiVersion` are declared by the server; a schema may only repeat them, and restrict names.
fn metadata(schema: &Value, level: Level, path: &str, causes: &mut Vec<StatusCause>) {
    if level != Level::Root && !flag(schema, "/x-kubernetes-embedded-resource") {
        return;
    }
    for (name, kind) in [
        ("apiVersion", "string"),
        ("kind", "string"),
        ("metadata", "object"),
    ] {
        let Some(property) = schema.pointer(&format!("/properties/{name}")) else {
            continue;
        };
        let found = text(property, "/type");
        if found != kind {
            causes.push(field::invalid(
                format!("{path}.properties[{name}].type"),
                found,
                &format!("must be {kind}"),
            ));
        }
    }
    if level != Level::Root {
        return;
    }
    let Some(metadata) = schema.pointer("/properties/metadata").and_then(Value::as_object) else {
        return;
    };
    let only_names = properties(&schema["properties"]["metadata"])
        .all(|(name, _)| name == "name" || name == "generateName");
    let ignored = ["type", "default", "properties"];
    let other = metadata
        .iter()
        .any(|(name, value)| is_set(value) && !ignored.contains(&name.as_str()));
    if !only_names || other {
        let detail = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        causes.push(field::forbidden(format!("{path}.properties[metadata]"), detail));
    }
}

/// Every branch of every junctor in a schema, with its keyword path.
fn branches<'a>(schema: &'a Value, path: &str) -> Vec<(String, &'a Value)> {
    let mut branches = Vec::new();
    for junctor in ["anyOf", "allOf", "oneOf"] {
        let these = list(schema, &format!("/{junctor}")).iter().enumerate();
        branches.extend(these.map(|(index, branch)| (format!("{path}.{junctor}[{index}]"), branch)));
    }
    branches.extend(
        schema
            .get("not")
            .filter(|not| not.is_object())
            .map(|not| (format!("{path}.not"), not)),
    );
    branches
}

fn junctors(schema: &Value, path: &str, causes: &mut Vec<StatusCause>) {
    // int-or-string is written with types in an anyOf, at the top or in the first allOf.
    let int_or_string = json!([{"type": "integer"}, {"type": "string"}]);
    let is_pattern = |branch: &Value| branch.get("anyOf") == Some(&int_or_string);
    for (branch_path, branch) in branches(schema, path) {
        let in_pattern = branch_path.starts_with(&format!("{path}.anyOf[")) && is_pattern(schema);
        let holds_pattern = branch_path == format!("{path}.allOf[0]") && is_pattern(branch);
        if !in_pattern {
            nested(branch, &branch_path, holds_pattern, causes);
        }
    }
}

/// A branch of a junctor: it may restrict values, and declare none.
fn nested(schema: &Value, path: &str, skip_any_of: bool, causes: &mut Vec<StatusCause>) {
    for (branch_path, branch) in branches(schema, path) {
        if !(skip_any_of && branch_path.starts_with(&format!("{path}.anyOf["))) {
            nested(branch, &branch_path, false, causes);
        }
    }
    if let Some(items) = items(schema) {
        nested(items, &format!("{path}.items"), false, causes);
    }
    for (name, property) in properties(schema) {
        nested(property, &format!("{path}.properties[{name}]"), false, causes);
    }
    for (keyword, detail) in FORBIDDEN_IN_JUNCTORS {
        let declared = schema.get(*keyword).is_some_and(|value| {
            if *keyword == "default" {
                !value.is_null()
            } else {
                is_set(value)
            }
        });
        if declared {
            causes.push(field::forbidden(format!("{path}.{keyword}"), detail));
        }
    }
    if schema.pointer("/properties/metadata").is_some() {
        causes.push(field::forbidden(
            format!("{path}.properties[metadata]"),
            "must not be specified in a nested context",
        ));
    }
}

/// What a junctor restricts must be declared outside of it.
fn completeness(schema: &Value, path: &str, causes: &mut Vec<StatusCause>) {
    for (branch_path, branch) in branches(schema, path) {
        nested_completeness(branch, Some(schema), path, &branch_path, causes);
    }
}

fn nested_completeness(
    branch: &Value,
    schema: Option<&Value>,
    path: &str,
    branch_path: &str,
    causes: &mut Vec<StatusCause>,
) {
    let Some(schema) = schema else {
        causes.push(field::required(
            path,
            &format!("because it is defined in {branch_path}"),
        ));
        return;
    };
    for (inner_path, inner) in branches(branch, branch_path) {
        nested_completeness(inner, Some(schema), path, &inner_path, causes);
    }
    if let Some(inner) = items(branch) {
        nested_completeness(
            inner,
            items(schema),
            &format!("{path}.items"),
            &format!("{branch_path}.items"),
            causes,
        );
    }
    for (name, property) in properties(branch) {
        let declared = schema
            .get("properties")
            .and_then(|properties| properties.get(name));
        nested_completeness(
            property,
            declared,
            &format!("{path}.properties[{name}]"),
            &format!("{branch_path}.properties[{name}]"),
            causes,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: Value, fields: &[&str]) {
        let schema = json!({"type": "object", "properties": {"spec": spec}});
        check_root(schema, fields);
    }

    #[track_caller]
    fn check_root(schema: Value, fields: &[&str]) {
        let causes = validate(&schema, "s", true);
        assert_eq!(
            causes
                .iter()
                .map(|cause| cause.field.as_str())
                .collect::<Vec<_>>(),
            fields,
            "{causes:?}"
        );
    }

    #[test]
    fn structural_schemas_are_accepted() {
        check(json!({"type": "string"}), &[]);
        check(json!({"x-kubernetes-preserve-unknown-fields": true}), &[]);
        check(
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            &[],
        );
        check(
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
            &[],
        );
        check(
            json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}, {"pattern": "^a"}]}),
            &[],
        );
        check(
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"properties": {"a": {"enum": ["b"]}}}]}),
            &[],
        );
        check(
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}}),
            &[],
        );
        check_root(
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}}}}),
            &[],
        );
    }

    #[test]
    fn every_value_has_a_type() {
        check(json!({}), &["s.properties[spec].type"]);
        check(json!({"type": "array"}), &["s.properties[spec].items"]);
        check(
            json!({"type": "array", "items": {}}),
            &["s.properties[spec].items.type"],
        );
        check(json!({"type": "text"}), &["s.properties[spec].type"]);
        check(
            json!({"type": "object", "additionalProperties": {"description": "x"}}),
            &["s.properties[spec].additionalProperties.type"],
        );
        check_root(
            json!({"type": "object", "additionalProperties": true}),
            &["s", "s.additionalProperties"],
        );
        check_root(json!({"properties": {}}), &["s.type"]);
    }

    #[test]
    fn junctors_only_restrict() {
        check(
            json!({"type": "object", "anyOf": [{"type": "object"}]}),
            &["s.properties[spec].anyOf[0].type"],
        );
        let undeclared = json!({"type": "object", "allOf": [{"properties": {"a": {"minLength": 1}}}]});
        assert_eq!(validate(&undeclared, "s", false)[0].field, "s.properties[a]");
        check(
            json!({"type": "object", "not": {"description": "x"}}),
            &["s.properties[spec].not.description"],
        );
    }

    #[test]
    fn metadata_is_the_servers() {
        check_root(
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            &["s.properties[metadata]"],
        );
        check_root(
            json!({"type": "object", "properties": {"kind": {"type": "integer"}}}),
            &["s.properties[kind].type"],
        );
    }

    #[test]
    fn keywords_that_contradict_are_refused() {
        check(
            json!({"type": "array", "uniqueItems": true, "items": {"type": "string"}}),
            &["s.properties[spec].uniqueItems"],
        );
        check(
            json!({"type": "object", "$ref": "x"}),
            &["s.properties[spec].$ref"],
        );
        check(
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            &["s.properties[spec].additionalProperties"],
        );
        check(
            json!({"type": "string", "x-kubernetes-list-type": "set"}),
            &["s.properties[spec].type"],
        );
        check(
            json!({"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a", "b"]}),
            &[
                "s.properties[spec].items.properties[a].default",
                "s.properties[spec].x-kubernetes-list-map-keys",
            ],
        );
        check(
            json!({"type": "string", "x-kubernetes-validations": [{"rule": " "}]}),
            &["s.properties[spec].x-kubernetes-validations[0].rule"],
        );
    }

    #[test]
    fn selectable_paths_lead_to_schemas() {
        let schema = json!({"properties": {"spec": {"properties": {"tier": {"type": "string"}}}}});
        assert_eq!(schema_at(&schema, ".spec.tier"), Ok(&json!({"type": "string"})));
        assert!(
            schema_at(&schema, ".spec.none").is_err()
                && schema_at(&schema, "spec").is_err()
                && schema_at(&schema, ".").is_err()
        );
    }
}
