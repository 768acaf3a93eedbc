//! A backend that was wiped, or restored from a backup, is refused: what it lacks never looks deleted (I6).

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{
    Backend, BackendError, BackendStatus, Revision, Txn, TxnResponse, WatchRequest, WatchStream,
};
use outrigger_storage::federated::{FederatedStore, Member, Routing, Seen, StoreConfig};
use outrigger_storage::{Error, Key, Resource, SealedObject, Slot};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Milliseconds since 1970 of a day in 2026.
const SOME_DAY: u64 = 1_790_000_000_000;

/// An address behind which another store may stand from one moment to the next, as after a restore.
#[derive(Debug)]
pub(crate) struct Address(pub(crate) watch::Sender<Arc<EmbeddedBackend>>, AtomicBool);

impl Address {
    pub(crate) fn new(backend: Arc<EmbeddedBackend>) -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(backend), AtomicBool::new(false)))
    }

    /// Whether another store answers there, which says so by itself, as an etcd by its cluster id.
    fn says_that_it_is_another(&self, yes: bool) {
        self.1.store(yes, Ordering::SeqCst);
        self.0.send_modify(|_| ());
    }

    fn check(&self) -> Result<(), BackendError> {
        match self.1.load(Ordering::SeqCst) {
            true => Err(BackendError::OtherStore("another cluster".to_owned())),
            false => Ok(()),
        }
    }

    fn now(&self) -> Arc<EmbeddedBackend> {
        self.0.borrow().clone()
    }
}

impl Backend for Address {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        let (backend, check) = (self.now(), self.check());
        async move { check.map(|()| backend.txn(txn))?.await }.boxed()
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        let (backend, mut next, check) = (self.now(), self.0.subscribe(), self.check());
        async move {
            check?;
            let stream = backend.watch(request).await?;
            let replaced = async move { next.changed().await.unwrap_or_default() };
            Ok(stream.take_until(Box::pin(replaced)).boxed())
        }
        .boxed()
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        let backend = self.now();
        async move { backend.compact(revision).await }.boxed()
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        let (backend, check) = (self.now(), self.check());
        async move { check.map(|()| backend.status())?.await }.boxed()
    }
}

fn key(name: &str) -> Key {
    Key::new(Resource::new("example.com", "things"), "a", name)
}

fn sealed() -> SealedObject {
    let value =
        serde_json::json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"uid": "u"}});
    SealedObject::seal(value.as_object().expect("an object"), 0).expect("it has all it needs")
}

async fn open(address: &Arc<Address>, seen: Option<Seen>) -> FederatedStore {
    let start = Instant::now();
    let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
    let member = Member {
        slot: Slot(0),
        name: "east".to_owned(),
        uid: "uid-0".to_owned(),
        backend: address.clone(),
        exclusive: false,
        seen,
        incarnation: 0,
    };
    let config = StoreConfig::new("fleet", Routing::Sole, clock, 1);
    let (store, tasks) = FederatedStore::open(config, vec![member]).await.expect("ours");
    for task in tasks {
        tokio::spawn(task.run);
    }
    store
}

async fn is_refused(store: &FederatedStore) {
    sleep(Duration::from_secs(3)).await;
    let status = &store.clusters()[0];
    assert!(status.restored && !status.reachable, "{status:?}");
    let problem = status.problem.clone().unwrap_or_default();
    assert!(problem.contains("restored from a backup or wiped"), "{problem}");
    for object in ["one", "two"] {
        let read = store.get(&key(object)).await;
        assert!(matches!(read, Err(Error::Unavailable { .. })), "{read:?}");
    }
    let written = store.create(&key("three"), &sealed()).await;
    assert!(matches!(written, Err(Error::Unavailable { .. })), "{written:?}");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_older_than_it_was_is_refused_while_the_server_runs_and_after_it_restarts() {
    let before = Arc::new(EmbeddedBackend::in_memory());
    let (wiped, restored) = (
        Arc::new(EmbeddedBackend::in_memory()),
        Arc::new(EmbeddedBackend::in_memory()),
    );
    // The backup: ours, and from an earlier time.
    let old = Address::new(restored.clone());
    let earlier = open(&old, None).await;
    earlier.ready().await;
    earlier.create(&key("one"), &sealed()).await.expect("created");
    earlier.close();
    sleep(Duration::from_secs(10)).await;

    let address = Address::new(before.clone());
    let store = open(&address, None).await;
    store.ready().await;
    for name in ["one", "two"] {
        for _ in 0..5 {
            let object = store.create(&key(name), &sealed()).await.expect("created");
            store.delete(&object).await.expect("deleted");
        }
        store.create(&key(name), &sealed()).await.expect("created");
    }
    let seen = store.clusters()[0].seen;
    assert!(seen.is_some());

    for replacement in [wiped, restored] {
        address.0.send_replace(replacement.clone());
        is_refused(&store).await;
        let restarted = open(&address, seen).await;
        is_refused(&restarted).await;
        restarted.close();
        address.0.send_replace(before.clone());
        sleep(Duration::from_secs(5)).await;
        store.get(&key("two")).await.expect("its data is back");
        assert!(!store.clusters()[0].restored);
    }

    address.says_that_it_is_another(true);
    is_refused(&store).await;
    address.says_that_it_is_another(false);
    sleep(Duration::from_secs(5)).await;
    store.get(&key("two")).await.expect("it is the same again");
}
