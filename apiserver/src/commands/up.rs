//! `outrigger up`: the server on this machine, without a control plane.
//!
//! In the order of its errors: the data folder, the port, the clusters. Then it says where the kubeconfig is and what to
//! type, and serves until it is told to stop. It may die at any moment: whatever was acknowledged is on disk.

mod clusters;
mod crds;
mod data_folder;
mod kubeconfig;

use super::process;
use crate::app::{App, AppConfig, Plane};
use crate::options::Config;
use anyhow::{Context, Result, anyhow};
use data_folder::DataFolder;
use outrigger_apiserver::controllers::definitions::apply_crd;
use outrigger_apiserver::registry::control_plane::remote::said;
use outrigger_apiserver::resources::builtin;
use outrigger_apiserver::server::ServerLimits;
use outrigger_certs::{Authority, Issued, LeafRequest, ServingCertificate, Usage};
use outrigger_storage::Slot;
use outrigger_storage::backend::embedded::{EmbeddedBackend, EmbeddedOptions};
use outrigger_storage::federated::{Member, WallClock};
use outrigger_storage::metrics::StoreMetrics;
use rustls::crypto::CryptoProvider;
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Pages of the system backend that are kept in memory, in bytes.
const SYSTEM_CACHE_BYTES: usize = 4 << 20;
/// How long the server's certificate lives, in days; it is renewed while the server runs.
const SERVER_DAYS: u16 = 90;
/// How long the administrator's certificate lives, in days; the kubeconfig is rewritten before.
const ADMIN_DAYS: u16 = 365;
/// How long a start waits for clusters that do not answer.
const CLUSTERS_WAIT: Duration = Duration::from_secs(5);
/// How long the start may take once the backends are there.
const START: Duration = Duration::from_secs(60);
/// Names under which a Kubernetes API server is known.
const SERVER_NAMES: [&str; 6] = [
    "localhost",
    "127.0.0.1",
    "::1",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
];
/// Namespaces that are always there.
const NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Runs until a signal; an error is what the user reads.
pub(crate) async fn run(config: Config, wall_clock: WallClock) -> Result<()> {
    let crds = config
        .crds
        .as_deref()
        .map(crds::read)
        .transpose()?
        .unwrap_or_default();
    let folder = DataFolder::open(&config.data_dir)?;
    let (names, how) = clusters::names(&config.clusters);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fleet = folder
        .fleet()?
        .with_clusters(&names, how, || uuid::Uuid::new_v4().to_string())?;
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|e| process::cannot_listen(config.listen, &e))?;
    let address = listener.local_addr()?;
    let certificates = Certificates::open(&folder, address, &wall_clock)?;

    let metrics = StoreMetrics::default();
    let members = clusters::open(&config.clusters, &fleet, &folder, &metrics).await?;
    let system = system_member(&folder, &fleet.uid).await?;
    folder.write_fleet(&fleet)?;
    // TLS takes renewed certificates by its resolver, so the configuration stays as it is.
    let (_tls_sender, tls) = watch::channel(Arc::new(certificates.tls()?));
    let app = AppConfig {
        fleet: fleet.uid.clone(),
        plane: Plane::Own {
            system,
            described: clusters::describe(&config.clusters, &fleet),
        },
        members,
        metrics,
        list_bytes_max: config.limits.list_bytes_max,
        ring_bytes_max: config.limits.ring_bytes_max,
        listener,
        tls,
        limits: ServerLimits::default(),
        goaway_chance: 0.0,
        requests: config.limits.requests.clone(),
        wall_clock: wall_clock.clone(),
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
    };
    let app = App::start(app).await?;
    let stop = app.signals.shutdown_initiated.clone();
    app.spawn("signals", async move {
        process::wait_for_signal().await;
        stop.signal();
    });

    let prepared = async {
        tokio::time::timeout(START, prepare(&app, &crds, !fleet.example_applied))
            .await
            .context("the server did not get ready in time")?
    };
    tokio::select! {
        result = prepared => result?,
        () = app.signals.shutdown_initiated.signaled() => return app.stopped().await,
    }
    app.clusters_connected(CLUSTERS_WAIT).await;
    fleet.example_applied = true;
    fleet
        .clusters
        .iter_mut()
        .for_each(|c| c.joined |= app.is_reachable(&c.name));
    folder.write_fleet(&fleet)?;
    app.ready();
    write_out(&welcome(&config, &folder.kubeconfig(), address))?;
    app.spawn("certificates", certificates.renew(wall_clock));
    app.stopped().await
}

/// What has to be stored before anybody asks: our kinds, the example, the user's CRDs, the first namespaces.
async fn prepare(app: &App, crds: &[(PathBuf, Value)], with_example: bool) -> Result<()> {
    app.synced().await?;
    for crd in builtin::outrigger_crds() {
        apply_crd(&app.client, &crd)
            .await
            .context("the CustomResourceDefinitions of outrigger.dev cannot be stored")?;
    }
    if with_example {
        apply_crd(&app.client, &builtin::example_crd())
            .await
            .context("the example CustomResourceDefinition cannot be stored")?;
    }
    for (path, crd) in crds {
        apply_crd(&app.client, crd)
            .await
            .map_err(|e| anyhow!("--crds: {}: {}", path.display(), said(&e)))?;
    }
    let namespaces = kube::Api::<k8s_openapi::api::core::v1::Namespace>::all(app.client.clone());
    for name in NAMESPACES {
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        match namespaces
            .create(&kube::api::PostParams::default(), &namespace)
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
            Err(error) => return Err(anyhow!("namespace {name} cannot be made: {}", said(&error))),
        }
    }
    Ok(())
}

async fn system_member(folder: &DataFolder, fleet: &str) -> Result<Member> {
    let path = folder.system();
    let options = EmbeddedOptions {
        cache_bytes: SYSTEM_CACHE_BYTES,
        ..EmbeddedOptions::default()
    };
    let backend = EmbeddedBackend::open_file(&path, options)
        .await
        .with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Member {
        slot: Slot(0),
        name: "system".to_owned(),
        uid: format!("{fleet}-system"),
        backend: Arc::new(backend),
        exclusive: true,
        seen: None,
        incarnation: 0,
    })
}

/// The authority and what it issued, and the kubeconfig that follows them.
struct Certificates {
    authority: Authority,
    folder: PathBuf,
    kubeconfig: PathBuf,
    url: String,
    server: LeafRequest,
    admin: LeafRequest,
    serving: Arc<ServingCertificate>,
    provider: Arc<CryptoProvider>,
    current: Issued,
}

impl Certificates {
    fn open(folder: &DataFolder, address: SocketAddr, wall_clock: &WallClock) -> Result<Self> {
        let now = process::unix_seconds(wall_clock);
        let mut names: Vec<String> = SERVER_NAMES.map(str::to_owned).to_vec();
        let own = address.ip().to_string();
        if !address.ip().is_unspecified() && !names.contains(&own) {
            names.push(own);
        }
        let leaf = |common_name: &str, organization: Option<&str>, names, usage, days| LeafRequest {
            common_name: common_name.to_owned(),
            organization: organization.map(str::to_owned),
            names,
            usage,
            days,
        };
        let server = leaf("outrigger", None, names, Usage::Server, SERVER_DAYS);
        let admin = leaf(
            "kubernetes-admin",
            Some("system:masters"),
            vec![],
            Usage::Client,
            ADMIN_DAYS,
        );
        let authority = Authority::load_or_create(&folder.ca(), "ca", "outrigger-ca", now)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let (current, _) = authority.load_or_issue(&folder.ca(), "server", &server, now)?;
        let serving = Arc::new(ServingCertificate::new(&current, Arc::clone(&provider))?);
        let url = kubeconfig::server_url(address);
        let this = Self {
            authority,
            folder: folder.ca(),
            kubeconfig: folder.kubeconfig(),
            url,
            server,
            admin,
            serving,
            provider,
            current,
        };
        this.write_kubeconfig(now)?;
        Ok(this)
    }

    fn tls(&self) -> Result<rustls::ServerConfig> {
        let roots = outrigger_certs::trust_anchors(self.authority.certificate_pem(), "ca.crt")?;
        let certificate = Arc::clone(&self.serving) as Arc<dyn rustls::server::ResolvesServerCert>;
        Ok(outrigger_apiserver::server::tls::server_config(
            certificate,
            Some(Arc::new(roots)),
            &self.provider,
        )?)
    }

    fn write_kubeconfig(&self, now: i64) -> Result<()> {
        let (admin, _) = self
            .authority
            .load_or_issue(&self.folder, "admin", &self.admin, now)?;
        let text = kubeconfig::kubeconfig(&self.url, self.authority.certificate_pem(), &admin);
        outrigger_certs::write_private(&self.kubeconfig, text.as_bytes())?;
        Ok(())
    }

    /// Renews what is due, while the server runs. Never ends.
    async fn renew(mut self, wall_clock: WallClock) {
        loop {
            let now = process::unix_seconds(&wall_clock);
            tokio::time::sleep(Duration::from_secs(outrigger_certs::look_again_in(
                now,
                &self.current,
            )))
            .await;
            if let Err(error) = self.renew_once(process::unix_seconds(&wall_clock)) {
                tracing::error!(%error, "the certificates cannot be renewed");
            }
        }
    }

    fn renew_once(&mut self, now: i64) -> Result<()> {
        let (current, is_new) = self
            .authority
            .load_or_issue(&self.folder, "server", &self.server, now)?;
        if is_new {
            self.serving.publish(&current)?;
            self.current = current;
            tracing::info!("the serving certificate was renewed");
        }
        self.write_kubeconfig(now)
    }
}

fn welcome(config: &Config, kubeconfig: &Path, address: SocketAddr) -> String {
    let kubeconfig = std::path::absolute(kubeconfig).unwrap_or_else(|_| kubeconfig.to_owned());
    let (clusters, _) = clusters::names(&config.clusters);
    format!(
        "Outrigger serves the Kubernetes API on {} and keeps objects in {} clusters: {}.\n\
         \n\
         In another terminal:\n\
         \n\
         \x20 export KUBECONFIG={}\n\
         \x20 kubectl apply -f deploy/examples/application.yaml\n\
         \x20 kubectl get apps -A -w\n\
         \n\
         Ctrl-C stops it; the data stays in {}.\n",
        kubeconfig::server_url(address),
        clusters.len(),
        shortened(&clusters),
        kubeconfig.display(),
        config.data_dir.display(),
    )
}

fn shortened(names: &[String]) -> String {
    match names {
        [first, .., last] if names.len() > 8 => format!("{first} to {last}"),
        _ => names.join(", "),
    }
}

fn write_out(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // Nobody reads: the server serves all the same.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}
