//! Claims and releases of namespaces, on embedded backends.

use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::federated::{Claim, FederatedStore, Member, Routing, StoreConfig};
use outrigger_storage::key::Domain;
use outrigger_storage::{Error, Slot};
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// 2026-06-01, in milliseconds since 1970.
const SOME_DAY: u64 = 1_780_272_000_000;

async fn store() -> (FederatedStore, JoinSet<()>) {
    let start = Instant::now();
    let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
    let members = (0..2_u16).map(|i| Member {
        slot: Slot(i),
        name: format!("cluster-{i}"),
        uid: format!("uid-{i}"),
        backend: Arc::new(EmbeddedBackend::in_memory()),
        exclusive: true,
        seen: None,
        incarnation: 0,
    });
    let config = StoreConfig::new("fleet", Routing::Owned, clock, 1);
    let (store, tasks) = FederatedStore::open(config, members.collect())
        .await
        .expect("ours");
    let mut running = JoinSet::new();
    for task in tasks {
        running.spawn(task.run);
    }
    store.ready().await;
    (store, running)
}

fn claim(uid: &str) -> Claim {
    Claim {
        domain: Domain::Namespace("a".into()),
        uid: uid.to_owned(),
        generation: 1,
        slot: Slot(1),
    }
}

#[tokio::test]
async fn a_claim_that_nobody_finished_does_not_keep_its_namesake_from_going() {
    let (store, _tasks) = store().await;
    let left = store.begin_claim(&claim("old")).await.expect("claimed");
    store
        .release(&claim("new").domain, "new")
        .await
        .expect("released");
    // Whoever began it cannot finish it any more.
    let late = store.activate(&left).await;
    assert!(matches!(late, Err(Error::Conflict(None))), "{late:?}");
    let next = store.begin_claim(&claim("next")).await.expect("claimed");
    store.activate(&next).await.expect("activated");
}

#[tokio::test]
async fn an_owner_is_released_by_its_own_uid_alone() {
    let (store, _tasks) = store().await;
    let claiming = store.begin_claim(&claim("old")).await.expect("claimed");
    store.activate(&claiming).await.expect("activated");
    let refused = store.release(&claim("new").domain, "new").await;
    assert!(matches!(refused, Err(Error::Conflict(None))), "{refused:?}");
    store
        .release(&claim("old").domain, "old")
        .await
        .expect("released");
}
