//! `metadata`: its form, its rules on create and update, and the fields that only the server sets. Pure.
//!
//! It knows nothing of kinds; which names a kind takes is handed in.

use super::{Unstructured, names};
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::{Map, Value};

/// All keys and values of annotations together, in bytes.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;
pub(crate) const ORPHAN_FINALIZER: &str = "orphan";
pub(crate) const FOREGROUND_FINALIZER: &str = "foregroundDeletion";

/// What is wrong with a name; the flag says that it is the prefix of a name to be generated.
pub(crate) type NameRule<'a> = &'a dyn Fn(&str, bool) -> Vec<String>;

/// What a field of metadata must be.
enum Form {
    Text,
    Number,
    Time,
    Texts,
    TextMap,
    OwnerReferences,
    ManagedFields,
}

/// Every field that metadata has.
const FIELDS: [(&str, Form); 15] = [
    ("name", Form::Text),
    ("generateName", Form::Text),
    ("namespace", Form::Text),
    ("selfLink", Form::Text),
    ("uid", Form::Text),
    ("resourceVersion", Form::Text),
    ("generation", Form::Number),
    ("creationTimestamp", Form::Time),
    ("deletionTimestamp", Form::Time),
    ("deletionGracePeriodSeconds", Form::Number),
    ("labels", Form::TextMap),
    ("annotations", Form::TextMap),
    ("ownerReferences", Form::OwnerReferences),
    ("finalizers", Form::Texts),
    ("managedFields", Form::ManagedFields),
];

/// The object's metadata; empty if there is none.
pub(crate) fn metadata(object: &Unstructured) -> &Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    object.get("metadata").and_then(Value::as_object).unwrap_or(&NONE)
}

/// The object's metadata, made if there is none.
pub(crate) fn metadata_mut(object: &mut Unstructured) -> &mut Map<String, Value> {
    let slot = object.entry("metadata").or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    match slot {
        Value::Object(map) => map,
        _ => unreachable!("made an object just above"),
    }
}

/// A text of metadata; empty if it is not there.
pub(crate) fn text<'a>(object: &'a Unstructured, field: &str) -> &'a str {
    metadata(object)
        .get(field)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `metadata.generation`, 0 if there is none.
pub(crate) fn generation(object: &Unstructured) -> i64 {
    metadata(object)
        .get("generation")
        .and_then(Value::as_i64)
        .unwrap_or_default()
}

/// `metadata.finalizers`.
pub(crate) fn finalizers(object: &Unstructured) -> Vec<&str> {
    metadata(object)
        .get("finalizers")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

/// Writes `metadata.finalizers`; an empty list is left out.
pub(crate) fn set_finalizers(object: &mut Unstructured, finalizers: &[String]) {
    let metadata = metadata_mut(object);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
}

/// Brings metadata into the form of an ObjectMeta: unknown and empty fields go, times are whole seconds in UTC.
///
/// # Errors
/// The text of the decoding error when a field has the wrong type.
pub(crate) fn coerce(object: &mut Unstructured) -> Result<(), String> {
    let metadata = match object.remove("metadata") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(metadata)) => metadata,
        Some(other) => return Err(wrong_type(&other, "", "v1.ObjectMeta")),
    };
    let mut coerced = Map::new();
    for (name, value) in metadata {
        let Some((_, form)) = FIELDS.iter().find(|(n, _)| *n == name) else {
            continue;
        };
        if let Some(value) = coerce_field(&name, form, value)? {
            coerced.insert(name, value);
        }
    }
    object.insert("metadata".to_owned(), Value::Object(coerced));
    Ok(())
}

fn coerce_field(name: &str, form: &Form, value: Value) -> Result<Option<Value>, String> {
    let error = |value: &Value, want: &str| wrong_type(value, name, want);
    Ok(match (form, value) {
        (_, Value::Null) => None,
        (Form::Text, Value::String(text)) => (!text.is_empty()).then_some(Value::String(text)),
        (Form::Text, other) => return Err(error(&other, "string")),
        (Form::Number, Value::Number(n)) if n.is_i64() => {
            (name != "generation" || n.as_i64() != Some(0)).then_some(Value::Number(n))
        }
        (Form::Number, other) => return Err(error(&other, "int64")),
        (Form::Time, Value::String(text)) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| {
                format!("parsing time {text:?} of metadata.{name}: it is not an RFC 3339 time")
            })?;
            Some(Value::String(rfc3339(time.as_millisecond())))
        }
        (Form::Time, other) => return Err(error(&other, "v1.Time")),
        (Form::Texts, Value::Array(items)) => {
            let items: Vec<Value> = items
                .into_iter()
                .map(|v| if v.is_null() { "".into() } else { v })
                .collect();
            match items.iter().find(|v| !v.is_string()) {
                Some(other) => return Err(error(other, "string")),
                None => (!items.is_empty()).then_some(Value::Array(items)),
            }
        }
        (Form::Texts, other) => return Err(error(&other, "[]string")),
        (Form::TextMap, Value::Object(map)) => {
            let map: Map<String, Value> = map
                .into_iter()
                .map(|(k, v)| (k, if v.is_null() { "".into() } else { v }))
                .collect();
            match map.values().find(|v| !v.is_string()) {
                Some(other) => return Err(error(other, "string")),
                None => (!map.is_empty()).then_some(Value::Object(map)),
            }
        }
        (Form::TextMap, other) => return Err(error(&other, "map[string]string")),
        (Form::OwnerReferences, Value::Array(items)) => {
            let items = items
                .into_iter()
                .map(|item| owner_reference(item, &error))
                .collect::<Result<Vec<_>, _>>()?;
            (!items.is_empty()).then_some(Value::Array(items))
        }
        (Form::OwnerReferences, other) => return Err(error(&other, "[]v1.OwnerReference")),
        // Field management is not here yet: nothing is kept of what clients send.
        (Form::ManagedFields, Value::Array(_)) => None,
        (Form::ManagedFields, other) => return Err(error(&other, "[]v1.ManagedFieldsEntry")),
    })
}

fn owner_reference(item: Value, error: &impl Fn(&Value, &str) -> String) -> Result<Value, String> {
    let Value::Object(mut item) = item else {
        return Err(error(&item, "v1.OwnerReference"));
    };
    item.retain(|_, v| !v.is_null());
    let mut reference = Map::new();
    for name in ["apiVersion", "kind", "name", "uid"] {
        match item.remove(name) {
            None => reference.insert(name.to_owned(), "".into()),
            Some(Value::String(text)) => reference.insert(name.to_owned(), text.into()),
            Some(other) => return Err(error(&other, "string")),
        };
    }
    for name in ["controller", "blockOwnerDeletion"] {
        match item.remove(name) {
            None => None,
            Some(Value::Bool(flag)) => reference.insert(name.to_owned(), flag.into()),
            Some(other) => return Err(error(&other, "bool")),
        };
    }
    Ok(Value::Object(reference))
}

fn wrong_type(value: &Value, field: &str, want: &str) -> String {
    let got = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    match field {
        "" => format!("json: cannot unmarshal {got} into Go value of type {want}"),
        field => {
            format!("json: cannot unmarshal {got} into Go struct field ObjectMeta.{field} of type {want}")
        }
    }
}

/// A wall time in milliseconds as metadata has it: whole seconds in UTC.
pub(crate) fn rfc3339(milliseconds: i64) -> String {
    let time =
        jiff::Timestamp::from_second(milliseconds.div_euclid(1000)).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.to_string()
}

/// Takes away what clients may not set when they create an object.
pub(crate) fn wipe_system_fields(object: &mut Unstructured) {
    let metadata = metadata_mut(object);
    for name in [
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "uid",
    ] {
        metadata.remove(name);
    }
}

/// Drops owner references that stand there twice, and returns the warning about them.
pub(crate) fn dedup_owner_references(object: &mut Unstructured) -> Option<String> {
    let references = metadata_mut(object).get_mut("ownerReferences")?.as_array_mut()?;
    let mut kept: Vec<Value> = Vec::with_capacity(references.len());
    let mut duplicates = Vec::new();
    for reference in references.drain(..) {
        if kept.contains(&reference) {
            duplicates.push(reference["uid"].as_str().unwrap_or_default().to_owned());
        } else {
            kept.push(reference);
        }
    }
    *references = kept;
    (!duplicates.is_empty()).then(|| {
        format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests \
             as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            duplicates.join(", ")
        )
    })
}

/// Warnings about finalizers that are new in `object`.
pub(crate) fn finalizer_warnings(object: &Unstructured, old: Option<&Unstructured>) -> Vec<String> {
    let before = old.map(finalizers).unwrap_or_default();
    let added = finalizers(object).into_iter().filter(|f| !before.contains(f));
    let warn = |finalizer: &str| {
        let standard = [ORPHAN_FINALIZER, FOREGROUND_FINALIZER, "kubernetes"].contains(&finalizer);
        if standard || finalizer.contains('/') {
            return None;
        }
        let path = if finalizer.contains('.') {
            " including a path (/)"
        } else {
            ""
        };
        Some(format!(
            "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
        ))
    };
    added.filter_map(warn).collect()
}

/// The rules for the metadata of any object, new or changed.
pub(crate) fn validate(object: &Unstructured, namespaced: bool, name_rule: NameRule<'_>) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let invalid = |path: &str, value: &str, problems: Vec<String>| -> Vec<StatusCause> {
        problems.iter().map(|p| field::invalid(path, value, p)).collect()
    };
    let (name, generate_name, namespace) = (
        text(object, "name"),
        text(object, "generateName"),
        text(object, "namespace"),
    );
    if !generate_name.is_empty() {
        causes.extend(invalid(
            "metadata.generateName",
            generate_name,
            name_rule(generate_name, true),
        ));
    }
    if name.is_empty() {
        causes.push(field::required(
            "metadata.name",
            "name or generateName is required",
        ));
    } else {
        causes.extend(invalid("metadata.name", name, name_rule(name, false)));
    }
    match (namespaced, namespace) {
        (true, "") => causes.push(field::required("metadata.namespace", "")),
        (true, namespace) => causes.extend(invalid(
            "metadata.namespace",
            namespace,
            names::is_dns1123_label(namespace),
        )),
        (false, "") => {}
        (false, _) => causes.push(field::forbidden("metadata.namespace", "not allowed on this type")),
    }
    if generation(object) < 0 {
        causes.push(field::invalid(
            "metadata.generation",
            generation(object),
            "must be greater than or equal to 0",
        ));
    }
    for (key, value) in texts(object, "labels") {
        causes.extend(invalid("metadata.labels", key, names::is_qualified_name(key)));
        causes.extend(invalid("metadata.labels", value, names::is_label_value(value)));
    }
    let mut annotations = 0;
    for (key, value) in texts(object, "annotations") {
        causes.extend(invalid(
            "metadata.annotations",
            key,
            names::is_qualified_name(&key.to_lowercase()),
        ));
        annotations += key.len() + value.len();
    }
    if annotations > ANNOTATIONS_BYTES_MAX {
        causes.push(field::too_long("metadata.annotations", ANNOTATIONS_BYTES_MAX));
    }
    validate_owner_references(object, &mut causes);
    let finalizers = finalizers(object);
    for finalizer in &finalizers {
        causes.extend(invalid(
            "metadata.finalizers",
            finalizer,
            names::is_qualified_name(finalizer),
        ));
    }
    if finalizers.contains(&ORPHAN_FINALIZER) && finalizers.contains(&FOREGROUND_FINALIZER) {
        let detail = format!("finalizer {ORPHAN_FINALIZER} and {FOREGROUND_FINALIZER} cannot be both set");
        causes.push(field::invalid(
            "metadata.finalizers",
            finalizers.as_slice(),
            &detail,
        ));
    }
    causes
}

fn texts<'a>(object: &'a Unstructured, field: &str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let map = metadata(object).get(field).and_then(Value::as_object);
    map.into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default()))
}

fn validate_owner_references(object: &Unstructured, causes: &mut Vec<StatusCause>) {
    const PATH: &str = "metadata.ownerReferences";
    let Some(references) = metadata(object).get("ownerReferences").and_then(Value::as_array) else {
        return;
    };
    let mut controller: Option<String> = None;
    for reference in references {
        let text = |name: &str| reference[name].as_str().unwrap_or_default();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        // What has more than a group and a version has none.
        let version = match api_version.matches('/').count() {
            0 | 1 => api_version.rsplit('/').next().unwrap_or_default(),
            _ => "",
        };
        if version.is_empty() {
            causes.push(field::invalid(
                format!("{PATH}.apiVersion"),
                api_version,
                "version must not be empty",
            ));
        }
        for name in ["kind", "name", "uid"]
            .into_iter()
            .filter(|name| text(name).is_empty())
        {
            causes.push(field::invalid(format!("{PATH}.{name}"), "", "must not be empty"));
        }
        if (api_version, kind) == ("v1", "Event") {
            causes.push(field::invalid(
                PATH,
                reference.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if reference["controller"].as_bool() == Some(true) {
            let this = format!("{kind}/{}", text("name"));
            match &controller {
                None => controller = Some(this),
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    );
                    causes.push(field::invalid(PATH, references.as_slice(), &detail));
                }
            }
        }
    }
}

/// The rules for metadata that an update may not break.
pub(crate) fn validate_update(object: &Unstructured, old: &Unstructured) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    if !text(old, "deletionTimestamp").is_empty() {
        let before = finalizers(old);
        let mut added: Vec<&str> = finalizers(object)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect();
        added.sort_unstable();
        added.dedup();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            causes.push(field::forbidden("metadata.finalizers", &detail));
        }
    }
    for name in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let (new, old) = (metadata(object).get(name), metadata(old).get(name));
        if new != old {
            causes.push(field::invalid(
                format!("metadata.{name}"),
                new.cloned().unwrap_or_default(),
                "field is immutable",
            ));
        }
    }
    causes
}

/// Puts back what an update cannot change.
pub(crate) fn keep_system_fields(object: &mut Unstructured, old: &Unstructured) {
    let before = metadata(old);
    let metadata = metadata_mut(object);
    let mut keep = |name: &str, always: bool| {
        if let Some(value) = before.get(name)
            && (always || !metadata.contains_key(name))
        {
            metadata.insert(name.to_owned(), value.clone());
        }
    };
    keep("uid", false);
    keep("creationTimestamp", true);
    keep("deletionTimestamp", true);
    keep("deletionGracePeriodSeconds", false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(metadata: Value) -> Unstructured {
        let Value::Object(map) = json!({"metadata": metadata}) else {
            panic!("an object")
        };
        map
    }

    fn check_coerce(metadata: Value, expect: Result<Value, &str>) {
        let mut object = object(metadata);
        match (coerce(&mut object), expect) {
            (Ok(()), Ok(expect)) => assert_eq!(object["metadata"], expect),
            (Err(got), Err(expect)) => assert_eq!(got, expect),
            (got, expect) => panic!("{got:?} instead of {expect:?}"),
        }
    }

    #[test]
    fn metadata_takes_the_form_of_an_object_meta() {
        check_coerce(json!(null), Ok(json!({})));
        check_coerce(
            json!({"name": "a", "nme": 1, "labels": {}, "uid": "", "generation": 0, "managedFields": [{}]}),
            Ok(json!({"name": "a"})),
        );
        check_coerce(
            json!({"labels": {"a": null}, "finalizers": [null]}),
            Ok(json!({"labels": {"a": ""}, "finalizers": [""]})),
        );
        check_coerce(
            json!({"deletionTimestamp": "2026-01-02T03:04:05.678+01:00", "creationTimestamp": null}),
            Ok(json!({"deletionTimestamp": "2026-01-02T02:04:05Z"})),
        );
        check_coerce(
            json!({"labels": {"a": 1}}),
            Err("json: cannot unmarshal number into Go struct field ObjectMeta.labels of type string"),
        );
        check_coerce(
            json!([]),
            Err("json: cannot unmarshal array into Go value of type v1.ObjectMeta"),
        );
        check_coerce(
            json!({"name": true}),
            Err("json: cannot unmarshal bool into Go struct field ObjectMeta.name of type string"),
        );
        check_coerce(
            json!({"ownerReferences": [{"kind": "A", "x": 1, "controller": null}]}),
            Ok(json!({"ownerReferences": [{"apiVersion": "", "kind": "A", "name": "", "uid": ""}]})),
        );
    }

    fn check_validate(metadata: Value, namespaced: bool, expect: &[&str]) {
        let causes = validate(&object(metadata), namespaced, &|name, _| {
            names::is_dns1123_subdomain(name)
        });
        let fields: Vec<&str> = causes.iter().map(|c| c.field.as_str()).collect();
        assert_eq!(fields, expect, "{causes:?}");
    }

    #[test]
    fn rules() {
        check_validate(json!({"name": "a", "namespace": "b"}), true, &[]);
        check_validate(json!({"name": "A"}), false, &["metadata.name"]);
        check_validate(
            json!({"generateName": "A"}),
            true,
            &["metadata.generateName", "metadata.name", "metadata.namespace"],
        );
        check_validate(
            json!({"name": "a", "namespace": "b"}),
            false,
            &["metadata.namespace"],
        );
        check_validate(
            json!({"name": "a", "labels": {"-": "b c"}}),
            false,
            &["metadata.labels", "metadata.labels"],
        );
        check_validate(
            json!({"name": "a", "annotations": {"x": "y".repeat(256 * 1024)}}),
            false,
            &["metadata.annotations"],
        );
        check_validate(
            json!({"name": "a", "annotations": {"Kubectl.Kubernetes.IO/x": "Ü ="}}),
            false,
            &[],
        );
        check_validate(
            json!({"name": "a", "finalizers": ["orphan", "foregroundDeletion", "a b"]}),
            false,
            &["metadata.finalizers"; 2],
        );
        let owner = |name: &str| json!({"apiVersion": "v1", "kind": "K", "name": name, "uid": name, "controller": true});
        check_validate(json!({"name": "a", "ownerReferences": [owner("x")]}), false, &[]);
        check_validate(
            json!({"name": "a", "ownerReferences": [owner("x"), owner("y")]}),
            false,
            &["metadata.ownerReferences"],
        );
        check_validate(
            json!({"name": "a", "ownerReferences": [{"apiVersion": "a/b/c", "kind": "B", "name": "x", "uid": "u"}]}),
            false,
            &["metadata.ownerReferences.apiVersion"],
        );
        check_validate(
            json!({"name": "a", "ownerReferences": [{"apiVersion": "v1", "kind": "Event", "name": "x"}]}),
            false,
            &["metadata.ownerReferences.uid", "metadata.ownerReferences"],
        );
    }

    #[test]
    fn what_an_update_may_not_change() {
        let old = object(
            json!({"name": "a", "uid": "u", "creationTimestamp": "t", "deletionTimestamp": "t", "finalizers": ["x/y"]}),
        );
        let mut new = object(json!({"name": "a", "finalizers": ["x/y", "x/z"]}));
        keep_system_fields(&mut new, &old);
        let causes = validate_update(&new, &old);
        assert_eq!(causes.len(), 1, "{causes:?}");
        assert!(causes[0].message.contains(r#"[]string{"x/z"}"#));
        let mut new = object(json!({"name": "a", "uid": "other", "finalizers": []}));
        keep_system_fields(&mut new, &old);
        let causes = validate_update(&new, &old);
        assert_eq!(
            causes.iter().map(|c| c.field.as_str()).collect::<Vec<_>>(),
            ["metadata.uid"]
        );
        assert_eq!(causes[0].message, r#"Invalid value: "other": field is immutable"#);
    }

    #[test]
    fn duplicate_owners_and_unqualified_finalizers_are_warned_about() {
        let owner = json!({"apiVersion": "v1", "kind": "K", "name": "x", "uid": "u"});
        let mut twice =
            object(json!({"ownerReferences": [owner, owner], "finalizers": ["a", "a.b", "a.b/c", "orphan"]}));
        assert!(dedup_owner_references(&mut twice).is_some_and(|w| w.ends_with("observed: u")));
        assert_eq!(
            twice["metadata"]["ownerReferences"].as_array().map(Vec::len),
            Some(1)
        );
        assert_eq!(dedup_owner_references(&mut twice), None);
        assert_eq!(finalizer_warnings(&twice, None).len(), 2);
        assert_eq!(finalizer_warnings(&twice, Some(&twice)).len(), 0);
    }
}
