//! The kinds that standalone mode serves itself: namespaces, secrets, events, leases, CustomResourceDefinitions, and
//! the CRDs of `outrigger.dev`. Pure; what their verbs do beyond any object's is in `strategy`.

use crate::resources::definition::{Backing, Builtin, PrinterColumn, ResourceDefinition};
use serde_json::Value;
use std::sync::Arc;

/// The CRDs of `outrigger.dev` as they stand in `deploy/crds`.
const OUTRIGGER_CRDS: [&str; 3] = [
    include_str!("../../../deploy/crds/outrigger.dev_namespaceplacements.yaml"),
    include_str!("../../../deploy/crds/outrigger.dev_tenants.yaml"),
    include_str!("../../../deploy/crds/outrigger.dev_workloadclusters.yaml"),
];

/// The example CRD that `outrigger up` serves from the start.
const EXAMPLE_CRD: &str = include_str!("../../../deploy/examples/application-crd.yaml");

/// What by-field selectors of Events may name, in the form of the core group.
const EVENT_FIELDS: &[&str] = &[
    ".involvedObject.kind",
    ".involvedObject.namespace",
    ".involvedObject.name",
    ".involvedObject.uid",
    ".involvedObject.apiVersion",
    ".involvedObject.resourceVersion",
    ".involvedObject.fieldPath",
    ".reason",
    ".reportingComponent",
    ".source",
    ".type",
];

/// The same in the form of events.k8s.io.
const REGARDING_FIELDS: &[&str] = &[
    ".regarding.kind",
    ".regarding.namespace",
    ".regarding.name",
    ".regarding.uid",
    ".regarding.apiVersion",
    ".regarding.resourceVersion",
    ".regarding.fieldPath",
    ".reason",
    ".reportingController",
    ".type",
];

/// The server's own kinds, without those of `outrigger.dev`.
#[must_use]
pub fn definitions() -> Vec<Arc<ResourceDefinition>> {
    let namespace = ResourceDefinition {
        status: true,
        short_names: vec!["ns".to_owned()],
        columns: columns(&[
            ("Status", "string", ".status.phase", 0),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ]),
        selectable_fields: paths(&[".status.phase", ".name"]),
        ..kind(Builtin::Namespace, "", "namespaces", "Namespace", false)
    };
    let secret = ResourceDefinition {
        columns: columns(&[
            ("Type", "string", ".type", 0),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ]),
        selectable_fields: paths(&[".type"]),
        ..kind(Builtin::Secret, "", "secrets", "Secret", true)
    };
    let event = ResourceDefinition {
        short_names: vec!["ev".to_owned()],
        columns: columns(&[
            ("Last Seen", "date", ".lastTimestamp", 0),
            ("Type", "string", ".type", 0),
            ("Reason", "string", ".reason", 0),
            ("Object", "string", ".involvedObject.name", 0),
            ("Source", "string", ".source.component", 1),
            ("Message", "string", ".message", 0),
            ("First Seen", "date", ".firstTimestamp", 1),
            ("Count", "integer", ".count", 1),
        ]),
        selectable_fields: paths(EVENT_FIELDS),
        ..kind(Builtin::Event, "", "events", "Event", true)
    };
    let regarding_event = ResourceDefinition {
        group: "events.k8s.io".to_owned(),
        columns: columns(&[
            ("Last Seen", "date", ".deprecatedLastTimestamp", 0),
            ("Type", "string", ".type", 0),
            ("Reason", "string", ".reason", 0),
            ("Object", "string", ".regarding.name", 0),
            ("Source", "string", ".deprecatedSource.component", 1),
            ("Message", "string", ".note", 0),
            ("First Seen", "date", ".deprecatedFirstTimestamp", 1),
            ("Count", "integer", ".deprecatedCount", 1),
        ]),
        selectable_fields: paths(REGARDING_FIELDS),
        ..event.clone()
    };
    let lease = ResourceDefinition {
        columns: columns(&[
            ("Holder", "string", ".spec.holderIdentity", 0),
            ("Age", "date", ".metadata.creationTimestamp", 0),
        ]),
        ..kind(Builtin::Lease, "coordination.k8s.io", "leases", "Lease", true)
    };
    let crd = ResourceDefinition {
        status: true,
        short_names: vec!["crd".to_owned(), "crds".to_owned()],
        categories: vec!["api-extensions".to_owned()],
        columns: columns(&[("Created At", "string", ".metadata.creationTimestamp", 0)]),
        ..kind(
            Builtin::CustomResourceDefinition,
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            false,
        )
    };
    [namespace, secret, event, regarding_event, lease, crd]
        .into_iter()
        .map(Arc::new)
        .collect()
}

/// The CRDs of `outrigger.dev`, as `kubectl apply` would send them.
#[must_use]
pub fn outrigger_crds() -> Vec<Value> {
    OUTRIGGER_CRDS.iter().map(|text| embedded(text)).collect()
}

/// The kinds of `outrigger.dev`, for the time before their CRDs are stored.
#[must_use]
pub fn outrigger_definitions() -> Vec<Arc<ResourceDefinition>> {
    outrigger_crds()
        .iter()
        .flat_map(ResourceDefinition::versions_of_crd)
        .map(Arc::new)
        .collect()
}

/// The CRD of the example, Application.
#[must_use]
pub fn example_crd() -> Value {
    embedded(EXAMPLE_CRD)
}

fn embedded(text: &str) -> Value {
    serde_saphyr::from_str(text).expect("the file is part of the program, and a test parses each of them")
}

fn kind(builtin: Builtin, group: &str, plural: &str, kind: &str, namespaced: bool) -> ResourceDefinition {
    ResourceDefinition {
        group: group.to_owned(),
        version: "v1".to_owned(),
        storage_version: "v1".to_owned(),
        plural: plural.to_owned(),
        singular: kind.to_lowercase(),
        kind: kind.to_owned(),
        list_kind: format!("{kind}List"),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        backing: Backing::System,
        builtin: Some(builtin),
        status: false,
        scale: None,
        columns: Vec::new(),
        selectable_fields: Vec::new(),
        schema: None,
        fingerprint: 0,
        deprecation_warning: None,
        crd_uid: String::new(),
        terminating: false,
        closed: false,
    }
}

/// Columns from name, type, JSONPath and priority.
fn columns(columns: &[(&str, &str, &str, i32)]) -> Vec<PrinterColumn> {
    let column = |&(name, kind, json_path, priority): &(&str, &str, &str, i32)| PrinterColumn {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: String::new(),
        description: String::new(),
        priority,
        json_path: json_path.to_owned(),
    };
    columns.iter().map(column).collect()
}

fn paths(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::strategy;

    fn find(group: &str, plural: &str) -> Arc<ResourceDefinition> {
        let all = definitions().into_iter().chain(outrigger_definitions());
        all.into_iter()
            .find(|d| d.group == group && d.plural == plural)
            .unwrap()
    }

    #[test]
    fn storage_version_hashes_are_those_of_kube_apiserver() {
        let hash = |group: &str, plural: &str| find(group, plural).storage_version_hash();
        assert_eq!(hash("", "namespaces"), "Q3oi5N2YM8M=");
        assert_eq!(hash("", "events"), "r2yiGXH7wu8=");
        assert_eq!(hash("events.k8s.io", "events"), "r2yiGXH7wu8=");
        assert_eq!(hash("", "secrets"), "S6u1pOWzb84=");
        assert_eq!(hash("coordination.k8s.io", "leases"), "gqkMMb/YqFM=");
    }

    #[test]
    fn the_embedded_crds_are_valid() {
        let crd = find("apiextensions.k8s.io", "customresourcedefinitions");
        for value in outrigger_crds().into_iter().chain([example_crd()]) {
            let Value::Object(mut object) = value else {
                panic!("not an object")
            };
            strategy::prepare_for_create(Builtin::CustomResourceDefinition, &mut object);
            assert_eq!(strategy::validate_create(&crd, &object), []);
            let typed = strategy::typed(&crd, object.clone()).unwrap();
            assert_eq!(Value::from(typed), Value::from(object));
        }
    }

    #[test]
    fn outriggers_own_kinds_live_in_the_system_backend() {
        let cluster = find("outrigger.dev", "workloadclusters");
        assert_eq!(
            (
                cluster.backing,
                cluster.builtin,
                cluster.namespaced,
                cluster.status
            ),
            (Backing::System, None, false, true)
        );
        assert_eq!(outrigger_definitions().len(), 3);
    }

    #[test]
    fn subresources_of_namespaces() {
        let names: Vec<_> = find("", "namespaces")
            .subresources()
            .iter()
            .map(|s| s.name)
            .collect();
        assert_eq!(names, ["finalize", "status"]);
    }

    #[test]
    fn fields_of_both_forms_of_event_lead_to_the_stored_form() {
        let path = |group: &str, field: &str| find(group, "events").selectable_path(field);
        assert_eq!(
            path("", "involvedObject.name").as_deref(),
            Some(".involvedObject.name")
        );
        assert_eq!(
            path("events.k8s.io", "regarding.name").as_deref(),
            Some(".involvedObject.name")
        );
        assert_eq!(
            path("events.k8s.io", "reportingController").as_deref(),
            Some(".reportingComponent")
        );
        assert_eq!(path("", "regarding.name"), None);
        assert_eq!(path("", "source").as_deref(), Some(".source.component"));
        assert_eq!(
            find("", "namespaces").selectable_path("name").as_deref(),
            Some(".metadata.name")
        );
        assert_eq!(find("", "secrets").selectable_path("spec"), None);
    }
}
