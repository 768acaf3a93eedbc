//! `APIGroupDiscoveryList` of `apidiscovery.k8s.io/v2`: everything that is served, in one document.

use super::insert_list;
use crate::resources::definition::{ResourceDefinition, Subresource};
use crate::resources::{ServedGroup, ServedResources, ServedVersion};
use serde_json::{Value, json};

/// The core group (`/api`), or all others (`/apis`).
pub(super) fn group_discovery_list(served: &ServedResources, core: bool) -> Value {
    let groups = served
        .groups()
        .iter()
        .filter(|group| group.name.is_empty() == core);
    let items: Vec<Value> = groups.map(|group| group_discovery(served, group)).collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

fn group_discovery(served: &ServedResources, group: &ServedGroup) -> Value {
    let versions: Vec<Value> = group
        .versions
        .iter()
        .map(|version| version_discovery(served, group, version))
        .collect();
    let metadata = if group.name.is_empty() {
        json!({})
    } else {
        json!({"name": group.name})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn version_discovery(served: &ServedResources, group: &ServedGroup, version: &ServedVersion) -> Value {
    let definitions = served.in_version(&group.name, &version.name);
    let resources: Vec<Value> = definitions
        .map(|definition| resource_discovery(definition))
        .collect();
    json!({"version": version.name, "freshness": "Current", "resources": resources})
}

fn resource_discovery(definition: &ResourceDefinition) -> Value {
    let kind = response_kind(&definition.group, &definition.version, &definition.kind);
    let subresources: Vec<Value> = definition
        .subresources()
        .into_iter()
        .map(|found| subresource_discovery(found, &kind))
        .collect();
    let mut resource = json!({
        "resource": definition.plural,
        "responseKind": kind,
        "scope": if definition.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": definition.singular,
        "verbs": definition.verbs(),
    });
    insert_list(&mut resource, "shortNames", &definition.short_names);
    insert_list(&mut resource, "categories", &definition.categories);
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

fn subresource_discovery(subresource: Subresource, kind: &Value) -> Value {
    let kind = if subresource.is_scale {
        response_kind("autoscaling", "v1", "Scale")
    } else {
        kind.clone()
    };
    json!({"subresource": subresource.name, "responseKind": kind, "verbs": subresource.verbs})
}

fn response_kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}
