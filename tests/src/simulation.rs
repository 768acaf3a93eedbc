//! One seeded run: some replicas on some backends behind a bad network, with clients that write, read, list and watch.
//!
//! Everything that happens follows from the seed: a current-thread runtime with paused time, embedded backends in
//! memory, faults drawn from seeded generators. The run ends in peace: faults are healed, watches catch up, and the logs
//! of the backends are read for the validators.

use crate::history::{
    Change, Delivered, Get, History, List, Nanos, ObjectName, Truth, Watch, Write, WriteKind, WriteResult,
};
use futures::StreamExt;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{Backend, BackendEvent, Range, Txn, WatchRequest};
use outrigger_storage::federated::{
    Claim, Extent, ListOptions, ListVersion, Member, Routing, Rule, Scope, StoreConfig, WatchStart,
};
use outrigger_storage::key::{Domain, Key, Resource};
use outrigger_storage::testing::faulty_backend::{Faults, FaultyBackend, Outage};
use outrigger_storage::{
    Epoch, Error, FederatedStore, Object, ResourceVersion, SealedObject, SelectionPredicate, Slot, WatchEvent,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// 2026-06-01, in milliseconds since 1970: where the wall clocks of a run start.
const WALL_START_MILLIS: u64 = 1_780_272_000_000;
/// How long the run may need to come to rest.
const REST: Duration = Duration::from_secs(120);

/// The shape of a run. [`Settings::of_seed`] draws one.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The seed.
    pub seed: u64,
    /// Backends.
    pub backends: u16,
    /// Replicas.
    pub replicas: usize,
    /// How long clients work.
    pub duration: Duration,
    /// Round trip of each replica to each backend.
    pub round_trip: Duration,
    /// How far the wall clocks of the replicas are apart.
    pub clock_skew_max: Duration,
    /// Clients that list all the time.
    pub listers: u64,
    /// What the network does to what is sent.
    pub network: Network,
    /// Whether whole backends go away for a while.
    pub outages: bool,
    /// Whether history is compacted soon.
    pub compaction: bool,
    /// Whether namespaces are emptied, released and claimed elsewhere.
    pub releases: bool,
    /// Whether the last replica starts late, while a backend is away.
    pub late_replica: bool,
    /// A rule that is broken on purpose.
    pub broken: Option<Rule>,
}

impl Settings {
    /// The shape of the run with this seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let round_trips = [1, 1, 2, 5, 30, 100];
        Self {
            seed,
            backends: random.random_range(1..=3),
            replicas: random.random_range(1..=3),
            duration: Duration::from_secs(random.random_range(3..=6)),
            round_trip: Duration::from_millis(round_trips[random.random_range(0..round_trips.len())]),
            listers: random.random_range(1..=3),
            clock_skew_max: Duration::from_millis([0, 200, 200, 2000][random.random_range(0..4)]),
            network: match random.random_range(0..10) {
                0..4 => Network::Good,
                4..8 => Network::Lossy,
                8 => Network::LateWrites,
                _ => Network::LateWatches,
            },
            outages: random.random_bool(0.4),
            compaction: random.random_bool(0.2),
            releases: random.random_bool(0.4),
            late_replica: random.random_bool(0.3),
            broken: None,
        }
    }
}

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It delivers.
    Good,
    /// It loses, delays and repeats requests, answers and watch batches.
    Lossy,
    /// Requests are carried out seconds after the caller was told that nobody answers.
    LateWrites,
    /// Watches are late by up to one and a half seconds.
    LateWatches,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// What clients saw.
    pub history: History,
    /// What the backends hold.
    pub truth: Truth,
    /// Whether everybody ended once the faults were healed.
    pub rested: bool,
}

/// The placement authority: what the control plane's compare-and-swap is in a real fleet.
#[derive(Default)]
struct Placements {
    by_name: BTreeMap<String, Placement>,
    next: u64,
}

#[derive(Clone)]
struct Placement {
    uid: String,
    slot: Slot,
    generation: u64,
    confirmed: bool,
}

struct World {
    settings: Settings,
    start: Instant,
    backends: Vec<Arc<EmbeddedBackend>>,
    logs: Vec<Rc<RefCell<RawLog>>>,
    replicas: RefCell<Vec<FederatedStore>>,
    faults: RefCell<Vec<Vec<Arc<Faults>>>>,
    placements: RefCell<Placements>,
    history: RefCell<History>,
    next_tag: Cell<u64>,
    writing: Cell<bool>,
}

type Shared = Rc<World>;

/// Runs a seed.
///
/// # Panics
/// When the run itself cannot be set up, or a client panics.
#[must_use]
pub fn run(settings: Settings) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let outcome = runtime.block_on(local.run_until(simulate(settings)));
    drop(local);
    outcome
}

async fn simulate(settings: Settings) -> Outcome {
    let backends: Vec<_> = (0..settings.backends)
        .map(|_| Arc::new(EmbeddedBackend::in_memory()))
        .collect();
    let logs: Vec<Rc<RefCell<RawLog>>> = backends.iter().map(|_| Rc::default()).collect();
    for (backend, log) in backends.iter().zip(&logs) {
        tokio::task::spawn_local(record_log(backend.clone(), log.clone()));
    }
    let world = Rc::new(World {
        start: Instant::now(),
        backends,
        logs,
        replicas: RefCell::default(),
        faults: RefCell::default(),
        placements: RefCell::default(),
        history: RefCell::default(),
        next_tag: Cell::new(1),
        writing: Cell::new(true),
        settings,
    });
    let late = world.settings.late_replica && world.settings.replicas > 1;
    for replica in 0..world.settings.replicas - usize::from(late) {
        start_replica(&world, replica, false).await;
    }
    let mut actors = Vec::new();
    let actor = |n: u64| StdRng::seed_from_u64(world.settings.seed.wrapping_mul(1000) + n);
    for n in 0..4 {
        actors.push(tokio::task::spawn_local(writer(world.clone(), actor(n))));
    }
    actors.push(tokio::task::spawn_local(reader(world.clone(), actor(10))));
    for n in 0..world.settings.listers {
        actors.push(tokio::task::spawn_local(lister(world.clone(), actor(11 + n))));
    }
    for n in 0..4 {
        actors.push(tokio::task::spawn_local(watcher(world.clone(), actor(20 + n))));
    }
    actors.push(tokio::task::spawn_local(disturber(world.clone(), actor(30))));
    if world.settings.releases {
        actors.push(tokio::task::spawn_local(releaser(world.clone(), actor(31))));
    }
    if late {
        tokio::time::sleep(world.settings.duration / 3).await;
        start_replica(&world, world.settings.replicas - 1, true).await;
    }
    tokio::time::sleep_until(world.start + world.settings.duration).await;
    world.writing.set(false);
    let rest = async {
        for actor in &mut actors {
            actor.await.expect("an actor does not panic");
        }
    };
    let rested = tokio::time::timeout(REST, rest).await.is_ok();
    actors.iter().for_each(tokio::task::JoinHandle::abort);
    for store in world.replicas.borrow().iter() {
        store.close();
    }
    if world.settings.network == Network::Good && !world.settings.outages && !late {
        let suspected: u64 = world
            .faults
            .borrow()
            .iter()
            .flatten()
            .map(|faults| faults.suspected())
            .sum();
        assert_eq!(suspected, 0, "a healthy member is not suspected");
    }
    let truth = read_truth(&world).await;
    Outcome {
        history: world.history.take(),
        truth,
        rested,
    }
}

async fn start_replica(world: &Shared, replica: usize, while_away: bool) {
    let settings = &world.settings;
    let seed = settings.seed.wrapping_mul(31).wrapping_add(replica as u64);
    let mut random = StdRng::seed_from_u64(seed);
    let mut members = Vec::new();
    let mut faults = Vec::new();
    for (i, backend) in world.backends.iter().enumerate() {
        let (faulty, control) = FaultyBackend::new(backend.clone(), random.random());
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
            backend: faulty,
            exclusive: settings.compaction,
        });
        faults.push(control);
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
    config.broken = settings.broken;
    let (store, tasks) = FederatedStore::open(config, members)
        .await
        .expect("backends are ours");
    for task in tasks {
        tokio::task::spawn_local(task.run);
    }
    world.replicas.borrow_mut().push(store);
    world.faults.borrow_mut().push(faults);
}

impl World {
    fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }

    fn store(&self, random: &mut StdRng) -> FederatedStore {
        let replicas = self.replicas.borrow();
        replicas[random.random_range(0..replicas.len())].clone()
    }

    fn tag(&self) -> u64 {
        self.next_tag.set(self.next_tag.get() + 1);
        self.next_tag.get()
    }
}

fn resource() -> Resource {
    Resource::new("example.com", "things")
}

fn key_of(object: &ObjectName) -> Key {
    Key::new(resource(), &object.0, &object.1)
}

fn scope(namespace: Option<&str>) -> Scope {
    Scope {
        resource: resource(),
        extent: namespace.map_or(Extent::AllNamespaces, |ns| Extent::Namespace(ns.into())),
    }
}

/// Few names, so that clients meet; `a-b` sorts before `a` as a key and after it in a list.
fn any_object(random: &mut StdRng) -> ObjectName {
    (any_namespace(random), format!("o{}", random.random_range(0..5)))
}

fn any_namespace(random: &mut StdRng) -> String {
    ["a", "a-b", "b", "c", "d", "e"][random.random_range(0..6)].to_owned()
}

fn sealed(tag: u64) -> SealedObject {
    let value = serde_json::json!({
        "apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"uid": format!("{tag}")},
        "spec": {"tag": tag, "padding": "x".repeat(200)},
    });
    let serde_json::Value::Object(map) = value else {
        unreachable!("an object")
    };
    SealedObject::seal(&map, 0).expect("it has all it needs")
}

fn tag_of_json(json: &[u8]) -> u64 {
    let value: serde_json::Value = serde_json::from_slice(json).expect("ours");
    value["spec"]["tag"].as_u64().expect("every object has a tag")
}

fn tag_of(object: &Object) -> u64 {
    tag_of_json(object.stored_json())
}

async fn pause(random: &mut StdRng, millis_max: u64) {
    tokio::time::sleep(Duration::from_micros(random.random_range(0..millis_max * 1000))).await;
}

/// Writes objects, and places namespaces that are not placed.
async fn writer(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 60).await;
        let object = any_object(&mut random);
        let store = world.store(&mut random);
        let read = if random.random_bool(0.3) {
            Err(Error::NotFound { verified_at: None })
        } else {
            store.get(&key_of(&object)).await
        };
        let tag = world.tag();
        let began = world.now();
        let (kind, tag, result) = match read {
            Ok(current) if random.random_bool(0.3) => {
                (WriteKind::Delete, tag_of(&current), store.delete(&current).await)
            }
            Ok(current) => (WriteKind::Update, tag, store.update(&current, &sealed(tag)).await),
            Err(Error::NotFound { .. }) => (
                WriteKind::Create,
                tag,
                store.create(&key_of(&object), &sealed(tag)).await,
            ),
            Err(_) => continue,
        };
        let time = (began, world.now());
        if let Err(Error::Unplaced(name)) = &result {
            place(&world, &store, name, &mut random).await;
        }
        let result = match result {
            Ok(stored) => WriteResult::Acknowledged(stored.resource_version()),
            Err(error @ Error::UnknownOutcome { .. }) => WriteResult::Unknown(error.to_string()),
            Err(error) => WriteResult::Refused(error.to_string()),
        };
        world.history.borrow_mut().writes.push(Write {
            kind,
            object,
            tag,
            time,
            result,
        });
    }
}

/// What the registry does: the placement's atomic create decides, then the claim is fenced, confirmed and activated.
async fn place(world: &Shared, store: &FederatedStore, name: &str, random: &mut StdRng) {
    pause(random, 10).await;
    let placement = {
        let mut placements = world.placements.borrow_mut();
        placements.next += 1;
        let generation = placements.next;
        let slot = Slot(random.random_range(0..world.settings.backends));
        let new = Placement {
            uid: format!("ns-{generation}"),
            slot,
            generation,
            confirmed: false,
        };
        placements.by_name.entry(name.to_owned()).or_insert(new).clone()
    };
    let claim = Claim {
        domain: Domain::Namespace(name.into()),
        uid: placement.uid.clone(),
        generation: placement.generation,
        slot: placement.slot,
    };
    // A confirmed claim is finished, never begun again: its owner key may be gone because it was released.
    let claiming = match placement.confirmed {
        true => store.resume_claim(&claim).await,
        false => store.begin_claim(&claim).await,
    };
    let Ok(claiming) = claiming else { return };
    pause(random, 10).await;
    {
        let mut placements = world.placements.borrow_mut();
        match placements.by_name.get_mut(name) {
            Some(current) if current.uid == placement.uid => current.confirmed = true,
            _ => return,
        }
    }
    // Whether it worked shows when the write is tried again.
    let _ = store.activate(&claiming).await;
}

/// Empties a namespace and gives it up, as the namespace controller does; the next writer places it anew.
async fn releaser(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 1500).await;
        let namespace = any_namespace(&mut random);
        let store = world.store(&mut random);
        let Some(placement) = world
            .placements
            .borrow()
            .by_name
            .get(&namespace)
            .filter(|p| p.confirmed)
            .cloned()
        else {
            continue;
        };
        if let Ok(mut list) = store.list(&scope(Some(&namespace)), ListOptions::default()).await {
            while let Ok(Some(batch)) = list.next_batch().await {
                for object in batch.objects {
                    let began = world.now();
                    let result = store.delete(&object).await;
                    record_delete(&world, &object, began, result);
                }
            }
        }
        if store
            .release(&Domain::Namespace(namespace.as_str().into()), &placement.uid)
            .await
            .is_ok()
        {
            let mut placements = world.placements.borrow_mut();
            if placements
                .by_name
                .get(&namespace)
                .is_some_and(|p| p.uid == placement.uid)
            {
                placements.by_name.remove(&namespace);
            }
        }
    }
}

fn record_delete(world: &Shared, object: &Object, began: Nanos, result: Result<Object, Error>) {
    let result = match result {
        Ok(stored) => WriteResult::Acknowledged(stored.resource_version()),
        Err(error @ Error::UnknownOutcome { .. }) => WriteResult::Unknown(error.to_string()),
        Err(error) => WriteResult::Refused(error.to_string()),
    };
    let name = (object.namespace().to_owned(), object.name().to_owned());
    let time = (began, world.now());
    world.history.borrow_mut().writes.push(Write {
        kind: WriteKind::Delete,
        object: name,
        tag: tag_of(object),
        time,
        result,
    });
}

async fn reader(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 50).await;
        let object = any_object(&mut random);
        let began = world.now();
        let found = match world.store(&mut random).get(&key_of(&object)).await {
            Ok(found) => Some((tag_of(&found), found.resource_version())),
            Err(Error::NotFound { .. }) => None,
            Err(_) => continue,
        };
        let time = (began, world.now());
        world.history.borrow_mut().gets.push(Get { object, time, found });
    }
}

async fn lister(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 200).await;
        let namespace = random.random_bool(0.4).then(|| any_namespace(&mut random));
        let version = match random.random_range(0..10) {
            0 => ListVersion::Any,
            1 | 2 => match last_version(&world, &mut random) {
                Some(version) => ListVersion::Exact(version),
                None => ListVersion::MostRecent,
            },
            3 => last_version(&world, &mut random).map_or(ListVersion::Any, ListVersion::NotOlderThan),
            _ => ListVersion::MostRecent,
        };
        let limit = if random.random_bool(0.3) {
            random.random_range(1..4)
        } else {
            0
        };
        let _ = list_all(&world, namespace, version, limit, &mut random).await;
    }
}

fn last_version(world: &Shared, random: &mut StdRng) -> Option<ResourceVersion> {
    let history = world.history.borrow();
    let from_lists = history.lists.last().map(|list| list.version);
    let from_writes = history.writes.iter().rev().find_map(|write| match write.result {
        WriteResult::Acknowledged(version) => Some(version),
        _ => None,
    });
    if random.random_bool(0.5) {
        from_lists.or(from_writes)
    } else {
        from_writes.or(from_lists)
    }
}

/// Lists to the end, page by page if there is a limit; each page on any replica.
async fn list_all(
    world: &Shared,
    namespace: Option<String>,
    version: ListVersion,
    limit: u64,
    random: &mut StdRng,
) -> Result<ResourceVersion, Error> {
    let scope = scope(namespace.as_deref());
    let most_recent = version == ListVersion::MostRecent;
    let not_older = match &version {
        ListVersion::NotOlderThan(rv) => Some(*rv),
        _ => None,
    };
    let began = world.now();
    let mut items = Vec::new();
    let mut options = ListOptions {
        version,
        limit,
        ..ListOptions::default()
    };
    loop {
        let mut list = world.store(random).list(&scope, options.clone()).await?;
        while let Some(batch) = list.next_batch().await? {
            let item = |o: &Object| {
                (
                    (o.namespace().to_owned(), o.name().to_owned()),
                    tag_of(o),
                    o.resource_version(),
                )
            };
            items.extend(batch.objects.iter().map(item));
        }
        let version = list.resource_version();
        match list.end().continue_token {
            Some(token) => {
                let token = outrigger_storage::continue_token::ContinueToken::decode(&token)?;
                options.version = ListVersion::Continue(token);
            }
            None => {
                assert!(
                    not_older.is_none_or(|rv| version >= rv),
                    "NotOlderThan {not_older:?} gave {version:?}"
                );
                let time = (began, world.now());
                world.history.borrow_mut().lists.push(List {
                    namespace,
                    most_recent,
                    time,
                    version,
                    items,
                });
                return Ok(version);
            }
        }
    }
}

/// Watches from a list, or from any version it knows; is cut off again and again and goes on at any replica. After the
/// writers have stopped it goes on until it has passed the end.
async fn watcher(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 400).await;
        let namespace = random.random_bool(0.4).then(|| any_namespace(&mut random));
        let start = match random.random_range(0..3) {
            0 => last_version(&world, &mut random),
            _ => list_all(&world, namespace.clone(), ListVersion::MostRecent, 0, &mut random)
                .await
                .ok(),
        };
        let Some(after) = start else { continue };
        let mut watch = Watch {
            namespace,
            after,
            delivered: Vec::new(),
            expired: None,
            complete_to: None,
        };
        follow(&world, &mut watch, &mut random).await;
        world.history.borrow_mut().watches.push(watch);
    }
}

async fn follow(world: &Shared, watch: &mut Watch, random: &mut StdRng) {
    let mut position = watch.after;
    // The end: a version above everything, once nobody writes any more.
    let mut end = None;
    loop {
        if !world.writing.get() && end.is_none() {
            end = list_version_at_rest(world, random).await;
        }
        let store = world.store(random);
        let scope = scope(watch.namespace.as_deref());
        let mut watching = match store
            .watch(&scope, SelectionPredicate::default(), WatchStart::After(position))
            .await
        {
            Ok(watching) => watching,
            Err(Error::Expired { .. }) => {
                watch.expired = Some(position);
                return;
            }
            Err(_) => {
                pause(random, 500).await;
                continue;
            }
        };
        let until = Instant::now() + Duration::from_millis(random.random_range(50..1500));
        loop {
            let slow = random.random_bool(0.1);
            match tokio::time::timeout_at(until, watching.next_batch()).await {
                Ok(Ok(events)) => {
                    for event in events {
                        let WatchEvent::Object(event) = event else {
                            continue;
                        };
                        let object = (
                            event.object.namespace().to_owned(),
                            event.object.name().to_owned(),
                        );
                        position = event.object.resource_version();
                        watch.delivered.push(Delivered::Event(
                            event.kind,
                            object,
                            tag_of(&event.object),
                            position,
                        ));
                    }
                }
                Ok(Err(Error::Expired { .. })) => {
                    watch.expired = Some(position);
                    return;
                }
                Ok(Err(_)) | Err(_) => break,
            }
            if random.random_bool(0.2)
                && let Some(bookmark) = watching.bookmark()
            {
                watch.delivered.push(Delivered::Bookmark(bookmark));
                position = bookmark;
            }
            if slow {
                pause(random, 300).await;
            }
        }
        if let Some(bookmark) = watching.bookmark() {
            watch.delivered.push(Delivered::Bookmark(bookmark));
            position = bookmark;
        }
        if end.is_some_and(|end| position >= end) {
            watch.complete_to = end;
            return;
        }
        // Some watches end early; the others see the end.
        if world.writing.get() && random.random_bool(0.1) {
            return;
        }
    }
}

async fn list_version_at_rest(world: &Shared, random: &mut StdRng) -> Option<ResourceVersion> {
    list_all(world, None, ListVersion::MostRecent, 0, random)
        .await
        .ok()
}

/// Breaks things, and heals them before the end.
async fn disturber(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 700).await;
        let faults = {
            let faults = world.faults.borrow();
            let of_replica = &faults[random.random_range(0..faults.len())];
            of_replica[random.random_range(0..of_replica.len())].clone()
        };
        match world.settings.network {
            Network::Good => {}
            Network::Lossy => lose(&faults, &mut random),
            Network::LateWrites => faults.set(|s| {
                s.timeout = s.round_trip * 2 + Duration::from_millis(20);
                s.execute_late = random.random_range(0.0..0.3);
                s.late_by = Duration::from_millis(300);
            }),
            Network::LateWatches => faults.set(|s| {
                s.watch_delay = Duration::from_millis(random.random_range(0..1500));
            }),
        }
        if world.settings.outages && random.random_bool(0.3) {
            let outages = [Outage::Down, Outage::Partitioned, Outage::Writes, Outage::Watches];
            faults.outage(outages[random.random_range(0..outages.len())]);
            pause(&mut random, 3000).await;
            faults.outage(Outage::None);
        }
    }
    for faults in world.faults.borrow().iter().flatten() {
        faults.heal();
    }
}

/// A little of everything.
fn lose(faults: &Faults, random: &mut StdRng) {
    let p = |random: &mut StdRng| {
        if random.random_bool(0.3) {
            random.random_range(0.0..0.15)
        } else {
            0.0
        }
    };
    faults.set(|s| {
        s.drop_request = p(random);
        s.drop_answer = p(random);
        s.execute_late = p(random);
        s.late_by = Duration::from_secs(3);
        s.execute_twice = p(random);
        s.watch_delay = Duration::from_millis(random.random_range(0..80));
        s.watch_stall = p(random) / 5.0;
        s.watch_stall_for = Duration::from_secs(3);
        s.watch_cut = p(random) / 3.0;
    });
}

/// Follows the log of one backend from its beginning, before anything of it can be compacted.
async fn record_log(backend: Arc<EmbeddedBackend>, log: Rc<RefCell<RawLog>>) {
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
struct RawLog {
    events: Vec<BackendEvent>,
    revision: u64,
}

/// Computes versions from the logs of the backends, without the store's help.
async fn read_truth(world: &Shared) -> Truth {
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
    truth
}

fn read_log(log: &RawLog, slot: u16, truth: &mut Truth) {
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
                truth
                    .owners
                    .entry(namespace.to_owned())
                    .or_default()
                    .push((slot, version, value));
            }
            let is_active = !event.deleted && String::from_utf8_lossy(&event.kv.value).contains("\"Active\"");
            active.insert(namespace.to_owned(), is_active);
        } else if let Some(rest) = key.strip_prefix("objects/example.com/things/") {
            let (namespace, name) = rest.split_once('/').expect("namespace and name");
            let (epoch, base) = clock.expect("a tick comes first");
            let version = ResourceVersion::new(Epoch(epoch), revision - base, Slot(slot)).expect("in range");
            // The body stands behind a header of 56 bytes.
            let tag = |value: &[u8]| tag_of_json(&value[56..]);
            truth.changes.push(Change {
                version,
                slot,
                revision,
                object: (namespace.to_owned(), name.to_owned()),
                tag: (!event.deleted).then(|| tag(&event.kv.value)),
                before: event.prev.as_ref().map(|prev| tag(&prev.value)),
                owned: active.get(namespace).copied().unwrap_or(false),
            });
        }
    }
}
