//! OpenAPI v2 (Swagger): one document for everything. What only version 3 can say is dropped as kube-apiserver drops
//! it, so that kubectl does not refuse good objects. Pure.

use super::components::{self, Dialect};
use super::operations::{self, Operation, Parameter, Path};
use crate::resources::definition::ResourceDefinition;
use serde_json::{Map, Value, json};

const PREFIX: &str = "#/definitions/";

/// The document of all kinds.
pub(super) fn document(definitions: &[&ResourceDefinition]) -> Value {
    let all = definitions
        .iter()
        .flat_map(|definition| operations::paths(definition));
    let paths: Map<String, Value> = all.map(|path| (path.path.clone(), path_item(&path))).collect();
    let components = components::components(definitions, Dialect::V2).into_iter();
    let definitions: Map<String, Value> = components
        .map(|(name, schema)| (name, rewritten(schema)))
        .collect();
    json!({
        "swagger": "2.0",
        "info": {"title": "Outrigger", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "definitions": definitions,
    })
}

fn path_item(path: &Path) -> Value {
    let mut item = json!({"parameters": path.parameters.iter().map(parameter).collect::<Vec<_>>()});
    for operation in &path.operations {
        item[operation.method] = operation_object(operation);
    }
    item
}

fn parameter(parameter: &Parameter) -> Value {
    let mut object = json!({
        "name": parameter.name,
        "in": if parameter.in_path { "path" } else { "query" },
        "description": parameter.description,
        "type": parameter.kind,
        "uniqueItems": true,
    });
    if parameter.in_path {
        object["required"] = true.into();
    }
    object
}

fn operation_object(operation: &Operation) -> Value {
    let answer = json!({"$ref": format!("{PREFIX}{}", operation.response)});
    let code = |(code, description): &(&str, &str)| {
        (
            (*code).to_owned(),
            json!({"description": description, "schema": answer}),
        )
    };
    let mut responses: Map<String, Value> = operation.codes.iter().map(code).collect();
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    let mut parameters: Vec<Value> = operation.parameters.iter().map(parameter).collect();
    if let Some(body) = &operation.body {
        let mut object =
            json!({"name": "body", "in": "body", "schema": {"$ref": format!("{PREFIX}{}", body.component)}});
        if body.required {
            object["required"] = true.into();
        }
        parameters.insert(0, object);
    }
    let mut object = json!({
        "description": operation.description,
        "operationId": operation.id,
        "tags": [operation.tag],
        "schemes": ["https"],
        "consumes": operation.body.as_ref().map_or(&["*/*"][..], |body| &body.consumes),
        "produces": operation.produces,
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": super::kind(&operation.kind),
    });
    if !parameters.is_empty() {
        object["parameters"] = parameters.into();
    }
    object
}

/// The schema with references to definitions; a reference with a description needs no `allOf` here.
fn rewritten(schema: Value) -> Value {
    match schema {
        Value::Object(mut fields) => {
            let only_reference = fields
                .get("allOf")
                .and_then(Value::as_array)
                .filter(|branches| branches.len() == 1);
            let reference = only_reference
                .and_then(|branches| branches[0].get("$ref"))
                .cloned();
            if let Some(reference) = reference {
                fields.remove("allOf");
                fields.insert("$ref".to_owned(), reference);
            }
            let rewrite = |(name, value): (String, Value)| match (name.as_str(), &value) {
                ("$ref", Value::String(target)) => {
                    let target = target.strip_prefix(components::PREFIX).unwrap_or(target);
                    (name, format!("{PREFIX}{target}").into())
                }
                _ => (name, rewritten(value)),
            };
            fields.into_iter().map(rewrite).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(rewritten).collect(),
        scalar => scalar,
    }
}
