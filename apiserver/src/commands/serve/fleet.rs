//! Who belongs to the fleet, as the control plane keeps it: one ConfigMap in the server's namespace, changed by
//! compare-and-swap. It does not know what a decision means (`storage::membership`) nor who makes it (`clusters`).

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use outrigger_storage::membership::{Membership, MembershipError};
use std::collections::BTreeMap;

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
        let text = object
            .as_ref()
            .and_then(|o| o.data.as_ref())
            .and_then(|d| d.get(KEY));
        let membership = match (text, &object) {
            (Some(text), _) => serde_json::from_str(text)
                .with_context(|| format!("ConfigMap {NAME}, key {KEY}: it is no membership"))?,
            (None, None) => Membership::default(),
            // Beginning anew would give slots away that objects carry in their resource versions.
            (None, Some(_)) => bail!("ConfigMap {NAME} has no key {KEY}: somebody emptied it; restore it"),
        };
        Ok(Read { membership, object })
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
