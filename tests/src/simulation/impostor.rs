//! Whoever holds one backend: writes owner keys of namespaces that live elsewhere, and objects in them, straight into it.
//! And what protects from that: the placements, as a replica knows them, late.

use super::world::{Placement, Shared, pause, resource, sealed};
use futures::FutureExt;
use futures::future::BoxFuture;
use outrigger_storage::backend::{Backend, Op, Range, Txn};
use outrigger_storage::key::{Domain, Key};
use outrigger_storage::placements::{Known, Placed, Placements};
use outrigger_storage::{Epoch, Slot};
use rand::Rng;
use rand::rngs::StdRng;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Tags of forged objects lie above all others.
const FORGED: u64 = 1 << 40;
/// The uid in forged owner keys.
const IMPOSTOR: &str = "impostor";
/// The backend that somebody else holds.
const HELD: Slot = Slot(0);
/// How long an answer of the control plane takes.
const ASK: Duration = Duration::from_millis(20);

/// Whether an object was forged.
pub(super) fn is_forged(tag: u64) -> bool {
    tag >= FORGED
}

/// Whether an owner key was forged.
pub(super) fn is_forged_owner(value: &str) -> bool {
    value.contains(IMPOSTOR)
}

/// Every state that the placements ever had, with the time when it came to be.
#[derive(Debug, Clone, Default)]
pub(super) struct Published(Arc<Mutex<Vec<State>>>);

/// One change of one placement.
#[derive(Debug)]
struct State {
    at: Instant,
    name: String,
    placed: Option<Placed>,
}

impl Published {
    /// Writes down a change; its version is the placement's.
    pub(super) fn publish(&self, name: &str, placement: Option<&Placement>) {
        let mut states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let version = states.len() as u64 + 1;
        let placed = placement.map(|placement| Placed {
            cluster: format!("cluster-{}", placement.slot.0).into(),
            // Never confirmed: a namespace whose claim was taken away before it was confirmed has no owner key for ever,
            // which is 503, and nobody here would come to rest.
            slot: None,
            version,
            generations: placement.generation..=placement.generation,
        });
        states.push(State {
            at: Instant::now(),
            name: name.to_owned(),
            placed,
        });
    }

    /// The version that the next change will have: what is claimed for it has this generation.
    pub(super) fn next_version(&self) -> u64 {
        self.read(Duration::ZERO, |states| states.len() as u64 + 1)
    }

    fn read<T>(&self, late_by: Duration, read: impl FnOnce(&[State]) -> T) -> T {
        let states = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let known = states.partition_point(|state| state.at + late_by <= now);
        read(&states[..known])
    }
}

/// The placements as one replica knows them.
#[derive(Debug)]
pub(super) struct LatePlacements {
    pub(super) published: Published,
    pub(super) late_by: Duration,
}

impl Placements for LatePlacements {
    fn version(&self) -> u64 {
        self.published.read(self.late_by, |states| states.len() as u64)
    }

    fn known(&self, domain: &Domain) -> Known {
        let name = domain.placement_name();
        self.published.read(self.late_by, |states| {
            let newest = states.iter().rev().find(|state| state.name == name);
            let placed = newest.and_then(|state| state.placed.clone());
            placed.map_or(Known::Nowhere, Known::Placed)
        })
    }

    fn has_owned(&self, domain: &Domain, cluster: &str, slot: Slot, generation: u64) -> bool {
        let name = domain.placement_name();
        let owned = |state: &State| {
            let placed = state.placed.as_ref().filter(|_| state.name == name);
            placed.is_some_and(|placed| placed.owns(cluster, slot, generation))
        };
        self.published
            .read(self.late_by, |states| states.iter().any(owned))
    }

    fn ask<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Option<Placed>, String>> {
        async move {
            tokio::time::sleep(ASK).await;
            let name = domain.placement_name();
            self.published.read(Duration::ZERO, |states| {
                let newest = states.iter().rev().find(|state| state.name == name);
                Ok(newest.and_then(|state| state.placed.clone()))
            })
        }
        .boxed()
    }
}

/// A namespace that the impostor is busy with: it is placed on the impostor's backend by nobody meanwhile.
#[derive(Debug, Default)]
pub(super) struct Busy(std::cell::RefCell<Option<String>>);

impl Busy {
    pub(super) fn keeps_off(&self, namespace: &str, slot: Slot) -> bool {
        slot == HELD && self.0.borrow().as_deref() == Some(namespace)
    }
}

/// Forges, and takes away again what it has forged.
pub(super) async fn impostor(world: Shared, mut random: StdRng) {
    // What was forged before a replica looked it cannot tell from what is gone: watches that need to know are expired.
    let all_look = |world: &Shared| {
        let mut replicas = world.replicas.borrow().clone().into_iter();
        replicas.all(|replica| replica.clusters().iter().all(|cluster| cluster.reachable))
    };
    while world.writing.get() && !all_look(&world) {
        pause(&mut random, 100).await;
    }
    while world.writing.get() {
        pause(&mut random, 300).await;
        let namespace = ["a", "a-b", "b", "c", "d", "e", "nowhere"][random.random_range(0..7)];
        let here = {
            let placements = world.placements.borrow();
            let placement = placements.by_name.get(namespace);
            placement.is_some_and(|placement| placement.slot == HELD)
        };
        if here {
            continue;
        }
        *world.busy.0.borrow_mut() = Some(namespace.to_owned());
        forge(&world, namespace, &mut random).await;
        *world.busy.0.borrow_mut() = None;
    }
}

async fn forge(world: &Shared, namespace: &str, random: &mut StdRng) {
    let owner = Domain::Namespace(namespace.into()).owner_key();
    let hurry = if random.random_bool(0.3) { 1 } else { 250 };
    let with_owner = random.random_bool(0.8);
    let next = world.placements.borrow().published.next_version();
    if with_owner {
        // None that a placement will have: whoever guesses that will hold the namespace anyway.
        let generation = [0, next + 100_000, u64::MAX][random.random_range(0..3)];
        let state = if random.random_bool(0.9) {
            "Active"
        } else {
            "Frozen"
        };
        let value = serde_json::json!({"state": state, "generation": generation, "uid": IMPOSTOR});
        put(world, owner.clone(), value.to_string().into()).await;
        pause(random, hurry).await;
    }
    let name = format!("o{}", random.random_range(0..5));
    let key = Key::new(resource(), namespace, &name).encode();
    for _ in 0..random.random_range(1..4) {
        let Some((epoch, base)) = clock(world).await else {
            return;
        };
        let tag = FORGED + world.tag();
        put(world, key.clone(), sealed(tag).stamped(epoch, base)).await;
        pause(random, hurry).await;
    }
    delete(world, key).await;
    if with_owner {
        pause(random, hurry).await;
        delete(world, owner).await;
    }
}

async fn clock(world: &Shared) -> Option<(Epoch, u64)> {
    let backend = world.site(HELD).store();
    let answer = backend.txn(Txn::read([Range::key("clock")])).await.ok()?;
    let range = answer.responses.into_iter().next()?.into_range();
    let kv = range.kvs.into_iter().next()?;
    let epoch = u64::from_be_bytes(kv.value[..].try_into().ok()?);
    Some((Epoch(epoch), kv.mod_revision))
}

async fn put(world: &Shared, key: bytes::Bytes, value: bytes::Bytes) {
    write(world, Op::Put { key, value }).await;
}

async fn delete(world: &Shared, key: bytes::Bytes) {
    write(world, Op::Delete { key }).await;
}

async fn write(world: &Shared, op: Op) {
    let txn = Txn {
        compare: vec![],
        success: vec![op],
        failure: vec![],
    };
    let backend = world.site(HELD).store();
    backend
        .txn(txn)
        .await
        .expect("whoever holds a backend may write to it");
}
