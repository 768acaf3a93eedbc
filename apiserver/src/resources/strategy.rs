//! What create and update mean for the server's own kinds beyond what they mean for any object: defaults, fields that
//! a caller may not set, validation. Pure: values in, values out. Objects are in the form in which they are stored
//! (Events in that of the core group); metadata that all kinds share is the registry's.

mod custom_resource_definition;
mod event;
mod lease;
mod namespace;
mod secret;

use crate::registry::names;
use crate::resources::crd_status;
use crate::resources::definition::{Builtin, ResourceDefinition};
use crate::status::StatusCause;
use k8s_openapi::api::{coordination, core};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A JSON object.
type Object = Map<String, Value>;

/// The object as its Go type would hold it: unknown fields dropped, every field of its type. The message says which
/// field is not. Kinds that come from CRDs pass as they are. The object is in the form of the definition's version;
/// call it before an Event of events.k8s.io is converted.
pub fn typed(definition: &ResourceDefinition, mut object: Object) -> Result<Object, serde_json::Error> {
    let Some(builtin) = definition.builtin else {
        return Ok(object);
    };
    let type_meta = [
        ("apiVersion", definition.api_version()),
        ("kind", definition.kind.clone()),
    ];
    object = match builtin {
        Builtin::Namespace => through::<core::v1::Namespace>(object)?,
        Builtin::Secret => {
            secret::fill_data(&mut object);
            through::<core::v1::Secret>(object)?
        }
        Builtin::Lease => through::<coordination::v1::Lease>(object)?,
        Builtin::CustomResourceDefinition => {
            let mut object = through::<apiextensions::v1::CustomResourceDefinition>(object)?;
            object.values_mut().for_each(integers);
            object
        }
        Builtin::Event if definition.group.is_empty() => through::<core::v1::Event>(object)?,
        Builtin::Event => through::<k8s_openapi::api::events::v1::Event>(object)?,
    };
    for (field, value) in type_meta {
        object.insert(field.to_owned(), value.into());
    }
    Ok(object)
}

/// Whether a PUT of a name that does not exist creates it.
#[must_use]
pub fn allow_create_on_update(builtin: Builtin) -> bool {
    matches!(builtin, Builtin::Lease | Builtin::Event)
}

/// Whether a PUT may leave out `metadata.resourceVersion`.
#[must_use]
pub fn allow_unconditional_update(builtin: Builtin) -> bool {
    matches!(builtin, Builtin::Namespace | Builtin::Secret | Builtin::Event)
}

/// Whether deletion of the kind knows finalizers for garbage collection (`orphan`, `foregroundDeletion`).
#[must_use]
pub fn garbage_collected(builtin: Builtin) -> bool {
    builtin != Builtin::Event
}

/// Complaints about an object's name. `None` stands for kinds that come from CRDs.
#[must_use]
pub fn validate_name(builtin: Option<Builtin>, name: &str) -> Vec<String> {
    match builtin {
        Some(Builtin::Namespace) => names::is_dns1123_label(name),
        // Anything that can stand in a path: clients have always been free in naming their events.
        Some(Builtin::Event) => names::is_path_segment(name),
        _ => names::is_dns1123_subdomain(name),
    }
}

/// Sets defaults and what a caller may not choose, in a new object. Before names are generated.
pub fn prepare_for_create(builtin: Builtin, object: &mut Object) {
    match builtin {
        Builtin::Namespace => namespace::prepare_for_create(object),
        Builtin::Secret => secret::prepare_for_create(object),
        Builtin::CustomResourceDefinition => custom_resource_definition::prepare_for_create(object),
        Builtin::Lease | Builtin::Event => {}
    }
}

/// Sets defaults and restores what this (sub)resource may not change. An empty `subresource` is the object itself.
pub fn prepare_for_update(builtin: Builtin, new: &mut Object, old: &Object, subresource: &str) {
    match builtin {
        Builtin::Namespace => namespace::prepare_for_update(new, old, subresource),
        Builtin::Secret => secret::prepare_for_update(new, old),
        Builtin::CustomResourceDefinition => {
            custom_resource_definition::prepare_for_update(new, old, subresource)
        }
        Builtin::Lease | Builtin::Event => {}
    }
}

/// What the first request to delete changes besides `metadata.deletionTimestamp`. `now` is RFC 3339, in seconds.
pub fn prepare_for_delete(builtin: Builtin, object: &mut Object, now: &str) {
    match builtin {
        Builtin::Namespace => {
            object_in(object, "status").insert("phase".to_owned(), "Terminating".into());
        }
        Builtin::CustomResourceDefinition => crd_status::mark_for_deletion(object, now),
        Builtin::Secret | Builtin::Lease | Builtin::Event => {}
    }
}

/// Whether an object in deletion stays although its `metadata.finalizers` are gone: a namespace has more of them.
#[must_use]
pub fn stays(builtin: Builtin, object: &Object) -> bool {
    let finalizers = at(object, &["spec", "finalizers"]).and_then(Value::as_array);
    builtin == Builtin::Namespace && finalizers.is_some_and(|finalizers| !finalizers.is_empty())
}

/// The last change before an object is stored, when its name is known.
pub fn canonicalize(builtin: Builtin, object: &mut Object) {
    if builtin == Builtin::Namespace {
        namespace::canonicalize(object);
    }
}

/// What is wrong with a new object.
#[must_use]
pub fn validate_create(definition: &ResourceDefinition, object: &Object) -> Vec<StatusCause> {
    match definition.builtin {
        Some(Builtin::Secret) => secret::validate(object),
        Some(Builtin::Lease) => lease::validate(object),
        Some(Builtin::Event) => event::validate_create(object, event::Rules::of(definition)),
        Some(Builtin::CustomResourceDefinition) => custom_resource_definition::validate_create(object),
        Some(Builtin::Namespace) => namespace::validate_create(object),
        None => Vec::new(),
    }
}

/// What is wrong with a changed object.
#[must_use]
pub fn validate_update(
    definition: &ResourceDefinition,
    new: &Object,
    old: &Object,
    subresource: &str,
) -> Vec<StatusCause> {
    match definition.builtin {
        Some(Builtin::Namespace) => namespace::validate_update(new, subresource),
        Some(Builtin::Secret) => secret::validate_update(new, old),
        Some(Builtin::Lease) => lease::validate(new),
        Some(Builtin::Event) => event::validate_update(new, old, event::Rules::of(definition)),
        Some(Builtin::CustomResourceDefinition) => {
            custom_resource_definition::validate_update(new, old, subresource)
        }
        None => Vec::new(),
    }
}

/// Writes whole numbers as such: `minimum` is a float in the Go type, and Go writes 0, not 0.0.
fn integers(value: &mut Value) {
    /// Beyond this a float does not hold every integer.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) if number.is_f64() => {
            let float = number
                .as_f64()
                .filter(|float| float.fract() == 0.0 && float.abs() <= EXACT_MAX);
            if let Some(float) = float {
                #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
                let whole = float as i64;
                *value = whole.into();
            }
        }
        Value::Array(items) => items.iter_mut().for_each(integers),
        Value::Object(fields) => fields.values_mut().for_each(integers),
        _ => {}
    }
}

fn through<T: DeserializeOwned + Serialize>(object: Object) -> Result<Object, serde_json::Error> {
    let value: T = serde_json::from_value(Value::Object(object))?;
    match serde_json::to_value(value)? {
        Value::Object(object) => Ok(object),
        _ => Ok(Object::new()),
    }
}

/// The value under these fields.
fn at<'a>(object: &'a Object, path: &[&str]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(object.get(*first)?, |value, field| value.get(field))
        .filter(|value| !value.is_null())
}

/// The text under these fields; empty if there is none.
fn text_at<'a>(object: &'a Object, path: &[&str]) -> &'a str {
    at(object, path).and_then(Value::as_str).unwrap_or_default()
}

/// The object under this field, made if there is none.
fn object_in<'a>(object: &'a mut Object, field: &str) -> &'a mut Object {
    let value = object
        .entry(field)
        .or_insert_with(|| Value::Object(Object::new()));
    if !value.is_object() {
        *value = Value::Object(Object::new());
    }
    match value {
        Value::Object(inner) => inner,
        _ => unreachable!("it was made an object above"),
    }
}

/// Makes a field of `new` what it is in `old`.
fn restore(new: &mut Object, old: &Object, field: &str) {
    match old.get(field) {
        Some(value) => new.insert(field.to_owned(), value.clone()),
        None => new.remove(field),
    };
}
