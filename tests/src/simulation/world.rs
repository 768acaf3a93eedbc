//! What a run consists of: backends, replicas, the placement authority, and the small helpers of all actors.

use super::Settings;
use super::control::{Control, Reported, agent, reporter};
use super::hoarder::QUOTA_BYTES;
use super::impostor::{Busy, LatePlacements, Published};
use super::restores::Restored;
use super::site::{Life, Line, Site};
use crate::history::{History, Nanos, ObjectName, Write, WriteKind, WriteResult};
use outrigger_storage::federated::{Extent, Member, Routing, Scope, Seen, StoreConfig};
use outrigger_storage::key::{Key, Resource};
use outrigger_storage::membership::MemberRecord;
use outrigger_storage::testing::faulty_backend::{Faults, FaultyBackend, Outage};
use outrigger_storage::{Error, FederatedStore, Object, SealedObject, Slot};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::time::Instant;

/// 2026-06-01, in milliseconds since 1970: where the wall clocks of a run start.
const WALL_START_MILLIS: u64 = 1_780_272_000_000;

/// The placement authority: what the control plane's compare-and-swap is in a real fleet.
#[derive(Default)]
pub(super) struct Placements {
    pub(super) by_name: BTreeMap<String, Placement>,
    pub(super) next: u64,
    /// What the replicas know of them, late.
    pub(super) published: Published,
}

#[derive(Clone)]
pub(super) struct Placement {
    pub(super) uid: String,
    pub(super) slot: Slot,
    pub(super) generation: u64,
    pub(super) confirmed: bool,
}

pub(super) struct World {
    pub(super) settings: Settings,
    pub(super) start: Instant,
    /// By slot: where the backends are.
    pub(super) sites: Vec<Arc<Site>>,
    /// By slot: the stores that stood there, one after another.
    pub(super) lives: RefCell<Vec<Vec<Life>>>,
    pub(super) restored: RefCell<Vec<Restored>>,
    /// By slot: what is recorded of the backends outside of them.
    pub(super) records: RefCell<BTreeMap<u16, Seen>>,
    pub(super) replicas: RefCell<Vec<FederatedStore>>,
    pub(super) faults: RefCell<Vec<Vec<Arc<Faults>>>>,
    pub(super) placements: RefCell<Placements>,
    /// Namespaces that were given up halfway, perhaps.
    pub(super) unreleased: RefCell<BTreeSet<String>>,
    pub(super) busy: Busy,
    /// A replica has read the record, and not looked at the backends yet.
    pub(super) starting: Cell<bool>,
    /// Puts that a backend had no room for.
    pub(super) no_space: Arc<AtomicU64>,
    /// How often a backend was full, and how often it had room again.
    pub(super) filled: Cell<(usize, usize)>,
    pub(super) control: Control,
    /// Per replica, its connections to all backends.
    pub(super) connections: RefCell<Vec<Vec<Member>>>,
    /// Per replica, the network to each backend.
    networks: RefCell<Vec<Vec<Arc<FaultyBackend>>>>,
    /// What each replica said last of the backends.
    pub(super) reports: RefCell<BTreeMap<usize, Reported>>,
    pub(super) history: RefCell<History>,
    pub(super) next_tag: Cell<u64>,
    pub(super) writing: Cell<bool>,
}

pub(super) type Shared = Rc<World>;
pub(super) async fn start_replica(world: &Shared, replica: usize, while_away: bool) {
    let settings = &world.settings;
    world.starting.set(true);
    let seed = settings.seed.wrapping_mul(31).wrapping_add(replica as u64);
    let mut random = StdRng::seed_from_u64(seed);
    let mut members = Vec::new();
    let mut faults = Vec::new();
    let mut networks = Vec::new();
    let decision = world.control.current();
    for (i, site) in world.sites.iter().enumerate() {
        let (faulty, control) = FaultyBackend::new(Line::new(site, &world.no_space), random.random());
        control.set(|s| {
            s.round_trip = settings.round_trip;
            s.jitter = settings.round_trip / 4;
            s.timeout = Duration::from_secs(1) + settings.round_trip * 4;
        });
        let slot = Slot(i as u16);
        let name = format!("cluster-{i}");
        members.push(Member {
            slot,
            uid: format!("uid-{i}"),
            name,
            backend: faulty.clone(),
            exclusive: settings.compaction,
            seen: world.records.borrow().get(&slot.0).copied(),
            incarnation: decision.member(slot).map_or(0, |member| member.incarnation),
        });
        faults.push(control);
        networks.push(faulty);
    }
    if while_away {
        let away = random.random_range(0..faults.len());
        faults[away].outage(Outage::Partitioned);
        let healed = faults[away].clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            healed.outage(Outage::None);
        });
    }
    let skew = random.random_range(0..=settings.clock_skew_max.as_millis() as u64);
    let start = world.start;
    let wall_clock = Arc::new(move || WALL_START_MILLIS + skew + start.elapsed().as_millis() as u64);
    let mut config = StoreConfig::new("simulated", Routing::Owned, wall_clock, seed);
    config.write_deadline = Duration::from_secs(8);
    // Small, so that watches fall off the ring and read history.
    config.ring_bytes_max = 24 * 1024;
    if settings.compaction {
        config.retention = Duration::from_secs(1);
        config.compact_every = Duration::from_millis(700);
    }
    if settings.fills {
        // Sizes are looked at as often as that: much less than the last tenth is written meanwhile.
        config.compact_every = Duration::from_millis(100);
    }
    config.broken = settings.broken;
    if let Some(late_by) = settings.placements_late_by {
        let published = world.placements.borrow().published.clone();
        config.placements = Arc::new(LatePlacements { published, late_by });
    }
    let opened = if settings.decided {
        let decision = world.control.read(&mut random);
        let named = members
            .iter()
            .filter(|member| decision.member(member.slot).is_some());
        let connections = named.cloned().collect();
        FederatedStore::open_decided(config, decision, connections).await
    } else {
        FederatedStore::open(config, members.clone()).await
    };
    let (store, tasks) = opened.expect("backends are ours");
    world.connections.borrow_mut().push(members);
    world.networks.borrow_mut().push(networks);
    for task in tasks {
        tokio::task::spawn_local(task.run);
    }
    if settings.decided {
        let random = StdRng::seed_from_u64(seed ^ 0xa6e7);
        tokio::task::spawn_local(agent(world.clone(), store.clone(), replica, random));
    }
    if settings.is_judged() {
        let random = StdRng::seed_from_u64(seed ^ 0x1e90);
        tokio::task::spawn_local(reporter(world.clone(), store.clone(), replica, random));
    }
    world.replicas.borrow_mut().push(store);
    world.starting.set(false);
    world.faults.borrow_mut().push(faults);
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        let quota_bytes = if settings.fills { QUOTA_BYTES } else { 0 };
        let first = || vec![Life::first(quota_bytes)];
        let lives: Vec<_> = (0..settings.backends).map(|_| first()).collect();
        lives.iter().flatten().for_each(Life::record);
        Self {
            start: Instant::now(),
            sites: lives.iter().map(|lives| Site::new(&lives[0])).collect(),
            lives: RefCell::new(lives),
            restored: RefCell::default(),
            records: RefCell::default(),
            replicas: RefCell::default(),
            faults: RefCell::default(),
            placements: RefCell::default(),
            unreleased: RefCell::default(),
            busy: Busy::default(),
            starting: Cell::new(false),
            no_space: Arc::default(),
            filled: Cell::default(),
            control: Control::new(settings.backends - settings.spares),
            connections: RefCell::default(),
            networks: RefCell::default(),
            reports: RefCell::default(),
            history: RefCell::default(),
            next_tag: Cell::new(1),
            writing: Cell::new(true),
            settings,
        }
    }

    pub(super) fn site(&self, slot: Slot) -> &Arc<Site> {
        &self.sites[usize::from(slot.0)]
    }

    /// The store that stands there now.
    pub(super) fn life(&self, slot: Slot) -> Life {
        let lives = self.lives.borrow();
        let last = lives[usize::from(slot.0)].last();
        last.expect("it begins with one").clone()
    }

    /// It is over that a backend was restored.
    pub(super) fn ends(&self, slot: Slot, end: impl Fn(&mut Restored, Nanos)) {
        let now = self.now();
        let mut restored = self.restored.borrow_mut();
        let last = restored.iter_mut().rev().find(|restored| restored.slot == slot.0);
        end(last.expect("it was restored before"), now);
    }

    /// A replica's connection to a member, as it is now: one that was accepted anew gets another.
    pub(super) fn connect(&self, replica: usize, record: &MemberRecord) -> Member {
        let slot = usize::from(record.slot.0);
        let member = &mut self.connections.borrow_mut()[replica][slot];
        if member.incarnation < record.incarnation {
            let network = &self.networks.borrow()[replica][slot];
            member.backend = network.beside(Line::new(&self.sites[slot], &self.no_space));
            member.seen = self.records.borrow().get(&record.slot.0).copied();
            member.incarnation = record.incarnation;
        }
        member.clone()
    }

    pub(super) fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }

    pub(super) fn store(&self, random: &mut StdRng) -> FederatedStore {
        let replicas = self.replicas.borrow();
        replicas[random.random_range(0..replicas.len())].clone()
    }

    /// Whether the namespace lives on a member that is being emptied.
    pub(super) fn is_draining(&self, namespace: &str) -> bool {
        let draining = self.control.draining.borrow();
        let placements = self.placements.borrow();
        let placement = placements.by_name.get(namespace);
        placement.is_some_and(|placement| draining.contains(&placement.slot.0))
    }

    /// The namespaces that are placed on this backend.
    pub(super) fn placed_on(&self, slot: Slot) -> Vec<(String, Placement)> {
        let placements = self.placements.borrow();
        let here = placements
            .by_name
            .iter()
            .filter(|(_, placement)| placement.slot == slot);
        here.map(|(name, placement)| (name.clone(), placement.clone()))
            .collect()
    }

    /// Writes down how a write has ended, now.
    pub(super) fn wrote(
        &self,
        (kind, object, tag): (WriteKind, ObjectName, u64),
        began: Nanos,
        result: &Result<Object, Error>,
    ) {
        let result = match result {
            Ok(stored) => WriteResult::Acknowledged(stored.resource_version()),
            Err(error @ Error::UnknownOutcome { .. }) => WriteResult::Unknown(error.to_string()),
            Err(error) => WriteResult::Refused(error.to_string()),
        };
        let time = (began, self.now());
        self.history.borrow_mut().writes.push(Write {
            kind,
            object,
            tag,
            time,
            result,
        });
    }

    pub(super) fn tag(&self) -> u64 {
        self.next_tag.set(self.next_tag.get() + 1);
        self.next_tag.get()
    }
}

pub(super) fn resource() -> Resource {
    Resource::new("example.com", "things")
}

pub(super) fn key_of(object: &ObjectName) -> Key {
    Key::new(resource(), &object.0, &object.1)
}

pub(super) fn scope(namespace: Option<&str>) -> Scope {
    Scope {
        resource: resource(),
        extent: namespace.map_or(Extent::AllNamespaces, |ns| Extent::Namespace(ns.into())),
    }
}

/// Few names, so that clients meet; `a-b` sorts before `a` as a key and after it in a list.
pub(super) fn any_object(random: &mut StdRng) -> ObjectName {
    (any_namespace(random), format!("o{}", random.random_range(0..5)))
}

pub(super) const NAMESPACES: [&str; 6] = ["a", "a-b", "b", "c", "d", "e"];

pub(super) fn any_namespace(random: &mut StdRng) -> String {
    NAMESPACES[random.random_range(0..NAMESPACES.len())].to_owned()
}

pub(super) fn sealed(tag: u64) -> SealedObject {
    sealed_with(tag, 200)
}

/// One of about this size.
pub(super) fn sealed_with(tag: u64, padding: usize) -> SealedObject {
    let value = serde_json::json!({
        "apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"uid": format!("{tag}")},
        "spec": {"tag": tag, "padding": "x".repeat(padding)},
    });
    let serde_json::Value::Object(map) = value else {
        unreachable!("an object")
    };
    SealedObject::seal(&map, 0).expect("it has all it needs")
}

pub(super) fn tag_of_json(json: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(json).expect("ours");
    value["spec"]["tag"].as_u64().expect("every object has a tag")
}

pub(super) fn tag_of(object: &Object) -> u64 {
    tag_of_json(object.stored_json())
}

pub(super) async fn pause(random: &mut StdRng, millis_max: u64) {
    tokio::time::sleep(Duration::from_micros(random.random_range(0..millis_max * 1000))).await;
}
