//! CustomResourceDefinitions: defaults, what may not change, and the versions that objects may be stored in.

mod validation;

use super::{Object, at, object_in, restore, text_at};
use crate::resources::definition::{condition_is_true, flag, text};
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::{Value, json};
use validation::{validate, validate_names};

/// The annotation that names the approval of a CRD in one of Kubernetes' own groups.
const APPROVED_ANNOTATION: &str = "api-approved.kubernetes.io";

pub(super) fn prepare_for_create(crd: &mut Object) {
    set_defaults(crd);
    crd.insert("status".to_owned(), json!({}));
    object_in(crd, "metadata").insert("generation".to_owned(), 1.into());
    remember_storage_version(crd);
}

pub(super) fn prepare_for_update(new: &mut Object, old: &Object, subresource: &str) {
    if subresource == "status" {
        restore(new, old, "spec");
        remember_some_version(new);
        return;
    }
    set_defaults(new);
    restore(new, old, "status");
    let generation = at(old, &["metadata", "generation"])
        .and_then(Value::as_i64)
        .unwrap_or(1);
    let changed = new.get("spec") != old.get("spec");
    object_in(new, "metadata").insert("generation".to_owned(), (generation + i64::from(changed)).into());
    remember_storage_version(new);
}

fn set_defaults(crd: &mut Object) {
    let spec = object_in(crd, "spec");
    let names = object_in(spec, "names");
    let kind = text_at(names, &["kind"]).to_owned();
    let mut default = |field: &str, value: String| {
        if text_at(names, &[field]).is_empty() && !kind.is_empty() {
            names.insert(field.to_owned(), value.into());
        }
    };
    default("singular", kind.to_lowercase());
    default("listKind", format!("{kind}List"));
    if spec.get("conversion").is_none_or(Value::is_null) {
        spec.insert("conversion".to_owned(), json!({"strategy": "None"}));
    }
}

/// A version that objects are stored in stays in `status.storedVersions` until somebody migrated them.
fn remember_storage_version(crd: &mut Object) {
    let versions = at(crd, &["spec", "versions"]).and_then(Value::as_array);
    let storage = versions
        .into_iter()
        .flatten()
        .find(|version| flag(version, "/storage"))
        .map(|version| text(version, "/name").to_owned());
    let Some(storage) = storage else { return };
    let stored = object_in(crd, "status")
        .entry("storedVersions")
        .or_insert_with(|| json!([]));
    if let Value::Array(stored) = stored
        && !stored.iter().any(|version| *version == storage)
    {
        stored.push(storage.into());
    }
}

/// Objects are stored in some version: a list without any means the storage version, as upstream defaults it.
fn remember_some_version(crd: &mut Object) {
    let stored = at(crd, &["status", "storedVersions"]).and_then(Value::as_array);
    if stored.is_none_or(Vec::is_empty) {
        object_in(crd, "status").remove("storedVersions");
        remember_storage_version(crd);
    }
}

pub(super) fn validate_create(crd: &Object) -> Vec<StatusCause> {
    let name = text_at(crd, &["metadata", "name"]);
    let mut causes = Vec::new();
    if name
        != format!(
            "{}.{}",
            text_at(crd, &["spec", "names", "plural"]),
            text_at(crd, &["spec", "group"])
        )
    {
        causes.push(field::invalid(
            "metadata.name",
            name,
            r#"must be spec.names.plural+"."+spec.group"#,
        ));
    }
    causes.extend(validate(crd));
    causes.extend(validate_approval(crd));
    causes
}

pub(super) fn validate_update(new: &Object, old: &Object, subresource: &str) -> Vec<StatusCause> {
    if subresource == "status" {
        return validate_names(
            new.get("status").and_then(|status| status.get("acceptedNames")),
            "status.acceptedNames",
        );
    }
    let mut causes = validate(new);
    let established = condition_is_true(&Value::Object(old.clone()), "Established");
    let fixed: &[&[&str]] = if established {
        &[&["scope"], &["names", "kind"], &["group"], &["names", "plural"]]
    } else {
        &[&["group"], &["names", "plural"]]
    };
    for path in fixed {
        let path: Vec<&str> = std::iter::once("spec").chain(path.iter().copied()).collect();
        if text_at(new, &path) != text_at(old, &path) {
            causes.push(field::immutable(path.join("."), text_at(new, &path)));
        }
    }
    if at(new, &["metadata", "annotations", APPROVED_ANNOTATION])
        != at(old, &["metadata", "annotations", APPROVED_ANNOTATION])
    {
        causes.extend(validate_approval(new));
    }
    causes
}

/// The groups of Kubernetes itself ask for a word about who approved the kind.
fn validate_approval(crd: &Object) -> Option<StatusCause> {
    let group = text_at(crd, &["spec", "group"]);
    let protected = ["k8s.io", "kubernetes.io"].iter().any(|domain| {
        group
            .strip_suffix(domain)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    });
    if !protected {
        return None;
    }
    let path = format!("metadata.annotations[{APPROVED_ANNOTATION}]");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    match text_at(crd, &["metadata", "annotations", APPROVED_ANNOTATION]) {
        "" => Some(field::required(
            path,
            &format!("protected groups must have approval annotation {APPROVED_ANNOTATION:?}, {see}"),
        )),
        text if text.starts_with("unapproved")
            || text
                .split_once("://")
                .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty()) =>
        {
            None
        }
        text => {
            let detail = format!(
                "protected groups must have approval annotation {APPROVED_ANNOTATION:?} with either a URL or a reason starting with \"unapproved\", {see}"
            );
            Some(field::invalid(path, text, &detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd() -> Value {
        json!({
            "metadata": {"name": "apps.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "apps", "kind": "App"},
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"tier": {"type": "string"}, "list": {"type": "array", "items": {"type": "string"}}}}}}},
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                    "additionalPrinterColumns": [{"name": "Tier", "type": "string", "jsonPath": ".spec.tier"}],
                    "selectableFields": [{"jsonPath": ".spec.tier"}],
                }],
            },
        })
    }

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            _ => panic!("not an object"),
        }
    }

    /// Sets the value at a pointer and expects complaints about these fields.
    #[track_caller]
    fn check(pointer: &str, value: Value, fields: &[&str]) {
        let mut crd = crd();
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        match crd.pointer_mut(parent) {
            Some(Value::Object(parent)) => drop(parent.insert(last.to_owned(), value)),
            Some(Value::Array(parent)) => parent.push(value),
            _ => panic!("no {parent}"),
        }
        let mut crd = object(crd);
        prepare_for_create(&mut crd);
        let causes = validate_create(&crd);
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
    fn defaults_and_status_of_a_new_crd() {
        let mut crd = object(crd());
        crd.insert(
            "status".to_owned(),
            json!({"storedVersions": ["v0"], "conditions": []}),
        );
        prepare_for_create(&mut crd);
        assert_eq!(
            crd["spec"]["names"],
            json!({"plural": "apps", "singular": "app", "kind": "App", "listKind": "AppList"})
        );
        assert_eq!(crd["spec"]["conversion"], json!({"strategy": "None"}));
        assert_eq!(crd["status"], json!({"storedVersions": ["v1"]}));
        assert_eq!(crd["metadata"]["generation"], 1);
        assert_eq!(validate_create(&crd), []);
    }

    #[test]
    fn what_is_wrong_is_named_as_kube_apiserver_names_it() {
        check("/metadata/name", "app.example.com".into(), &["metadata.name"]);
        check("/spec/group", "example".into(), &["metadata.name", "spec.group"]);
        check("/spec/group", "".into(), &["metadata.name", "spec.group"]);
        check("/spec/scope", "World".into(), &["spec.scope"]);
        check(
            "/spec/names/kind",
            "".into(),
            &["spec.names.singular", "spec.names.kind", "spec.names.listKind"],
        );
        check(
            "/spec/names/kind",
            "My App".into(),
            &["spec.names.singular", "spec.names.kind", "spec.names.listKind"],
        );
        check("/spec/names/listKind", "App".into(), &["spec.names.listKind"]);
        check(
            "/spec/names/shortNames",
            json!(["ok", "Not"]),
            &["spec.names.shortNames[1]"],
        );
        check(
            "/spec/names/categories",
            json!([""]),
            &["spec.names.categories[0]"],
        );
        check(
            "/spec/conversion",
            json!({"strategy": "Webhook"}),
            &["spec.conversion.strategy"],
        );
        check(
            "/spec/preserveUnknownFields",
            true.into(),
            &["spec.preserveUnknownFields"],
        );
        check("/spec/preserveUnknownFields", false.into(), &[]);
        check(
            "/spec/versions/0/storage",
            false.into(),
            &["spec.versions", "status.storedVersions"],
        );
        check(
            "/spec/versions/0/name",
            "1".into(),
            &["spec.versions[0].name", "spec.version"],
        );
        check(
            "/spec/versions/0/deprecationWarning",
            "x".into(),
            &["spec.versions[0].deprecationWarning"],
        );
        check(
            "/spec/versions/0/schema",
            Value::Null,
            &["spec.versions[0].schema.openAPIV3Schema", "spec.selectableFields"],
        );
        check(
            "/spec/versions/0/schema/openAPIV3Schema",
            json!({"type": "object", "properties": {"spec": {}}}),
            &[
                "spec.validation.openAPIV3Schema.properties[spec].type",
                "spec.selectableFields[0].jsonPath",
            ],
        );
        check(
            "/spec/versions/0/subresources/scale/specReplicasPath",
            ".status.x".into(),
            &["spec.subresources.scale.specReplicasPath"],
        );
        check(
            "/spec/versions/0/subresources/scale/labelSelectorPath",
            ".metadata.x".into(),
            &["spec.subresources.scale.labelSelectorPath"],
        );
        check(
            "/spec/versions/0/additionalPrinterColumns/0/type",
            "text".into(),
            &["spec.additionalPrinterColumns[0].type"],
        );
        check(
            "/spec/versions/0/additionalPrinterColumns/0/jsonPath",
            "spec".into(),
            &["spec.additionalPrinterColumns[0].JSONPath"],
        );
        check(
            "/spec/versions/0/selectableFields/0/jsonPath",
            ".spec.list".into(),
            &["spec.selectableFields[0].jsonPath"],
        );
        check(
            "/spec/versions/0/selectableFields/0/jsonPath",
            ".spec.none".into(),
            &["spec.selectableFields[0].jsonPath"],
        );
        check(
            "/spec/versions/0/selectableFields/0/jsonPath",
            ".metadata.name".into(),
            &["spec.selectableFields[0].jsonPath"],
        );
        check(
            "/spec/versions/0/selectableFields/-",
            json!({"jsonPath": ".spec.tier"}),
            &["spec.selectableFields[1].jsonPath"],
        );
    }

    #[test]
    fn versions_that_differ_have_their_own_paths() {
        let second = json!({"name": "v2", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object", "properties": {"x": {}}}}});
        check(
            "/spec/versions/-",
            second,
            &["spec.versions[1].schema.openAPIV3Schema.properties[x].type"],
        );
        let twin = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}});
        check("/spec/versions/-", twin, &["spec.versions", "spec.versions"]);
    }

    #[test]
    fn groups_of_kubernetes_are_protected() {
        let mut protected = crd();
        (protected["spec"]["group"], protected["metadata"]["name"]) =
            ("x.k8s.io".into(), "apps.x.k8s.io".into());
        let mut protected = object(protected);
        prepare_for_create(&mut protected);
        assert_eq!(validate_create(&protected).len(), 1);
        object_in(&mut protected, "metadata").insert(
            "annotations".to_owned(),
            json!({APPROVED_ANNOTATION: "unapproved, a test"}),
        );
        assert_eq!(validate_create(&protected), []);
    }

    #[test]
    fn names_are_fixed_once_established() {
        let mut old = object(crd());
        prepare_for_create(&mut old);
        let mut new = old.clone();
        object_in(object_in(&mut new, "spec"), "names").insert("kind".to_owned(), "Other".into());
        prepare_for_update(&mut new, &old, "");
        assert_eq!(new["metadata"]["generation"], 2);
        assert_eq!(validate_update(&new, &old, ""), []);
        object_in(&mut old, "status").insert(
            "conditions".to_owned(),
            json!([{"type": "Established", "status": "True"}]),
        );
        assert_eq!(
            validate_update(&new, &old, "")
                .iter()
                .map(|cause| cause.field.as_str())
                .collect::<Vec<_>>(),
            ["spec.names.kind"]
        );
    }

    #[test]
    fn a_version_with_stored_objects_cannot_be_dropped() {
        let mut old = object(crd());
        prepare_for_create(&mut old);
        let mut new = old.clone();
        new["spec"]["versions"][0]["name"] = "v2".into();
        prepare_for_update(&mut new, &old, "");
        assert_eq!(new["status"]["storedVersions"], json!(["v1", "v2"]));
        assert_eq!(
            validate_update(&new, &old, "")
                .iter()
                .map(|cause| cause.field.as_str())
                .collect::<Vec<_>>(),
            ["status.storedVersions[0]"]
        );
        // Nor by forgetting, in the status, that anything is stored.
        for nothing in [json!([]), json!(null)] {
            let mut status = old.clone();
            status["status"]["storedVersions"] = nothing;
            prepare_for_update(&mut status, &old, "status");
            assert_eq!(status["status"]["storedVersions"], json!(["v1"]));
        }
        let mut migrated = old.clone();
        migrated["status"]["storedVersions"] = json!(["v2"]);
        prepare_for_update(&mut migrated, &old, "status");
        assert_eq!(migrated["status"]["storedVersions"], json!(["v2"]));
    }
}
