//! What is particular to a kind on its way into the store: what a client cannot set, and what must hold.
//!
//! Objects of CRDs have one rule each for create, update and status; the built-in kinds have their own in
//! `resources::strategy`. Pure. Schemas are another layer: their place is marked in `create` and `update`.

use super::object_meta::{generation, metadata_mut};
use super::{Part, RequestScope, Unstructured, names};
use crate::resources::definition::{Builtin, ResourceDefinition};
use crate::resources::strategy as builtin;
use crate::status::StatusCause;
use serde_json::Value;

/// What is wrong with a name; `prefix` says that it is the beginning of one to be generated.
pub(crate) fn validate_name(definition: &ResourceDefinition, name: &str, prefix: bool) -> Vec<String> {
    if prefix {
        builtin::validate_name(definition.builtin, &names::with_suffix(name))
    } else {
        builtin::validate_name(definition.builtin, name)
    }
}

/// Whether a PUT without resourceVersion overwrites whatever is there.
pub(crate) fn allows_unconditional_update(definition: &ResourceDefinition) -> bool {
    definition
        .builtin
        .is_some_and(builtin::allow_unconditional_update)
}

/// Whether a PUT of a name that is not there creates it.
pub(crate) fn allows_create_on_update(definition: &ResourceDefinition) -> bool {
    definition.builtin.is_some_and(builtin::allow_create_on_update)
}

/// Whether the answer to a delete is the object instead of a Status.
pub(crate) fn returns_deleted_object(definition: &ResourceDefinition) -> bool {
    definition.builtin == Some(Builtin::Namespace)
}

/// Whether the garbage collector has a say in the deletion of objects of this kind.
pub(crate) fn is_garbage_collected(definition: &ResourceDefinition) -> bool {
    definition.builtin.is_none_or(builtin::garbage_collected)
}

/// Makes a new object what clients can make it.
pub(crate) fn prepare_for_create(scope: &RequestScope, object: &mut Unstructured) {
    match scope.definition.builtin {
        Some(kind) => builtin::prepare_for_create(kind, object),
        None => {
            if scope.definition.status {
                object.remove("status");
            }
            metadata_mut(object).insert("generation".to_owned(), 1.into());
        }
    }
}

/// Makes a changed object what the endpoint can make it: the object without status, or the status alone.
pub(crate) fn prepare_for_update(scope: &RequestScope, object: &mut Unstructured, old: &Unstructured) {
    match (scope.definition.builtin, scope.part) {
        (Some(kind), part) => builtin::prepare_for_update(kind, object, old, part.as_str()),
        (None, Part::Status) => {
            let status = object.remove("status");
            *object = old.clone();
            set(object, "status", status);
        }
        (None, _) => {
            if scope.definition.status {
                set(object, "status", old.get("status").cloned());
            }
            if !same_but_metadata(object, old) {
                let next = generation(old) + 1;
                metadata_mut(object).insert("generation".to_owned(), next.into());
            }
        }
    }
}

/// The last change, when the name is known.
pub(crate) fn canonicalize(scope: &RequestScope, object: &mut Unstructured) {
    if let Some(kind) = scope.definition.builtin {
        builtin::canonicalize(kind, object);
    }
}

/// What must hold for a new object besides its metadata and its schema.
pub(crate) fn validate_create(scope: &RequestScope, object: &Unstructured) -> Vec<StatusCause> {
    let mut causes = builtin::validate_create(&scope.definition, object);
    causes.extend(validate_scale(scope, object));
    causes
}

/// What must hold for a change.
pub(crate) fn validate_update(
    scope: &RequestScope,
    object: &Unstructured,
    old: &Unstructured,
) -> Vec<StatusCause> {
    let mut causes = builtin::validate_update(&scope.definition, object, old, scope.part.as_str());
    causes.extend(validate_scale(scope, object));
    causes
}

fn validate_scale(scope: &RequestScope, object: &Unstructured) -> Vec<StatusCause> {
    let scale = scope.definition.scale.iter();
    let paths = scale.flat_map(|scale| [&scale.spec_replicas, &scale.status_replicas]);
    paths
        .filter_map(|path| super::scale::validate_replicas(object, path))
        .collect()
}

/// Whether the first request to delete only marks the object, because there is content to be removed.
pub(crate) fn holds_content(definition: &ResourceDefinition) -> bool {
    matches!(
        definition.builtin,
        Some(Builtin::Namespace | Builtin::CustomResourceDefinition)
    )
}

/// Marks an object that holds content.
pub(crate) fn prepare_for_delete(definition: &ResourceDefinition, object: &mut Unstructured, now: &str) {
    if let Some(kind) = definition.builtin {
        builtin::prepare_for_delete(kind, object, now);
    }
}

/// Whether an object in deletion stays although its last finalizer went: a namespace has others besides.
pub(crate) fn stays(definition: &ResourceDefinition, object: &Unstructured) -> bool {
    definition
        .builtin
        .is_some_and(|kind| builtin::stays(kind, object))
}

fn set(object: &mut Unstructured, field: &str, value: Option<Value>) {
    match value {
        Some(value) => object.insert(field.to_owned(), value),
        None => object.remove(field),
    };
}

/// Whether the two say the same of what is wanted. In which version they are stored is no part of it: a write after a
/// change of the storage version would count as a change for every object.
fn same_but_metadata(a: &Unstructured, b: &Unstructured) -> bool {
    let counts = |k: &String| !["metadata", "apiVersion", "kind"].contains(&k.as_str());
    let rest = |o: &Unstructured| o.keys().filter(|k| counts(k)).count();
    let same = |(k, v): (&String, &Value)| !counts(k) || b.get(k) == Some(v);
    rest(a) == rest(b) && a.iter().all(same)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_counts_as_a_change_of_an_object() {
        let check = |a: Value, b: Value, expect: bool| {
            let (Value::Object(a), Value::Object(b)) = (a, b) else {
                panic!("objects")
            };
            assert_eq!(same_but_metadata(&a, &b), expect, "{a:?} {b:?}");
        };
        let old = json!({"apiVersion": "a/v1", "kind": "B", "metadata": {"name": "x"}, "spec": {"n": 1}});
        let with = |field: &str, value: Value| {
            let mut new = old.clone();
            new[field] = value;
            new
        };
        check(
            old.clone(),
            with("metadata", json!({"name": "x", "labels": {"a": "b"}})),
            true,
        );
        check(old.clone(), with("apiVersion", json!("a/v2")), true);
        check(old.clone(), with("spec", json!({"n": 2})), false);
        check(old.clone(), with("more", json!(null)), false);
        check(with("more", json!(null)), old.clone(), false);
    }
}
