//! The condition Ready of placements: False while the cluster that a placement names has lost its owner key. Then the
//! namespace is 503, and an administrator has to say what became of its objects.
//!
//! It is written when it becomes False, and when it is True again; most placements never have it. Every replica may write
//! it: each write is a compare-and-swap.

use super::namespaces::patch_params;
use super::{is_conflict, is_not_found};
use crate::registry::control_plane::remote::placement_resource;
use crate::registry::object_meta::rfc3339;
use kube::api::{DynamicObject, Patch};
use kube::runtime::reflector::Store;
use kube::{Api, Client, ResourceExt};
use outrigger_storage::FederatedStore;
use outrigger_storage::federated::WallClock;
use outrigger_storage::key::{Domain, Resource};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;
use tracing::{debug, warn};

/// How often placements are compared with owner keys. Both are in memory: nobody is asked.
const EVERY: Duration = Duration::from_secs(2);
/// How often an owner key must have been missed, one time after the other: it goes shortly before its placement.
const MISSED_TIMES: u32 = 3;
const READY: &str = "Ready";
const OWNER_KEY_MISSING: &str = "OwnerKeyMissing";

/// Writes the conditions of placements. Never ends.
pub async fn run(
    client: Client,
    placements: Store<DynamicObject>,
    store: FederatedStore,
    wall_clock: WallClock,
) {
    let api = Api::<DynamicObject>::all_with(client, &placement_resource());
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Nobody waits for the store here: until it is filled there is nothing to say, and of several tasks that wait for one
    // store kube-runtime (5.0, `DelayedInit`) wakes the last only. `placements` waits for this one.
    let mut missed: BTreeMap<String, u32> = BTreeMap::new();
    loop {
        ticks.tick().await;
        let mut still = BTreeMap::new();
        for placement in placements.state() {
            let name = placement.name_any();
            let Some(found) = look(&placement, &store) else {
                // Who does not answer tells nothing.
                if let Some(times) = missed.get(&name) {
                    still.insert(name, *times);
                }
                continue;
            };
            if found == Found::Missing {
                let times = missed.get(&name).copied().unwrap_or_default() + 1;
                still.insert(name.clone(), times);
                if times < MISSED_TIMES {
                    continue;
                }
            }
            let now = i64::try_from(wall_clock()).unwrap_or(i64::MAX);
            if let Some(conditions) = conditions(&placement.data, found, now) {
                write(&api, &placement, conditions, found).await;
            }
        }
        missed = still;
    }
}

/// What became of the owner key of a confirmed placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    There,
    Missing,
}

/// `None`: nothing was confirmed, or nobody can tell.
fn look(placement: &DynamicObject, store: &FederatedStore) -> Option<Found> {
    let owner = placement.data.pointer("/status/owner")?;
    let cluster = owner.get("cluster")?.as_str()?;
    let name = placement.name_any();
    let domain = match name.split_once('.') {
        Some((resource, group)) => Domain::Kind(Resource::new(group, resource)),
        None => Domain::Namespace(name.as_str().into()),
    };
    if store.owner(&domain).is_some_and(|owner| owner.cluster == cluster) {
        return Some(Found::There);
    }
    let clusters = store.clusters();
    let answers = clusters.iter().any(|c| c.name == cluster && c.reachable);
    answers.then_some(Found::Missing)
}

/// The conditions, if there is something new to say.
fn conditions(placement: &Value, found: Found, now: i64) -> Option<Vec<Value>> {
    let owner = |field: &str| placement.pointer(&format!("/status/owner/{field}"));
    let old = placement.pointer("/status/conditions").and_then(Value::as_array);
    let mut conditions = old.cloned().unwrap_or_default();
    let before = conditions.iter().position(|condition| condition["type"] == READY);
    let is_false = before.is_some_and(|at| conditions[at]["reason"] == OWNER_KEY_MISSING);
    let (status, reason, message) = match found {
        Found::There if !is_false => return None,
        Found::Missing if is_false => return None,
        Found::There => ("True", "Owned", "Its cluster has its owner key.".to_owned()),
        Found::Missing => {
            let cluster = owner("cluster").and_then(Value::as_str).unwrap_or_default();
            let message = format!(
                "Cluster {cluster:?} has no owner key of it: its etcd may have been wiped or restored, or somebody has removed the key. It is not claimed anew, because its objects would look deleted."
            );
            ("False", OWNER_KEY_MISSING, message)
        }
    };
    let condition = json!({
        "type": READY, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": rfc3339(now),
    });
    match before {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    Some(conditions)
}

async fn write(api: &Api<DynamicObject>, placement: &DynamicObject, conditions: Vec<Value>, found: Found) {
    let name = placement.name_any();
    let patch = json!({
        "metadata": {"resourceVersion": placement.resource_version()},
        "status": {"conditions": conditions},
    });
    match api
        .patch_status(&name, &patch_params(), &Patch::Merge(patch))
        .await
    {
        Ok(_) if found == Found::Missing => warn!(
            namespace = name,
            "a placement has lost its owner key: the namespace is not served"
        ),
        Ok(_) => {}
        // Somebody else has written, or it is gone: the next look tells.
        Err(error) if is_conflict(&error) || is_not_found(&error) => {
            debug!(namespace = name, %error, "its condition is looked at again");
        }
        Err(error) => warn!(namespace = name, %error, "its condition was not written, trying again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_written_when_it_changes() {
        let check = |old: Value, found, expect: Option<&str>| {
            let placement = json!({"status": {"owner": {"cluster": "east"}, "conditions": old}});
            let new = conditions(&placement, found, 0);
            let said = new.as_ref().map(|new| {
                let of =
                    |c: &Value| format!("{} {} {}", c["type"], c["status"], c["reason"]).replace('"', "");
                new.iter().map(of).collect::<Vec<_>>().join(", ")
            });
            assert_eq!(said.as_deref(), expect, "{old} {found:?}");
        };
        let other = json!({"type": "Moving", "status": "False", "reason": "No"});
        let missing = json!({"type": "Ready", "status": "False", "reason": "OwnerKeyMissing"});
        check(Value::Null, Found::There, None);
        check(Value::Null, Found::Missing, Some("Ready False OwnerKeyMissing"));
        check(
            json!([other]),
            Found::Missing,
            Some("Moving False No, Ready False OwnerKeyMissing"),
        );
        check(json!([missing]), Found::Missing, None);
        check(
            json!([missing, other]),
            Found::There,
            Some("Ready True Owned, Moving False No"),
        );
    }
}
