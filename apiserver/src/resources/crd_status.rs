//! The status of a CustomResourceDefinition: which names it got, and whether it is served. Pure; the controller that
//! writes it is `controllers/definitions.rs`.

use crate::resources::definition::{list, text};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The finalizer that keeps a CRD until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// One of the CRD's conditions, without its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// `NamesAccepted`, `Established`, `Terminating`.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// One word for why.
    pub reason: &'static str,
    /// Why, for people.
    pub message: String,
}

/// The status that this CRD should have among all others (itself may be among them). `now` is RFC 3339, in seconds.
/// Equal to the present status if nothing is to be done.
#[must_use]
pub fn crd_status(crd: &Value, all: &[Value], now: &str) -> Value {
    let (accepted, conflict) = accept_names(crd, all);
    let mut status = crd
        .get("status")
        .cloned()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    status["acceptedNames"] = accepted;
    let was_established = crate::resources::definition::condition_is_true(crd, "Established");
    let names_accepted = match &conflict {
        None => Condition {
            kind: "NamesAccepted",
            status: true,
            reason: "NoConflicts",
            message: "no conflicts found".to_owned(),
        },
        Some((reason, message)) => Condition {
            kind: "NamesAccepted",
            status: false,
            reason,
            message: message.clone(),
        },
    };
    let message = "the initial names have been accepted".to_owned();
    let established = match (was_established, &conflict) {
        // Once served, always served: a conflict over a changed name does not take the kind away.
        (true, _) => None,
        (false, None) => Some(Condition {
            kind: "Established",
            status: true,
            reason: "InitialNamesAccepted",
            message,
        }),
        (false, Some(_)) => Some(Condition {
            kind: "Established",
            status: false,
            reason: "NotAccepted",
            message: "not all names are accepted".to_owned(),
        }),
    };
    set_condition(&mut status, &names_accepted, now);
    if let Some(established) = established {
        set_condition(&mut status, &established, now);
    }
    if !text(crd, "/metadata/deletionTimestamp").is_empty() {
        let message = "CustomResource deletion is in progress".to_owned();
        let deleting = Condition {
            kind: "Terminating",
            status: true,
            reason: "InstanceDeletionInProgress",
            message,
        };
        let deleted = condition(&status, "Terminating")
            .is_some_and(|found| text(found, "/reason") == "InstanceDeletionCompleted");
        if !deleted {
            set_condition(&mut status, &deleting, now);
        }
    }
    if list(&status, "/storedVersions").is_empty() {
        let versions = list(crd, "/spec/versions")
            .iter()
            .filter(|version| crate::resources::definition::flag(version, "/storage"));
        status["storedVersions"] = versions
            .map(|version| text(version, "/name"))
            .collect::<Vec<_>>()
            .into();
    }
    status
}

/// What becomes of a CRD with the first request to delete it: it stays until its objects are gone.
pub fn mark_for_deletion(crd: &mut Map<String, Value>, now: &str) {
    let metadata = crd.entry("metadata").or_insert_with(|| json!({}));
    let mut finalizers = list(metadata, "/finalizers").to_vec();
    if !finalizers.iter().any(|finalizer| finalizer == CLEANUP_FINALIZER) {
        finalizers.push(CLEANUP_FINALIZER.into());
    }
    if let Value::Object(metadata) = metadata {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
    let message =
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon".to_owned();
    let pending = Condition {
        kind: "Terminating",
        status: true,
        reason: "InstanceDeletionPending",
        message,
    };
    set_condition(crd.entry("status").or_insert_with(|| json!({})), &pending, now);
}

/// The status of a CRD whose objects are gone: the finalizer can go as well.
#[must_use]
pub fn instances_removed(crd: &Value, now: &str) -> Value {
    let mut status = crd
        .get("status")
        .cloned()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    let message = "removed all instances".to_owned();
    set_condition(
        &mut status,
        &Condition {
            kind: "Terminating",
            status: false,
            reason: "InstanceDeletionCompleted",
            message,
        },
        now,
    );
    status
}

/// Sets a condition in a status; its time changes only with its status.
pub fn set_condition(status: &mut Value, condition: &Condition, now: &str) {
    let Value::Object(status) = status else { return };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Value::Array(conditions) = conditions else {
        return;
    };
    let value = if condition.status { "True" } else { "False" };
    let mut new = json!({"type": condition.kind, "status": value, "reason": condition.reason, "message": condition.message, "lastTransitionTime": now});
    match conditions
        .iter_mut()
        .find(|old| text(old, "/type") == condition.kind)
    {
        Some(old) => {
            let since = text(old, "/lastTransitionTime");
            if text(old, "/status") == value && !since.is_empty() {
                new["lastTransitionTime"] = since.into();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

fn condition<'a>(status: &'a Value, kind: &str) -> Option<&'a Value> {
    list(status, "/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == kind)
}

/// The names that the CRD gets, and the last conflict among those that it wants.
fn accept_names(crd: &Value, all: &[Value]) -> (Value, Option<(&'static str, String)>) {
    let (mut resources, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for other in all
        .iter()
        .filter(|other| text(other, "/spec/group") == text(crd, "/spec/group"))
    {
        let short_names = list(other, "/status/acceptedNames/shortNames")
            .iter()
            .filter_map(Value::as_str);
        resources
            .extend(["plural", "singular"].map(|name| text(other, &format!("/status/acceptedNames/{name}"))));
        resources.extend(short_names);
        kinds.extend(["kind", "listKind"].map(|name| text(other, &format!("/status/acceptedNames/{name}"))));
    }
    let none = json!({});
    let wanted = crd.pointer("/spec/names").unwrap_or(&none);
    let mut accepted = crd
        .pointer("/status/acceptedNames")
        .cloned()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({"plural": "", "kind": ""}));
    let had = accepted.clone();
    let mut conflict = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    let mut accept = |field: &str, reason: &'static str, taken: &BTreeSet<&str>| {
        let pointer = format!("/{field}");
        let name = text(wanted, &pointer);
        if name != text(&had, &pointer) && taken.contains(name) {
            conflict = Some((reason, in_use(name)));
        } else if !name.is_empty() {
            accepted[field] = name.into();
        }
    };
    accept("plural", "PluralConflict", &resources);
    accept("singular", "SingularConflict", &resources);
    let own: Vec<&str> = list(&had, "/shortNames")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let short_names = list(wanted, "/shortNames").iter().filter_map(Value::as_str);
    let taken: Vec<String> = short_names
        .filter(|name| !own.contains(name) && resources.contains(name))
        .map(in_use)
        .collect();
    accept("kind", "KindConflict", &kinds);
    accept("listKind", "ListKindConflict", &kinds);
    match &taken[..] {
        [] => replace(&mut accepted, wanted, "shortNames"),
        // Of several conflicts upstream tells the last in its order, in which kinds come after short names.
        [one] => {
            conflict = conflict
                .filter(|(reason, _)| reason.contains("Kind"))
                .or_else(|| Some(("ShortNamesConflict", one.clone())))
        }
        many => {
            conflict = conflict
                .filter(|(reason, _)| reason.contains("Kind"))
                .or_else(|| Some(("ShortNamesConflict", format!("[{}]", many.join(", ")))))
        }
    }
    replace(&mut accepted, wanted, "categories");
    (accepted, conflict)
}

fn replace(names: &mut Value, with: &Value, field: &str) {
    let Value::Object(names) = names else { return };
    match with
        .get(field)
        .filter(|value| value.as_array().is_some_and(|items| !items.is_empty()))
    {
        Some(value) => names.insert(field.to_owned(), value.clone()),
        None => names.remove(field),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn crd(plural: &str, kind: &str, short: &[&str]) -> Value {
        let names = json!({"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short});
        json!({"spec": {"group": "example.com", "names": names, "versions": [{"name": "v1", "storage": true}]}, "metadata": {}})
    }

    fn with_status(mut crd: Value, all: &[Value]) -> Value {
        crd["status"] = crd_status(&crd, all, NOW);
        crd
    }

    fn reasons(status: &Value) -> Vec<(&str, &str, &str)> {
        list(status, "/conditions")
            .iter()
            .map(|c| (text(c, "/type"), text(c, "/status"), text(c, "/reason")))
            .collect()
    }

    #[test]
    fn a_crd_without_conflicts_is_established() {
        let crd = with_status(crd("apps", "App", &["a"]), &[]);
        assert_eq!(
            reasons(&crd["status"]),
            [
                ("NamesAccepted", "True", "NoConflicts"),
                ("Established", "True", "InitialNamesAccepted")
            ]
        );
        assert_eq!(crd["status"]["acceptedNames"], crd["spec"]["names"]);
        assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
        // And then nothing changes any more, whatever the time.
        assert_eq!(
            crd_status(&crd, std::slice::from_ref(&crd), "2027-01-01T00:00:00Z"),
            crd["status"]
        );
    }

    #[test]
    fn names_that_are_taken_are_not_accepted() {
        let first = with_status(crd("apps", "App", &["a"]), &[]);
        let check = |second: Value, reason: &str| {
            let second = with_status(second, std::slice::from_ref(&first));
            assert_eq!(
                reasons(&second["status"]),
                [
                    ("NamesAccepted", "False", reason),
                    ("Established", "False", "NotAccepted")
                ]
            );
        };
        check(crd("a", "Other", &[]), "PluralConflict");
        check(crd("others", "Apps", &[]), "SingularConflict");
        check(crd("others", "Other", &["apps"]), "ShortNamesConflict");
        check(crd("others", "AppList", &[]), "KindConflict");
        let mut elsewhere = crd("apps", "App", &["a"]);
        elsewhere["spec"]["group"] = "example.org".into();
        assert_eq!(
            crd_status(&elsewhere, &[first], NOW)["conditions"][0]["status"],
            "True"
        );
    }

    #[test]
    fn a_served_crd_stays_served_when_it_wants_a_name_that_is_taken() {
        let first = with_status(crd("apps", "App", &["a"]), &[]);
        let mut second = with_status(crd("others", "Other", &["o"]), std::slice::from_ref(&first));
        second["spec"]["names"]["shortNames"] = json!(["a"]);
        let second = with_status(second.clone(), &[first, second]);
        assert_eq!(
            reasons(&second["status"]),
            [
                ("NamesAccepted", "False", "ShortNamesConflict"),
                ("Established", "True", "InitialNamesAccepted")
            ]
        );
        assert_eq!(second["status"]["acceptedNames"]["shortNames"], json!(["o"]));
    }

    #[test]
    fn deletion_waits_for_the_objects() {
        let crd = with_status(crd("apps", "App", &[]), &[]);
        let Value::Object(mut object) = crd else {
            panic!("not an object")
        };
        mark_for_deletion(&mut object, NOW);
        assert_eq!(object["metadata"]["finalizers"], json!([CLEANUP_FINALIZER]));
        object["metadata"]["deletionTimestamp"] = NOW.into();
        let mut crd = Value::Object(object);
        assert_eq!(
            reasons(&crd["status"])[2],
            ("Terminating", "True", "InstanceDeletionPending")
        );
        crd["status"] = crd_status(&crd, &[], NOW);
        assert_eq!(
            reasons(&crd["status"])[2],
            ("Terminating", "True", "InstanceDeletionInProgress")
        );
        crd["status"] = instances_removed(&crd, NOW);
        assert_eq!(
            reasons(&crd["status"])[2],
            ("Terminating", "False", "InstanceDeletionCompleted")
        );
        assert_eq!(crd_status(&crd, &[], NOW), crd["status"]);
    }
}
