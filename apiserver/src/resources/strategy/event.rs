//! Events: those of the core group are taken as they always were; those of events.k8s.io follow stricter rules. The
//! object is in the form of the core group in both cases.

use super::{Object, at, text_at};
use crate::registry::names;
use crate::resources::definition::ResourceDefinition;
use crate::resources::field;
use crate::status::StatusCause;
use serde_json::Value;

/// Length of `reportingInstance`, `action` and `reason`, in bytes.
const WORD_BYTES_MAX: usize = 128;
/// Length of the message, in bytes.
const NOTE_BYTES_MAX: usize = 1024;

/// Fields that an event keeps in events.k8s.io, once written.
const IMMUTABLE: &[&str] = &[
    "involvedObject",
    "reason",
    "message",
    "source",
    "firstTimestamp",
    "lastTimestamp",
    "count",
    "type",
    "eventTime",
    "action",
    "related",
    "reportingComponent",
    "reportingInstance",
];

/// Which API the event came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    Core,
    EventsGroup,
}

impl Rules {
    pub(super) fn of(definition: &ResourceDefinition) -> Self {
        if definition.group.is_empty() {
            Self::Core
        } else {
            Self::EventsGroup
        }
    }
}

pub(super) fn validate_create(event: &Object, rules: Rules) -> Vec<StatusCause> {
    let mut causes = validate(event, rules);
    if rules == Rules::Core {
        return causes;
    }
    causes.extend(validate_series(event));
    if !is_set(event, "eventTime") {
        causes.push(field::required("eventTime", ""));
    }
    let kind = text_at(event, &["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        causes.push(field::invalid("type", "", &format!("has invalid value: {kind}")));
    }
    let old_fields = ["firstTimestamp", "lastTimestamp", "count", "source"]
        .into_iter()
        .filter(|name| is_set(event, name));
    causes.extend(old_fields.map(|name| field::invalid(name, "", "needs to be unset")));
    causes
}

pub(super) fn validate_update(new: &Object, old: &Object, rules: Rules) -> Vec<StatusCause> {
    let mut causes = validate(new, rules);
    if rules == Rules::Core {
        return causes;
    }
    if at(new, &["series"]) != at(old, &["series"]) {
        causes.extend(validate_series(new));
    }
    let changed = IMMUTABLE
        .iter()
        .filter(|name| at(new, &[name]) != at(old, &[name]));
    causes.extend(changed.map(|name| field::immutable(*name, new.get(*name).cloned().unwrap_or_default())));
    causes
}

/// What holds for every event.
fn validate(event: &Object, rules: Rules) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let namespace = text_at(event, &["metadata", "namespace"]);
    let involved = text_at(event, &["involvedObject", "namespace"]);
    let new_style = is_set(event, "eventTime");
    // An object without a namespace has its events in `default`, or in `kube-system` if they are of the new style.
    let agrees = match (involved, namespace) {
        ("", "default") => true,
        ("", "kube-system") => new_style,
        ("", other) => other.is_empty() && !new_style,
        (involved, namespace) => new_style || involved == namespace,
    };
    if !agrees {
        causes.push(field::invalid(
            "involvedObject.namespace",
            involved,
            "does not match event.namespace",
        ));
    }
    if new_style {
        causes.extend(validate_new_style(event, rules));
    }
    causes.extend(
        names::is_dns1123_subdomain(namespace)
            .iter()
            .map(|complaint| field::invalid("namespace", namespace, complaint)),
    );
    causes
}

fn validate_new_style(event: &Object, rules: Rules) -> Vec<StatusCause> {
    let mut causes = Vec::new();
    let controller_field = if rules == Rules::Core {
        "reportingComponent"
    } else {
        "reportingController"
    };
    let controller = text_at(event, &["reportingComponent"]);
    if controller.is_empty() {
        causes.push(field::required(controller_field, ""));
    }
    causes.extend(
        names::is_qualified_name(controller)
            .iter()
            .map(|complaint| field::invalid(controller_field, controller, complaint)),
    );
    for name in ["reportingInstance", "action", "reason"] {
        let length = text_at(event, &[name]).len();
        if length == 0 {
            causes.push(field::required(name, ""));
        }
        if length > WORD_BYTES_MAX {
            causes.push(field::invalid(
                name,
                "",
                &format!("can have at most {WORD_BYTES_MAX} characters"),
            ));
        }
    }
    if text_at(event, &["message"]).len() > NOTE_BYTES_MAX {
        causes.push(field::invalid(
            "message",
            "",
            &format!("can have at most {NOTE_BYTES_MAX} characters"),
        ));
    }
    causes
}

fn validate_series(event: &Object) -> Vec<StatusCause> {
    let Some(series) = at(event, &["series"]) else {
        return Vec::new();
    };
    let mut causes = Vec::new();
    if series.get("count").and_then(Value::as_i64).unwrap_or(0) < 2 {
        causes.push(field::invalid("series.count", "", "should be at least 2"));
    }
    if series.get("lastObservedTime").is_none_or(Value::is_null) {
        causes.push(field::required("series.lastObservedTime", ""));
    }
    causes
}

/// Whether a field holds more than the empty value of its type.
fn is_set(event: &Object, name: &str) -> bool {
    match event.get(name) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        Some(Value::Object(fields)) => fields
            .values()
            .any(|value| value.as_str().is_some_and(|text| !text.is_empty())),
        Some(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(rules: Rules, event: Value, fields: &[&str]) {
        let Value::Object(event) = event else {
            panic!("not an object")
        };
        let causes = validate_create(&event, rules);
        assert_eq!(
            causes
                .iter()
                .map(|cause| cause.field.as_str())
                .collect::<Vec<_>>(),
            fields
        );
    }

    fn new_style() -> Value {
        json!({
            "metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}, "eventTime": "2026-01-01T00:00:00.000000Z", "type": "Normal",
            "reportingComponent": "example.com/c", "reportingInstance": "c-1", "action": "Run", "reason": "Ran", "source": {}, "count": 0, "firstTimestamp": null,
        })
    }

    #[test]
    fn events_stand_beside_their_object() {
        check(
            Rules::Core,
            json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "a"}}),
            &[],
        );
        check(
            Rules::Core,
            json!({"metadata": {"namespace": "a"}, "involvedObject": {"namespace": "b"}}),
            &["involvedObject.namespace"],
        );
        check(
            Rules::Core,
            json!({"metadata": {"namespace": "a"}, "involvedObject": {}}),
            &["involvedObject.namespace"],
        );
        check(
            Rules::Core,
            json!({"metadata": {"namespace": "default"}, "involvedObject": {}}),
            &[],
        );
    }

    #[test]
    fn new_events_say_who_reports_what() {
        check(Rules::EventsGroup, new_style(), &[]);
        check(
            Rules::EventsGroup,
            json!({"metadata": {"namespace": "default"}}),
            &["eventTime", "type"],
        );
        let mut event = new_style();
        (event["action"], event["count"], event["series"]) = ("".into(), 3.into(), json!({"count": 1}));
        check(
            Rules::EventsGroup,
            event,
            &["action", "series.count", "series.lastObservedTime", "count"],
        );
    }

    #[test]
    fn a_new_event_changes_only_its_series() {
        let Value::Object(old) = new_style() else {
            panic!("not an object")
        };
        let mut new = old.clone();
        new.insert(
            "series".to_owned(),
            json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}),
        );
        assert_eq!(validate_update(&new, &old, Rules::EventsGroup), []);
        new.insert("reason".to_owned(), "Other".into());
        assert_eq!(validate_update(&new, &old, Rules::EventsGroup).len(), 1);
        assert_eq!(validate_update(&new, &old, Rules::Core), []);
    }
}
