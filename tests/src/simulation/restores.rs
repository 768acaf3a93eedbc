//! What befalls a backend: it is put back to an earlier state of itself, or wiped, while the fleet runs. And the
//! administrator, who accepts it as it is after a while, or puts the right store back at the end.
//!
//! ```text
//! life 0   ─── R ───────────── stopped                       what is above R is lost
//! life 1       └─ (a copy) ──────────── refused ┆ accepted ───   from the epoch in which it is opened
//! ```
//!
//! A replica finds it out by what it has seen itself; one that starts by the record, `status.lastSeen`, which is late. So
//! a backup that is restored here is older than what every replica has seen, and older than the record if a replica is
//! still to start. (Otherwise nobody could tell: what was acknowledged since the record is lost without a word.)

use super::actors::release;
use super::site::Life;
use super::world::{Shared, pause};
use crate::history::Nanos;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{Backend, Range, Revision, Txn};
use outrigger_storage::clock::EPOCH_MILLIS;
use outrigger_storage::federated::Seen;
use outrigger_storage::key::Domain;
use outrigger_storage::{Epoch, Slot};
use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;

/// What the outside record is compared with before it is written: it is as old as that. (15 s in a real fleet.)
pub(super) const RECORD_EVERY: Duration = Duration::from_millis(750);
/// The shortest time in which something is seen.
const MOMENT: Duration = Duration::from_millis(1);
/// How often somebody looks whether it is refused, or open again.
const LOOK: Duration = Duration::from_millis(100);

/// One time that a backend was restored or wiped.
#[derive(Debug, Clone)]
pub(super) struct Restored {
    pub(super) slot: u16,
    /// The life that began.
    pub(super) life: usize,
    /// When its server was stopped, and when another store stood there.
    pub(super) replaced: Nanos,
    /// When it was accepted, or the store before was put back.
    pub(super) over: Option<Nanos>,
    /// The decision that it is accepted by; `None`: it was not.
    pub(super) accepted: Option<u64>,
    /// Namespaces whose owner key in the backup is not that of their placement: nothing of them counts.
    pub(super) strangers: Vec<String>,
    /// Whether anything was written to it before it was accepted.
    pub(super) was_written: bool,
}

/// A copy of a backend.
struct Backup {
    store: EmbeddedBackend,
    at: Seen,
}

/// Writes down how far the backends have been seen, as the control plane does in the status of their clusters.
pub(super) async fn recorder(world: Shared, mut random: StdRng) {
    loop {
        pause(&mut random, 200).await;
        let leads = world.control.leads.get();
        let Some(store) = world.replicas.borrow().get(leads).cloned() else {
            continue;
        };
        let mut records = world.records.borrow_mut();
        for cluster in store.clusters() {
            let Some(seen) = cluster.seen.filter(|_| !cluster.restored) else {
                continue;
            };
            let every = RECORD_EVERY.as_millis() as u64 / EPOCH_MILLIS;
            let is_due =
                |known: &Seen| known.epoch.0 + every <= seen.epoch.0 || known.incarnation != seen.incarnation;
            if records.get(&cluster.slot.0).is_none_or(is_due) {
                records.insert(cluster.slot.0, seen);
            }
        }
    }
}

/// Restores or wipes a backend, now and then.
pub(super) async fn restorer(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 2500).await;
        let Some(slot) = world.control.any_member(&mut random) else {
            continue;
        };
        let backup = take_backup(&world, slot).await;
        pause(&mut random, 1500).await;
        let backup = backup.filter(|_| random.random_bool(0.75));
        if !world.writing.get() || !is_noticed(&world, slot, backup.as_ref().map(|backup| backup.at)) {
            continue;
        }
        restore(&world, slot, backup, &mut random).await;
    }
}

async fn take_backup(world: &Shared, slot: Slot) -> Option<Backup> {
    let store = world.site(slot).store().snapshot()?;
    let answer = store.txn(Txn::read([Range::key("clock")])).await.ok()?;
    let revision = answer.revision;
    let clock = answer.into_range().kvs.into_iter().next()?;
    let epoch = Epoch(u64::from_be_bytes(clock.value[..].try_into().ok()?));
    let at = Seen {
        incarnation: 0,
        epoch,
        revision,
    };
    Some(Backup { store, at })
}

/// Whether everybody can tell that a backend is older than it was, now and whenever they start.
fn is_noticed(world: &Shared, slot: Slot, at: Option<Seen>) -> bool {
    let is_beyond = |seen: Seen| {
        at.is_none_or(|at| {
            (seen.epoch, seen.revision) > (at.epoch, at.revision) && seen.revision > at.revision
        })
    };
    let replicas = world.replicas.borrow();
    let incarnation = world
        .control
        .current()
        .member(slot)
        .map(|member| member.incarnation);
    let mut clusters = replicas.iter().map(|replica| {
        let clusters = replica.clusters();
        clusters.into_iter().find(|cluster| cluster.slot == slot)
    });
    let is_seen = clusters.all(|cluster| {
        cluster.is_some_and(|cluster| {
            let is_current = Some(cluster.incarnation) == incarnation && cluster.open;
            is_current && cluster.seen.is_some_and(is_beyond)
        })
    });
    let record = world.records.borrow().get(&slot.0).copied();
    let record = record.filter(|record| Some(record.incarnation) == incarnation);
    let all_run = replicas.len() == world.settings.replicas;
    // What it has read of the record may be older than the backup (seed 918).
    is_seen && !world.starting.get() && (all_run || record.is_some_and(is_beyond))
}

/// Everybody's connections end, whoever is cut off notices it as well.
fn break_connections(world: &Shared, slot: Slot) {
    for replica in world.faults.borrow().iter() {
        replica[usize::from(slot.0)].break_connections();
    }
}

async fn restore(world: &Shared, slot: Slot, backup: Option<Backup>, random: &mut StdRng) {
    let site = world.site(slot);
    let before = world.life(slot);
    site.stop();
    break_connections(world, slot);
    let hurry = if random.random_bool(0.5) { 20 } else { 2000 };
    pause(random, hurry).await;
    // Its log has been read to its end.
    tokio::time::sleep(MOMENT).await;
    let backup = backup.map(|backup| (backup.store, backup.at.revision));
    let life = before.next(backup, random.random_bool(0.4));
    life.record();
    site.start(&life);
    let is_accepted = world.settings.accepts;
    let number = {
        let lives = &mut world.lives.borrow_mut()[usize::from(slot.0)];
        lives.push(life);
        lives.len() - 1
    };
    world.restored.borrow_mut().push(Restored {
        slot: slot.0,
        life: number,
        replaced: world.now(),
        over: None,
        accepted: None,
        strangers: Vec::new(),
        was_written: false,
    });
    if is_accepted {
        accept(world, slot, random).await;
    } else {
        // Nobody accepts it: in the end the right store is put back.
        while world.writing.get() {
            pause(random, 300).await;
        }
        put_back(world, slot, &before).await;
    }
}

/// Whether anything was written to the store that stands there since it was put there.
fn is_written(world: &Shared, slot: Slot, now: Revision) -> bool {
    // A new store is at 1.
    now > world.life(slot).from.max(1)
}

async fn put_back(world: &Shared, slot: Slot, life: &Life) {
    let site = world.site(slot);
    let revision = revision_of(world, slot).await;
    site.stop();
    break_connections(world, slot);
    let was_written = is_written(world, slot, revision);
    site.start(life);
    world.ends(slot, |restored, now| {
        (restored.over, restored.was_written) = (Some(now), was_written);
    });
    world.lives.borrow_mut()[usize::from(slot.0)].pop();
}

async fn revision_of(world: &Shared, slot: Slot) -> Revision {
    let read = world
        .site(slot)
        .store()
        .txn(Txn::read([Range::key("clock")]))
        .await;
    read.expect("it is in memory").revision
}

/// The administrator is asked, and says yes after a while. Then namespaces that it does not know any more are deleted.
async fn accept(world: &Shared, slot: Slot, random: &mut StdRng) {
    let asked = || {
        let replicas = world.replicas.borrow();
        let leader = replicas.get(world.control.leads.get());
        let clusters = leader
            .map(outrigger_storage::FederatedStore::clusters)
            .unwrap_or_default();
        clusters
            .iter()
            .any(|cluster| cluster.slot == slot && cluster.restored)
    };
    while !asked() {
        tokio::time::sleep(LOOK).await;
    }
    pause(random, 2500).await;
    let incarnation = |world: &Shared| world.control.current().member(slot).map(|m| m.incarnation);
    let before = incarnation(world);
    world.control.accept.borrow_mut().insert(slot.0);
    let mut revision = revision_of(world, slot).await;
    while incarnation(world) == before {
        revision = revision_of(world, slot).await;
        tokio::time::sleep(MOMENT).await;
    }
    let generation = world.control.current().generation;
    let (mut missing, mut known) = (Vec::new(), Vec::new());
    for (name, placement) in world.placed_on(slot) {
        match owner_generation(world, slot, &name).await {
            Some(generation) if generation == placement.generation => known.push(name),
            _ => missing.push((name, placement)),
        }
    }
    let was_written = is_written(world, slot, revision);
    let strangers = super::world::NAMESPACES
        .iter()
        .filter(|name| !known.iter().any(|known| known == *name));
    let strangers = strangers.map(|name| (*name).to_owned()).collect::<Vec<_>>();
    world.ends(slot, |restored, now| {
        (restored.over, restored.accepted) = (Some(now), Some(generation));
        (restored.strangers, restored.was_written) = (strangers.clone(), was_written);
    });
    let is_open = || {
        // It may leave again.
        let current = world.control.current();
        let serves = current
            .member(slot)
            .is_some_and(|member| member.state.end().is_none());
        let replicas = world.replicas.borrow();
        !serves
            || replicas.iter().all(|replica| {
                let clusters = replica.clusters();
                let mut of_slot = clusters.iter().filter(|cluster| cluster.slot == slot);
                of_slot.any(|cluster| Some(cluster.incarnation) > before && cluster.open)
            })
    };
    while !is_open() {
        tokio::time::sleep(LOOK).await;
    }
    for (name, placement) in missing {
        let store = world.store(random);
        release(world, &store, &name, &placement).await;
    }
}

/// The generation of the owner key of a namespace in the store that stands there.
async fn owner_generation(world: &Shared, slot: Slot, name: &str) -> Option<u64> {
    let key = Domain::Namespace(name.into()).owner_key();
    let answer = world.site(slot).store().txn(Txn::read([Range::key(key)])).await;
    let kv = answer.ok()?.into_range().kvs.into_iter().next()?;
    let record: serde_json::Value = serde_json::from_slice(&kv.value).ok()?;
    record["generation"].as_u64()
}
