//! OpenAPI v3: one document for each group and version. Pure.

use super::components::{self, Dialect};
use super::operations::{self, Operation, Parameter, Path};
use crate::resources::definition::ResourceDefinition;
use serde_json::{Map, Value, json};

/// The document of the kinds of one group and version.
pub(super) fn document(definitions: &[&ResourceDefinition]) -> Value {
    let all = definitions
        .iter()
        .flat_map(|definition| operations::paths(definition));
    let paths: Map<String, Value> = all.map(|path| (path.path.clone(), path_item(&path))).collect();
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Outrigger", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
        "components": {"schemas": components::components(definitions, Dialect::V3)},
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
        "schema": {"type": parameter.kind, "uniqueItems": true},
    });
    if parameter.in_path {
        object["required"] = true.into();
    }
    object
}

fn operation_object(operation: &Operation) -> Value {
    let answer = content(&operation.response, &operation.produces);
    let code = |(code, description): &(&str, &str)| {
        (
            (*code).to_owned(),
            json!({"description": description, "content": answer}),
        )
    };
    let mut responses: Map<String, Value> = operation.codes.iter().map(code).collect();
    responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
    let mut object = json!({
        "description": operation.description,
        "operationId": operation.id,
        "tags": [operation.tag],
        "responses": responses,
        "x-kubernetes-action": operation.action,
        "x-kubernetes-group-version-kind": super::kind(&operation.kind),
    });
    if !operation.parameters.is_empty() {
        object["parameters"] = operation.parameters.iter().map(parameter).collect();
    }
    if let Some(body) = &operation.body {
        object["requestBody"] = json!({"content": content(&body.component, &body.consumes)});
        if body.required {
            object["requestBody"]["required"] = true.into();
        }
    }
    object
}

fn content(component: &str, media_types: &[&'static str]) -> Value {
    let schema = json!({"schema": {"$ref": format!("{}{component}", components::PREFIX)}});
    media_types
        .iter()
        .map(|media_type| ((*media_type).to_owned(), schema.clone()))
        .collect::<Map<_, _>>()
        .into()
}
