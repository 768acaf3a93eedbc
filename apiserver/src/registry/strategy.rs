//! What is particular to a kind on its way into the store: what a client cannot set, and what must hold.
//!
//! Objects of CRDs have one rule each for create, update and status; the built-in kinds have their own in `resources`.
//! Pure. Schemas are another layer: their place is marked in `create` and `update`.

use super::object_meta::{self, generation, metadata_mut};
use super::{Part, RequestScope, Unstructured, names};
use crate::resources::definition::{Builtin, ResourceDefinition};
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::Value;

/// How objects of this kind may be named.
pub(crate) fn name_rule(definition: &ResourceDefinition) -> object_meta::NameRule {
    match definition.builtin {
        Some(Builtin::Namespace) => names::dns_label,
        _ => names::dns_subdomain,
    }
}

/// Whether a PUT without resourceVersion overwrites whatever is there.
pub(crate) fn allows_unconditional_update(definition: &ResourceDefinition) -> bool {
    matches!(
        definition.builtin,
        Some(Builtin::Namespace | Builtin::Secret | Builtin::Event)
    )
}

/// Whether the answer to a delete is the object instead of a Status.
pub(crate) fn returns_deleted_object(definition: &ResourceDefinition) -> bool {
    definition.builtin == Some(Builtin::Namespace)
}

/// Whether the garbage collector has a say in the deletion of objects of this kind.
pub(crate) fn is_garbage_collected(definition: &ResourceDefinition) -> bool {
    definition.builtin != Some(Builtin::Event)
}

/// Whether changes count as generations.
fn has_generation(definition: &ResourceDefinition) -> bool {
    matches!(definition.builtin, None | Some(Builtin::CustomResourceDefinition))
}

/// Makes a new object what clients can make it.
pub(crate) fn prepare_for_create(scope: &RequestScope, object: &mut Unstructured) {
    let definition = &*scope.definition;
    if definition.status {
        object.remove("status");
    }
    if has_generation(definition) {
        metadata_mut(object).insert("generation".to_owned(), 1.into());
    }
}

/// Makes a changed object what the endpoint can make it: the object without status, or the status alone.
pub(crate) fn prepare_for_update(scope: &RequestScope, object: &mut Unstructured, old: &Unstructured) {
    let definition = &*scope.definition;
    match scope.part {
        Part::Status => {
            let status = object.remove("status");
            let kind = object.get("kind").cloned();
            *object = old.clone();
            // Kept as it was sent, so that a wrong one is refused below.
            kind.map(|kind| object.insert("kind".to_owned(), kind));
            set(object, "status", status);
        }
        Part::Object | Part::Scale | Part::Finalize => {
            if definition.status {
                set(object, "status", old.get("status").cloned());
            }
            if has_generation(definition) && !same_but_metadata(object, old) {
                let next = generation(old) + 1;
                metadata_mut(object).insert("generation".to_owned(), next.into());
            }
        }
    }
}

/// What must hold for objects of CRDs besides their schema.
pub(crate) fn validate(scope: &RequestScope, object: &Unstructured) -> Vec<StatusCause> {
    let definition = &*scope.definition;
    let mut causes = Vec::new();
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    for (name, expect) in [
        ("kind", &definition.kind),
        ("apiVersion", &definition.api_version()),
    ] {
        if text(name) != expect {
            causes.push(field::invalid(name, text(name), &format!("must be {expect}")));
        }
    }
    if let Some(scale) = &definition.scale {
        for path in [&scale.spec_replicas, &scale.status_replicas] {
            causes.extend(super::scale::validate_replicas(object, path));
        }
    }
    causes
}

/// What must hold for a change.
pub(crate) fn validate_update(
    scope: &RequestScope,
    object: &Unstructured,
    _old: &Unstructured,
) -> Vec<StatusCause> {
    validate(scope, object)
}

/// Whether an object whose last finalizer went may go: a namespace has others besides.
pub(crate) fn may_finish(definition: &ResourceDefinition, object: &Unstructured) -> bool {
    let finalizers = object
        .get("spec")
        .and_then(|s| s.get("finalizers"))
        .and_then(Value::as_array);
    definition.builtin != Some(Builtin::Namespace) || finalizers.is_none_or(Vec::is_empty)
}

fn set(object: &mut Unstructured, field: &str, value: Option<Value>) {
    match value {
        Some(value) => object.insert(field.to_owned(), value),
        None => object.remove(field),
    };
}

fn same_but_metadata(a: &Unstructured, b: &Unstructured) -> bool {
    let rest = |o: &Unstructured| {
        o.iter()
            .filter(|(k, _)| *k != "metadata")
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect::<Vec<_>>()
    };
    a.len() == b.len() && rest(a) == rest(b)
}
