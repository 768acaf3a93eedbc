//! `/api/v1` and `/apis/<group>/<version>`: the kinds of one version with their verbs.

use super::insert_list;
use crate::resources::ServedResources;
use crate::resources::definition::{ResourceDefinition, Subresource};
use serde_json::{Value, json};

/// `APIResourceList`, if the version is served.
pub(super) fn api_resource_list(served: &ServedResources, group: &str, version: &str) -> Option<Value> {
    let mut definitions = served.in_version(group, version).peekable();
    let group_version = definitions.peek()?.api_version();
    let resources: Vec<Value> = definitions.flat_map(|definition| resources(definition)).collect();
    let mut list = json!({"kind": "APIResourceList", "groupVersion": group_version, "resources": resources});
    // That of the core group has no version in kube-apiserver either, as the first one had not.
    if !group.is_empty() {
        list["apiVersion"] = "v1".into();
    }
    Some(list)
}

/// A kind and its subresources.
fn resources(definition: &ResourceDefinition) -> Vec<Value> {
    let mut main = json!({
        "name": definition.plural,
        "singularName": definition.singular,
        "namespaced": definition.namespaced,
        "kind": definition.kind,
        "verbs": definition.verbs(),
        "storageVersionHash": definition.storage_version_hash(),
    });
    insert_list(&mut main, "shortNames", &definition.short_names);
    insert_list(&mut main, "categories", &definition.categories);
    let subresources = definition.subresources();
    std::iter::once(main)
        .chain(
            subresources
                .into_iter()
                .map(|found| subresource(definition, found)),
        )
        .collect()
}

fn subresource(definition: &ResourceDefinition, subresource: Subresource) -> Value {
    let mut resource = json!({
        "name": format!("{}/{}", definition.plural, subresource.name),
        "singularName": "",
        "namespaced": definition.namespaced,
        "kind": definition.kind,
        "verbs": subresource.verbs,
    });
    if subresource.is_scale {
        resource["group"] = "autoscaling".into();
        resource["version"] = "v1".into();
        resource["kind"] = "Scale".into();
    }
    resource
}
