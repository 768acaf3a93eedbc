//! Placements in memory: which cluster each namespace was given to, as a watch of them tells, and which clusters had it
//! within the retention of history. The store goes by it when it looks at owner keys.
//!
//! It is filled by whoever follows the placements (`app.rs`). What may be too old here is asked of the control plane; what
//! an owner key is, this file does not know.

use super::super::Unstructured;
use super::super::object_meta::text;
use super::ControlPlane;
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::watcher::Event;
use outrigger_storage::Slot;
use outrigger_storage::key::Domain;
use outrigger_storage::placements::{Known, Placed, Placements};
use parking_lot::RwLock;
use serde_json::Value;
use std::collections::HashMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Placements of one namespace that are remembered after they are gone.
const PAST_MAX: usize = 16;

/// The placements that this replica knows of. It grows with the number of namespaces.
pub struct KnownPlacements {
    table: RwLock<Table>,
    version: AtomicU64,
    retention: Duration,
    control_plane: OnceLock<Arc<dyn ControlPlane>>,
    is_read: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Table {
    current: HashMap<String, Entry>,
    /// What is gone, with the time when it was seen to go.
    past: HashMap<String, Vec<(Placed, Instant)>>,
    /// What a list in progress has brought so far.
    listed: HashMap<String, Entry>,
}

/// One placement.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    uid: String,
    placed: Placed,
}

impl fmt::Debug for KnownPlacements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KnownPlacements").finish_non_exhaustive()
    }
}

impl KnownPlacements {
    /// None yet. What is gone is remembered for as long as history is retained.
    #[must_use]
    pub fn new(retention: Duration) -> Self {
        Self {
            table: RwLock::default(),
            version: AtomicU64::new(0),
            retention,
            control_plane: OnceLock::new(),
            is_read: watch::Sender::new(false),
        }
    }

    /// Who is asked for what is not known here. Once.
    pub fn ask_from(&self, control_plane: Arc<dyn ControlPlane>) {
        // Whoever was first stays: there is one control plane.
        let _ = self.control_plane.set(control_plane);
    }

    /// Returns once all placements have been read.
    pub async fn read(&self) {
        // It fails only when the sender, which is ours, is gone.
        let _ = self.is_read.subscribe().wait_for(|is_read| *is_read).await;
    }

    /// Takes an event of the watch of placements.
    pub fn apply(&self, event: &Event<DynamicObject>) {
        let now = Instant::now();
        let mut table = self.table.write();
        match event {
            Event::Init => table.listed.clear(),
            Event::InitApply(placement) => {
                if let Some((name, entry)) = table.entry(placement) {
                    table.listed.insert(name, entry);
                }
                return;
            }
            Event::InitDone => {
                let listed = std::mem::take(&mut table.listed);
                let gone = table.current.keys().filter(|name| !listed.contains_key(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    table.remove(&name, now);
                }
                for (name, entry) in listed {
                    table.put(name, entry, now);
                }
                self.is_read.send_replace(true);
            }
            Event::Apply(placement) => {
                if let Some((name, entry)) = table.entry(placement) {
                    table.put(name, entry, now);
                }
            }
            Event::Delete(placement) => table.remove(&placement.name_any(), now),
        }
        table.forget(now, self.retention);
        // While the table is locked: who reads the version first knows of everything up to it.
        self.version.fetch_add(1, Ordering::AcqRel);
    }
}

impl Table {
    fn entry(&self, placement: &DynamicObject) -> Option<(String, Entry)> {
        let name = placement.name_any();
        let uid = placement.uid().unwrap_or_default();
        let version = placement.resource_version()?;
        let mut placed = placed(&placement.data, &version)?;
        let before = self.current.get(&name).filter(|before| before.uid == uid);
        if let Some(before) = before {
            placed = follow(placed, &before.placed);
        }
        Some((name, Entry { uid, placed }))
    }

    fn put(&mut self, name: String, entry: Entry, now: Instant) {
        let is_another =
            |before: &Entry| before.uid != entry.uid || before.placed.cluster != entry.placed.cluster;
        if self.current.get(&name).is_some_and(is_another) {
            self.remove(&name, now);
        }
        self.current.insert(name, entry);
    }

    fn remove(&mut self, name: &str, now: Instant) {
        let Some(entry) = self.current.remove(name) else {
            return;
        };
        let past = self.past.entry(name.to_owned()).or_default();
        if past.len() >= PAST_MAX {
            past.remove(0);
        }
        past.push((entry.placed, now));
    }

    fn forget(&mut self, now: Instant, retention: Duration) {
        self.past.retain(|_, past| {
            past.retain(|(_, gone)| now.saturating_duration_since(*gone) < retention);
            !past.is_empty()
        });
    }
}

/// A placement that is not confirmed may have been claimed in any version that it was seen in.
fn follow(now: Placed, before: &Placed) -> Placed {
    let is_claimed = now.slot.is_some() || now.cluster != before.cluster;
    match is_claimed {
        true => now,
        false => Placed {
            generations: *before.generations.start().min(now.generations.start())..=now.version,
            ..now
        },
    }
}

/// What a placement says: where it was confirmed, otherwise where it should be.
fn placed(placement: &Value, version: &str) -> Option<Placed> {
    let version: u64 = version.parse().ok()?;
    let owner = placement
        .pointer("/status/owner")
        .filter(|owner| !owner.is_null());
    let number = |field: &str| owner?.get(field)?.as_u64();
    let cluster = match owner {
        Some(owner) => owner.get("cluster"),
        None => placement.pointer("/spec/cluster"),
    };
    let slot = number("slot").and_then(|slot| u16::try_from(slot).ok()).map(Slot);
    let generations: RangeInclusive<u64> = match number("generation") {
        Some(confirmed) => confirmed..=confirmed,
        None => version..=version,
    };
    Some(Placed {
        cluster: cluster?.as_str()?.into(),
        slot,
        version,
        generations,
    })
}

/// The same, of a placement as the registry has it.
fn placed_of(placement: &Unstructured) -> Option<Placed> {
    let version = text(placement, "resourceVersion").to_owned();
    placed(&Value::Object(placement.clone()), &version)
}

impl Placements for KnownPlacements {
    fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn known(&self, domain: &Domain) -> Known {
        if !*self.is_read.borrow() {
            return Known::Unread;
        }
        let table = self.table.read();
        let entry = match domain {
            Domain::Namespace(namespace) => table.current.get(&**namespace),
            Domain::Kind(_) => table.current.get(&domain.placement_name()),
        };
        entry.map_or(Known::Nowhere, |entry| Known::Placed(entry.placed.clone()))
    }

    fn has_owned(&self, domain: &Domain, cluster: &str, slot: Slot, generation: u64) -> bool {
        let table = self.table.read();
        let name = domain.placement_name();
        let current = table.current.get(&name).map(|entry| &entry.placed);
        let past = table.past.get(&name).into_iter().flatten();
        let mut all = past.map(|(placed, _)| placed).chain(current);
        all.any(|placed| placed.owns(cluster, slot, generation))
    }

    fn ask<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Option<Placed>, String>> {
        async move {
            let name = domain.placement_name();
            let control_plane = self.control_plane.get().ok_or("nobody can be asked yet")?;
            let found = control_plane.placement(&name).await;
            let found = found.map_err(|error| error.message.clone())?;
            let Some(found) = found else { return Ok(None) };
            let answered = placed_of(&found).ok_or("the placement names no cluster")?;
            let table = self.table.read();
            let before = table
                .current
                .get(&name)
                .filter(|before| before.uid == text(&found, "uid"));
            Ok(Some(match before {
                Some(before) => follow(answered, &before.placed),
                None => answered,
            }))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RETENTION: Duration = Duration::from_secs(600);

    fn placement(uid: &str, version: &str, cluster: &str, owner: Value) -> DynamicObject {
        let value = json!({
            "apiVersion": "outrigger.dev/v1alpha1", "kind": "NamespacePlacement",
            "metadata": {"name": "a", "uid": uid, "resourceVersion": version},
            "spec": {"cluster": cluster}, "status": {"owner": owner},
        });
        serde_json::from_value(value).expect("an object")
    }

    fn confirmed(uid: &str, version: &str, generation: u64) -> DynamicObject {
        let owner =
            json!({"cluster": "east", "slot": 1, "generation": generation, "uid": "ns", "state": "Active"});
        placement(uid, version, "east", owner)
    }

    fn domain() -> Domain {
        Domain::Namespace("a".into())
    }

    fn listed(placements: Vec<DynamicObject>) -> Vec<Event<DynamicObject>> {
        let listed = placements.into_iter().map(Event::InitApply);
        std::iter::once(Event::Init)
            .chain(listed)
            .chain([Event::InitDone])
            .collect()
    }

    fn known(events: Vec<Event<DynamicObject>>) -> KnownPlacements {
        let known = KnownPlacements::new(RETENTION);
        events.iter().for_each(|event| known.apply(event));
        known
    }

    #[tokio::test]
    async fn what_is_known_follows_the_watch() {
        let check = |events: Vec<Event<DynamicObject>>, expect: Known| {
            assert_eq!(known(events.clone()).known(&domain()), expect, "{events:?}");
        };
        let named = |cluster: &str, slot: Option<u16>, version, generations| {
            Known::Placed(Placed {
                cluster: cluster.into(),
                slot: slot.map(Slot),
                version,
                generations,
            })
        };
        let begun = || placement("u", "7", "east", Value::Null);
        check(vec![], Known::Unread);
        check(vec![Event::Init, Event::InitApply(begun())], Known::Unread);
        check(listed(vec![]), Known::Nowhere);
        check(listed(vec![begun()]), named("east", None, 7, 7..=7));
        // It was changed before it was claimed: either version may be the claim's.
        let mut changed = listed(vec![begun()]);
        changed.push(Event::Apply(placement("u", "9", "east", Value::Null)));
        check(changed.clone(), named("east", None, 9, 7..=9));
        changed.push(Event::Apply(confirmed("u", "12", 9)));
        check(changed.clone(), named("east", Some(1), 12, 9..=9));
        // A wish to move names nobody before the move is under way.
        let owner = json!({"cluster": "east", "slot": 1, "generation": 9});
        changed.push(Event::Apply(placement("u", "13", "west", owner)));
        check(changed.clone(), named("east", Some(1), 13, 9..=9));
        changed.push(Event::Delete(confirmed("u", "14", 9)));
        check(changed.clone(), Known::Nowhere);
        // Another placement of the same name.
        changed.push(Event::Apply(placement("v", "20", "west", Value::Null)));
        check(changed, named("west", None, 20, 20..=20));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_is_remembered_for_a_while() {
        let mut events = listed(vec![confirmed("u", "12", 9)]);
        events.push(Event::Delete(confirmed("u", "14", 9)));
        let known = known(events);
        let owned = |generation, slot| known.has_owned(&domain(), "east", Slot(slot), generation);
        assert!(owned(9, 1) && !owned(10, 1) && !owned(9, 2));
        let before = known.version();
        tokio::time::sleep(RETENTION).await;
        known.apply(&Event::Apply(placement("v", "20", "west", Value::Null)));
        assert!(!owned(9, 1));
        assert!(known.version() > before);
    }

    #[tokio::test]
    async fn what_a_second_list_does_not_have_is_gone() {
        let mut events = listed(vec![confirmed("u", "12", 9)]);
        events.extend(listed(vec![]));
        let known = known(events);
        assert_eq!(known.known(&domain()), Known::Nowhere);
        assert!(known.has_owned(&domain(), "east", Slot(1), 9));
    }
}
