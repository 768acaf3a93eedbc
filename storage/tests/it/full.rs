//! A backend that is almost full takes nothing that makes it grow, and everything else.

use outrigger_storage::backend::embedded::{EmbeddedBackend, EmbeddedOptions};
use outrigger_storage::federated::{FederatedStore, Member, Routing, StoreConfig};
use outrigger_storage::{Error, Key, Object, Resource, SealedObject, Slot};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const QUOTA_BYTES: u64 = 400_000;
/// Milliseconds since 1970 of a day in 2026.
const SOME_DAY: u64 = 1_790_000_000_000;

fn sealed(padding: usize) -> SealedObject {
    let value = serde_json::json!({
        "apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"uid": "u"},
        "spec": {"padding": "x".repeat(padding)},
    });
    SealedObject::seal(value.as_object().expect("an object"), 0).expect("it has all it needs")
}

#[tokio::test(start_paused = true)]
async fn from_nine_tenths_of_its_quota_on_nothing_grows_and_deletes_make_room() {
    let start = Instant::now();
    let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
    let mut config = StoreConfig::new("fleet", Routing::Sole, clock, 1);
    // Sizes are looked at as often as that, and old states are soon compacted.
    config.compact_every = Duration::from_millis(50);
    config.retention = Duration::from_secs(1);
    let options = EmbeddedOptions {
        quota_bytes: QUOTA_BYTES,
        ..EmbeddedOptions::default()
    };
    let backend = Arc::new(EmbeddedBackend::in_memory_with(options));
    let member = Member {
        slot: Slot(0),
        name: "east".to_owned(),
        uid: "uid-0".to_owned(),
        backend,
        exclusive: true,
        seen: None,
        incarnation: 0,
    };
    let (store, tasks) = FederatedStore::open(config, vec![member]).await.expect("ours");
    for task in tasks {
        tokio::spawn(task.run);
    }
    store.ready().await;

    let key = |i: usize| Key::new(Resource::new("example.com", "things"), "a", &format!("o{i}"));
    let mut there: Vec<Object> = Vec::new();
    let refused = loop {
        match store.create(&key(there.len()), &sealed(4000)).await {
            Ok(object) => there.push(object),
            Err(error) => break error,
        }
        assert!(there.len() < 200, "the quota is reached");
        sleep(Duration::from_millis(100)).await;
    };
    assert!(
        matches!(&refused, Error::Full { cluster } if cluster == "east"),
        "{refused}"
    );
    let status = &store.clusters()[0].status;
    assert!(
        status.is_full() && status.db_size_in_use < QUOTA_BYTES,
        "{status:?}"
    );

    let last = there.pop().expect("some were created");
    let larger = store.update(&last, &sealed(5000)).await;
    assert!(matches!(larger, Err(Error::Full { .. })), "{larger:?}");
    store
        .update(&last, &sealed(3000))
        .await
        .expect("it does not grow");
    for object in there.iter().take(20) {
        store.delete(object).await.expect("a delete always fits");
    }
    sleep(Duration::from_secs(5)).await;
    store
        .create(&key(1000), &sealed(4000))
        .await
        .expect("there is room again");
}
