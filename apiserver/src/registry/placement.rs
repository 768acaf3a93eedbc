//! Placement: which cluster a namespace goes to, decided once and by everybody alike.
//!
//! `NamespacePlacement/<namespace>` in the control plane decides: its atomic create is what makes two replicas agree. A
//! claim then goes three steps, each of which can be repeated by anybody:
//!
//! ```text
//! owner key Claiming on the backend ─▶ placement.status.owner (compare and swap) ─▶ owner key Active
//! ```
//!
//! Once status.owner is there, a missing owner key means that the backend was wiped: that is an error, and never a
//! reason for a fresh claim.

use super::Unstructured;
use super::control_plane::{ControlPlane, PLACEMENT_API_VERSION, PLACEMENTS};
use super::object_meta::text;
use super::read::is_terminating;
use crate::status::ApiError;
use outrigger_storage::federated::{Claim, ClusterStatus, OwnerState};
use outrigger_storage::key::Domain;
use outrigger_storage::membership::MemberState;
use outrigger_storage::placement::{Candidate, choose};
use outrigger_storage::{Error, FederatedStore};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How often a claimed namespace is looked for before its owner key counts as lost: the routing follows by a watch.
const OWNER_SIGHTINGS_MAX: u32 = 6;
/// The first pause between two looks; each is twice the one before.
const OWNER_PAUSE: Duration = Duration::from_millis(10);
/// How soon a client should come back, in seconds.
const RETRY_AFTER_SECONDS: u32 = 5;

/// Decides and claims.
pub(super) struct Placement {
    control_plane: Arc<dyn ControlPlane>,
    workload: FederatedStore,
}

/// What became of a placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placed {
    /// The write may work now.
    TryAgain,
    /// The namespace went while the request was under way.
    Gone,
}

impl Placement {
    pub(super) fn new(control_plane: Arc<dyn ControlPlane>, workload: FederatedStore) -> Self {
        Self {
            control_plane,
            workload,
        }
    }

    /// Brings a domain without owner one step or all steps further towards having one. The caller tries its write again
    /// afterwards; `attempt` counts these.
    ///
    /// # Errors
    /// 503 when the cluster does not answer, when there is none, or when an owner key is missing that should be there.
    pub(super) async fn place(&self, domain: &Domain, uid: &str, attempt: u32) -> Result<Placed, ApiError> {
        let value = match self.control_plane.placement(&domain.placement_name()).await? {
            Some(placement) => placement,
            None => match self.decide(domain, uid).await? {
                Some(placement) => placement,
                // Another replica decided in between: the next attempt follows it.
                None => return Ok(Placed::TryAgain),
            },
        };
        // An administrator who places a namespace beforehand does not know its uid.
        let placed_uid = match spec(&value, "namespaceUID") {
            "" => uid.to_owned(),
            placed => placed.to_owned(),
        };
        let owner = value
            .get("status")
            .and_then(|s| s.get("owner"))
            .filter(|o| !o.is_null());
        let confirmed = owner.is_some();
        if !confirmed && self.give_up_if_gone(domain, &placed_uid, &value).await? {
            return Ok(match placed_uid == uid {
                true => Placed::Gone,
                false => Placed::TryAgain,
            });
        }
        let cluster = self.cluster(domain, spec(&value, "cluster"))?;
        if !confirmed && self.give_up_if_it_leaves(domain, &cluster, &value).await? {
            return Ok(Placed::TryAgain);
        }
        if placed_uid != uid {
            let message = format!(
                "{} is still being removed from cluster {:?} after its deletion",
                domain.placement_name(),
                cluster.name
            );
            return Err(ApiError::service_unavailable(message, RETRY_AFTER_SECONDS));
        }
        let generation = owner.and_then(|o| o.get("generation")).and_then(Value::as_u64);
        let generation = match generation {
            Some(generation) => generation,
            None => resource_version(&value)?,
        };
        if confirmed
            && self
                .workload
                .owner(domain)
                .is_none_or(|o| o.state != OwnerState::Claiming)
        {
            self.wait_for_owner(domain, &cluster.name, attempt).await?;
            return Ok(Placed::TryAgain);
        }
        let claim = Claim {
            domain: domain.clone(),
            uid: uid.to_owned(),
            generation,
            slot: cluster.slot,
        };
        // Its cluster takes no claims any more, and holds this one.
        let has_begun = cluster.membership != Some(MemberState::Active)
            && self
                .workload
                .owner(domain)
                .is_some_and(|owner| owner.slot == cluster.slot);
        self.claim(&claim, &cluster.name, value, confirmed, has_begun)
            .await?;
        Ok(Placed::TryAgain)
    }

    /// The three steps. Whoever is faster wins; the loser follows with its next attempt.
    async fn claim(
        &self,
        claim: &Claim,
        cluster: &str,
        placement: Unstructured,
        confirmed: bool,
        has_begun: bool,
    ) -> Result<(), ApiError> {
        let begun = match confirmed || has_begun {
            true => self.workload.resume_claim(claim).await,
            false => self.workload.begin_claim(claim).await,
        };
        let claiming = match begun {
            Err(Error::Conflict(_)) => return Ok(()),
            other => other.map_err(about)?,
        };
        if !confirmed {
            let confirmed = with_owner(placement, claim, cluster);
            if !self.control_plane.update_placement_status(confirmed).await? {
                return Ok(());
            }
        }
        match self.workload.activate(&claiming).await {
            Ok(()) | Err(Error::Conflict(_)) => Ok(()),
            Err(error) => Err(about(error)),
        }
    }

    /// The domain has no owner as far as the reachable backends can tell: is that the truth?
    ///
    /// # Errors
    /// 503 when a placement says that somebody owns it.
    pub(super) async fn check_nobody_owns(
        &self,
        domain: &Domain,
        missing: &[String],
    ) -> Result<(), ApiError> {
        let Some(value) = self.control_plane.placement(&domain.placement_name()).await? else {
            return Ok(());
        };
        let cluster = spec(&value, "cluster");
        let cause = if missing.iter().any(|m| m == cluster) {
            "it cannot be reached"
        } else {
            "its owner key has not been seen yet"
        };
        let message = format!(
            "{} is placed on cluster {cluster:?}: {cause}",
            domain.placement_name()
        );
        Err(ApiError::service_unavailable(message, RETRY_AFTER_SECONDS))
    }

    /// A decision for a cluster that has begun to leave before the claim: it takes none any more, so the decision is made
    /// anew. A claim that was begun there before is finished; what an administrator has decided stays.
    async fn give_up_if_it_leaves(
        &self,
        domain: &Domain,
        cluster: &ClusterStatus,
        placement: &Unstructured,
    ) -> Result<bool, ApiError> {
        let leaves = matches!(
            cluster.membership,
            Some(MemberState::Leaving | MemberState::Removed { .. })
        );
        let has_begun = self
            .workload
            .owner(domain)
            .is_some_and(|owner| owner.slot == cluster.slot);
        if !leaves || has_begun {
            return Ok(false);
        }
        if spec(placement, "namespaceUID").is_empty() {
            let message = format!(
                "{} is placed on cluster {:?}, which takes no namespaces because it leaves the fleet",
                domain.placement_name(),
                cluster.name
            );
            return Err(ApiError::service_unavailable(message, RETRY_AFTER_SECONDS));
        }
        self.control_plane.delete_placement(placement).await?;
        Ok(true)
    }

    /// Chooses a cluster and writes it down. `None`: somebody else did.
    async fn decide(&self, domain: &Domain, uid: &str) -> Result<Option<Unstructured>, ApiError> {
        let clusters = self.workload.clusters();
        let candidates: Vec<Candidate<'_>> = clusters
            .iter()
            .filter(|c| c.reachable && c.open && c.membership == Some(MemberState::Active))
            .map(|c| Candidate {
                name: &c.name,
                weight: 1,
                load: c.namespaces,
            })
            .collect();
        if !self.workload.has_members() {
            return Err(about(Error::NoMembers));
        }
        let Some(cluster) = choose(domain, uid, &candidates) else {
            let message = format!(
                "no cluster can take {}: none of {} takes namespaces and can be reached",
                domain.placement_name(),
                clusters.len()
            );
            return Err(ApiError::service_unavailable(message, RETRY_AFTER_SECONDS));
        };
        let value = json!({
            "apiVersion": PLACEMENT_API_VERSION,
            "kind": "NamespacePlacement",
            "metadata": {"name": domain.placement_name()},
            "spec": {"cluster": cluster, "namespaceUID": uid},
        });
        let Value::Object(value) = value else {
            return Err(ApiError::internal("a placement is an object"));
        };
        let placement = self.control_plane.create_placement(value).await?;
        if placement.is_some() {
            tracing::info!(domain = domain.placement_name(), cluster, "placed");
        }
        Ok(placement)
    }

    /// A namespace that went before its placement was made is emptied by nobody any more: then the placement goes too. If
    /// it goes later, its deletion finds the placement and takes it away, and the claim with it.
    async fn give_up_if_gone(
        &self,
        domain: &Domain,
        uid: &str,
        placement: &Unstructured,
    ) -> Result<bool, ApiError> {
        let Domain::Namespace(name) = domain else {
            return Ok(false);
        };
        let namespace = self.control_plane.current_namespace(name).await?;
        let lives = |namespace: &Unstructured| text(namespace, "uid") == uid && !is_terminating(namespace);
        if namespace.as_ref().is_some_and(lives) {
            return Ok(false);
        }
        self.control_plane.delete_placement(placement).await?;
        tracing::info!(domain = domain.placement_name(), "not placed: it is gone");
        Ok(true)
    }

    fn cluster(&self, domain: &Domain, name: &str) -> Result<ClusterStatus, ApiError> {
        let cluster = self.workload.clusters().into_iter().find(|c| c.name == name);
        cluster.ok_or_else(|| {
            let message = format!(
                "{} is placed on cluster {name:?}, which this server does not know",
                domain.placement_name()
            );
            ApiError::service_unavailable(message, RETRY_AFTER_SECONDS)
        })
    }

    async fn wait_for_owner(&self, domain: &Domain, cluster: &str, attempt: u32) -> Result<(), ApiError> {
        if attempt >= OWNER_SIGHTINGS_MAX {
            let message = format!(
                "{} is placed on cluster {cluster:?}, and that cluster does not know of it: its etcd may have been wiped or restored",
                domain.placement_name()
            );
            return Err(ApiError::service_unavailable(message, RETRY_AFTER_SECONDS));
        }
        tokio::time::sleep(OWNER_PAUSE * 2_u32.saturating_pow(attempt)).await;
        Ok(())
    }
}

/// What a generation is made of: it never restarts, however often a placement is made anew.
fn resource_version(placement: &Unstructured) -> Result<u64, ApiError> {
    let version = text(placement, "resourceVersion");
    version.parse().map_err(|_| {
        ApiError::internal(format!(
            "the resourceVersion {version:?} of a placement is no number"
        ))
    })
}

fn spec<'a>(value: &'a Unstructured, field: &str) -> &'a str {
    value
        .get("spec")
        .and_then(|s| s.get(field))
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn with_owner(mut value: Unstructured, claim: &Claim, cluster: &str) -> Unstructured {
    let mut status = value
        .get("status")
        .cloned()
        .filter(Value::is_object)
        .unwrap_or_else(|| json!({}));
    status["owner"] = json!({
        "cluster": cluster, "slot": claim.slot.0, "generation": claim.generation, "uid": claim.uid, "state": "Active",
    });
    value.insert("status".to_owned(), status);
    value
}

fn about(error: Error) -> ApiError {
    ApiError::from_storage(error, PLACEMENTS, "")
}
