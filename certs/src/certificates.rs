//! The door: where certificates come from, one future that keeps them good, and two published values, the serving
//! certificate and the bundle.
//!
//! Everything reloads by publishing: handshakes take the newest certificate, connections keep what they have.

use crate::bundle::CaBundle;
use crate::external::{External, Place};
use crate::issue::{LeafRequest, Usage};
use crate::rotation::RotationPolicy;
use crate::serving::ServingCertificate;
use crate::shared::SharedAuthority;
use crate::{Error, UnixSeconds};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rustls::crypto::CryptoProvider;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How often files are looked at.
const FILES_EVERY: Duration = Duration::from_secs(10);
/// How soon a step that failed is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// It is looked at no later than that, whatever clocks do.
const LOOK_SECONDS_MAX: i64 = 3600;
/// Others' changes of the Secret are taken at most so often.
const CHANGES_EVERY: Duration = Duration::from_millis(200);

/// Wall time, handed in.
pub type UnixClock = Arc<dyn Fn() -> UnixSeconds + Send + Sync>;

/// The bundles, as PEM, that clients are known to use now: those in our APIServices. `None`: not known yet. An empty
/// list: nobody connects.
pub type Carried = Option<Arc<Vec<String>>>;

/// The same, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CarriedBundles(Option<Vec<CaBundle>>);

impl CarriedBundles {
    /// A bundle that cannot be read trusts nobody.
    pub(crate) fn new(carried: &Carried) -> Self {
        let parse = |pem: &String| CaBundle::from_pem(pem, "caBundle").unwrap_or_default();
        Self(
            carried
                .as_ref()
                .map(|bundles| bundles.iter().map(parse).collect()),
        )
    }

    /// Whether each of them is known to hold these certificates.
    pub(crate) fn all_hold(&self, bundle: &CaBundle) -> bool {
        match &self.0 {
            None => false,
            Some(bundles) => bundles.iter().all(|carried| carried.holds(bundle)),
        }
    }
}

/// Where the serving certificate comes from.
pub enum CertificateSource {
    /// An authority of our own in this Secret, which all replicas share; each issues its own certificate from it.
    SharedAuthority {
        /// A client that may get, create, update and watch the Secret.
        client: Client,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// When things are renewed.
        policy: RotationPolicy,
    },
    /// Files that somebody else renews, for instance a mounted Secret.
    Files {
        /// The certificate and what is between it and the authority.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
        /// The authority.
        ca: PathBuf,
    },
    /// A Secret with `tls.crt`, `tls.key` and `ca.crt`, as cert-manager keeps it.
    Secret {
        /// A client that may get and watch the Secret.
        client: Client,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
}

/// What [`Certificates::start`] needs.
pub struct CertificatesConfig {
    /// Where the certificate comes from.
    pub source: CertificateSource,
    /// The Service through which clients come.
    pub service: String,
    /// Its namespace.
    pub service_namespace: String,
    /// More names and addresses of the server.
    pub extra_names: Vec<String>,
    /// The bundles that clients carry. A new authority signs only when all of them hold it.
    pub carried: watch::Receiver<Carried>,
    /// Wall time.
    pub clock: UnixClock,
    /// The provider of the TLS server.
    pub provider: Arc<CryptoProvider>,
}

/// A certificate that is kept good for as long as `run` is polled.
pub struct Certificates {
    /// The certificate resolver of the TLS server.
    pub serving: Arc<ServingCertificate>,
    /// Whom clients must trust.
    pub bundle: watch::Receiver<Arc<CaBundle>>,
    /// Renews both. Never ends.
    pub run: BoxFuture<'static, ()>,
}

impl std::fmt::Debug for Certificates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificates").finish_non_exhaustive()
    }
}

impl Certificates {
    /// Reads or makes the first certificate.
    ///
    /// # Errors
    /// When there is none to be had. Starting again later may help: the error says who must act.
    pub async fn start(config: CertificatesConfig) -> Result<Self, Error> {
        let request = LeafRequest::serving(&config.service, &config.service_namespace, &config.extra_names);
        let CertificatesConfig {
            source,
            carried,
            clock,
            provider,
            ..
        } = config;
        let mut keeper = Keeper::new(source, request, carried, clock);
        let first = keeper.step().await?;
        let Some(leaf) = first.leaf else {
            return Err(Error::malformed("certificate", "there is none at the start"));
        };
        let serving = Arc::new(ServingCertificate::new(&leaf, provider)?);
        let (sender, bundle) = watch::channel(Arc::new(first.bundle));
        let run = keep(keeper, Arc::clone(&serving), sender, first.wait).boxed();
        Ok(Self { serving, bundle, run })
    }
}

impl LeafRequest {
    /// A server behind a Service: the names by which the aggregator and others in the cluster call it.
    #[must_use]
    pub fn serving(service: &str, namespace: &str, extra_names: &[String]) -> Self {
        let name = format!("{service}.{namespace}.svc");
        let mut names = vec![name.clone(), format!("{name}.cluster.local")];
        names.extend(extra_names.iter().filter(|n| !n.is_empty()).cloned());
        names.sort();
        names.dedup();
        Self {
            // A common name has at most 64 characters; nobody looks at it.
            common_name: "outrigger".to_owned(),
            organization: None,
            names,
            usage: Usage::Server,
            days: RotationPolicy::default().leaf_days,
        }
    }
}

/// What keeps the certificate good, and what tells it of changes.
struct Keeper {
    work: Work,
    /// The Secret to watch.
    watched: Option<(Api<Secret>, String)>,
    carried: watch::Receiver<Carried>,
    clock: UnixClock,
}

enum Work {
    Shared(Box<SharedAuthority>),
    External(Place, External),
}

struct Outcome {
    bundle: CaBundle,
    leaf: Option<crate::Issued>,
    wait: Duration,
}

impl Keeper {
    fn new(
        source: CertificateSource,
        mut request: LeafRequest,
        carried: watch::Receiver<Carried>,
        clock: UnixClock,
    ) -> Self {
        let watch = |client: &Client, namespace: &str, name: &str| {
            Some((Api::namespaced(client.clone(), namespace), name.to_owned()))
        };
        let (work, watched) = match source {
            CertificateSource::SharedAuthority {
                client,
                namespace,
                name,
                policy,
            } => {
                request.days = policy.leaf_days;
                let watched = watch(&client, &namespace, &name);
                let (carried, clock) = (carried.clone(), Arc::clone(&clock));
                let shared = SharedAuthority::new(client, &namespace, &name, request, policy, carried, clock);
                (Work::Shared(Box::new(shared)), watched)
            }
            CertificateSource::Files { certificate, key, ca } => {
                let place = Place::Files { certificate, key, ca };
                (Work::External(place, External::default()), None)
            }
            CertificateSource::Secret {
                client,
                namespace,
                name,
            } => {
                let watched = watch(&client, &namespace, &name);
                let place = Place::secret(client, &namespace, &name);
                (Work::External(place, External::default()), watched)
            }
        };
        Self {
            work,
            watched,
            carried,
            clock,
        }
    }

    async fn step(&mut self) -> Result<Outcome, Error> {
        match &mut self.work {
            Work::Shared(shared) => {
                let step = shared.step().await?;
                let seconds = step
                    .look_at
                    .saturating_sub((self.clock)())
                    .clamp(1, LOOK_SECONDS_MAX);
                Ok(Outcome {
                    bundle: step.bundle,
                    leaf: step.leaf,
                    wait: Duration::from_secs(seconds.unsigned_abs()),
                })
            }
            Work::External(place, external) => {
                let seen = place.read().await?;
                let taken =
                    external.take(seen, &CarriedBundles::new(&self.carried.borrow()), (self.clock)())?;
                if taken.is_waiting {
                    tracing::info!(
                        "a certificate with a new authority waits until every APIService trusts it"
                    );
                }
                Ok(Outcome {
                    bundle: taken.bundle,
                    leaf: taken.leaf,
                    wait: FILES_EVERY,
                })
            }
        }
    }
}

/// Takes steps when something changed or is due, and publishes what they give. The bundle goes first.
async fn keep(
    mut keeper: Keeper,
    serving: Arc<ServingCertificate>,
    bundle: watch::Sender<Arc<CaBundle>>,
    mut wait: Duration,
) {
    let mut changes = match &keeper.watched {
        None => futures::stream::pending().boxed(),
        Some((secrets, name)) => {
            let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
            let events = watcher(secrets.clone(), config).default_backoff();
            events
                .filter_map(async |event| match event {
                    Ok(_) => Some(()),
                    Err(error) => {
                        tracing::debug!(%error, "the Secret cannot be watched, trying again");
                        None
                    }
                })
                .boxed()
        }
    };
    let mut carried = keeper.carried.clone();
    let mut problem = String::new();
    loop {
        let carried_changed = async {
            if carried.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            Some(()) = changes.next() => tokio::time::sleep(CHANGES_EVERY).await,
            () = carried_changed => {}
        }
        let result = match keeper.step().await {
            Ok(outcome) => {
                wait = outcome.wait;
                bundle.send_if_modified(|known| {
                    let is_new = **known != outcome.bundle;
                    if is_new {
                        *known = Arc::new(outcome.bundle);
                    }
                    is_new
                });
                outcome.leaf.map_or(Ok(()), |leaf| serving.publish(&leaf))
            }
            Err(error) => Err(error),
        };
        match result {
            Ok(()) => problem.clear(),
            Err(error) => {
                wait = RETRY;
                // Said once: it is tried again all the time.
                let said = error.to_string();
                if said != problem {
                    tracing::warn!(%error, "certificates cannot be looked after; what is served stays");
                    problem = said;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;

    #[test]
    fn the_aggregator_finds_its_name() {
        let extra = ["127.0.0.1".to_owned(), String::new(), "a.b.svc".to_owned()];
        let request = LeafRequest::serving("a", "b", &extra);
        assert_eq!(request.names, ["127.0.0.1", "a.b.svc", "a.b.svc.cluster.local"]);
    }

    #[test]
    fn an_unreadable_bundle_trusts_nobody() {
        let ca = Authority::create("a", 1_800_000_000).expect("created");
        let bundle = CaBundle::from_pem(ca.certificate_pem(), "a").expect("ours");
        let check = |carried: Option<&[&str]>, expect: bool| {
            let carried = carried.map(|c| Arc::new(c.iter().map(|pem| (*pem).to_owned()).collect()));
            assert_eq!(
                CarriedBundles::new(&carried).all_hold(&bundle),
                expect,
                "{carried:?}"
            );
        };
        check(None, false);
        check(Some(&[]), true);
        check(Some(&[ca.certificate_pem()]), true);
        check(Some(&[ca.certificate_pem(), "nonsense"]), false);
    }
}
