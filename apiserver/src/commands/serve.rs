//! `outrigger serve`: one replica behind a control plane.
//!
//! In the order of its errors: the control plane, the port, the certificates, the clusters. It keeps nothing on disk:
//! what has to survive is in the control plane and in the clusters.

mod clusters;
mod connections;
mod departures;
mod fleet;
mod loss;
mod objects;
mod reports;

use super::process;
use crate::app::{App, AppConfig, Plane, RETENTION};
use crate::options::{CertificateSource, ServeConfig, ServiceName};
use anyhow::{Context, Result, anyhow};
use clusters::{Clusters, Watched};
use connections::Connections;
use fleet::FleetObject;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::reflector;
use kube::{Client, Config};
use loss::{CutOff, Loss};
use objects::StoredObjects;
use outrigger_apiserver::authentication::client_ca;
use outrigger_apiserver::authorization::path::AlwaysAllowPaths;
use outrigger_apiserver::controllers::backends::{self, Agreed};
use outrigger_apiserver::controllers::distributed_kinds::{Serving, Wanted};
use outrigger_apiserver::controllers::leader_election::{self, LeaderElection};
use outrigger_apiserver::server::{ServerLimits, tls};
use outrigger_apiservice::{Controller, KindState, Kinds, ServiceReference, Timing};
use outrigger_certs::{Carried, Certificates, CertificatesConfig};
use outrigger_storage::federated::WallClock;
use outrigger_storage::metrics::StoreMetrics;
use reports::Reports;
use rustls::crypto::CryptoProvider;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The Secret with the authority that the replicas share.
const AUTHORITY_SECRET: &str = "outrigger-ca";
/// The Lease of the replica that runs the controllers of which there may be only one.
const LEASE: &str = "outrigger";
/// How long the start may take until everything that is distributed is served.
const START: Duration = Duration::from_secs(60);
/// How long a start waits for clusters that do not answer.
const CLUSTERS_WAIT: Duration = Duration::from_secs(5);

/// Runs until a signal; an error is what the administrator reads.
pub(crate) async fn run(config: ServeConfig, wall_clock: WallClock) -> Result<()> {
    let seed = uuid::Uuid::new_v4().as_u64_pair().0;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let client = connect(config.kubeconfig.as_deref()).await?;
    let fleet = fleet::uid(&client).await?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|error| process::cannot_listen(config.listen, &error))?;

    let cas = client_ca::initial(&client, &provider).await?;
    let (cas_sender, client_cas) = watch::channel(Arc::new(cas));
    let (carried_sender, carried) = watch::channel(Carried::default());
    let certificates = certificates(&config, &client, carried, &wall_clock, &provider).await?;
    let resolver = Arc::clone(&certificates.serving) as Arc<dyn rustls::server::ResolvesServerCert>;
    let first = tls::delegating_config(Arc::clone(&resolver), &client_cas.borrow(), &provider)?;
    let (tls_sender, tls) = watch::channel(Arc::new(first));

    let metrics = StoreMetrics::default();
    let (leads, is_leader) = watch::channel(false);
    let (settings_sender, settings) = watch::channel(Arc::default());
    let mut clusters = Clusters {
        client: client.clone(),
        fleet: FleetObject::new(client.clone(), &config.service.namespace),
        connections: Connections::new(client.clone(), &config.service.namespace, metrics.clone()),
        is_leader: is_leader.clone(),
        retention: RETENTION,
        wall_clock: wall_clock.clone(),
        settings: settings_sender,
        removed_since: BTreeMap::new(),
    };
    let (membership, connections) = clusters.first().await?;
    let (decided_sender, decided) = watch::channel(Arc::new(membership.clone()));
    let (tell_reports, told) = watch::channel(Arc::default());
    let limits = ServerLimits {
        shutdown_delay: config.shutdown_delay,
        ..ServerLimits::default()
    };
    let (wanted_sender, wanted_kinds) = watch::channel(None);
    let app = AppConfig {
        fleet,
        plane: Plane::Remote {
            client: client.clone(),
            client_cas: client_cas.clone(),
            membership,
            settings,
            agreed: Agreed {
                is_leader: is_leader.clone(),
                decided: decided.clone(),
                reports: told,
            },
            wanted_kinds,
            always_allow_paths: AlwaysAllowPaths::new(config.always_allow_paths.clone()),
        },
        members: connections,
        metrics,
        list_bytes_max: config.limits.list_bytes_max,
        ring_bytes_max: config.limits.ring_bytes_max,
        listener,
        tls,
        limits,
        goaway_chance: config.goaway_chance,
        requests: config.limits.requests.clone(),
        wall_clock: wall_clock.clone(),
        seed,
    };
    let app = App::start(app).await?;
    let stop = app.signals.shutdown_initiated.clone();
    app.spawn("signals", async move {
        process::wait_for_signal().await;
        stop.signal();
    });
    app.spawn(
        "client authorities",
        client_ca::run(client.clone(), Arc::clone(&provider), cas_sender),
    );
    let follow = tls::follow_client_cas(resolver, client_cas, provider, tls_sender);
    app.spawn("TLS of client authorities", follow);
    app.spawn("certificates", certificates.run);
    let identity = format!("{}-{seed:016x}", config.pod_name);
    let (resign, asked_to_resign) = watch::channel(0);
    let election = LeaderElection {
        client: client.clone(),
        namespace: config.service.namespace.clone(),
        name: LEASE.to_owned(),
        identity: identity.clone(),
        wall_clock: wall_clock.clone(),
        is_leader: leads,
        resign: asked_to_resign,
    };
    app.spawn("leader election", leader_election::run(election));
    let (kinds_sender, kinds) = watch::channel(None);
    let registration = Controller {
        client: client.clone(),
        identity: identity.clone(),
        service: ServiceReference {
            namespace: config.service.namespace.clone(),
            name: config.service.name.clone(),
            port: config.service_port,
        },
        bundle: certificates.bundle,
        is_leader: is_leader.clone(),
        objects: Arc::new(StoredObjects {
            client: app.client.clone(),
            store: app.workload().clone(),
            served: app.served(),
        }),
        clock: {
            let wall_clock = wall_clock.clone();
            Arc::new(move || process::unix_seconds(&wall_clock))
        },
        timing: Timing::default(),
        kinds: kinds_sender,
        carried: carried_sender,
    };
    app.spawn("registration", outrigger_apiservice::run(registration));
    app.spawn("wanted kinds", tell(kinds, wanted_sender));

    // Who belongs to the fleet, and who of them is there.
    let namespace = config.service.namespace.clone();
    let (store, health) = (app.workload().clone(), app.health().clone());
    let fleet = clusters.fleet.clone();
    let known = reflector::store::Writer::new(backends::api_resource());
    let described = known.as_reader();
    let (changed_sender, changed) = watch::channel(());
    app.spawn(
        "reflector of clusters",
        clusters::reflect(client.clone(), known, changed_sender),
    );
    app.spawn(
        "fleet",
        fleet::follow(fleet.clone(), store.clone(), decided_sender),
    );
    let watched = Watched {
        clusters: described.clone(),
        changed,
        decided: decided.clone(),
    };
    app.spawn(
        "members",
        clusters::follow(clusters, watched, store.clone(), app.spawner()),
    );
    let (heard_sender, heard) = watch::channel(Arc::default());
    let reports = Reports {
        client: client.clone(),
        namespace: namespace.clone(),
        identity: identity.clone(),
        store: store.clone(),
        health: health.clone(),
        wall_clock,
        is_leader: is_leader.clone(),
        heard: heard_sender,
    };
    app.spawn("reports", reports::run(reports));
    let cut_off = CutOff::default();
    cut_off.check_in(&health, &store);
    let loss = Loss {
        client: client.clone(),
        identity: identity.clone(),
        fleet,
        decided,
        clusters: described,
        store,
        heard,
        health,
        cut_off,
        is_leader,
        resign,
        reports: tell_reports,
    };
    app.spawn("loss", loss::run(loss));

    let synced = async {
        tokio::time::timeout(START, app.synced())
            .await
            .context("the CustomResourceDefinitions of the control plane were not read in time")?
    };
    tokio::select! {
        result = synced => result?,
        () = app.signals.shutdown_initiated.signaled() => return app.stopped().await,
    }
    app.clusters_connected(CLUSTERS_WAIT).await;
    app.ready();
    tracing::info!(address = %config.listen, "ready");
    app.stopped().await?;
    reports::withdraw(&client, &namespace, &identity).await;
    Ok(())
}

/// Tells the server what `apiservice` has found to be ours.
async fn tell(mut kinds: watch::Receiver<Option<Arc<Kinds>>>, wanted: watch::Sender<Wanted>) {
    let serving = |state: &KindState| match state {
        KindState::Closed => Serving::Closed,
        KindState::Open => Serving::Open,
        KindState::Terminating => Serving::Terminating,
    };
    loop {
        let told = kinds.borrow_and_update().clone();
        let told = told.map(|kinds| {
            kinds
                .iter()
                .map(|(crd, state)| (crd.clone(), serving(state)))
                .collect()
        });
        wanted.send_replace(told.map(Arc::new));
        if kinds.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// A client of the control plane that has answered.
async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig: {} cannot be used", path.display()))?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig: {} cannot be used", path.display()))?
        }
        None => Config::incluster().map_err(|error| {
            anyhow!("not in a cluster ({error}): say with --kubeconfig how to reach the control plane")
        })?,
    };
    let url = config.cluster_url.clone();
    let client = Client::try_from(config).with_context(|| format!("the control plane at {url}"))?;
    client
        .apiserver_version()
        .await
        .with_context(|| format!("the control plane at {url} does not answer"))?;
    Ok(client)
}

async fn certificates(
    config: &ServeConfig,
    client: &Client,
    carried: watch::Receiver<Carried>,
    wall_clock: &WallClock,
    provider: &Arc<CryptoProvider>,
) -> Result<Certificates> {
    let ServiceName { namespace, name } = config.service.clone();
    let source = match config.certificate.clone() {
        CertificateSource::Own => outrigger_certs::CertificateSource::SharedAuthority {
            client: client.clone(),
            namespace: namespace.clone(),
            name: AUTHORITY_SECRET.to_owned(),
            policy: outrigger_certs::RotationPolicy::default(),
        },
        CertificateSource::Files {
            certificate,
            key,
            authority,
        } => outrigger_certs::CertificateSource::Files {
            certificate,
            key,
            ca: authority,
        },
    };
    let clock = Arc::clone(wall_clock);
    let certificates = Certificates::start(CertificatesConfig {
        source,
        service: name,
        service_namespace: namespace,
        extra_names: vec!["localhost".to_owned(), "127.0.0.1".to_owned()],
        carried,
        clock: Arc::new(move || process::unix_seconds(&clock)),
        provider: Arc::clone(provider),
    })
    .await?;
    Ok(certificates)
}
