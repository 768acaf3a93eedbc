//! Placement: which cluster a namespace goes to, decided once and by everybody alike.
//!
//! `NamespacePlacement/<namespace>` in the system store decides: its atomic create is what makes two replicas agree. A
//! claim then goes three steps, each of which can be repeated by anybody:
//!
//! ```text
//! owner key Claiming on the backend ─▶ placement.status.owner (compare and swap) ─▶ owner key Active
//! ```
//!
//! Once status.owner is there, a missing owner key means that the backend was wiped: that is an error, and never a
//! reason for a fresh claim.

use super::object_meta::{metadata, rfc3339, text};
use super::{Unstructured, new_uid};
use crate::status::{ApiError, GroupResource};
use outrigger_storage::federated::{Claim, ClusterStatus, OwnerState, WallClock};
use outrigger_storage::key::Domain;
use outrigger_storage::placement::{Candidate, choose};
use outrigger_storage::{Error, FederatedStore, Key, Object, Resource, SealedObject};
use parking_lot::Mutex;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use std::time::Duration;

const GROUP: &str = "outrigger.dev";
const API_VERSION: &str = "outrigger.dev/v1alpha1";
const PLURAL: &str = "namespaceplacements";
const KIND: &str = "NamespacePlacement";
const RESOURCE: GroupResource<'static> = GroupResource {
    group: GROUP,
    resource: PLURAL,
};
/// How often a claimed namespace is looked for before its owner key counts as lost: the routing follows by a watch.
const OWNER_SIGHTINGS_MAX: u32 = 6;
/// The first pause between two looks; each is twice the one before.
const OWNER_PAUSE: Duration = Duration::from_millis(10);
/// How soon a client should come back, in seconds.
const RETRY_AFTER_SECONDS: u32 = 5;

/// Decides and claims.
pub(super) struct Placement {
    system: FederatedStore,
    workload: FederatedStore,
    wall_clock: WallClock,
    rng: Mutex<StdRng>,
}

impl Placement {
    pub(super) fn new(
        system: FederatedStore,
        workload: FederatedStore,
        wall_clock: WallClock,
        seed: u64,
    ) -> Self {
        // Not the registry's own sequence, so that uids do not repeat between the two.
        let rng = Mutex::new(StdRng::seed_from_u64(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)));
        Self {
            system,
            workload,
            wall_clock,
            rng,
        }
    }

    /// Brings a domain without owner one step or all steps further towards having one. The caller tries its write again
    /// afterwards; `attempt` counts these.
    ///
    /// # Errors
    /// 503 when the cluster does not answer, when there is none, or when an owner key is missing that should be there.
    pub(super) async fn place(&self, domain: &Domain, uid: &str, attempt: u32) -> Result<(), ApiError> {
        let placement = match self.read(domain).await? {
            Some(placement) => placement,
            None => match self.decide(domain, uid).await? {
                Some(placement) => placement,
                // Another replica decided in between: the next attempt follows it.
                None => return Ok(()),
            },
        };
        let value = placement.to_value().map_err(internal)?;
        let cluster = self.cluster(domain, spec(&value, "cluster"))?;
        let placed_uid = spec(&value, "namespaceUID");
        if !uid.is_empty() && !placed_uid.is_empty() && placed_uid != uid {
            let message = format!(
                "{} is still being removed from cluster {:?} after its deletion",
                domain.placement_name(),
                cluster.name
            );
            return Err(ApiError::service_unavailable(message, RETRY_AFTER_SECONDS));
        }
        let owner = value
            .get("status")
            .and_then(|s| s.get("owner"))
            .filter(|o| !o.is_null());
        let confirmed = owner.is_some();
        let generation = owner.and_then(|o| o.get("generation")).and_then(Value::as_u64);
        let generation = generation.unwrap_or_else(|| placement.resource_version().get());
        if confirmed
            && self
                .workload
                .owner(domain)
                .is_none_or(|o| o.state != OwnerState::Claiming)
        {
            return self.wait_for_owner(domain, &cluster.name, attempt).await;
        }
        let claim = Claim {
            domain: domain.clone(),
            uid: uid.to_owned(),
            generation,
            slot: cluster.slot,
        };
        self.claim(&claim, &cluster.name, &placement, value, confirmed)
            .await
    }

    /// The three steps. Whoever is faster wins; the loser follows with its next attempt.
    async fn claim(
        &self,
        claim: &Claim,
        cluster: &str,
        placement: &Object,
        value: Unstructured,
        confirmed: bool,
    ) -> Result<(), ApiError> {
        let begun = match confirmed {
            true => self.workload.resume_claim(claim).await,
            false => self.workload.begin_claim(claim).await,
        };
        let claiming = match begun {
            Err(Error::Conflict(_)) => return Ok(()),
            other => other.map_err(about)?,
        };
        if !confirmed {
            let sealed = seal(with_owner(value, claim, cluster))?;
            match self.system.update(placement, &sealed).await {
                Ok(_) => {}
                Err(Error::Conflict(_)) => return Ok(()),
                Err(error) => return Err(about(error)),
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
        let Some(placement) = self.read(domain).await? else {
            return Ok(());
        };
        let value = placement.to_value().map_err(internal)?;
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

    async fn read(&self, domain: &Domain) -> Result<Option<Object>, ApiError> {
        match self.system.get(&key(domain)).await {
            Ok(placement) => Ok(Some(placement)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(about(error)),
        }
    }

    /// Chooses a cluster and writes it down. `None`: somebody else did.
    async fn decide(&self, domain: &Domain, uid: &str) -> Result<Option<Object>, ApiError> {
        let clusters = self.workload.clusters();
        let candidates: Vec<Candidate<'_>> = clusters
            .iter()
            .filter(|c| c.reachable)
            .map(|c| Candidate {
                name: &c.name,
                weight: 1,
                load: c.namespaces,
            })
            .collect();
        let Some(cluster) = choose(domain, uid, &candidates) else {
            let message = format!(
                "no cluster can take {}: none of {} can be reached",
                domain.placement_name(),
                clusters.len()
            );
            return Err(ApiError::service_unavailable(message, RETRY_AFTER_SECONDS));
        };
        let value = json!({
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {
                "name": domain.placement_name(),
                "uid": new_uid(&mut *self.rng.lock()),
                "creationTimestamp": rfc3339(self.now()),
                "generation": 1,
            },
            "spec": {"cluster": cluster, "namespaceUID": uid},
        });
        let Value::Object(value) = value else {
            return Err(ApiError::internal("a placement is an object"));
        };
        match self.system.create(&key(domain), &seal(value)?).await {
            Ok(placement) => {
                tracing::info!(domain = domain.placement_name(), cluster, "placed");
                Ok(Some(placement))
            }
            Err(Error::AlreadyExists(_)) => Ok(None),
            Err(error) => Err(about(error)),
        }
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

    fn now(&self) -> i64 {
        i64::try_from((self.wall_clock)()).unwrap_or(i64::MAX)
    }
}

fn key(domain: &Domain) -> Key {
    Key::new(Resource::new(GROUP, PLURAL), "", &domain.placement_name())
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

fn seal(value: Unstructured) -> Result<SealedObject, ApiError> {
    debug_assert!(!text(&value, "uid").is_empty() && !metadata(&value).is_empty());
    SealedObject::seal(&value, 0).map_err(ApiError::internal)
}

fn about(error: Error) -> ApiError {
    ApiError::from_storage(error, RESOURCE, "")
}

fn internal(error: Error) -> ApiError {
    ApiError::internal(error)
}
