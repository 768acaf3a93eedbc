//! The Tables of the kinds that the server knows by itself: the columns and cells that kube-apiserver gives them.

use super::{UNKNOWN, age_of_text, at, described, header};
use crate::resources::definition::Builtin;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::api::core::v1::{Event, ObjectReference, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

type Paths = &'static [&'static [&'static str]];

/// The columns of a built-in kind, and what they are made of.
pub(super) fn columns(builtin: Builtin) -> (Value, Paths) {
    let name = || header("Name", "string", "name", &described::<ObjectMeta>("name"), 0);
    let age = || {
        header(
            "Age",
            "string",
            "",
            &described::<ObjectMeta>("creationTimestamp"),
            0,
        )
    };
    let text = |name: &str, description: &str| header(name, "string", "", description, 0);
    let wide = |name: &str, description: &str| header(name, "string", "", description, 1);
    let event = described::<Event>;
    let columns = match builtin {
        Builtin::Namespace => vec![name(), text("Status", "The status of the namespace"), age()],
        Builtin::Secret => vec![
            name(),
            text("Type", &described::<Secret>("type")),
            text("Data", &described::<Secret>("data")),
            age(),
        ],
        Builtin::Lease => vec![
            name(),
            text("Holder", &described::<LeaseSpec>("holderIdentity")),
            age(),
        ],
        Builtin::Event => vec![
            text("Last Seen", &event("lastTimestamp")),
            text("Type", &event("type")),
            text("Reason", &event("reason")),
            text("Object", &event("involvedObject")),
            wide("Subobject", &described::<ObjectReference>("fieldPath")),
            wide("Source", &event("source")),
            text("Message", &event("message")),
            wide("First Seen", &event("firstTimestamp")),
            wide("Count", &event("count")),
            header("Name", "string", "name", &described::<ObjectMeta>("name"), 1),
        ],
        Builtin::CustomResourceDefinition => {
            vec![
                name(),
                header(
                    "Created At",
                    "date",
                    "",
                    &described::<ObjectMeta>("creationTimestamp"),
                    0,
                ),
            ]
        }
    };
    let paths: Paths = match builtin {
        Builtin::Namespace => &[&["metadata", "creationTimestamp"], &["status", "phase"]],
        Builtin::Secret => &[&["metadata", "creationTimestamp"], &["type"], &["data"]],
        Builtin::Lease => &[&["metadata", "creationTimestamp"], &["spec", "holderIdentity"]],
        Builtin::CustomResourceDefinition => &[&["metadata", "creationTimestamp"]],
        Builtin::Event => &[&[]],
    };
    (Value::Array(columns), paths)
}

pub(super) fn cells(builtin: Builtin, name: &str, map: &Map<String, Value>, now: Timestamp) -> Vec<Value> {
    let text = |path: &[&str]| at(map, path).and_then(Value::as_str).unwrap_or_default();
    let age = |path: &[&str]| age_of_text(text(path), now);
    let created = || age(&["metadata", "creationTimestamp"]);
    match builtin {
        Builtin::Namespace => vec![name.into(), text(&["status", "phase"]).into(), created().into()],
        Builtin::Secret => {
            let keys = at(map, &["data"]).and_then(Value::as_object).map_or(0, Map::len);
            vec![name.into(), text(&["type"]).into(), keys.into(), created().into()]
        }
        Builtin::Lease => vec![
            name.into(),
            text(&["spec", "holderIdentity"]).into(),
            created().into(),
        ],
        Builtin::CustomResourceDefinition => {
            vec![name.into(), text(&["metadata", "creationTimestamp"]).into()]
        }
        Builtin::Event => event_cells(name, map, now),
    }
}

/// Both forms of Event are stored in the core form; an object on its way in may have the other.
fn event_cells(name: &str, map: &Map<String, Value>, now: Timestamp) -> Vec<Value> {
    let either = |core: &[&str], served: &[&str]| at(map, core).or_else(|| at(map, served));
    let text =
        |core: &[&str], served: &[&str]| either(core, served).and_then(Value::as_str).unwrap_or_default();
    let count = |value: Option<&Value>| value.and_then(Value::as_i64).unwrap_or(0);
    let or = |a: String, b: &str| if a == UNKNOWN { b.to_owned() } else { a };

    let first = age_of_text(text(&["firstTimestamp"], &["deprecatedFirstTimestamp"]), now);
    let first = or(first, &age_of_text(text(&["eventTime"], &[]), now));
    let mut last = or(
        age_of_text(text(&["lastTimestamp"], &["deprecatedLastTimestamp"]), now),
        &first,
    );
    let mut times = count(either(&["count"], &["deprecatedCount"]));
    if let Some(Value::Object(series)) = map.get("series") {
        last = age_of_text(
            series
                .get("lastObservedTime")
                .and_then(Value::as_str)
                .unwrap_or_default(),
            now,
        );
        times = count(series.get("count"));
    } else if times == 0 {
        times = 1;
    }
    let kind = text(&["involvedObject", "kind"], &["regarding", "kind"]).to_lowercase();
    let target = match text(&["involvedObject", "name"], &["regarding", "name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let first_set = |a: &'static [&'static str],
                     b: &'static [&'static str],
                     c: &'static [&'static str],
                     d: &'static [&'static str]| match text(a, b) {
        "" => text(c, d),
        set => set,
    };
    let component = first_set(
        &["source", "component"],
        &["deprecatedSource", "component"],
        &["reportingComponent"],
        &["reportingController"],
    );
    let instance = first_set(
        &["source", "host"],
        &["deprecatedSource", "host"],
        &["reportingInstance"],
        &["reportingInstance"],
    );
    let source = if instance.is_empty() {
        component.to_owned()
    } else {
        format!("{component}, {instance}")
    };
    vec![
        last.into(),
        text(&["type"], &["type"]).into(),
        text(&["reason"], &["reason"]).into(),
        target.into(),
        text(&["involvedObject", "fieldPath"], &["regarding", "fieldPath"]).into(),
        source.into(),
        text(&["message"], &["note"]).trim().into(),
        first.into(),
        times.into(),
        name.into(),
    ]
}
