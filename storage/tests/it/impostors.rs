//! Whoever holds one backend takes nothing with it: owner keys and objects that are written past the store, and placements
//! that say otherwise.

use futures::FutureExt;
use futures::future::BoxFuture;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{Backend, Op, Range, Txn};
use outrigger_storage::federated::{
    Claim, Extent, FederatedStore, ListOptions, ListVersion, Member, Routing, Scope, StoreConfig, Watch,
    WatchStart,
};
use outrigger_storage::key::{Domain, Key, Resource};
use outrigger_storage::placements::{Known, Placed, Placements};
use outrigger_storage::{
    Epoch, Error, EventKind, ResourceVersion, SealedObject, SelectionPredicate, Slot, WatchEvent,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Milliseconds since 1970 of a day in 2026.
const SOME_DAY: u64 = 1_790_000_000_000;

/// What is known, and what is so.
#[derive(Debug, Default)]
struct Told {
    version: u64,
    known: BTreeMap<String, Placed>,
    now: BTreeMap<String, Placed>,
    /// What was ever known.
    past: Vec<(String, Placed)>,
    /// Nobody answers.
    is_down: bool,
}

/// Placements that a test sets.
#[derive(Debug, Clone, Default)]
struct Script(Arc<Mutex<Told>>);

impl Script {
    fn set(&self, set: impl FnOnce(&mut Told)) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.version += 1;
        set(&mut told);
    }

    fn get<T>(&self, get: impl FnOnce(&Told) -> T) -> T {
        get(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Placements for Script {
    fn version(&self) -> u64 {
        self.get(|told| told.version)
    }

    fn known(&self, domain: &Domain) -> Known {
        let placed = self.get(|told| told.known.get(&domain.placement_name()).cloned());
        placed.map_or(Known::Nowhere, Known::Placed)
    }

    fn has_owned(&self, domain: &Domain, cluster: &str, slot: Slot, generation: u64) -> bool {
        let name = domain.placement_name();
        self.get(|told| {
            let mut of_domain = told.past.iter().filter(|(of, _)| *of == name);
            of_domain.any(|(_, placed)| placed.owns(cluster, slot, generation))
        })
    }

    fn ask<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Option<Placed>, String>> {
        let now = self.get(|told| match told.is_down {
            true => Err("nobody answers".to_owned()),
            false => Ok(told.now.get(&domain.placement_name()).cloned()),
        });
        std::future::ready(now).boxed()
    }
}

fn placed(slot: u16, generation: u64) -> Placed {
    Placed {
        cluster: format!("cluster-{slot}").into(),
        slot: Some(Slot(slot)),
        version: generation + 1,
        generations: generation..=generation,
    }
}

/// Three backends. Somebody else holds the third.
struct Fleet {
    store: FederatedStore,
    backends: Vec<Arc<EmbeddedBackend>>,
    script: Script,
}

const HELD: usize = 2;

impl Fleet {
    async fn start() -> Self {
        let backends: Vec<_> = (0..3).map(|_| Arc::new(EmbeddedBackend::in_memory())).collect();
        let script = Script::default();
        let store = open(&backends, &script).await;
        Self {
            store,
            backends,
            script,
        }
    }

    /// Places a namespace, and claims it.
    async fn place(&self, namespace: &str, slot: u16, generation: u64) {
        self.script.set(|told| {
            told.now.insert(namespace.to_owned(), placed(slot, generation));
        });
        let claim = Claim {
            domain: Domain::Namespace(namespace.into()),
            uid: format!("{namespace}-{generation}"),
            generation,
            slot: Slot(slot),
        };
        let claiming = self.store.begin_claim(&claim).await.expect("claimed");
        self.store.activate(&claiming).await.expect("activated");
    }

    /// What is known becomes what is so.
    fn catch_up(&self) {
        self.script.set(|told| {
            told.known = told.now.clone();
            told.past.extend(told.now.clone());
        });
    }

    async fn write(&self, op: Op) {
        let txn = Txn {
            compare: vec![],
            success: vec![op],
            failure: vec![],
        };
        self.backends[HELD].txn(txn).await.expect("written");
    }

    async fn forge_owner(&self, namespace: &str, generation: u64) {
        let value = serde_json::json!({"state": "Active", "generation": generation, "uid": "forged"});
        let key = Domain::Namespace(namespace.into()).owner_key();
        let value = value.to_string().into();
        self.write(Op::Put { key, value }).await;
    }

    async fn forge(&self, namespace: &str, name: &str) {
        let read = Txn::read([Range::key("clock")]);
        let answer = self.backends[HELD].txn(read).await.expect("read");
        let clock = answer.responses.into_iter().next().expect("a range").into_range();
        let clock = clock.kvs.into_iter().next().expect("a clock");
        let epoch = u64::from_be_bytes(clock.value[..].try_into().expect("an epoch"));
        let value = sealed("forged").stamped(Epoch(epoch), clock.mod_revision);
        let key = key(namespace, name).encode();
        self.write(Op::Put { key, value }).await;
    }

    async fn create(&self, namespace: &str, name: &str) -> Result<ResourceVersion, Error> {
        let created = self.store.create(&key(namespace, name), &sealed("ours")).await;
        created.map(|object| object.resource_version())
    }

    async fn watch(&self, extent: Extent, after: ResourceVersion) -> Watch {
        let (all, start) = (SelectionPredicate::default(), WatchStart::After(after));
        let watch = self.store.watch(&scope(extent), all, start).await;
        watch.expect("a watch")
    }

    async fn list(&self, extent: Extent) -> Result<Vec<String>, Error> {
        let mut list = self.store.list(&scope(extent), ListOptions::default()).await?;
        let mut names = Vec::new();
        while let Some(batch) = list.next_batch().await? {
            let name = |o: &outrigger_storage::Object| format!("{}/{}", o.namespace(), o.name());
            names.extend(batch.objects.iter().map(name));
        }
        Ok(names)
    }
}

async fn open(backends: &[Arc<EmbeddedBackend>], script: &Script) -> FederatedStore {
    let start = Instant::now();
    let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
    let member = |(i, backend): (usize, &Arc<EmbeddedBackend>)| Member {
        slot: Slot(i as u16),
        name: format!("cluster-{i}"),
        uid: format!("uid-{i}"),
        backend: backend.clone(),
        exclusive: false,
        seen: None,
        incarnation: 0,
    };
    let mut config = StoreConfig::new("fleet", Routing::Owned, clock, 1);
    config.placements = Arc::new(script.clone());
    let members = backends.iter().enumerate().map(member).collect();
    let (store, tasks) = FederatedStore::open(config, members).await.expect("ours");
    for task in tasks {
        tokio::spawn(task.run);
    }
    store.ready().await;
    store
}

fn key(namespace: &str, name: &str) -> Key {
    Key::new(Resource::new("example.com", "things"), namespace, name)
}

fn scope(extent: Extent) -> Scope {
    Scope {
        resource: Resource::new("example.com", "things"),
        extent,
    }
}

fn namespace(name: &str) -> Extent {
    Extent::Namespace(name.into())
}

fn sealed(uid: &str) -> SealedObject {
    let value =
        serde_json::json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"uid": uid}});
    SealedObject::seal(value.as_object().expect("an object"), 0).expect("it has all it needs")
}

#[tokio::test(start_paused = true)]
async fn an_impostor_takes_nothing_and_shows_nothing() {
    let fleet = Fleet::start().await;
    fleet.place("a", 0, 10).await;
    fleet.catch_up();
    let since = fleet.create("a", "one").await.expect("created");
    let mut wide = fleet.watch(Extent::AllNamespaces, since).await;
    let mut narrow = fleet.watch(namespace("a"), since).await;

    // With the highest generation there is, and in a namespace that nobody has; and without any owner key.
    fleet.forge_owner("a", u64::MAX).await;
    fleet.forge_owner("nobody", 99).await;
    for (namespace, name) in [("a", "one"), ("a", "two"), ("nobody", "one"), ("keyless", "one")] {
        fleet.forge(namespace, name).await;
    }
    for is_down in [false, true] {
        fleet.script.set(|told| told.is_down = is_down);
        let object = fleet.store.get(&key("a", "one")).await.expect("ours");
        assert_eq!(object.resource_version().slot(), Slot(0));
        let listed = fleet.list(namespace("a")).await.expect("a list");
        assert_eq!(listed, ["a/one"]);
        let listed = fleet.list(Extent::AllNamespaces).await.expect("a list");
        assert_eq!(listed, ["a/one"]);
        let missing = fleet.store.get(&key("nobody", "one")).await;
        assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
        assert_eq!(fleet.list(namespace("nobody")).await.expect("a list"), [""; 0]);
        let unplaced = fleet.create("nobody", "two").await;
        assert!(matches!(unplaced, Err(Error::Unplaced(_))), "{unplaced:?}");
    }
    let written = fleet.create("a", "three").await.expect("created");
    assert_eq!(written.slot(), Slot(0));
    for watch in [&mut wide, &mut narrow] {
        let events = timeout(Duration::from_secs(5), watch.next_batch()).await;
        let events = events.expect("in time").expect("it goes on");
        let [WatchEvent::Object(event)] = &events[..] else {
            panic!("one event: {}", events.len());
        };
        assert_eq!((event.kind, event.object.name()), (EventKind::Added, "three"));
    }
    let owner = Domain::Namespace("a".into());
    assert_eq!(fleet.store.owner(&owner).map(|owner| owner.slot), Some(Slot(0)));
}

#[tokio::test(start_paused = true)]
async fn an_owner_key_that_cannot_be_read_keeps_nobody_from_anything() {
    let fleet = Fleet::start().await;
    fleet.place("a", 0, 10).await;
    fleet.catch_up();
    let since = fleet.create("a", "one").await.expect("created");
    let mut running = fleet.watch(Extent::AllNamespaces, since).await;
    for namespace in ["a", "nobody"] {
        let (key, value) = (Domain::Namespace(namespace.into()).owner_key(), "garbage".into());
        fleet.write(Op::Put { key, value }).await;
    }
    let two = fleet.create("a", "two").await.expect("created");
    let late = open(&fleet.backends, &fleet.script).await;
    for store in [&fleet.store, &late] {
        let object = store.get(&key("a", "two")).await.expect("ours");
        assert_eq!(object.resource_version(), two);
    }
    assert_eq!(
        fleet.list(Extent::AllNamespaces).await.expect("a list"),
        ["a/one", "a/two"]
    );
    let all = SelectionPredicate::default();
    let everything = scope(Extent::AllNamespaces);
    let resumed = late.watch(&everything, all, WatchStart::After(since)).await;
    let mut resumed = resumed.expect("a watch");
    for watch in [&mut running, &mut resumed] {
        let events = timeout(Duration::from_secs(10), watch.next_batch()).await;
        let events = events.expect("in time").expect("it goes on");
        assert_eq!(events.len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_claim_counts_before_its_placement_is_known() {
    let fleet = Fleet::start().await;
    fleet.place("a", 1, 10).await;
    fleet.create("a", "one").await.expect("created");
    assert_eq!(
        fleet.list(Extent::AllNamespaces).await.expect("a list"),
        ["a/one"]
    );

    // While nobody can be asked it is neither served nor called absent.
    fleet.script.set(|told| told.is_down = true);
    fleet.place("b", 1, 20).await;
    let unknown = fleet.store.get(&key("b", "one")).await;
    assert!(matches!(unknown, Err(Error::OwnerUnknown { .. })), "{unknown:?}");
    let unknown = fleet.create("b", "one").await;
    assert!(matches!(unknown, Err(Error::OwnerUnknown { .. })), "{unknown:?}");
    fleet.catch_up();
    fleet.create("b", "one").await.expect("created");
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_moved_home_keeps_its_old_changes() {
    let fleet = Fleet::start().await;
    fleet.place("a", HELD as u16, 10).await;
    fleet.catch_up();
    let since = fleet.create("a", "one").await.expect("created");
    let object = fleet.store.get(&key("a", "one")).await.expect("it is there");
    fleet.store.delete(&object).await.expect("deleted");
    let domain = Domain::Namespace("a".into());
    fleet.store.release(&domain, "a-10").await.expect("released");
    fleet.script.set(|told| told.now.clear());
    fleet.place("a", 0, 30).await;
    fleet.catch_up();
    fleet.create("a", "two").await.expect("created");
    // Whoever had it before does not get it back, whatever it writes.
    fleet.forge_owner("a", 10).await;
    fleet.forge("a", "three").await;
    for extent in [Extent::AllNamespaces, namespace("a")] {
        let mut watch = fleet.watch(extent, since).await;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let events = timeout(Duration::from_secs(10), watch.next_batch()).await;
            for event in events.expect("in time").expect("it goes on") {
                if let WatchEvent::Object(event) = event {
                    seen.push((event.kind, event.object.name().to_owned()));
                }
            }
        }
        let expected = [(EventKind::Deleted, "one"), (EventKind::Added, "two")];
        assert_eq!(seen, expected.map(|(kind, name)| (kind, name.to_owned())));
    }
    let options = ListOptions {
        version: ListVersion::Exact(since),
        ..ListOptions::default()
    };
    let all = scope(Extent::AllNamespaces);
    let mut list = fleet.store.list(&all, options).await.expect("a list");
    let batch = list.next_batch().await.expect("a batch").expect("one object");
    assert_eq!(batch.objects[0].name(), "one");
}

#[tokio::test(start_paused = true)]
async fn what_was_forged_before_a_replica_came_expires_watches_and_is_not_shown() {
    let fleet = Fleet::start().await;
    fleet.place("a", 0, 10).await;
    fleet.catch_up();
    let since = fleet.create("a", "one").await.expect("created");
    fleet.forge_owner("gone", 99).await;
    fleet.forge("gone", "one").await;
    let owner = Domain::Namespace("gone".into()).owner_key();
    fleet.write(Op::Delete { key: owner }).await;
    sleep(Duration::from_secs(1)).await;
    let late = open(&fleet.backends, &fleet.script).await;
    let all = scope(Extent::AllNamespaces);
    let start = WatchStart::After(since);
    let mut watch = late
        .watch(&all, SelectionPredicate::default(), start)
        .await
        .expect("a watch");
    let ended = timeout(Duration::from_secs(40), watch.next_batch())
        .await
        .expect("in time");
    assert!(
        matches!(ended, Err(Error::Expired { .. })),
        "{:?}",
        ended.map(drop)
    );
}

#[tokio::test(start_paused = true)]
async fn a_placement_without_its_owner_key_is_not_absence() {
    let fleet = Fleet::start().await;
    fleet.script.set(|told| {
        told.now.insert("a".to_owned(), placed(0, 10));
    });
    fleet.catch_up();
    for is_down in [false, true] {
        fleet.script.set(|told| told.is_down = is_down);
        let missing = fleet.store.get(&key("a", "one")).await;
        let Err(Error::Unavailable { cluster, cause }) = &missing else {
            panic!("{missing:?}");
        };
        assert_eq!(cluster, "cluster-0");
        assert!(cause.contains("wiped"), "{cause}");
        let missing = fleet.list(namespace("a")).await;
        assert!(matches!(missing, Err(Error::Unavailable { .. })), "{missing:?}");
    }
    // It was deleted, and that is not known here yet.
    fleet.script.set(|told| {
        told.now.clear();
        told.is_down = false;
    });
    let missing = fleet.store.get(&key("a", "one")).await;
    assert!(matches!(missing, Err(Error::NotFound { .. })), "{missing:?}");
}
