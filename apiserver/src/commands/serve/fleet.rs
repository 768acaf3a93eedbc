//! Who belongs to the fleet, as the control plane keeps it: one ConfigMap in the server's namespace, changed by
//! compare-and-swap. It does not know what a decision means (`storage::membership`) nor who makes it (`clusters`).

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use outrigger_storage::FederatedStore;
use outrigger_storage::membership::{Membership, MembershipError};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// The ConfigMap, and the key in it.
pub(crate) const NAME: &str = "outrigger-fleet";
const KEY: &str = "membership.json";
/// Tries of a decision that meets the decision of another replica.
const TRIES_MAX: usize = 10;

/// The ConfigMap.
#[derive(Clone)]
pub(crate) struct FleetObject {
    api: Api<ConfigMap>,
}

/// It, as it was read.
pub(crate) struct Read {
    /// Who belongs to the fleet.
    pub(crate) membership: Membership,
    object: Option<ConfigMap>,
}

impl FleetObject {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
        }
    }

    pub(crate) async fn read(&self) -> Result<Read> {
        let object = self.api.get_opt(NAME).await?;
        let membership = object.as_ref().map(membership_in).transpose()?;
        Ok(Read {
            membership: membership.unwrap_or_default(),
            object,
        })
    }

    /// Makes a decision, if there is one to make, on the newest membership; returns what counts then.
    pub(crate) async fn decide(
        &self,
        decision: impl Fn(&Membership) -> Result<Option<Membership>, MembershipError>,
    ) -> Result<Membership> {
        for _ in 0..TRIES_MAX {
            let Read { membership, object } = self.read().await?;
            let Some(next) = decision(&membership)? else {
                return Ok(membership);
            };
            let data = BTreeMap::from([(KEY.to_owned(), serde_json::to_string(&next)?)]);
            let written = match object {
                None => {
                    let new = ConfigMap {
                        metadata: ObjectMeta {
                            name: Some(NAME.to_owned()),
                            ..ObjectMeta::default()
                        },
                        data: Some(data),
                        ..ConfigMap::default()
                    };
                    self.api.create(&PostParams::default(), &new).await
                }
                // Its resourceVersion goes with it: another decision in between is a conflict.
                Some(mut current) => {
                    current.data = Some(data);
                    self.api.replace(NAME, &PostParams::default(), &current).await
                }
            };
            match written {
                Ok(_) => return Ok(next),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error).context(format!("ConfigMap {NAME} cannot be written")),
            }
        }
        bail!("ConfigMap {NAME}: others decided {TRIES_MAX} times in between")
    }
}

fn membership_in(object: &ConfigMap) -> Result<Membership> {
    let text = object.data.as_ref().and_then(|data| data.get(KEY));
    // Beginning anew would give slots away that objects carry in their resource versions.
    let Some(text) = text else {
        bail!("ConfigMap {NAME} has no key {KEY}: somebody emptied it; restore it")
    };
    serde_json::from_str(text).with_context(|| format!("ConfigMap {NAME}, key {KEY}: it is no membership"))
}

/// Publishes every decision as soon as the control plane shows it, and hands it to the store. Never ends. Without a control
/// plane the store hears of decisions from the backends.
pub(crate) async fn follow(
    fleet: FleetObject,
    store: FederatedStore,
    decided: watch::Sender<Arc<Membership>>,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = std::pin::pin!(watcher(fleet.api, config).default_backoff());
    loop {
        let object = match events.next().await {
            Some(Ok(Event::Apply(object) | Event::InitApply(object))) => object,
            Some(Ok(Event::Init | Event::InitDone)) => continue,
            Some(Ok(Event::Delete(_))) => {
                tracing::error!(
                    "somebody deleted ConfigMap {NAME}: nobody can join or leave until it is restored"
                );
                continue;
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "the watch of ConfigMap {NAME} is opened again");
                continue;
            }
            None => return,
        };
        match membership_in(&object) {
            Ok(membership) => {
                // A decision names nobody whom this replica has to connect first: `clusters` does that, and hands it over again.
                drop(store.hand_over(membership.clone(), Vec::new()));
                decided.send_if_modified(|known| {
                    let is_news = known.generation < membership.generation;
                    if is_news {
                        *known = Arc::new(membership);
                    }
                    is_news
                });
            }
            Err(error) => tracing::error!(error = format!("{error:#}"), "the fleet's members cannot be read"),
        }
    }
}

/// What tells the fleets of two control planes apart: the uid of the namespace that every control plane has.
pub(crate) async fn uid(client: &Client) -> Result<String> {
    let namespace = Api::<Namespace>::all(client.clone())
        .get("kube-system")
        .await
        .context("the control plane cannot be asked for the namespace kube-system")?;
    namespace
        .metadata
        .uid
        .context("the namespace kube-system has no uid")
}
