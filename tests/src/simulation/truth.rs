//! What the backends hold in the end: their logs, and the resource versions computed from them without the store's help.

use super::impostor::{is_forged, is_forged_owner};
use super::world::{Shared, tag_of_json};
use crate::history::{Change, Gap, Truth};
use futures::StreamExt;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{Backend, BackendEvent, Range, Txn, WatchRequest};
use outrigger_storage::{Epoch, ResourceVersion, Slot};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Follows the log of one backend from its beginning, before anything of it can be compacted.
pub(super) async fn record_log(backend: Arc<EmbeddedBackend>, log: Rc<RefCell<RawLog>>) {
    let request = WatchRequest {
        start: "".into(),
        end: Some(vec![0].into()),
        start_revision: 1,
        prev_kv: true,
        until: None,
    };
    let mut stream = backend
        .watch(request)
        .await
        .expect("a new backend is watched from its beginning");
    while let Some(batch) = stream.next().await {
        let batch = batch.expect("the recorder keeps up with compaction");
        let mut log = log.borrow_mut();
        log.events.extend(batch.events);
        log.revision = log.revision.max(batch.revision);
    }
}

/// A backend's log as it is.
#[derive(Default)]
pub(super) struct RawLog {
    pub(super) events: Vec<BackendEvent>,
    pub(super) revision: u64,
}

/// Computes versions from the logs of the backends, without the store's help.
pub(super) async fn read_truth(world: &Shared) -> Truth {
    let mut truth = Truth::default();
    for (slot, backend) in world.backends.iter().enumerate() {
        let revision = backend
            .txn(Txn::read([Range::key("clock")]))
            .await
            .expect("it answers")
            .revision;
        // The last change may still be on its way to the recorder; another revision follows it.
        let newest = |log: &RawLog| {
            log.events
                .last()
                .map_or(0, |event| event.kv.mod_revision)
                .max(log.revision)
        };
        for _ in 0..1000 {
            if newest(&world.logs[slot].borrow()) >= revision {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(
            newest(&world.logs[slot].borrow()) >= revision,
            "the recorder has seen everything"
        );
        read_log(&world.logs[slot].borrow(), slot as u16, &mut truth);
    }
    truth.changes.sort_by_key(|change| change.version);
    truth.removed = world.control.removed();
    truth.horizon = world.control.current().horizon.0;
    for (slot, opens, missed) in world.control.gaps() {
        let log = world.logs[usize::from(slot)].borrow();
        // Whoever is not back, or was not opened since, is missing on.
        let to = opens.and_then(|opens| opened_in(&log, opens)).unwrap_or(u64::MAX);
        truth.gaps.push(Gap {
            slot,
            from: missed.from.0,
            to,
            objects: missed.objects,
        });
    }
    truth
}

/// The epoch in which a backend was first told this generation of the membership, or a newer one.
fn opened_in(log: &RawLog, generation: u64) -> Option<u64> {
    let mut epoch = None;
    for event in log.events.iter().filter(|event| !event.deleted) {
        if event.kv.key == "clock" {
            epoch = Some(u64::from_be_bytes(
                event.kv.value[..].try_into().expect("an epoch"),
            ));
        }
        if event.kv.key == "members" {
            let members: serde_json::Value = serde_json::from_slice(&event.kv.value).expect("json");
            if members["generation"].as_u64().expect("a generation") >= generation {
                return epoch;
            }
        }
    }
    None
}

pub(super) fn read_log(log: &RawLog, slot: u16, truth: &mut Truth) {
    let mut clock: Option<(u64, u64)> = None;
    let mut active: BTreeMap<String, bool> = BTreeMap::new();
    for event in &log.events {
        let key = String::from_utf8_lossy(&event.kv.key).into_owned();
        let revision = event.kv.mod_revision;
        if key == "clock" {
            let epoch = u64::from_be_bytes(event.kv.value[..].try_into().expect("an epoch"));
            clock = Some((epoch, revision));
            truth.clocks.entry(slot).or_default().push((epoch, revision));
        } else if let Some(namespace) = key.strip_prefix("owner/") {
            if let Some((epoch, base)) = clock {
                let version =
                    ResourceVersion::new(Epoch(epoch), revision - base, Slot(slot)).expect("in range");
                let value = (!event.deleted).then(|| String::from_utf8_lossy(&event.kv.value).into_owned());
                let forged = value.as_deref().is_some_and(is_forged_owner);
                let owners = truth.owners.entry(namespace.to_owned()).or_default();
                owners.extend((!forged).then_some((slot, version, value)));
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
            truth.changes.push(Change {
                version,
                slot,
                revision,
                object: (namespace.to_owned(), name.to_owned()),
                tag: (!event.deleted).then(|| tag(&event.kv.value)),
                before,
                owned: active.get(namespace).copied().unwrap_or(false),
            });
        }
    }
}
