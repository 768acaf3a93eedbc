//! The store on real etcds that are far away: writes keep their pace and end soon, while others list and watch everything.

use super::far::{Far, applications, claim, object, open};
use futures::future::join_all;
use outrigger_storage::backend::{Op, Txn};
use outrigger_storage::federated::{Extent, FederatedStore, ListOptions, Scope, StoreConfig, WatchStart};
use outrigger_storage::{Key, SelectionPredicate, WatchEvent};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A write may be tried so often.
const TRIES_MAX: u64 = 5;
/// How long clients write.
const WRITING: Duration = Duration::from_secs(4);
/// What one client gets at least of what the round trip allows.
const SHARE_MIN: f64 = 0.6;

/// Names from the `first` on, written by one client one after the other, and the most tries that one of them took.
async fn write(
    store: &FederatedStore,
    config: &StoreConfig,
    slot: u16,
    first: usize,
    until: Instant,
) -> (Vec<String>, u64) {
    let (namespace, metrics) = (format!("ns-{slot}"), config.metrics.clone());
    let retries = || {
        let cluster = format!("cluster-{slot}");
        metrics
            .snapshot()
            .into_iter()
            .find(|b| b.cluster == cluster)
            .map_or(0, |b| b.write_retries)
    };
    let (mut written, mut tries_max) = (Vec::new(), 0);
    while Instant::now() < until {
        let name = format!("web-{}", first + written.len());
        let before = retries();
        let key = Key::new(applications(), &namespace, &name);
        store
            .create(&key, &object(&namespace, &name))
            .await
            .expect("created");
        tries_max = tries_max.max(1 + retries() - before);
        written.push(format!("{namespace}/{name}"));
    }
    (written, tries_max)
}

/// How many plain transactions of the same size one client gets done on the first etcd.
async fn write_plainly(far: &Far) -> usize {
    let backend = far.backend(0);
    let until = Instant::now() + WRITING;
    let mut written = 0;
    while Instant::now() < until {
        let key = format!("elsewhere/{written}").into();
        let put = Op::Put {
            key,
            value: vec![b'x'; 2200].into(),
        };
        backend
            .txn(Txn {
                success: vec![put],
                ..Txn::default()
            })
            .await
            .expect("written");
        written += 1;
    }
    written
}

/// Lists everything, again and again.
async fn list(store: &FederatedStore, scope: &Scope) {
    loop {
        let mut list = store.list(scope, ListOptions::default()).await.expect("listed");
        while list.next_batch().await.expect("a batch").is_some() {}
        sleep(Duration::from_millis(100)).await;
    }
}

async fn check(round_trip: Duration) {
    let far = Far::start().await;
    far.set_round_trip(round_trip);
    let (store, config, _tasks) = open(&far).await;
    for slot in 0..3 {
        claim(&store, &format!("ns-{slot}"), slot).await;
    }
    let plain = write_plainly(&far).await;

    let scope = Scope {
        resource: applications(),
        extent: Extent::AllNamespaces,
    };
    let mut watch = store
        .watch(&scope, SelectionPredicate::default(), WatchStart::Now)
        .await
        .expect("watched");
    let writers = async {
        // Alone, a client gets most of what the round trip allows; three at once all get through.
        let one = write(&store, &config, 0, 0, Instant::now() + WRITING).await;
        let until = Instant::now() + WRITING;
        let three = join_all((0..3).map(|slot| write(&store, &config, slot, one.0.len(), until))).await;
        (one, three)
    };
    let (one, three) = tokio::select! {
        results = writers => results,
        () = list(&store, &scope) => unreachable!("it does not end"),
    };

    for (written, tries) in three.iter().chain([&one]) {
        assert!(*tries <= TRIES_MAX, "{round_trip:?}: a write took {tries} tries");
        assert!(!written.is_empty(), "{round_trip:?}: a client got nothing done");
    }
    let share = one.0.len() as f64 / plain as f64;
    assert!(
        share >= SHARE_MIN,
        "{round_trip:?}: {} writes beside {plain} plain ones",
        one.0.len()
    );
    let results = three.into_iter().chain([one]);
    // Every write arrives at the watch, once, in the order of the resource versions.
    let mut missing: BTreeSet<String> = results.flat_map(|(written, _)| written).collect();
    let (mut last, deadline) = (None, Duration::from_secs(30));
    while !missing.is_empty() {
        let events = timeout(deadline, watch.next_batch())
            .await
            .expect("in time")
            .expect("no gap");
        for event in events {
            let WatchEvent::Object(event) = event else {
                continue;
            };
            let version = event.object.resource_version();
            assert!(last < Some(version), "{version:?} after {last:?}");
            last = Some(version);
            let (namespace, name) = (event.object.namespace(), event.object.name());
            assert!(
                missing.remove(&format!("{namespace}/{name}")),
                "{namespace}/{name} came twice"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_keep_their_pace_at_1_ms() {
    check(Duration::from_millis(1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_keep_their_pace_at_30_ms() {
    check(Duration::from_millis(30)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_keep_their_pace_at_100_ms() {
    check(Duration::from_millis(100)).await;
}
