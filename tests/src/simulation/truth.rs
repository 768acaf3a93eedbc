//! What the backends hold in the end: their logs, and the resource versions computed from them without the store's help.

use super::impostor::{is_forged, is_forged_owner};
use super::restores::Restored;
use super::world::{Shared, tag_of_json};
use crate::history::{Change, Gap, Restore, Truth};
use futures::StreamExt;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{Backend, BackendEvent, Range, Txn, WatchRequest};
use outrigger_storage::{Epoch, ResourceVersion, Slot};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Follows the log of one store from `from` on, before anything of it can be compacted.
pub(super) async fn record_log(store: Arc<EmbeddedBackend>, from: u64, log: Rc<RefCell<RawLog>>) {
    let request = WatchRequest {
        start: "".into(),
        end: Some(vec![0].into()),
        start_revision: from,
        prev_kv: true,
        until: None,
    };
    let watched = store.watch(request).await;
    let mut stream = watched.expect("a new store is watched from its beginning");
    while let Some(batch) = stream.next().await {
        let batch = batch.expect("the recorder keeps up with compaction");
        let mut log = log.borrow_mut();
        log.events.extend(batch.events);
        log.revision = log.revision.max(batch.revision);
    }
}

/// A store's log as it is.
#[derive(Default)]
pub(super) struct RawLog {
    pub(super) events: Vec<BackendEvent>,
    pub(super) revision: u64,
}

impl RawLog {
    /// What a copy has that was made at a revision.
    pub(super) fn up_to(&self, revision: u64) -> Self {
        assert!(self.newest() >= revision, "the recorder has seen what was copied");
        let copied = self
            .events
            .iter()
            .filter(|event| event.kv.mod_revision <= revision);
        Self {
            events: copied.cloned().collect(),
            revision,
        }
    }

    fn newest(&self) -> u64 {
        let last = self.events.last().map_or(0, |event| event.kv.mod_revision);
        last.max(self.revision)
    }

    /// The first tick above a revision.
    fn first_tick(&self, after: u64) -> Option<u64> {
        let mut ticks = self.events.iter().filter(|event| event.kv.key == "clock");
        let first = ticks.find(|event| event.kv.mod_revision > after);
        first.map(|event| epoch_of(&event.kv.value))
    }

    /// Its clock in the end.
    fn clock(&self) -> u64 {
        let mut clocks = self.events.iter().rev().filter(|event| event.kv.key == "clock");
        clocks.next().map_or(0, |event| epoch_of(&event.kv.value))
    }
}

fn epoch_of(value: &[u8]) -> u64 {
    u64::from_be_bytes(value.try_into().expect("an epoch"))
}

/// Computes versions from the logs of the backends, without the store's help.
pub(super) async fn read_truth(world: &Shared) -> Truth {
    let mut truth = Truth::default();
    let restored = world.restored.borrow().clone();
    let lives = world.lives.borrow().clone();
    for (slot, lives) in lives.iter().enumerate() {
        for (number, life) in lives.iter().enumerate() {
            let read = life.store.txn(Txn::read([Range::key("clock")])).await;
            let revision = read.expect("it answers").revision;
            // The last change may still be on its way to the recorder; another revision follows it.
            for _ in 0..1000 {
                if life.log.borrow().newest() >= revision {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let log = life.log.borrow();
            assert!(log.newest() >= revision, "the recorder has seen everything");
            read_log(&log, slot as u16, (number, life.from), &mut truth);
        }
    }
    truth.changes.sort_by_key(|change| change.version);
    for restored in &restored {
        let life = restored.accepted.and_then(|generation| {
            let life = lives[usize::from(restored.slot)].get(restored.life)?;
            Some((life, generation))
        });
        let opened = life.and_then(|(life, generation)| {
            opens_in(&life.log.borrow(), restored.slot, generation, life.from)
        });
        let begins = life.and_then(|(life, _)| life.log.borrow().first_tick(life.from));
        if let (Some((life, _)), Some(begins)) = (life, begins) {
            undo(&mut truth, restored, life.from, begins);
        }
        let before = restored.life.checked_sub(1);
        let before = before.and_then(|before| lives[usize::from(restored.slot)].get(before));
        truth.restores.push(Restore {
            slot: restored.slot,
            replaced: restored.replaced,
            over: restored.over,
            was_accepted: restored.accepted.is_some(),
            begins,
            opened,
            clock: before.map_or(0, |life| life.log.borrow().clock()),
            was_written: restored.was_written,
        });
    }
    truth.removed = world.control.removed();
    truth.horizon = world.control.current().horizon.0;
    for (slot, opens, missed) in world.control.gaps() {
        // Whoever is not back, or was not opened since, is missing on.
        let to = opens.and_then(|opens| {
            let mut lives = lives[usize::from(slot)].iter();
            lives.find_map(|life| opened_in(&life.log.borrow(), opens, life.from))
        });
        truth.gaps.push(Gap {
            slot,
            from: missed.from.0,
            to: to.unwrap_or(u64::MAX),
            objects: missed.objects,
        });
    }
    truth
}

/// Marks what a restore has undone: what the backup did not hold, and what is in it of namespaces that live elsewhere now.
fn undo(truth: &mut Truth, restored: &Restored, from: u64, begins: u64) {
    let before = |change: &&mut Change| {
        change.slot == restored.slot && change.life < restored.life && change.undone.is_none()
    };
    for change in truth.changes.iter_mut().filter(before) {
        // Of earlier lives the backup holds what was not undone before.
        let is_newer = change.life + 1 == restored.life && change.revision > from;
        let is_stranger = restored.strangers.contains(&change.object.0);
        if is_newer || is_stranger || from == 0 {
            change.undone = Some(begins);
        }
    }
}

/// The epoch in which a backend was first told that it serves in this generation of the membership, or a newer one.
fn opens_in(log: &RawLog, slot: u16, generation: u64, after: u64) -> Option<u64> {
    told(log, after, |members| {
        let serves = |member: &serde_json::Value| {
            member["slot"] == slot
                && ["Active", "Leaving"]
                    .iter()
                    .any(|state| member["state"] == *state)
        };
        let records = members["members"].as_array();
        generation_of(members) >= generation && records.is_some_and(|records| records.iter().any(serves))
    })
}

/// The epoch in which a backend was first told this generation of the membership, or a newer one.
fn opened_in(log: &RawLog, generation: u64, after: u64) -> Option<u64> {
    told(log, after, |members| generation_of(members) >= generation)
}

fn generation_of(members: &serde_json::Value) -> u64 {
    members["generation"].as_u64().expect("a generation")
}

/// The epoch in which a backend was first told such members, above a revision.
fn told(log: &RawLog, after: u64, is_it: impl Fn(&serde_json::Value) -> bool) -> Option<u64> {
    let mut epoch = None;
    for event in log.events.iter().filter(|event| !event.deleted) {
        if event.kv.key == "clock" {
            epoch = Some(epoch_of(&event.kv.value));
        }
        if event.kv.key == "members" && event.kv.mod_revision > after {
            let members = serde_json::from_slice(&event.kv.value).expect("json");
            if is_it(&members) {
                return epoch;
            }
        }
    }
    None
}

/// What a store's log holds above the revision up to which it is a copy.
fn read_log(log: &RawLog, slot: u16, (life, from): (usize, u64), truth: &mut Truth) {
    let mut clock: Option<(u64, u64)> = None;
    let mut active: BTreeMap<String, bool> = BTreeMap::new();
    for event in &log.events {
        let key = String::from_utf8_lossy(&event.kv.key).into_owned();
        let revision = event.kv.mod_revision;
        let is_copied = revision <= from;
        if key == "clock" {
            let epoch = epoch_of(&event.kv.value);
            clock = Some((epoch, revision));
            if is_copied {
                continue;
            }
            truth.clocks.entry(slot).or_default().push((epoch, revision));
        } else if let Some(namespace) = key.strip_prefix("owner/") {
            if let Some((epoch, base)) = clock {
                let version =
                    ResourceVersion::new(Epoch(epoch), revision - base, Slot(slot)).expect("in range");
                let value = (!event.deleted).then(|| String::from_utf8_lossy(&event.kv.value).into_owned());
                let forged = value.as_deref().is_some_and(is_forged_owner);
                let owners = truth.owners.entry(namespace.to_owned()).or_default();
                owners.extend((!forged && !is_copied).then_some((slot, version, value)));
            }
            let value = String::from_utf8_lossy(&event.kv.value);
            let is_active = !event.deleted && value.contains("\"Active\"") && !is_forged_owner(&value);
            active.insert(namespace.to_owned(), is_active);
        } else if let Some(rest) = key.strip_prefix("objects/example.com/things/") {
            let (namespace, name) = rest.split_once('/').expect("namespace and name");
            let (epoch, base) = clock.expect("a tick comes first");
            let version = ResourceVersion::new(Epoch(epoch), revision - base, Slot(slot)).expect("in range");
            // The body stands behind a header of 56 bytes.
            let tag = |value: &[u8]| tag_of_json(&value[56..]);
            let before = event.prev.as_ref().map(|prev| tag(&prev.value));
            if before.is_some_and(is_forged) || !event.deleted && is_forged(tag(&event.kv.value)) {
                // Nobody must ever see it.
                continue;
            }
            if is_copied {
                continue;
            }
            truth.changes.push(Change {
                version,
                slot,
                revision,
                object: (namespace.to_owned(), name.to_owned()),
                tag: (!event.deleted).then(|| tag(&event.kv.value)),
                before,
                owned: active.get(namespace).copied().unwrap_or(false),
                life,
                undone: None,
            });
        }
    }
}
