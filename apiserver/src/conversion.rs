//! Served version ↔ stored version. Between the versions of a CRD only apiVersion differs (conversion `None`); the two
//! forms of Event, which are one store, differ in the names of fields as well. Pure.

use crate::resources::definition::{Builtin, ResourceDefinition};
use outrigger_storage::Object;
use serde_json::{Map, Value};

/// Fields of Event: the core form's name, the name in events.k8s.io.
const EVENT_FIELDS: [(&str, &str); 8] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
    ("related", "related"),
];

/// The apiVersion that objects of this kind are stored under.
#[must_use]
pub fn stored_api_version(definition: &ResourceDefinition) -> String {
    match (definition.builtin, definition.group.as_str()) {
        (Some(Builtin::Event), _) => "v1".to_owned(),
        (_, "") => definition.storage_version.clone(),
        (_, group) => format!("{group}/{}", definition.storage_version),
    }
}

/// Turns an object of the served version into the form that is stored.
pub fn to_stored(definition: &ResourceDefinition, object: &mut Map<String, Value>) {
    if is_renamed(definition) {
        rename(object, EVENT_FIELDS.iter().map(|(core, served)| (*served, *core)));
    }
    object.insert("apiVersion".to_owned(), stored_api_version(definition).into());
}

/// Turns a stored object into the served version.
pub fn to_served(definition: &ResourceDefinition, object: &mut Map<String, Value>) {
    if is_renamed(definition) {
        rename(object, EVENT_FIELDS.iter().copied());
    }
    object.insert("apiVersion".to_owned(), definition.api_version().into());
}

/// The served form is not the stored form under another apiVersion.
fn is_renamed(definition: &ResourceDefinition) -> bool {
    definition.builtin == Some(Builtin::Event) && definition.group == "events.k8s.io"
}

fn rename<'a>(object: &mut Map<String, Value>, names: impl Iterator<Item = (&'a str, &'a str)>) {
    for (from, to) in names.filter(|(from, to)| from != to) {
        if let Some(value) = object.remove(from) {
            object.insert(to.to_owned(), value);
        }
    }
}

/// Writes stored objects in the served version, without parsing them where only apiVersion may differ.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// How the bytes of an object in the served version begin.
    api_version: String,
    /// Set for the form that must be parsed.
    renamed: Option<std::sync::Arc<ResourceDefinition>>,
}

/// How every stored body begins; the JSON string of apiVersion follows.
const BODY_START: &[u8] = b"{\"apiVersion\":";

impl Conversion {
    /// The conversion to what `definition` serves.
    #[must_use]
    pub fn new(definition: &std::sync::Arc<ResourceDefinition>) -> Self {
        let api_version = Value::String(definition.api_version()).to_string();
        Self {
            api_version,
            renamed: is_renamed(definition).then(|| definition.clone()),
        }
    }

    /// Appends the object as compact JSON in the served version.
    ///
    /// # Errors
    /// When the stored bytes must be parsed and are no JSON.
    pub fn write_json(&self, object: &Object, out: &mut Vec<u8>) -> Result<(), outrigger_storage::Error> {
        if let Some(definition) = &self.renamed {
            let mut value = object.to_value()?;
            to_served(definition, &mut value);
            out.extend_from_slice(Value::Object(value).to_string().as_bytes());
            return Ok(());
        }
        let start = out.len();
        out.reserve(object.json_len_max());
        object.write_json(out);
        let at = start + BODY_START.len();
        let written = out.get(at..).unwrap_or_default();
        if !written.starts_with(self.api_version.as_bytes()) && out[start..].starts_with(BODY_START) {
            let end = crate::serializer::json_string_end(out, at);
            out.splice(at..end, self.api_version.bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serializer::testing;
    use serde_json::json;

    #[test]
    fn api_version_is_replaced_without_parsing() {
        let check = |stored: &str, served_group: &str, served_version: &str| {
            let object = testing::stored(
                json!({"apiVersion": stored, "kind": "K", "metadata": {"name": "n", "uid": "u"}, "spec": {"apiVersion": "x"}}),
            );
            let definition = testing::definition(served_group, served_version, "K", Vec::new());
            let mut out = b"[".to_vec();
            Conversion::new(&definition)
                .write_json(&object, &mut out)
                .expect("written");
            let value: Value = serde_json::from_slice(&out[1..]).expect("JSON");
            assert_eq!(value["apiVersion"], json!(definition.api_version()));
            assert_eq!(value["spec"]["apiVersion"], json!("x"));
            assert_eq!(
                value["metadata"]["resourceVersion"],
                json!(object.resource_version().to_string())
            );
        };
        check("g/v1", "g", "v1");
        check("g/v1", "g", "v2beta1");
        check("g/v1alpha1", "g", "v1");
        check("v1", "", "v1");
    }

    #[test]
    fn both_forms_of_event_are_one() {
        let mut definition = (*testing::definition("events.k8s.io", "v1", "Event", Vec::new())).clone();
        definition.builtin = Some(Builtin::Event);
        let served = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "uid": "u"}, "regarding": {"name": "x"},
            "note": "text", "deprecatedCount": 2, "reportingController": "c", "reason": "R", "series": {"count": 1}});
        let mut object = served.as_object().expect("an object").clone();
        to_stored(&definition, &mut object);
        let stored = json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "uid": "u"}, "involvedObject": {"name": "x"},
            "message": "text", "count": 2, "reportingComponent": "c", "reason": "R", "series": {"count": 1}});
        assert_eq!(Value::Object(object.clone()), stored);
        let mut out = Vec::new();
        Conversion::new(&std::sync::Arc::new(definition.clone()))
            .write_json(&testing::stored(stored), &mut out)
            .expect("written");
        let mut back: Value = serde_json::from_slice(&out).expect("JSON");
        back["metadata"]
            .as_object_mut()
            .expect("metadata")
            .remove("resourceVersion");
        assert_eq!(back, served);
    }
}
