//! Writers far away from their clusters, in simulated time: ticks for others must not starve them.
//!
//! Every write ends within five tries, and one client gets at least 60 % of what the round trip allows, while somebody
//! else watches and lists everything, so that the clusters are ticked as often as they may be.

use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{Range, Txn};
use outrigger_storage::federated::{
    Claim, Extent, FederatedStore, ListOptions, Member, Routing, Scope, StoreConfig, WatchStart,
};
use outrigger_storage::key::Domain;
use outrigger_storage::metrics::StoreMetrics;
use outrigger_storage::testing::FaultyBackend;
use outrigger_storage::{Key, Object, Resource, SealedObject, SelectionPredicate, Slot};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// Milliseconds since 1970 of a day in 2026.
const SOME_DAY: u64 = 1_790_000_000_000;
const CLUSTERS: u16 = 3;
/// A write may be tried so often.
const TRIES_MAX: u64 = 5;
/// What one client gets of what the round trip allows, in percent.
const SHARE_LEAST: u128 = 60;
/// Transactions that measure what the round trip allows.
const PROBES: u32 = 20;
/// How long the client writes.
const WRITING: Duration = Duration::from_secs(60);

fn resource() -> Resource {
    Resource::new("example.com", "things")
}

fn sealed(number: u64) -> SealedObject {
    let value = serde_json::json!({
        "apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"uid": "one"}, "spec": {"number": number},
    });
    SealedObject::seal(value.as_object().expect("an object"), 0).expect("it has all it needs")
}

/// A store on clusters that are so far away; its tasks run until the runtime ends.
async fn open(round_trip: Duration, metrics: &StoreMetrics) -> (FederatedStore, Duration) {
    let start = Instant::now();
    let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
    let mut config = StoreConfig::new("simulated", Routing::Owned, clock, 1);
    config.metrics = metrics.clone();
    let member = |slot: u16| {
        let inner = Arc::new(EmbeddedBackend::in_memory());
        let (backend, faults) = FaultyBackend::new(inner, u64::from(slot));
        faults.set(|s| {
            s.round_trip = round_trip;
            s.timeout = Duration::from_secs(5);
        });
        Member {
            slot: Slot(slot),
            name: format!("cluster-{slot}"),
            uid: format!("uid-{slot}"),
            backend,
            exclusive: true,
            seen: None,
            incarnation: 0,
        }
    };
    let members: Vec<Member> = (0..CLUSTERS).map(member).collect();
    // The timers of the simulation are no finer than a millisecond: what one transaction takes is measured.
    let start = Instant::now();
    for _ in 0..PROBES {
        let read = Txn::read([Range::key(&b"nothing"[..])]);
        members[0].backend.txn(read).await.expect("an answer");
    }
    let round_trip = start.elapsed() / PROBES;
    let (store, tasks) = FederatedStore::open(config, members)
        .await
        .expect("the clusters are ours");
    for task in tasks {
        tokio::spawn(task.run);
    }
    store.ready().await;
    (store, round_trip)
}

async fn first_object(store: &FederatedStore) -> Object {
    let claim = Claim {
        domain: Domain::Namespace("far".into()),
        uid: "uid of far".to_owned(),
        generation: 1,
        slot: Slot(0),
    };
    let claiming = store.begin_claim(&claim).await.expect("claimed");
    store.activate(&claiming).await.expect("activated");
    let key = Key::new(resource(), "far", "one");
    store.create(&key, &sealed(0)).await.expect("created")
}

async fn watch_everything(store: FederatedStore, scope: Scope) {
    let mut watch = store
        .watch(&scope, SelectionPredicate::default(), WatchStart::Now)
        .await
        .expect("watched");
    while watch.next_batch().await.is_ok() {}
}

async fn list_everything(store: FederatedStore, scope: Scope) {
    loop {
        let mut list = store.list(&scope, ListOptions::default()).await.expect("listed");
        while list.next_batch().await.expect("a batch").is_some() {}
        sleep(Duration::from_millis(5)).await;
    }
}

fn retries(metrics: &StoreMetrics) -> u64 {
    metrics
        .snapshot()
        .iter()
        .map(|backend| backend.write_retries)
        .sum()
}

async fn run(round_trip: Duration) {
    let metrics = StoreMetrics::new();
    let (store, round_trip) = open(round_trip, &metrics).await;
    let mut object = first_object(&store).await;
    let scope = Scope {
        resource: resource(),
        extent: Extent::AllNamespaces,
    };
    tokio::spawn(watch_everything(store.clone(), scope.clone()));
    tokio::spawn(list_everything(store.clone(), scope));

    let start = Instant::now();
    let (mut written, mut tries_most) = (0_u64, 0);
    while start.elapsed() < WRITING {
        let before = retries(&metrics);
        object = store
            .update(&object, &sealed(written + 1))
            .await
            .expect("nobody else writes it");
        written += 1;
        tries_most = tries_most.max(retries(&metrics) - before + 1);
    }
    let allowed = start.elapsed().as_nanos() / round_trip.as_nanos();
    let share = u128::from(written) * 100 / allowed;
    assert!(
        tries_most <= TRIES_MAX,
        "{round_trip:?}: a write took {tries_most} tries"
    );
    assert!(
        share >= SHARE_LEAST,
        "{round_trip:?}: {written} of {allowed} writes, {share} %"
    );
    assert!(
        retries(&metrics) > 0,
        "{round_trip:?}: the clusters were not ticked while somebody wrote"
    );
}

#[test]
fn far_writers_get_through() {
    for millis in [1, 30, 100] {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let round_trip = Duration::from_millis(millis);
        runtime
            .block_on(async { timeout(WRITING * 2, run(round_trip)).await })
            .expect("no write hangs");
    }
}
