//! What an administrator gives up: a backend that was restored from a backup is accepted as it is, or one that is offline is
//! abandoned. Whatever was said of it before is expired, and nobody takes it for what it was.

use crate::restored::Address;
use outrigger_storage::backend::Backend;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::federated::{
    Claim, Extent, FederatedStore, ListOptions, ListVersion, Member, Routing, Scope, StoreConfig, Task,
    Watch, WatchStart,
};
use outrigger_storage::key::{Domain, Key, Resource};
use outrigger_storage::membership::Membership;
use outrigger_storage::{Error, ResourceVersion, SealedObject, SelectionPredicate, Slot, WatchEvent};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// 2026-06-01, in milliseconds since 1970.
const SOME_DAY: u64 = 1_780_272_000_000;
const SOON: Duration = Duration::from_secs(60);

fn resource() -> Resource {
    Resource::new("example.com", "things")
}

fn scope(namespace: Option<&str>) -> Scope {
    let extent = namespace.map_or(Extent::AllNamespaces, |name| Extent::Namespace(name.into()));
    Scope {
        resource: resource(),
        extent,
    }
}

fn sealed(uid: &str) -> SealedObject {
    let value = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"uid": uid}});
    SealedObject::seal(value.as_object().expect("an object"), 0).expect("it has all it needs")
}

fn member(slot: u16, backend: &Arc<dyn Backend>, incarnation: u64) -> Member {
    Member {
        slot: Slot(slot),
        name: format!("cluster-{slot}"),
        uid: format!("uid-{slot}"),
        backend: backend.clone(),
        exclusive: false,
        seen: None,
        incarnation,
    }
}

fn fleet(members: u16) -> Membership {
    (0..members).fold(Membership::default(), |membership, slot| {
        let (name, uid) = (format!("cluster-{slot}"), format!("uid-{slot}"));
        membership.joined(Slot(slot), &name, &uid).expect("it is free")
    })
}

/// Runs tasks until the test ends.
#[derive(Default)]
struct Running(JoinSet<()>);

impl Running {
    fn add(&mut self, tasks: Vec<Task>) {
        for task in tasks {
            self.0.spawn(task.run);
        }
    }

    async fn open(&mut self, seed: u64, membership: Membership, members: Vec<Member>) -> FederatedStore {
        let start = Instant::now();
        let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
        let config = StoreConfig::new("fleet", Routing::Owned, clock, seed);
        let opened = FederatedStore::open_decided(config, membership, members).await;
        let (store, tasks) = opened.expect("ours");
        self.add(tasks);
        store.ready().await;
        is_open(&store).await;
        store
    }
}

async fn is_open(store: &FederatedStore) {
    let open = async {
        while !store.clusters().iter().all(|cluster| cluster.open) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(SOON, open).await.expect("all members are open");
}

async fn claim(store: &FederatedStore, namespace: &str, slot: u16) {
    let claim = Claim {
        domain: Domain::Namespace(namespace.into()),
        uid: format!("uid of {namespace}"),
        generation: 1,
        slot: Slot(slot),
    };
    let claiming = store.begin_claim(&claim).await.expect("claimed");
    store.activate(&claiming).await.expect("activated");
}

async fn create(store: &FederatedStore, namespace: &str, name: &str, uid: &str) -> ResourceVersion {
    let key = Key::new(resource(), namespace, name);
    let created = store.create(&key, &sealed(uid)).await;
    created.expect("created").resource_version()
}

async fn list(store: &FederatedStore, version: ListVersion) -> Result<(Vec<String>, ResourceVersion), Error> {
    let options = ListOptions {
        version,
        ..ListOptions::default()
    };
    let mut list = store.list(&scope(None), options).await?;
    let mut names = Vec::new();
    while let Some(batch) = list.next_batch().await? {
        names.extend(batch.objects.iter().map(|object| object.name().to_owned()));
    }
    Ok((names, list.resource_version()))
}

async fn watch_after(
    store: &FederatedStore,
    namespace: Option<&str>,
    rv: ResourceVersion,
) -> Result<Watch, Error> {
    let everything = SelectionPredicate::default();
    store
        .watch(&scope(namespace), everything, WatchStart::After(rv))
        .await
}

/// How the watch ends.
async fn end_of(mut watch: Watch) -> Error {
    let ended = async {
        loop {
            if let Err(error) = watch.next_batch().await {
                return error;
            }
        }
    };
    timeout(SOON, ended).await.expect("it ends")
}

#[tokio::test(start_paused = true)]
async fn what_was_said_of_a_restored_backend_is_expired_once_it_is_accepted() {
    let mut running = Running::default();
    let old = Arc::new(EmbeddedBackend::in_memory());
    let address = Address::new(old.clone());
    let backup: Arc<dyn Backend> = old.clone();
    let earlier = running.open(1, fleet(1), vec![member(0, &backup, 0)]).await;
    claim(&earlier, "a", 0).await;
    create(&earlier, "a", "one", "as of the backup").await;
    earlier.close();
    sleep(Duration::from_secs(60)).await;

    // The fleet as it is before the restore.
    let current = Arc::new(EmbeddedBackend::in_memory());
    address.0.send_replace(current);
    let east: Arc<dyn Backend> = address.clone();
    let west: Arc<dyn Backend> = Arc::new(EmbeddedBackend::in_memory());
    let members = |incarnation| vec![member(0, &east, incarnation), member(1, &west, 0)];
    let first = running.open(2, fleet(2), members(0)).await;
    let second = running.open(3, fleet(2), members(0)).await;
    claim(&first, "a", 0).await;
    claim(&first, "b", 1).await;
    create(&first, "a", "one", "new").await;
    create(&first, "a", "two", "new").await;
    create(&first, "b", "other", "new").await;
    let (names, before) = list(&first, ListVersion::MostRecent).await.expect("listed");
    assert_eq!(names, ["one", "two", "other"]);
    let mut ending = Vec::new();
    for store in [&first, &second] {
        for namespace in [None, Some("a")] {
            ending.push(watch_after(store, namespace, before).await.expect("watched"));
        }
    }
    let mut going_on = watch_after(&second, Some("b"), before).await.expect("watched");

    address.0.send_replace(old);
    sleep(Duration::from_secs(10)).await;
    let is_refused = |store: &FederatedStore| store.clusters()[0].restored;
    assert!(is_refused(&first) && is_refused(&second));

    let accepted = fleet(2).accepted(Slot(0)).expect("a member");
    running.add(first.hand_over(accepted.clone(), members(1)));
    is_open(&first).await;
    let one = first
        .get(&Key::new(resource(), "a", "one"))
        .await
        .expect("it is in the backup");
    assert!(String::from_utf8_lossy(one.stored_json()).contains("as of the backup"));
    let two = first.get(&Key::new(resource(), "a", "two")).await;
    assert!(matches!(two, Err(Error::NotFound { .. })), "{two:?}");
    // More than it ever held: nobody who has not heard of it takes it for what it was.
    for n in 0..40 {
        create(&first, "a", &format!("later-{n}"), "later").await;
    }
    let unaware = second.get(&Key::new(resource(), "a", "one")).await;
    assert!(matches!(unaware, Err(Error::Unavailable { .. })), "{unaware:?}");
    let unaware = list(&second, ListVersion::MostRecent).await;
    assert!(matches!(unaware, Err(Error::Unavailable { .. })), "{unaware:?}");

    running.add(second.hand_over(accepted, members(1)));
    is_open(&second).await;
    for watch in ending {
        let end = end_of(watch).await;
        assert!(matches!(end, Error::Expired { .. }), "{end:?}");
    }
    for (n, store) in [&first, &second].into_iter().enumerate() {
        let (names, now) = list(store, ListVersion::MostRecent).await.expect("listed");
        let later = names.iter().filter(|name| name.starts_with("later")).count();
        assert_eq!(later, 40, "{names:?}");
        assert!(names.contains(&"other".to_owned()) && !names.contains(&"two".to_owned()));
        assert!(now > before);
        let exact = list(store, ListVersion::Exact(before)).await;
        assert!(matches!(exact, Err(Error::Expired { .. })), "{exact:?}");
        for namespace in [None, Some("a")] {
            let resumed = match watch_after(store, namespace, before).await {
                Ok(watch) => end_of(watch).await,
                Err(error) => error,
            };
            assert!(
                matches!(resumed, Error::Expired { .. }),
                "{namespace:?}: {resumed:?}"
            );
            let mut watch = watch_after(store, namespace, now).await.expect("watched");
            create(
                &first,
                "a",
                &format!("since-{n}-{}", namespace.is_some()),
                "since",
            )
            .await;
            timeout(SOON, watch.next_batch())
                .await
                .expect("in time")
                .expect("an event");
        }
    }
    // In namespaces of others nothing has happened.
    let created = create(&first, "b", "another", "new").await;
    let events = timeout(SOON, going_on.next_batch())
        .await
        .expect("in time")
        .expect("an event");
    let [WatchEvent::Object(event)] = &events[..] else {
        panic!("one event: {events:?}");
    };
    assert_eq!(event.object.resource_version(), created);
}

#[tokio::test(start_paused = true)]
async fn what_was_said_before_a_member_was_abandoned_is_expired() {
    let mut running = Running::default();
    let east: Arc<dyn Backend> = Arc::new(EmbeddedBackend::in_memory());
    let west: Arc<dyn Backend> = Arc::new(EmbeddedBackend::in_memory());
    let members = || vec![member(0, &east, 0), member(1, &west, 0)];
    let first = running.open(1, fleet(2), members()).await;
    let second = running.open(2, fleet(2), members()).await;
    claim(&first, "a", 0).await;
    claim(&first, "b", 1).await;
    create(&first, "a", "one", "new").await;
    let (_, before) = list(&first, ListVersion::MostRecent).await.expect("listed");
    let mut watch = watch_after(&second, None, before).await.expect("watched");

    let clock = first.report()[0].clock.expect("its log was read");
    let offline = fleet(2).offline(Slot(0), clock).expect("it serves");
    for store in [&first, &second] {
        running.add(store.hand_over(offline.clone(), Vec::new()));
    }
    let acts_on = async |generation| {
        let all = async {
            while [&first, &second].iter().any(|store| store.acts_on() < generation) {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, all).await.expect("all have heard of it");
    };
    acts_on(offline.generation).await;
    create(&first, "b", "meanwhile", "new").await;
    let events = timeout(SOON, watch.next_batch()).await.expect("in time");
    let events = events.expect("it goes on without it");
    assert!(events.iter().any(|event| matches!(event, WatchEvent::Object(_))));

    // Decided at an early moment: the watches have gone on since.
    let abandoned = offline.abandoned(Slot(0), before.epoch()).expect("offline");
    let last = create(&first, "b", "last", "new").await;
    sleep(Duration::from_secs(5)).await;
    for store in [&first, &second] {
        running.add(store.hand_over(abandoned.clone(), Vec::new()));
    }
    acts_on(abandoned.generation).await;
    let ended = end_of(watch).await;
    assert!(matches!(ended, Error::Expired { .. }), "{ended}");
    for store in [&first, &second] {
        let resumed = match watch_after(store, None, last).await {
            Ok(watch) => end_of(watch).await,
            Err(error) => error,
        };
        assert!(matches!(resumed, Error::Expired { .. }), "{resumed}");
    }
    let (names, now) = list(&second, ListVersion::MostRecent).await.expect("listed");
    assert_eq!(names, ["last", "meanwhile"]);
    let mut anew = watch_after(&first, None, now).await.expect("watched");
    create(&second, "b", "after", "new").await;
    let events = timeout(SOON, anew.next_batch()).await.expect("in time");
    assert!(events.is_ok(), "{events:?}");
}
