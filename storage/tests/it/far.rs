//! Three real etcds behind proxies, and a store on them.

use futures::future::join_all;
use outrigger_storage::backend::Backend;
use outrigger_storage::backend::bounded::{Bounded, Limits};
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions};
use outrigger_storage::federated::{Claim, FederatedStore, Member, Routing, StoreConfig};
use outrigger_storage::key::Domain;
use outrigger_storage::testing::etcd_server::EtcdServer;
use outrigger_storage::testing::tcp_proxy::TcpProxy;
use outrigger_storage::{Resource, SealedObject, Slot};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Milliseconds since 1970 of a day in 2026.
const SOME_DAY: u64 = 1_790_000_000_000;
/// Three etcds, each behind its own proxy.
pub(crate) struct Far {
    _etcds: Vec<EtcdServer>,
    pub(crate) proxies: Vec<TcpProxy>,
}

impl Far {
    pub(crate) async fn start() -> Self {
        let etcds = join_all((0..3).map(|_| EtcdServer::start())).await;
        let mut proxies = Vec::new();
        for etcd in &etcds {
            proxies.push(TcpProxy::start(&etcd.client_url()).await);
        }
        Self {
            _etcds: etcds,
            proxies,
        }
    }

    pub(crate) fn backend(&self, index: usize) -> Arc<dyn Backend> {
        let endpoints = vec![self.proxies[index].http_url()];
        let options = EtcdOptions {
            endpoints,
            ..EtcdOptions::default()
        };
        let backend = EtcdBackend::new(&options).expect("valid options");
        Arc::new(Bounded::new(Arc::new(backend), Limits::default()))
    }

    pub(crate) fn set_round_trip(&self, round_trip: Duration) {
        for proxy in &self.proxies {
            proxy.set_round_trip(round_trip);
        }
    }
}

/// A store on them, with its tasks.
pub(crate) async fn open(far: &Far) -> (FederatedStore, StoreConfig, JoinSet<()>) {
    let start = Instant::now();
    let clock = Arc::new(move || SOME_DAY + u64::try_from(start.elapsed().as_millis()).unwrap_or(0));
    let config = StoreConfig::new("fleet", Routing::Owned, clock, 1);
    let members = (0..3_u16).map(|i| Member {
        slot: Slot(i),
        name: format!("cluster-{i}"),
        uid: format!("uid-{i}"),
        backend: far.backend(usize::from(i)),
        exclusive: true,
        seen: None,
        incarnation: 0,
    });
    let (store, tasks) = FederatedStore::open(config.clone(), members.collect())
        .await
        .expect("ours");
    let mut running = JoinSet::new();
    for task in tasks {
        running.spawn(task.run);
    }
    store.ready().await;
    (store, config, running)
}

pub(crate) async fn claim(store: &FederatedStore, namespace: &str, slot: u16) {
    let domain = Domain::Namespace(namespace.into());
    let claim = Claim {
        domain,
        uid: format!("uid of {namespace}"),
        generation: 1,
        slot: Slot(slot),
    };
    let claiming = store.begin_claim(&claim).await.expect("claimed");
    store.activate(&claiming).await.expect("activated");
}

pub(crate) fn object(namespace: &str, name: &str) -> SealedObject {
    let value = serde_json::json!({
        "apiVersion": "paas.example.com/v1", "kind": "Application",
        "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}/{name}")},
        "spec": {"image": "registry.example.com/web:1", "note": "x".repeat(2000)},
    });
    SealedObject::seal(value.as_object().expect("an object"), 0).expect("valid")
}

pub(crate) fn applications() -> Resource {
    Resource::new("paas.example.com", "applications")
}
