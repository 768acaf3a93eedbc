//! The store on real etcds whose lines are cut all the time: what was acknowledged is there, and nothing happens twice.

use super::far::{Far, applications, claim, object, open};
use futures::future::join_all;
use outrigger_storage::federated::{Extent, FederatedStore, ListOptions, Scope, WatchStart};
use outrigger_storage::{Error, Key, ResourceVersion, SelectionPredicate, WatchEvent};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long lines are cut.
const CUTTING: Duration = Duration::from_secs(8);
/// What the end may take: connections, ticks, logs.
const CALM_WITHIN: Duration = Duration::from_secs(60);

/// What became of one client's creates.
#[derive(Default)]
struct Written {
    acknowledged: BTreeMap<String, ResourceVersion>,
    /// Those that ended with an error that leaves it open.
    open: Vec<String>,
}

async fn write(store: &FederatedStore, client: u16, until: Instant) -> Written {
    let namespace = format!("ns-{}", client % 3);
    let mut written = Written::default();
    for i in 0.. {
        if Instant::now() >= until {
            break;
        }
        let name = format!("web-{client}-{i}");
        let key = Key::new(applications(), &namespace, &name);
        let id = format!("{namespace}/{name}");
        match store.create(&key, &object(&namespace, &name)).await {
            Ok(object) => {
                written.acknowledged.insert(id, object.resource_version());
            }
            // "It exists" would mean that one create was carried out twice: nobody else uses this name.
            Err(Error::Unavailable { .. } | Error::UnknownOutcome { .. } | Error::Deadline(_)) => {
                written.open.push(id);
                sleep(Duration::from_millis(20)).await;
            }
            Err(other) => panic!("{id}: {other:?}"),
        }
    }
    written
}

/// Cuts one line after the other, sometimes with the answers held back, so that requests are carried out unheard.
async fn cut(far: &Far, until: Instant) {
    // A sequence that looks disorderly and is the same every time.
    let mut number = 12_345_u64;
    while Instant::now() < until {
        number = number
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let choice = number >> 33;
        let proxy = &far.proxies[(choice % 3) as usize];
        let holds_back = choice.is_multiple_of(2);
        proxy.change(|b| b.stall_down = holds_back);
        sleep(Duration::from_millis(20 + choice % 60)).await;
        proxy.cut();
        proxy.change(|b| b.stall_down = false);
        sleep(Duration::from_millis(choice % 150)).await;
    }
}

async fn list(store: &FederatedStore, scope: &Scope) -> Result<BTreeMap<String, ResourceVersion>, Error> {
    let mut list = store.list(scope, ListOptions::default()).await?;
    let mut seen = BTreeMap::new();
    while let Some(batch) = list.next_batch().await? {
        for object in &batch.objects {
            seen.insert(
                format!("{}/{}", object.namespace(), object.name()),
                object.resource_version(),
            );
        }
    }
    Ok(seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_there_once() {
    let far = Far::start().await;
    far.set_round_trip(Duration::from_millis(4));
    let (store, config, _tasks) = open(&far).await;
    for slot in 0..3 {
        claim(&store, &format!("ns-{slot}"), slot).await;
    }
    let scope = Scope {
        resource: applications(),
        extent: Extent::AllNamespaces,
    };
    let mut watch = store
        .watch(&scope, SelectionPredicate::default(), WatchStart::Now)
        .await
        .expect("watched");

    let until = Instant::now() + CUTTING;
    let writers = join_all((0..6).map(|client| write(&store, client, until)));
    let (written, ()) = tokio::join!(writers, cut(&far, until));
    let acknowledged: BTreeMap<_, _> = written.iter().flat_map(|w| w.acknowledged.clone()).collect();
    let open: Vec<_> = written.iter().flat_map(|w| w.open.clone()).collect();
    let settled: u64 = config
        .metrics
        .snapshot()
        .iter()
        .map(|backend| backend.unknown_outcomes)
        .sum();
    assert!(
        settled > 0,
        "the lines were cut for nothing: no outcome was unknown"
    );
    assert!(
        acknowledged.len() > 100,
        "{} acknowledged, {} open",
        acknowledged.len(),
        open.len()
    );

    let listed = timeout(CALM_WITHIN, async {
        loop {
            match list(&store, &scope).await {
                Ok(listed) => return listed,
                Err(Error::Unavailable { .. }) => sleep(Duration::from_millis(50)).await,
                Err(other) => panic!("{other:?}"),
            }
        }
    });
    let listed = listed.await.expect("the clusters are back");
    for (id, version) in &acknowledged {
        assert_eq!(listed.get(id), Some(version), "{id} was acknowledged");
    }
    for id in listed.keys() {
        assert!(
            acknowledged.contains_key(id) || open.contains(id),
            "{id} is nobody's"
        );
    }

    // The watch has exactly what the list has.
    let (mut seen, mut last) = (BTreeMap::new(), None);
    while seen.len() < listed.len() {
        let events = timeout(CALM_WITHIN, watch.next_batch())
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
            let id = format!("{}/{}", event.object.namespace(), event.object.name());
            assert_eq!(seen.insert(id.clone(), version), None, "{id} came twice");
        }
    }
    assert_eq!(seen, listed);
}
