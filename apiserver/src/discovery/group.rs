//! `/api`, `/apis` and `/apis/<group>`: which groups there are, and which version of each a client should use.

use crate::resources::{ServedGroup, ServedResources};
use serde_json::{Value, json};

/// `APIVersions`: the versions of the core group.
pub(super) fn api_versions(served: &ServedResources) -> Value {
    let core = served.group("").map_or(&[][..], |group| &group.versions);
    let versions: Vec<&str> = core.iter().map(|version| version.name.as_str()).collect();
    json!({"kind": "APIVersions", "versions": versions, "serverAddressByClientCIDRs": []})
}

/// `APIGroupList`: all other groups.
pub(super) fn api_group_list(served: &ServedResources) -> Value {
    let named = served.groups().iter().filter(|group| !group.name.is_empty());
    let groups: Vec<Value> = named.map(body).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `APIGroup`: one group.
pub(super) fn api_group(group: &ServedGroup) -> Value {
    let mut object = body(group);
    object["kind"] = "APIGroup".into();
    object["apiVersion"] = "v1".into();
    object
}

fn body(group: &ServedGroup) -> Value {
    let version = |name: &str| json!({"groupVersion": format!("{}/{name}", group.name), "version": name});
    let versions: Vec<Value> = group.versions.iter().map(|found| version(&found.name)).collect();
    json!({"name": group.name, "preferredVersion": versions.first(), "versions": versions})
}
