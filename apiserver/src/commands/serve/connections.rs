//! The backends that WorkloadClusters describe: endpoints and prefix from the spec, certificates from the Secret it
//! names. Secrets are watched; what changes counts for new connections, and no watch of a backend ends for it.
//!
//! It knows nothing of the fleet: who is a member, and when somebody leaves, `clusters` says.

use super::super::backends::guarded;
use anyhow::{Context, Result, anyhow};
use futures::stream::BoxStream;
use futures::{StreamExt, future};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DynamicObject;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use outrigger_apiserver::controllers::backends::Settings;
use outrigger_apiserver::registry::control_plane::remote::said;
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions};
use outrigger_storage::federated::{Member, Seen};
use outrigger_storage::membership::MemberRecord;
use outrigger_storage::metrics::StoreMetrics;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio_stream::StreamMap;

/// What is read of a WorkloadCluster's spec.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    endpoints: Vec<String>,
    #[serde(default = "default_prefix")]
    prefix: String,
    #[serde(default)]
    secret_ref: Option<SecretRef>,
    #[serde(default)]
    exclusive: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct SecretRef {
    name: String,
    #[serde(default)]
    namespace: String,
}

fn default_prefix() -> String {
    EtcdOptions::default().prefix
}

/// Namespace and name of a Secret.
type SecretName = (String, String);
type SecretEvents = BoxStream<'static, watcher::Result<Event<PartialObjectMeta<Secret>>>>;

/// The backends, by the uid of their cluster.
pub(crate) struct Connections {
    client: Client,
    /// The server's own namespace: where Secrets are that name none.
    namespace: String,
    metrics: StoreMetrics,
    backends: BTreeMap<String, Connected>,
    /// Secrets that may have changed since they were read.
    unread: BTreeSet<SecretName>,
}

/// One watch for each Secret that is named, and none for others: no right to list more than these is needed.
pub(crate) struct SecretWatches {
    client: Client,
    events: StreamMap<SecretName, SecretEvents>,
}

/// A backend in use.
struct Connected {
    /// That of the member: one that was restored and accepted gets another connection.
    incarnation: u64,
    backend: Arc<EtcdBackend>,
    /// What it was described by when it was looked at last.
    spec: Spec,
    /// What its connections are made with.
    used: EtcdOptions,
    /// Why the newest settings are not used, or not known to be accepted.
    problem: Option<String>,
}

impl Connections {
    pub(crate) fn new(client: Client, namespace: &str, metrics: StoreMetrics) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
            metrics,
            backends: BTreeMap::new(),
            unread: BTreeSet::new(),
        }
    }

    /// A backend for a member, as its cluster describes it. Nothing is connected yet.
    pub(crate) async fn connect(&mut self, record: &MemberRecord, cluster: &DynamicObject) -> Result<Member> {
        let spec = spec_of(cluster)?;
        let used = self.options(&spec).await?;
        let seen = cluster.data.pointer("/status/lastSeen");
        let seen = seen
            .map(|seen| Seen::deserialize(seen).context("its status.lastSeen cannot be read"))
            .transpose()?;
        let backend = Arc::new(EtcdBackend::new(&used)?);
        let member = Member {
            slot: record.slot,
            name: record.name.clone(),
            uid: record.uid.clone(),
            backend: guarded(
                Arc::clone(&backend) as Arc<dyn outrigger_storage::backend::Backend>,
                &self.metrics,
                &record.name,
            ),
            exclusive: spec.exclusive,
            seen,
            incarnation: record.incarnation,
        };
        let connected = Connected {
            incarnation: record.incarnation,
            backend,
            spec,
            used,
            problem: None,
        };
        self.backends.insert(record.uid.clone(), connected);
        Ok(member)
    }

    /// Whether there is a connection to the member as it is now.
    pub(crate) fn has(&self, record: &MemberRecord) -> bool {
        let connected = self.backends.get(&record.uid);
        connected.is_some_and(|connected| connected.incarnation == record.incarnation)
    }

    /// A cluster that is no member any more.
    pub(crate) fn forget(&mut self, uid: &str) {
        self.backends.remove(uid);
    }

    /// A Secret that may have changed.
    pub(crate) fn mark_unread(&mut self, secret: SecretName) {
        self.unread.insert(secret);
    }

    /// The Secrets that these clusters name.
    pub(crate) fn secrets(&self, clusters: &[DynamicObject]) -> BTreeSet<SecretName> {
        let named = clusters.iter().filter_map(|cluster| spec_of(cluster).ok());
        named
            .filter_map(|spec| secret_name(&spec, &self.namespace))
            .collect()
    }

    /// Brings what has changed in specs and Secrets to the backends that are in use. What cannot be used leaves everything
    /// as it was, and is tried again with every call.
    pub(crate) async fn refresh(&mut self, clusters: &[DynamicObject]) {
        let mut failed = BTreeSet::new();
        for cluster in clusters {
            let uid = cluster.uid().unwrap_or_default();
            let Some(connected) = self.backends.get(&uid) else {
                continue;
            };
            let spec = spec_of(cluster);
            let is_unread =
                |spec: &Spec| secret_name(spec, &self.namespace).is_some_and(|s| self.unread.contains(&s));
            let is_news = match &spec {
                Ok(spec) => *spec != connected.spec || is_unread(spec),
                Err(_) => true,
            };
            if !is_news && connected.problem.is_none() {
                continue;
            }
            let (backend, used) = (Arc::clone(&connected.backend), connected.used.clone());
            let was_refused = connected.problem.is_some();
            let outcome = match spec {
                Ok(spec) => match self.options(&spec).await {
                    Ok(options) => Ok((spec, options)),
                    Err(error) => {
                        failed.extend(secret_name(&spec, &self.namespace));
                        Err(error)
                    }
                },
                Err(error) => Err(error),
            };
            let (outcome, problem) = match outcome {
                Err(error) => (None, Some(format!("{error:#}"))),
                Ok((spec, options)) if options == used && !was_refused => (Some((spec, options)), None),
                Ok((spec, options)) => match take(&backend, &options).await {
                    Ok(()) => {
                        tracing::info!(cluster = cluster.name_any(), "connected with new settings");
                        (Some((spec, options)), None)
                    }
                    Err(error) => (Some((spec, options)), Some(format!("{error:#}"))),
                },
            };
            if let Some(connected) = self.backends.get_mut(&uid) {
                if let Some((spec, options)) = outcome {
                    (connected.spec, connected.used) = (spec, options);
                }
                if let Some(problem) = problem.as_ref().filter(|p| connected.problem.as_ref() != Some(p)) {
                    tracing::warn!(
                        cluster = cluster.name_any(),
                        problem,
                        "its new settings do not work; connections that stand are used on"
                    );
                }
                connected.problem = problem;
            }
        }
        self.unread = failed;
    }

    /// What is to be said of the settings of those that are connected, by the cluster's name.
    pub(crate) fn settings(&self, clusters: &[DynamicObject]) -> Settings {
        let of = |cluster: &DynamicObject| {
            let connected = self.backends.get(&cluster.uid().unwrap_or_default())?;
            Some((cluster.name_any(), connected.problem.clone()))
        };
        clusters.iter().filter_map(of).collect()
    }

    async fn options(&self, spec: &Spec) -> Result<EtcdOptions> {
        let secret = match secret_name(spec, &self.namespace) {
            Some(name) => Some(self.secret(&name).await?),
            None => None,
        };
        let entry = |key: &str| Some(secret.as_ref()?.get(key)?.0.clone());
        Ok(EtcdOptions {
            endpoints: spec.endpoints.clone(),
            ca_pem: entry("ca.crt"),
            cert_pem: entry("tls.crt"),
            key_pem: entry("tls.key"),
            prefix: spec.prefix.clone(),
            ..EtcdOptions::default()
        })
    }

    async fn secret(&self, (namespace, name): &SecretName) -> Result<BTreeMap<String, ByteString>> {
        let secret = Api::<Secret>::namespaced(self.client.clone(), namespace)
            .get(name)
            .await
            .map_err(|error| anyhow!("Secret {namespace}/{name} cannot be read: {}", said(&error)))?;
        Ok(secret.data.unwrap_or_default())
    }
}

impl SecretWatches {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            events: StreamMap::new(),
        }
    }

    /// Watches these, and no others any more.
    pub(crate) fn set(&mut self, named: BTreeSet<SecretName>) {
        let is_gone = |secret: &&SecretName| !named.contains(*secret);
        let gone: Vec<SecretName> = self.events.keys().filter(is_gone).cloned().collect();
        for secret in gone {
            drop(self.events.remove(&secret));
        }
        for secret in named {
            if self.events.contains_key(&secret) {
                continue;
            }
            let (namespace, name) = &secret;
            // Without its content: that is read when it has changed.
            let api = Api::<PartialObjectMeta<Secret>>::namespaced(self.client.clone(), namespace);
            let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
            let events = watch_objects(api, config).default_backoff().boxed();
            self.events.insert(secret, events);
        }
    }

    /// Waits until one has changed, or may have.
    pub(crate) async fn changed(&mut self) -> SecretName {
        loop {
            match self.events.next().await {
                // What it begins with is told next.
                Some((_, Ok(Event::Init))) => {}
                Some((secret, Ok(_))) => return secret,
                Some((secret, Err(error))) => {
                    tracing::debug!(?secret, %error, "the watch of a Secret is opened again");
                    return secret;
                }
                None => return future::pending().await,
            }
        }
    }
}

/// The new settings, and new connections with them: what etcd refuses is to be noticed now.
async fn take(backend: &EtcdBackend, options: &EtcdOptions) -> Result<()> {
    backend.reconfigure(options)?;
    backend
        .renew()
        .await
        .context("no connection can be made with its newest settings")
}

fn spec_of(cluster: &DynamicObject) -> Result<Spec> {
    let spec = cluster.data.get("spec").cloned().unwrap_or_default();
    serde_json::from_value(spec).context("its spec cannot be read")
}

fn secret_name(spec: &Spec, own: &str) -> Option<SecretName> {
    let SecretRef { name, namespace } = spec.secret_ref.as_ref()?;
    let namespace = match namespace.as_str() {
        "" => own,
        namespace => namespace,
    };
    Some((namespace.to_owned(), name.clone()))
}
