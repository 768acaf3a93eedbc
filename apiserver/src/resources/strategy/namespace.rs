//! Namespaces: the finalizer that keeps one until it is empty, the phase, and the label with its name.

use super::{Object, at, object_in, restore, text_at};
use crate::registry::names;
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::{Value, json};

/// The finalizer in `spec.finalizers` that the namespace controller removes when the namespace is empty.
const FINALIZER: &str = "kubernetes";
/// The finalizers without a domain in their name.
const STANDARD_FINALIZERS: &[&str] = &[FINALIZER, "orphan", "foregroundDeletion"];
/// The label that holds the namespace's name, for selectors.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) fn prepare_for_create(object: &mut Object) {
    object.insert("status".to_owned(), json!({"phase": "Active"}));
    let finalizers = object_in(object, "spec")
        .entry("finalizers")
        .or_insert_with(|| json!([]));
    match finalizers {
        Value::Array(list) if list.iter().any(|finalizer| finalizer == FINALIZER) => {}
        Value::Array(list) => list.push(FINALIZER.into()),
        other => *other = json!([FINALIZER]),
    }
    canonicalize(object);
}

pub(super) fn prepare_for_update(new: &mut Object, old: &Object, subresource: &str) {
    match subresource {
        "status" => restore(new, old, "spec"),
        "finalize" => restore(new, old, "status"),
        _ => {
            restore(new, old, "spec");
            restore(new, old, "status");
        }
    }
    canonicalize(new);
}

/// Sets the label with the name, once the name is known.
pub(super) fn canonicalize(object: &mut Object) {
    let name = text_at(object, &["metadata", "name"]).to_owned();
    if !name.is_empty() {
        object_in(object_in(object, "metadata"), "labels").insert(NAME_LABEL.to_owned(), name.into());
    }
}

pub(super) fn validate_create(object: &Object) -> Vec<StatusCause> {
    validate_finalizers(object, |_| "spec.finalizers".to_owned())
}

pub(super) fn validate_update(new: &Object, subresource: &str) -> Vec<StatusCause> {
    match subresource {
        "status" => validate_phase(new).into_iter().collect(),
        "finalize" => validate_finalizers(new, |index| format!("spec.finalizers[{index}]")),
        _ => Vec::new(),
    }
}

/// The phase must agree with whether the namespace is being deleted.
fn validate_phase(object: &Object) -> Option<StatusCause> {
    let deleting = at(object, &["metadata", "deletionTimestamp"]).is_some();
    let phase = text_at(object, &["status", "phase"]);
    let complaint = match (deleting, phase) {
        (false, "Active") | (true, "Terminating") => return None,
        (false, _) => "may only be 'Active' if `deletionTimestamp` is empty",
        (true, _) => "may only be 'Terminating' if `deletionTimestamp` is not empty",
    };
    Some(field::invalid("status.Phase", phase, complaint))
}

/// `path` is where a finalizer stands; kube-apiserver tells the index only at the finalize subresource.
fn validate_finalizers(object: &Object, path: impl Fn(usize) -> String) -> Vec<StatusCause> {
    let finalizers = at(object, &["spec", "finalizers"]).and_then(Value::as_array);
    let complaints = finalizers
        .into_iter()
        .flatten()
        .enumerate()
        .flat_map(|(index, finalizer)| {
            let name = finalizer.as_str().unwrap_or_default();
            let mut complaints = names::is_qualified_name(name);
            if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
                complaints
                    .push("name is neither a standard finalizer name nor is it fully qualified".to_owned());
            }
            let path = path(index);
            let causes = complaints
                .into_iter()
                .map(|complaint| field::invalid(&path, name, &complaint));
            causes.collect::<Vec<_>>()
        });
    complaints.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            _ => panic!("not an object"),
        }
    }

    #[test]
    fn a_new_namespace_is_active_and_has_its_finalizer_and_label() {
        let mut namespace = object(json!({"metadata": {"name": "a"}, "status": {"phase": "Terminating"}}));
        prepare_for_create(&mut namespace);
        let expect = json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        assert_eq!(Value::from(namespace), expect);
        let mut own = object(json!({"metadata": {}, "spec": {"finalizers": ["example.com/x"]}}));
        prepare_for_create(&mut own);
        assert_eq!(own["spec"]["finalizers"], json!(["example.com/x", "kubernetes"]));
    }

    #[test]
    fn each_subresource_changes_its_own_part() {
        let old = object(
            json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
        );
        let changed = object(
            json!({"metadata": {"name": "a", "annotations": {"x": "y"}}, "spec": {"finalizers": []}, "status": {"phase": "Terminating"}}),
        );
        let update = |subresource| {
            let mut new = changed.clone();
            prepare_for_update(&mut new, &old, subresource);
            (new["spec"] == changed["spec"], new["status"] == changed["status"])
        };
        assert_eq!(
            (update(""), update("status"), update("finalize")),
            ((false, false), (false, true), (true, false))
        );
    }

    #[test]
    fn the_phase_agrees_with_the_deletion() {
        let check = |deleting: Option<&str>, phase: &str| {
            validate_phase(&object(
                json!({"metadata": {"deletionTimestamp": deleting}, "status": {"phase": phase}}),
            ))
            .is_none()
        };
        assert!(check(None, "Active") && check(Some("2026-01-01T00:00:00Z"), "Terminating"));
        assert!(!check(None, "Terminating") && !check(Some("2026-01-01T00:00:00Z"), "Active"));
    }

    #[test]
    fn finalizers_have_a_domain_or_are_known() {
        let check = |name: &str| {
            validate_update(&object(json!({"spec": {"finalizers": [name]}})), "finalize").is_empty()
        };
        let create = validate_create(&object(json!({"spec": {"finalizers": ["-"]}})));
        assert_eq!(
            create
                .iter()
                .map(|cause| cause.field.as_str())
                .collect::<Vec<_>>(),
            ["spec.finalizers"; 2]
        );
        assert!(check("kubernetes") && check("example.com/x"));
        assert!(!check("mine") && !check("") && !check("a/b/c"));
    }
}
