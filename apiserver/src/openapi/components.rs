//! The named schemas of a group and version: its kinds with their lists, and the types of `meta/v1` that they use.
//! Schemas of the server's own kinds come from the types of `k8s-openapi`, those of other kinds from their CRDs. Pure.

use crate::resources::definition::{Builtin, ResourceDefinition};
use k8s_openapi::api::{autoscaling, coordination, core, events};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Where references lead.
pub(super) const PREFIX: &str = "#/components/schemas/";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const APIEXTENSIONS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1";

const GROUP_VERSION_KIND: &str = "x-kubernetes-group-version-kind";
const API_VERSION_DESCRIPTION: &str = "Group and version of this representation of the object.";
const KIND_DESCRIPTION: &str = "Kind of the object. It cannot change.";
const METADATA_DESCRIPTION: &str = "Metadata that every object has.";

/// How deep a schema may be nested; below, anything goes. (A CRD is JSON that was parsed, which has a limit as well.)
const DEPTH_MAX: usize = 128;

/// How lists and maps merge, which the Rust types do not say: component, property (empty for the component itself),
/// kind of list or map, keys of the list, key of a strategic merge patch (`-`: merged without one).
const TOPOLOGY: &[(&str, &str, &str, &[&str], &str)] = &[
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
        "finalizers",
        "set",
        &[],
        "-",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
        "managedFields",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
        "ownerReferences",
        "map",
        &["uid"],
        "uid",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
        "",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
        "dryRun",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apimachinery.pkg.apis.meta.v1.StatusDetails",
        "causes",
        "atomic",
        &[],
        "",
    ),
    ("io.k8s.api.core.v1.ObjectReference", "", "atomic", &[], ""),
    (
        "io.k8s.api.core.v1.NamespaceSpec",
        "finalizers",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.api.core.v1.NamespaceStatus",
        "conditions",
        "map",
        &["type"],
        "type",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionNames",
        "categories",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionNames",
        "shortNames",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionSpec",
        "versions",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus",
        "conditions",
        "map",
        &["type"],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus",
        "storedVersions",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion",
        "additionalPrinterColumns",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionVersion",
        "selectableFields",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "allOf",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "anyOf",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "enum",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "oneOf",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "required",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "x-kubernetes-list-map-keys",
        "atomic",
        &[],
        "",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps",
        "x-kubernetes-validations",
        "map",
        &["rule"],
        "rule",
    ),
    (
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.WebhookConversion",
        "conversionReviewVersions",
        "atomic",
        &[],
        "",
    ),
];

/// Which OpenAPI the schemas are for. Version 2 knows less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V2,
    V3,
}

/// The name of a kind's schema: `io.k8s.api.core.v1.Namespace`, `com.example.paas.v1.Application`.
pub(super) fn name(definition: &ResourceDefinition) -> String {
    qualified(definition, &definition.kind)
}

/// The name of its list's.
pub(super) fn list_name(definition: &ResourceDefinition) -> String {
    qualified(definition, &definition.list_kind)
}

fn qualified(definition: &ResourceDefinition, kind: &str) -> String {
    let package = match definition.builtin {
        Some(Builtin::Namespace | Builtin::Secret) => "io.k8s.api.core".to_owned(),
        Some(Builtin::Event) if definition.group.is_empty() => "io.k8s.api.core".to_owned(),
        Some(Builtin::Event) => "io.k8s.api.events".to_owned(),
        Some(Builtin::Lease) => "io.k8s.api.coordination".to_owned(),
        Some(Builtin::CustomResourceDefinition) => return format!("{APIEXTENSIONS}.{kind}"),
        None => definition.group.split('.').rev().collect::<Vec<_>>().join("."),
    };
    format!("{package}.{}.{kind}", definition.version)
}

/// The schemas that these kinds need, by name.
pub(super) fn components(definitions: &[&ResourceDefinition], dialect: Dialect) -> BTreeMap<String, Value> {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft07().with(|settings| {
        settings.definitions_path = PREFIX
            .trim_end_matches('/')
            .trim_start_matches('#')
            .to_owned()
            .into();
    }));
    generator.subschema_for::<meta::v1::ObjectMeta>();
    generator.subschema_for::<meta::v1::ListMeta>();
    generator.subschema_for::<meta::v1::DeleteOptions>();
    generator.subschema_for::<meta::v1::Status>();
    generator.subschema_for::<meta::v1::Patch>();
    for definition in definitions {
        add_builtin(definition, &mut generator);
        if definition.scale.is_some() {
            generator.subschema_for::<autoscaling::v1::Scale>();
        }
    }
    let types = generator.take_definitions(false).into_iter();
    let mut components: BTreeMap<String, Value> =
        types.map(|(name, schema)| (name, typed(schema, 0))).collect();
    let groups: Vec<&ResourceDefinition> = definitions.to_vec();
    finish_types(&mut components, &groups);
    for definition in definitions {
        let schema = match definition.builtin {
            Some(_) => components
                .remove(&name(definition))
                .unwrap_or_else(|| json!({"type": "object"})),
            None => custom(definition, dialect),
        };
        components.insert(name(definition), of_kind(schema, definition, &definition.kind));
        components.insert(
            list_name(definition),
            of_kind(list(definition), definition, &definition.list_kind),
        );
    }
    components
}

fn add_builtin(definition: &ResourceDefinition, generator: &mut SchemaGenerator) {
    match definition.builtin {
        Some(Builtin::Namespace) => drop(generator.subschema_for::<core::v1::Namespace>()),
        Some(Builtin::Secret) => drop(generator.subschema_for::<core::v1::Secret>()),
        Some(Builtin::Event) if definition.group.is_empty() => {
            drop(generator.subschema_for::<core::v1::Event>())
        }
        Some(Builtin::Event) => drop(generator.subschema_for::<events::v1::Event>()),
        Some(Builtin::Lease) => drop(generator.subschema_for::<coordination::v1::Lease>()),
        Some(Builtin::CustomResourceDefinition) => {
            drop(generator.subschema_for::<apiextensions::v1::CustomResourceDefinition>());
        }
        None => {}
    }
}

/// A schema of a Rust type as OpenAPI writes it: a reference that has a description stands in an `allOf`, and a schema
/// is an object.
fn typed(schema: Value, depth: usize) -> Value {
    let Value::Object(mut schema) = schema else {
        return json!({});
    };
    if depth > DEPTH_MAX {
        return json!({});
    }
    if schema.len() > 1
        && let Some(reference) = schema.remove("$ref")
    {
        schema.insert("allOf".to_owned(), json!([{"$ref": reference}]));
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(keyword).filter(|inner| inner.is_object()) {
            *inner = typed(inner.take(), depth + 1);
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        for property in properties.values_mut() {
            *property = typed(property.take(), depth + 1);
        }
    }
    Value::Object(schema)
}

/// What Kubernetes says of its types and the Rust types do not.
fn finish_types(components: &mut BTreeMap<String, Value>, definitions: &[&ResourceDefinition]) {
    // Unions cannot be written in version 2, so Kubernetes describes them and no more.
    for union in [
        "JSON",
        "JSONSchemaPropsOrArray",
        "JSONSchemaPropsOrBool",
        "JSONSchemaPropsOrStringArray",
    ] {
        if let Some(schema) = components.get_mut(&format!("{APIEXTENSIONS}.{union}")) {
            *schema = json!({"description": schema["description"]});
        }
    }
    for (component, property, kind, keys, merge_key) in TOPOLOGY {
        let Some(component) = components.get_mut(*component) else {
            continue;
        };
        let (target, keyword) = match *property {
            "" => (Some(component), "x-kubernetes-map-type"),
            property => (
                component.pointer_mut(&format!("/properties/{property}")),
                "x-kubernetes-list-type",
            ),
        };
        let Some(target) = target else { continue };
        target[keyword] = (*kind).into();
        if !keys.is_empty() {
            target["x-kubernetes-list-map-keys"] = (*keys).into();
        }
        if !merge_key.is_empty() {
            target["x-kubernetes-patch-strategy"] = "merge".into();
        }
        if !matches!(*merge_key, "" | "-") {
            target["x-kubernetes-patch-merge-key"] = (*merge_key).into();
        }
    }
    if let Some(Value::Object(status)) = components.get_mut(STATUS) {
        status.remove("required");
        status.insert(
            GROUP_VERSION_KIND.to_owned(),
            json!([{"group": "", "version": "v1", "kind": "Status"}]),
        );
    }
    if let Some(Value::Object(scale)) = components.get_mut(SCALE) {
        scale.remove("required");
        scale.insert(
            GROUP_VERSION_KIND.to_owned(),
            json!([{"group": "autoscaling", "version": "v1", "kind": "Scale"}]),
        );
    }
    if let Some(options) = components.get_mut(DELETE_OPTIONS) {
        let mut groups: Vec<(&str, &str)> = definitions
            .iter()
            .map(|d| (d.group.as_str(), d.version.as_str()))
            .collect();
        groups.push(("", "v1"));
        groups.sort_unstable();
        groups.dedup();
        let kind = |(group, version)| json!({"group": group, "version": version, "kind": "DeleteOptions"});
        options[GROUP_VERSION_KIND] = groups.into_iter().map(kind).collect();
    }
}

/// A kind's schema with its group, version and kind, and the fields that it can be selected by.
fn of_kind(mut schema: Value, definition: &ResourceDefinition, kind: &str) -> Value {
    if definition.builtin.is_some()
        && kind == definition.kind
        && let Value::Object(schema) = &mut schema
    {
        // The Rust type has metadata always; a manifest need not.
        let required = schema
            .get("required")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        let required: Vec<Value> = required.into_iter().filter(|name| name != "metadata").collect();
        schema.remove("required");
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
    }
    schema[GROUP_VERSION_KIND] =
        json!([{"group": definition.group, "version": definition.version, "kind": kind}]);
    if definition.builtin.is_none() && !definition.selectable_fields.is_empty() {
        let field = |path: &String| json!({"fieldPath": path.strip_prefix('.').unwrap_or(path)});
        schema["x-kubernetes-selectable-fields"] = definition.selectable_fields.iter().map(field).collect();
    }
    schema
}

fn list(definition: &ResourceDefinition) -> Value {
    json!({
        "description": format!("{} is a list of {}", definition.list_kind, definition.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": API_VERSION_DESCRIPTION},
            "kind": {"type": "string", "description": KIND_DESCRIPTION},
            "metadata": reference(LIST_META, "Metadata of the list."),
            "items": {
                "type": "array",
                "description": format!("The {}.", definition.plural),
                "items": {"$ref": format!("{PREFIX}{}", name(definition))},
            },
        },
    })
}

/// The schema of a CRD's kind, with what the server adds.
fn custom(definition: &ResourceDefinition, dialect: Dialect) -> Value {
    let Some(schema) = definition.schema.as_deref().filter(|schema| schema.is_object()) else {
        return json!({"type": "object"});
    };
    let mut schema = schema.clone();
    if dialect == Dialect::V2 {
        // kubectl would take every other field of such an object for unknown.
        if schema["x-kubernetes-preserve-unknown-fields"] == true {
            return json!({"type": "object"});
        }
        to_v2(&mut schema, 0);
    }
    embedded(&mut schema, dialect, 0);
    add_type_meta(&mut schema);
    schema
}

/// `apiVersion`, `kind` and `metadata` of a whole object.
fn add_type_meta(schema: &mut Value) {
    let Value::Object(schema) = schema else { return };
    let properties = schema.entry("properties").or_insert_with(|| json!({}));
    if !properties.is_object() {
        *properties = json!({});
    }
    properties["apiVersion"] = json!({"type": "string", "description": API_VERSION_DESCRIPTION});
    properties["kind"] = json!({"type": "string", "description": KIND_DESCRIPTION});
    properties["metadata"] = reference(OBJECT_META, METADATA_DESCRIPTION);
}

fn reference(component: &str, description: &str) -> Value {
    json!({"allOf": [{"$ref": format!("{PREFIX}{component}")}], "description": description})
}

/// Objects inside of objects have a kind and metadata as well.
fn embedded(schema: &mut Value, dialect: Dialect, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    each_inner(schema, &mut |inner| embedded(inner, dialect, depth + 1));
    let preserves = schema["x-kubernetes-preserve-unknown-fields"] == true;
    if schema["x-kubernetes-embedded-resource"] != true || (preserves && dialect == Dialect::V2) {
        return;
    }
    add_type_meta(schema);
    let mut required = schema["required"].as_array().cloned().unwrap_or_default();
    for name in ["kind", "apiVersion"] {
        if !required.iter().any(|known| known == name) {
            required.push(name.into());
        }
    }
    schema["required"] = required.into();
}

/// Calls a function for the schemas of a schema's properties, values and items.
fn each_inner(schema: &mut Value, function: &mut dyn FnMut(&mut Value)) {
    let Value::Object(schema) = schema else { return };
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(&mut *function);
    }
    for keyword in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(keyword).filter(|inner| inner.is_object()) {
            function(inner);
        }
    }
}

/// Drops what version 2 does not know, in the way that keeps kubectl from refusing good objects.
fn to_v2(schema: &mut Value, depth: usize) {
    if depth > DEPTH_MAX {
        return;
    }
    let nullable: Vec<String> = nullable_properties(schema);
    if let Value::Object(schema) = schema {
        for junctor in ["allOf", "anyOf", "oneOf", "not"] {
            schema.remove(junctor);
        }
        // What may be null has no type, and what has no type or any field has no fields that are known.
        let preserves = schema.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
        let is_nullable = schema.remove("nullable") == Some(Value::Bool(true));
        if is_nullable || preserves {
            schema.remove("items");
            schema.remove("properties");
        }
        let kind = schema.get("type").and_then(Value::as_str).unwrap_or_default();
        let listless = kind == "array" && !schema.contains_key("items");
        if is_nullable || listless || (preserves && kind == "object") {
            schema.remove("type");
        }
        require_no_nullable(schema, &nullable);
    }
    each_inner(schema, &mut |inner| to_v2(inner, depth + 1));
}

fn nullable_properties(schema: &Value) -> Vec<String> {
    let properties = schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten();
    properties
        .filter(|(_, property)| property["nullable"] == true)
        .map(|(name, _)| name.clone())
        .collect()
}

fn require_no_nullable(schema: &mut Map<String, Value>, nullable: &[String]) {
    let Some(Value::Array(required)) = schema.get_mut("required") else {
        return;
    };
    required.retain(|name| !nullable.iter().any(|nullable| name == nullable));
    if required.is_empty() {
        schema.remove("required");
    }
}
