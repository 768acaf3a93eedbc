//! The composition root: what is built, what runs, and in which order. Everything is made here and handed in; every task
//! has a name and ends with one token.
//!
//! ```text
//! stores ─▶ registry ─▶ endpoints ─▶ routes ─▶ chain of filters ─▶ listener
//!                                                       └─▶ loopback ─▶ kube::Client ─▶ controllers
//! ```

use anyhow::{Context, Result, anyhow};
use axum::body::Body;
use futures::FutureExt;
use http::Request;
use kube::Client;
use outrigger_apiserver::controllers::backends::ClusterDescription;
use outrigger_apiserver::controllers::{backends, definitions, garbage_collector, namespaces};
use outrigger_apiserver::endpoints::{self, ApiConfig, ApiContext};
use outrigger_apiserver::metrics::ApiMetrics;
use outrigger_apiserver::registry::control_plane::stored::StoredControlPlane;
use outrigger_apiserver::registry::{Registry, RegistryConfig};
use outrigger_apiserver::request::context::WatchTermination;
use outrigger_apiserver::resources::ServedResources;
use outrigger_apiserver::server::handler_chain::{ChainConfig, handler_chain};
use outrigger_apiserver::server::healthz::{HealthChecks, Latch};
use outrigger_apiserver::server::lifecycle_signals::LifecycleSignals;
use outrigger_apiserver::server::loopback::Loopback;
use outrigger_apiserver::server::routes::Routes;
use outrigger_apiserver::server::{Server, ServerLimits};
use outrigger_storage::FederatedStore;
use outrigger_storage::federated::{Member, Routing, StoreConfig, WallClock};
use outrigger_storage::metrics::StoreMetrics;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

/// How long a write may take, retries included.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);
/// How long history is kept, and how often it is compacted.
const RETENTION: Duration = Duration::from_secs(10 * 60);
const COMPACT_EVERY: Duration = Duration::from_secs(5 * 60);
/// What lists and rings of the system store may hold, in bytes: its objects are few.
const SYSTEM_LIST_BYTES_MAX: usize = 8 << 20;
const SYSTEM_RING_BYTES_MAX: usize = 2 << 20;
/// How long the start waits for the backends of a store, and how often it looks.
const CONNECT: Duration = Duration::from_secs(3);
const CONNECT_POLL: Duration = Duration::from_millis(5);
/// How long tasks have to end once the last connection is closed.
const TASKS_END: Duration = Duration::from_secs(5);

/// What the server is made of.
pub(crate) struct AppConfig {
    /// The fleet's uid.
    pub(crate) fleet: String,
    /// The backend of the kinds that the server keeps itself.
    pub(crate) system: Member,
    /// The workload clusters.
    pub(crate) members: Vec<Member>,
    /// The same, for their WorkloadCluster objects.
    pub(crate) described: Vec<ClusterDescription>,
    /// Where the backends are measured.
    pub(crate) metrics: StoreMetrics,
    /// What all lists together may hold, in bytes.
    pub(crate) list_bytes_max: usize,
    /// What the event rings may hold, in bytes.
    pub(crate) ring_bytes_max: usize,
    /// Where requests come in.
    pub(crate) listener: TcpListener,
    /// Its TLS.
    pub(crate) tls: Arc<rustls::ServerConfig>,
    /// Wall time.
    pub(crate) wall_clock: WallClock,
    /// Seed of everything random.
    pub(crate) seed: u64,
}

/// The running server.
pub(crate) struct App {
    /// Its own client, which may do all.
    pub(crate) client: Client,
    /// When it starts and stops.
    pub(crate) signals: LifecycleSignals,
    workload: FederatedStore,
    synced: watch::Receiver<bool>,
    is_ready: Latch,
    tasks: Tasks,
}

/// Everything that runs.
#[derive(Clone)]
struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
    signals: LifecycleSignals,
}

impl App {
    /// Builds and starts everything. The listener takes requests from here on; `/readyz` fails until [`App::ready`].
    pub(crate) async fn start(config: AppConfig) -> Result<Self> {
        let AppConfig {
            fleet,
            system,
            members,
            described,
            metrics,
            listener,
            tls,
            wall_clock,
            seed,
            ..
        } = config;
        let signals = LifecycleSignals::default();
        let tasks = Tasks {
            tracker: TaskTracker::new(),
            end: CancellationToken::new(),
            signals: signals.clone(),
        };

        // The stores.
        let limits = |config| StoreConfig {
            write_deadline: WRITE_DEADLINE,
            retention: RETENTION,
            compact_every: COMPACT_EVERY,
            metrics: metrics.clone(),
            ..config
        };
        let system_config = StoreConfig {
            list_bytes_max: SYSTEM_LIST_BYTES_MAX,
            ring_bytes_max: SYSTEM_RING_BYTES_MAX,
            ..limits(StoreConfig::new(
                &format!("{fleet}-system"),
                Routing::Sole,
                wall_clock.clone(),
                seed.wrapping_add(1),
            ))
        };
        let workload_config = StoreConfig {
            list_bytes_max: config.list_bytes_max,
            ring_bytes_max: config.ring_bytes_max,
            ..limits(StoreConfig::new(&fleet, Routing::Owned, wall_clock.clone(), seed))
        };
        let system = tasks
            .open_store("system", system_config, vec![system])
            .await
            .context("the system store cannot be opened")?;
        let workload = tasks.open_store("workload", workload_config, members).await?;

        wait_until_reachable(&system, CONNECT).await;
        wait_until_reachable(&workload, CONNECT).await;

        // What is served, and the way of a request to it.
        let (served_sender, served) = watch::channel(Arc::new(definitions::initial()));
        let control_plane = Arc::new(StoredControlPlane::new(
            system.clone(),
            wall_clock.clone(),
            seed.wrapping_add(4),
        ));
        let registry = Registry::new(RegistryConfig {
            system: Some(system),
            control_plane,
            workload: workload.clone(),
            wall_clock: wall_clock.clone(),
            seed: seed.wrapping_add(2),
        });
        let api = ApiContext::new(ApiConfig {
            registry,
            served: served.clone(),
            wall_clock: wall_clock.clone(),
            seed: seed.wrapping_add(3),
        });
        let endpoints = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(endpoints::serve(api, request).await) }
        });
        let api_metrics = ApiMetrics::default();
        api_metrics.add_collector(move |out| metrics.encode(out));
        let health = HealthChecks::new(&signals);
        let is_ready = health.add_latch("start");
        let is_synced = health.add_latch("definitions");
        let paths = served.clone();
        let routes = Routes::new(
            health,
            api_metrics.clone(),
            Arc::new(move || api_paths(&paths.borrow())),
            endpoints,
        );
        let chain_config = ChainConfig {
            metrics: api_metrics.clone(),
            is_served: is_served(served.clone()),
            watch_termination: WatchTermination(signals.after_shutdown_delay.token()),
            ..ChainConfig::default()
        };
        let chain = handler_chain(chain_config, routes);
        let client = Client::new(Loopback::new(chain.clone()), "default");

        // The controllers.
        let (synced_sender, synced) = watch::channel(false);
        let controller = definitions::Definitions {
            client: client.clone(),
            served: served_sender,
            store: workload.clone(),
            wall_clock: wall_clock.clone(),
            synced: synced_sender,
        };
        tasks.spawn("definitions", definitions::run(controller));
        tasks.spawn(
            "namespaces",
            namespaces::run(
                client.clone(),
                served.clone(),
                workload.clone(),
                wall_clock.clone(),
            ),
        );
        tasks.spawn(
            "garbage collector",
            garbage_collector::run(client.clone(), served),
        );
        tasks.spawn(
            "backends",
            backends::run(client.clone(), described, workload.clone(), wall_clock),
        );
        let mut latch = synced.clone();
        tasks.spawn("definitions latch", async move {
            if latch.wait_for(|synced| *synced).await.is_ok() {
                is_synced.set();
            }
            std::future::pending::<()>().await;
        });

        // The listener. TLS takes renewed certificates by its resolver, so the configuration stays as it is.
        let (tls_sender, tls) = watch::channel(tls);
        let server = Server {
            listener,
            tls,
            chain,
            limits: ServerLimits::default(),
            signals: signals.clone(),
            metrics: api_metrics,
        };
        let tracker = tasks.tracker.clone();
        tracker.spawn(async move {
            // The configuration lives as long as its listener.
            let _tls_sender = tls_sender;
            server.run().await;
        });
        Ok(Self {
            client,
            signals,
            workload,
            synced,
            is_ready,
            tasks,
        })
    }

    /// Runs a task until the server ends.
    pub(crate) fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(name, task);
    }

    /// Waits until everything that was stored at the start is served.
    pub(crate) async fn synced(&self) -> Result<()> {
        self.synced
            .clone()
            .wait_for(|synced| *synced)
            .await
            .map(|_| ())
            .map_err(|_| anyhow!("the server is stopping"))
    }

    /// From now on `/readyz` succeeds.
    pub(crate) fn ready(&self) {
        self.is_ready.set();
    }

    /// Waits a while for all clusters, so that the first namespaces are spread over them. One that is away is not
    /// waited for any longer.
    pub(crate) async fn clusters_connected(&self, at_most: Duration) {
        if tokio::time::timeout(at_most, self.workload.ready())
            .await
            .is_err()
        {
            tracing::warn!("a cluster does not answer yet; going on without it");
        }
    }

    /// Whether a cluster answers.
    pub(crate) fn is_reachable(&self, cluster: &str) -> bool {
        self.workload
            .clusters()
            .iter()
            .any(|c| c.name == cluster && c.reachable)
    }

    /// Waits until the server has drained and everything has ended.
    pub(crate) async fn stopped(self) -> Result<()> {
        self.signals.drained.signaled().await;
        self.tasks.end.cancel();
        self.tasks.tracker.close();
        if tokio::time::timeout(TASKS_END, self.tasks.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(tasks = self.tasks.tracker.len(), "some tasks did not end");
        }
        Ok(())
    }
}

impl Tasks {
    /// Opens a store and runs its tasks.
    async fn open_store(
        &self,
        name: &str,
        config: StoreConfig,
        members: Vec<Member>,
    ) -> Result<FederatedStore> {
        let (store, tasks) = FederatedStore::open(config, members).await?;
        for task in tasks {
            self.spawn(&format!("{name} store: {}", task.name), task.run);
        }
        Ok(store)
    }

    /// Runs a task until the end. One that breaks takes the server down in order: half a server is worse than none.
    fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        let (end, signals) = (self.end.clone(), self.signals.clone());
        let span = tracing::info_span!("task", name);
        let task = async move {
            match end
                .run_until_cancelled(AssertUnwindSafe(task).catch_unwind())
                .await
            {
                Some(Err(_)) => {
                    tracing::error!("the task panicked: the server stops");
                    signals.shutdown_initiated.signal();
                }
                Some(Ok(())) => tracing::debug!("ended"),
                None => {}
            }
        };
        self.tracker.spawn(task.instrument(span));
    }
}

/// The controllers start with lists: before the logs are followed they would be refused. A cluster that is away does
/// not hold the start for long.
async fn wait_until_reachable(store: &FederatedStore, at_most: Duration) {
    let reachable = async {
        while !store.clusters().iter().all(|c| c.reachable) {
            tokio::time::sleep(CONNECT_POLL).await;
        }
    };
    if tokio::time::timeout(at_most, reachable).await.is_err() {
        for cluster in store.clusters().iter().filter(|c| !c.reachable) {
            let problem = cluster.problem.as_deref().unwrap_or("no answer yet");
            tracing::warn!(
                cluster = cluster.name,
                problem,
                "going on without the cluster until it answers"
            );
        }
    }
}

/// The paths of the index.
fn api_paths(served: &ServedResources) -> Vec<String> {
    let mut paths = vec![
        "/api".to_owned(),
        "/apis".to_owned(),
        "/openapi/v2".to_owned(),
        "/openapi/v3".to_owned(),
    ];
    for group in served.groups() {
        let root = match group.name.as_str() {
            "" => "/api".to_owned(),
            name => format!("/apis/{name}"),
        };
        paths.push(root.clone());
        paths.extend(
            group
                .versions
                .iter()
                .map(|version| format!("{root}/{}", version.name)),
        );
    }
    paths
}

/// Which resources become labels of metrics: those that are served, so that nobody fills the memory with made-up ones.
fn is_served(
    served: watch::Receiver<Arc<ServedResources>>,
) -> outrigger_apiserver::filters::request_metrics::IsServed {
    Arc::new(move |info| {
        served
            .borrow()
            .find(&info.api_group, &info.api_version, &info.resource)
            .is_some()
    })
}
