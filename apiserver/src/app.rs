//! The composition root: what is built, what runs, and in which order. Everything is made here and handed in; every task
//! has a name and ends with one token.
//!
//! ```text
//! stores ─▶ registry ─▶ endpoints ─▶ routes ─▶ chain of filters ─▶ listener
//!                                                       └─▶ loopback ─▶ kube::Client ─▶ controllers    standalone
//!                                       kube-apiserver ◀─────────────── kube::Client ─▶ controllers    in a control plane
//! ```

use crate::options::RequestLimits;
use anyhow::{Context, Result, anyhow};
use axum::body::Body;
use futures::{FutureExt, StreamExt, TryStreamExt};
use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::Store;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use outrigger_apiserver::authentication::client_ca::ClientCas;
use outrigger_apiserver::authentication::{Anonymous, Authenticator, DelegatingConfig};
use outrigger_apiserver::authorization::Authorizer;
use outrigger_apiserver::authorization::delegated::DelegatedConfig;
use outrigger_apiserver::authorization::path::AlwaysAllowPaths;
use outrigger_apiserver::controllers::backends::{Agreed, Backends, ClusterDescription};
use outrigger_apiserver::controllers::definitions::Definitions;
use outrigger_apiserver::controllers::distributed_kinds::Wanted;
use outrigger_apiserver::controllers::{
    backends, definitions, distributed_kinds, garbage_collector, namespaces, placement_conditions, placements,
};
use outrigger_apiserver::endpoints::{self, ApiConfig, ApiContext};
use outrigger_apiserver::metrics::ApiMetrics;
use outrigger_apiserver::registry::control_plane::ControlPlane;
use outrigger_apiserver::registry::control_plane::known_placements::KnownPlacements;
use outrigger_apiserver::registry::control_plane::remote::{RemoteControlPlane, placement_resource};
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
use outrigger_storage::federated::{Member, Routing, StoreConfig, Task, WallClock};
use outrigger_storage::membership::Membership;
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
pub(crate) const RETENTION: Duration = Duration::from_secs(10 * 60);
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
    /// Who keeps namespaces, definitions and placements.
    pub(crate) plane: Plane,
    /// The workload clusters.
    pub(crate) members: Vec<Member>,
    /// Where the backends are measured.
    pub(crate) metrics: StoreMetrics,
    /// What all lists together may hold, in bytes.
    pub(crate) list_bytes_max: usize,
    /// What the event rings may hold, in bytes.
    pub(crate) ring_bytes_max: usize,
    /// Where requests come in.
    pub(crate) listener: TcpListener,
    /// Its TLS: the current value counts for each new connection.
    pub(crate) tls: watch::Receiver<Arc<rustls::ServerConfig>>,
    /// What the listener may use, and how long it waits.
    pub(crate) limits: ServerLimits,
    /// How often an HTTP/2 client is asked to connect anew.
    pub(crate) goaway_chance: f64,
    /// What may be in flight.
    pub(crate) requests: RequestLimits,
    /// Wall time.
    pub(crate) wall_clock: WallClock,
    /// Seed of everything random.
    pub(crate) seed: u64,
}

/// Who keeps namespaces, definitions and placements.
pub(crate) enum Plane {
    /// The server itself.
    Own {
        /// The backend of these kinds.
        system: Member,
        /// The members as the flags describe them, for their WorkloadCluster objects.
        described: Vec<ClusterDescription>,
    },
    /// A kube-apiserver.
    Remote {
        /// Its client.
        client: Client,
        /// Whose client certificates count there.
        client_cas: watch::Receiver<Arc<ClientCas>>,
        /// Who belongs to the fleet.
        membership: Membership,
        /// What became of the clusters' settings.
        settings: watch::Receiver<Arc<backends::Settings>>,
        /// What the replicas agree on.
        agreed: Agreed,
        /// Which kinds are ours.
        wanted_kinds: watch::Receiver<Wanted>,
        /// What passes without a question to it.
        always_allow_paths: AlwaysAllowPaths,
    },
}

/// The running server.
pub(crate) struct App {
    /// Its own client, which may do all.
    pub(crate) client: Client,
    /// When it starts and stops.
    pub(crate) signals: LifecycleSignals,
    workload: FederatedStore,
    served: watch::Receiver<Arc<ServedResources>>,
    synced: watch::Receiver<bool>,
    known_placements: Arc<KnownPlacements>,
    health: HealthChecks,
    is_ready: Latch,
    tasks: Tasks,
}

/// Runs tasks until the server ends.
#[derive(Clone)]
pub(crate) struct Spawner(Tasks);

impl Spawner {
    pub(crate) fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(name, task);
    }
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
            plane,
            members,
            metrics,
            listener,
            tls,
            limits,
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
        let with_limits = |config| StoreConfig {
            write_deadline: WRITE_DEADLINE,
            retention: RETENTION,
            compact_every: COMPACT_EVERY,
            metrics: metrics.clone(),
            ..config
        };
        let known_placements = Arc::new(KnownPlacements::new(RETENTION));
        let workload_config = StoreConfig {
            placements: known_placements.clone(),
            list_bytes_max: config.list_bytes_max,
            ring_bytes_max: config.ring_bytes_max,
            ..with_limits(StoreConfig::new(&fleet, Routing::Owned, wall_clock.clone(), seed))
        };
        let system_config = StoreConfig {
            list_bytes_max: SYSTEM_LIST_BYTES_MAX,
            ring_bytes_max: SYSTEM_RING_BYTES_MAX,
            ..with_limits(StoreConfig::new(
                &format!("{fleet}-system"),
                Routing::Sole,
                wall_clock.clone(),
                seed.wrapping_add(1),
            ))
        };
        let workload = match &plane {
            Plane::Own { .. } => FederatedStore::open(workload_config, members).await?,
            Plane::Remote { membership, .. } => {
                FederatedStore::open_decided(workload_config, membership.clone(), members).await?
            }
        };
        let workload = tasks.run_store("workload", workload);
        let system = match &plane {
            Plane::Own { system, .. } => {
                let opened = FederatedStore::open(system_config, vec![system.clone()]).await;
                Some(tasks.run_store("system", opened.context("the system store cannot be opened")?))
            }
            Plane::Remote { .. } => None,
        };
        for store in system.iter().chain([&workload]) {
            wait_until_reachable(store, CONNECT).await;
        }

        // The control plane, as the registry sees it.
        let reflected = match &plane {
            Plane::Own { .. } => None,
            Plane::Remote { client, .. } => Some(tasks.reflect(client, &known_placements)),
        };
        let control_plane: Arc<dyn ControlPlane> = match (&plane, &reflected, &system) {
            (Plane::Remote { client, .. }, Some(reflected), _) => Arc::new(RemoteControlPlane::new(
                client.clone(),
                reflected.namespaces.clone(),
            )),
            (_, _, Some(system)) => Arc::new(StoredControlPlane::new(
                system.clone(),
                wall_clock.clone(),
                seed.wrapping_add(4),
            )),
            _ => return Err(anyhow!("there is no control plane")),
        };
        known_placements.ask_from(control_plane.clone());

        // What is served, and the way of a request to it.
        let first = match &plane {
            Plane::Own { .. } => definitions::initial(),
            Plane::Remote { .. } => ServedResources::new([]),
        };
        let (served_sender, served) = watch::channel(Arc::new(first));
        let registry = Registry::new(RegistryConfig {
            system,
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
        let measured = metrics.clone();
        api_metrics.add_collector(move |out| metrics.encode(out));
        let health = HealthChecks::new(&signals);
        let is_ready = health.add_latch("start");
        let is_synced = health.add_latch("definitions");
        let paths = served.clone();
        let routes = Routes::new(
            health.clone(),
            api_metrics.clone(),
            Arc::new(move || api_paths(&paths.borrow())),
            endpoints,
        );
        let (authenticator, authorizer) = match &plane {
            Plane::Own { .. } => (Authenticator::standalone(), Authorizer::standalone()),
            Plane::Remote {
                client,
                client_cas,
                always_allow_paths,
                ..
            } => (
                Authenticator::delegating(DelegatingConfig {
                    client: client.clone(),
                    client_cas: client_cas.clone(),
                    anonymous: Anonymous::default(),
                    wall_clock: wall_clock.clone(),
                    metrics: api_metrics.auth().clone(),
                    seed: seed.wrapping_add(5),
                }),
                Authorizer::delegated(DelegatedConfig {
                    client: client.clone(),
                    always_allow_paths: always_allow_paths.clone(),
                    metrics: api_metrics.auth().clone(),
                    seed: seed.wrapping_add(6),
                }),
            ),
        };
        let chain_config = ChainConfig {
            authenticator,
            authorizer,
            goaway_chance: config.goaway_chance,
            request_timeout: config.requests.timeout,
            requests_in_flight_max: config.requests.in_flight_max,
            mutating_requests_in_flight_max: config.requests.mutating_in_flight_max,
            seed: seed.wrapping_add(7),
            metrics: api_metrics.clone(),
            is_served: is_served(served.clone()),
            watch_termination: WatchTermination(signals.not_accepting_new_request.token()),
        };
        let chain = handler_chain(chain_config, routes);

        // The controllers.
        let (synced_sender, synced) = watch::channel(false);
        let own_served = served.clone();
        let client = match plane {
            Plane::Own { described, .. } => {
                let client = Client::new(Loopback::new(chain.clone()), "default");
                let definitions = definitions::Definitions {
                    client: client.clone(),
                    served: served_sender,
                    store: workload.clone(),
                    wall_clock: wall_clock.clone(),
                    synced: synced_sender,
                };
                let placements = tasks.reflect_placements(&client, &known_placements);
                let (store, wall_clock) = (workload.clone(), wall_clock.clone());
                let conditions = placement_conditions::run(client.clone(), placements, store, wall_clock);
                tasks.spawn("conditions of placements", conditions);
                tasks.spawn_own_controllers(definitions, served, described, measured);
                client
            }
            Plane::Remote {
                client,
                wanted_kinds,
                settings,
                agreed,
                ..
            } => {
                let kinds =
                    distributed_kinds::run(client.clone(), wanted_kinds, served_sender, synced_sender);
                tasks.spawn("distributed kinds", kinds);
                if let Some(Reflected {
                    namespaces,
                    placements,
                }) = reflected
                {
                    let (store, wall_clock) = (workload.clone(), wall_clock.clone());
                    let reader = placements.clone();
                    let conditions = placement_conditions::run(client.clone(), reader, store, wall_clock);
                    tasks.spawn("conditions of placements", conditions);
                    let gone = placements::run(client.clone(), namespaces, placements, workload.clone());
                    tasks.spawn("placements", gone);
                }
                let clusters = Backends {
                    client,
                    described: Vec::new(),
                    settings,
                    store: workload.clone(),
                    metrics: measured,
                    wall_clock,
                    agreed: Some(agreed),
                };
                tasks.spawn("backends", backends::run(clusters));
                // What is ours is deleted here, not through the control plane: nobody grants us rights there for that.
                Client::new(Loopback::new(chain.clone()), "default")
            }
        };
        let (mut latch, placements) = (synced.clone(), known_placements.clone());
        tasks.spawn("definitions latch", async move {
            placements.read().await;
            if latch.wait_for(|synced| *synced).await.is_ok() {
                is_synced.set();
            }
            std::future::pending::<()>().await;
        });

        // The listener.
        let server = Server {
            listener,
            tls,
            chain,
            limits,
            signals: signals.clone(),
            metrics: api_metrics,
        };
        tasks.tracker.spawn(server.run());
        Ok(Self {
            client,
            signals,
            workload,
            served: own_served,
            synced,
            known_placements,
            health,
            is_ready,
            tasks,
        })
    }

    /// Runs a task until the server ends.
    pub(crate) fn spawn(&self, name: &str, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(name, task);
    }

    /// What runs tasks for whoever makes them later.
    pub(crate) fn spawner(&self) -> Spawner {
        Spawner(self.tasks.clone())
    }

    /// What is served now.
    pub(crate) fn served(&self) -> watch::Receiver<Arc<ServedResources>> {
        self.served.clone()
    }

    /// What `/readyz` asks.
    pub(crate) fn health(&self) -> &HealthChecks {
        &self.health
    }

    /// The store of the workload clusters.
    pub(crate) fn workload(&self) -> &FederatedStore {
        &self.workload
    }

    /// Waits until everything that was stored at the start is served.
    pub(crate) async fn synced(&self) -> Result<()> {
        self.known_placements.read().await;
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

/// What is kept in memory of the control plane: as much as there are namespaces.
struct Reflected {
    namespaces: Store<PartialObjectMeta<Namespace>>,
    placements: Store<DynamicObject>,
}

impl Tasks {
    /// The controllers of a server that is its own control plane.
    fn spawn_own_controllers(
        &self,
        definitions: Definitions,
        served: watch::Receiver<Arc<ServedResources>>,
        described: Vec<ClusterDescription>,
        metrics: StoreMetrics,
    ) {
        let Definitions {
            client,
            store,
            wall_clock,
            ..
        } = &definitions;
        let finish = namespaces::run(client.clone(), served.clone(), store.clone(), wall_clock.clone());
        let collect = garbage_collector::run(client.clone(), served);
        // Flags do not change.
        let settings = watch::channel(Arc::default()).1;
        let clusters = Backends {
            client: client.clone(),
            described,
            settings,
            store: store.clone(),
            metrics,
            wall_clock: wall_clock.clone(),
            agreed: None,
        };
        self.spawn("namespaces", finish);
        self.spawn("garbage collector", collect);
        self.spawn("backends", backends::run(clusters));
        self.spawn("definitions", definitions::run(definitions));
    }

    /// Follows namespaces and placements.
    fn reflect(&self, client: &Client, known: &Arc<KnownPlacements>) -> Reflected {
        let (namespaces, writer) = reflector::store();
        let api = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
        let events = watcher(api, watcher::Config::default()).default_backoff();
        self.spawn(
            "reflector of namespaces",
            reflector(writer, events).for_each(log_failed_watch),
        );
        Reflected {
            namespaces,
            placements: self.reflect_placements(client, known),
        }
    }

    /// Follows placements.
    fn reflect_placements(&self, client: &Client, known: &Arc<KnownPlacements>) -> Store<DynamicObject> {
        let writer = reflector::store::Writer::new(placement_resource());
        let placements = writer.as_reader();
        let api = Api::<DynamicObject>::all_with(client.clone(), &placement_resource());
        let known = known.clone();
        let events = watcher(api, watcher::Config::default())
            .default_backoff()
            .inspect_ok(move |event| known.apply(event));
        self.spawn(
            "reflector of placements",
            reflector(writer, events).for_each(log_failed_watch),
        );
        placements
    }

    /// Runs the tasks of a store.
    fn run_store(&self, name: &str, (store, tasks): (FederatedStore, Vec<Task>)) -> FederatedStore {
        for task in tasks {
            self.spawn(&format!("{name} store: {}", task.name), task.run);
        }
        store
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

/// The reflector has it already; only what went wrong is left to say.
async fn log_failed_watch<T>(event: Result<T, watcher::Error>) {
    if let Err(error) = event {
        tracing::debug!(%error, "a watch of the control plane is opened again");
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
