//! A store whose fleet has no member yet: it promises nothing that the first member could break.

use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::federated::{
    Claim, Extent, FederatedStore, ListOptions, Member, Missing, Routing, Scope, StoreConfig, Task,
    WatchStart,
};
use outrigger_storage::key::{Domain, Key, Resource};
use outrigger_storage::membership::Membership;
use outrigger_storage::membership::report::BackendReport;
use outrigger_storage::{Error, SealedObject, SelectionPredicate, Slot, WatchEvent};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// 2026-06-01, in milliseconds since 1970.
const SOME_DAY: u64 = 1_780_272_000_000;
const SOON: Duration = Duration::from_secs(20);

fn scope(extent: Extent) -> Scope {
    let resource = Resource::new("example.com", "apps");
    Scope { resource, extent }
}

fn app(name: &str) -> (Key, SealedObject) {
    let value = json!({
        "apiVersion": "example.com/v1", "kind": "App", "metadata": {"name": name, "namespace": "a", "uid": "u"},
    });
    let Value::Object(value) = value else {
        unreachable!("it is an object")
    };
    let key = Key {
        resource: Resource::new("example.com", "apps"),
        namespace: "a".into(),
        name: name.into(),
    };
    (key, SealedObject::seal(&value, 0).expect("it can be stored"))
}

fn run(running: &mut JoinSet<()>, tasks: Vec<Task>) {
    for task in tasks {
        running.spawn(task.run);
    }
}

#[tokio::test]
async fn an_empty_fleet_promises_nothing_that_its_first_member_breaks() {
    let start = Instant::now();
    let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
    let config = StoreConfig::new("fleet", Routing::Owned, clock, 1);
    let (store, tasks) = FederatedStore::open_decided(config, Membership::default(), Vec::new())
        .await
        .expect("opened");
    let mut running = JoinSet::new();
    run(&mut running, tasks);
    store.ready().await;
    assert!(!store.has_members());

    let namespace = || scope(Extent::Namespace("a".into()));
    let everything = || scope(Extent::AllNamespaces);
    for scope in [namespace(), everything()] {
        let list = store.list(&scope, ListOptions::default()).await.map(|_| ());
        assert!(matches!(list, Err(Error::NoMembers)), "{scope:?}: {list:?}");
        for from in [WatchStart::Now, WatchStart::Initial(Default::default())] {
            let watch = store.watch(&scope, SelectionPredicate::default(), from).await;
            let watch = watch.map(|_| ());
            assert!(matches!(watch, Err(Error::NoMembers)), "{scope:?}: {watch:?}");
        }
    }
    let (key, object) = app("one");
    let get = store.get(&key).await;
    assert!(matches!(get, Err(Error::NoMembers)), "{get:?}");
    let create = store.create(&key, &object).await;
    assert!(matches!(create, Err(Error::Unplaced(_))), "{create:?}");
    let release = store.release(&Domain::Namespace("a".into()), "uid").await;
    assert!(matches!(release, Err(Error::NoMembers)), "{release:?}");
    // Whoever knows from elsewhere that there is nothing gets a version that no change is below.
    let leaves_out = ListOptions {
        missing: Missing::Allow,
        ..ListOptions::default()
    };
    let mut list = store.list(&everything(), leaves_out).await.expect("empty");
    let version = list.resource_version();
    assert!(list.next_batch().await.expect("a list").is_none());

    let decided = Membership::default()
        .joined(Slot(0), "first", "uid-first")
        .expect("free");
    let member = Member {
        slot: Slot(0),
        name: "first".to_owned(),
        uid: "uid-first".to_owned(),
        backend: Arc::new(EmbeddedBackend::in_memory()),
        exclusive: true,
        seen: None,
        incarnation: 0,
    };
    run(&mut running, store.hand_over(decided.clone(), vec![member]));
    let is_open = async {
        while !store.clusters().iter().all(|cluster| cluster.open) {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, is_open).await.expect("it joins");
    let claim = Claim {
        domain: Domain::Namespace("a".into()),
        uid: "uid".to_owned(),
        generation: 1,
        slot: Slot(0),
    };
    let claiming = store.begin_claim(&claim).await.expect("claimed");
    store.activate(&claiming).await.expect("activated");
    let created = store.create(&key, &object).await.expect("created");
    assert!(created.resource_version() > version);
    let from = WatchStart::After(version);
    let mut watch = store
        .watch(&namespace(), SelectionPredicate::default(), from.clone())
        .await
        .expect("it goes on from there");
    let events = timeout(SOON, watch.next_batch()).await.expect("in time");
    let events = events.expect("events");
    let [WatchEvent::Object(event)] = &events[..] else {
        panic!("not one event: {}", events.len())
    };
    assert_eq!(event.object.name(), "one");
    let wide = store
        .watch(&everything(), SelectionPredicate::default(), from)
        .await;
    let wide = match wide {
        Ok(mut watch) => watch.next_batch().await.map(|_| ()),
        Err(error) => Err(error),
    };
    assert!(matches!(wide, Err(Error::Expired { .. })), "{wide:?}");

    // A member that this replica cannot even try to reach is reported as not reached, so that it can be declared lost.
    let two = decided.joined(Slot(1), "second", "uid-second").expect("free");
    run(&mut running, store.hand_over(two, Vec::new()));
    let is_reported = async {
        loop {
            let unreachable = |said: &BackendReport| (said.slot.0, said.unreachable_for.is_some());
            let said: Vec<_> = store.report().iter().map(unreachable).collect();
            if said == [(0, false), (1, true)] {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, is_reported).await.expect("it is reported");
}
