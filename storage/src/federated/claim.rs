//! Owner keys change here: a claim (`Claiming`, then `Active`) and a release (`Frozen`, verified empty, removed).
//!
//! The placement decides, in two steps around its own compare-and-swap; this file only writes the fence.

use super::fleet::Fleet;
use super::joined::Joined;
use super::{Claim, Claiming, OwnerState, members, standing};
use crate::Error;
use crate::backend::{BackendError, Compare, Op, OpResponse, Range, Revision, Txn};
use crate::key::{self, Domain, prefix_end};
use crate::owners::{OwnerEntry, OwnerRecord};
use crate::placements::{Known, Placed};
use bytes::Bytes;
use std::sync::Arc;

/// Kinds that are looked at to see that a namespace is empty.
const KINDS_MAX: usize = 10_000;
/// How often a compare-and-swap of an owner key is tried when its answer is lost.
const SWAP_TRIES_MAX: usize = 5;
const CLOSED_TO_CLAIMS: &str = "it takes no namespaces now: it has not been opened yet, or it leaves";

impl Fleet {
    pub(crate) async fn begin_claim(&self, claim: &Claim) -> Result<Claiming, Error> {
        let joined = &self.member_for_claim(claim)?;
        let record = OwnerRecord {
            state: OwnerState::Claiming,
            generation: claim.generation,
            uid: claim.uid.clone(),
            earlier: Vec::new(),
        };
        for _ in 0..SWAP_TRIES_MAX {
            let (current, members) = self.read_owner_and_members(joined, &claim.domain).await?;
            let expected = match &current {
                None => 0,
                Some(entry)
                    if entry.record.uid == claim.uid && entry.record.generation == claim.generation =>
                {
                    return Ok(Claiming {
                        claim: claim.clone(),
                        revision: entry.revision,
                    });
                }
                // A claim that never got further; the newer decision of the placement counts.
                Some(entry)
                    if entry.record.state == OwnerState::Claiming
                        && entry.record.generation < claim.generation =>
                {
                    entry.revision
                }
                Some(_) => return Err(Error::Conflict(None)),
            };
            if let Some(revision) = self
                .swap_owner_guarded(joined, &claim.domain, expected, Some(&record), members)
                .await?
            {
                return Ok(Claiming {
                    claim: claim.clone(),
                    revision,
                });
            }
        }
        Err(Error::Conflict(None))
    }

    pub(crate) async fn resume_claim(&self, claim: &Claim) -> Result<Claiming, Error> {
        let joined = &self
            .by_slot(claim.slot)
            .ok_or_else(|| Error::Internal(format!("no member has slot {}", claim.slot.0)))?;
        match self.read_owner(joined, &claim.domain).await? {
            Some(entry) if entry.record.uid == claim.uid && entry.record.generation == claim.generation => {
                Ok(Claiming {
                    claim: claim.clone(),
                    revision: entry.revision,
                })
            }
            _ => Err(Error::Conflict(None)),
        }
    }

    pub(crate) async fn activate(&self, claiming: &Claiming) -> Result<(), Error> {
        let claim = &claiming.claim;
        let joined = &self
            .by_slot(claim.slot)
            .ok_or_else(|| Error::Internal(format!("no member has slot {}", claim.slot.0)))?;
        let record = OwnerRecord {
            state: OwnerState::Active,
            generation: claim.generation,
            uid: claim.uid.clone(),
            earlier: Vec::new(),
        };
        // Whoever owned the name before wrote below this round; what is written here is above it, even if this backend was
        // away when the name was given up (seed 905).
        let snapshot = self.rounds.snapshot().await?;
        snapshot.cut(joined)?;
        for _ in 0..SWAP_TRIES_MAX {
            let Some(current) = self.read_owner(joined, &claim.domain).await? else {
                return Err(Error::Conflict(None));
            };
            if current.record == record {
                return Ok(());
            }
            if current.revision != claiming.revision {
                return Err(Error::Conflict(None));
            }
            if self
                .swap_owner(joined, &claim.domain, claiming.revision, Some(&record))
                .await?
                .is_some()
            {
                return Ok(());
            }
        }
        Err(Error::Conflict(None))
    }

    pub(crate) async fn release(&self, domain: &Domain, uid: &str) -> Result<(), Error> {
        // The cluster of the placement, as it is now: what is known of it may be an earlier one, which says that it owns
        // nothing. Whoever else has a key of it has no right to it.
        let placed = match self.known(domain) {
            Known::Anywhere => None,
            Known::Unread | Known::Nowhere | Known::Placed(_) => {
                let asked = self.config.placements.ask(domain).await;
                asked.map_err(|_| standing::unsettled(domain))?
            }
        };
        // Otherwise a known owner is the only one, or every backend must say that it is none.
        let view = self.view();
        let mut away = view.absent.iter().chain(&view.given_up);
        let mut is_known = true;
        let owners: Vec<Arc<Joined>> = match placed {
            Some(placed) => vec![self.named(&placed)?],
            None => match (self.route_settled(domain).await?, away.next()) {
                (Some((owner, _)), _) => vec![owner],
                (None, None) if view.serving.is_empty() => return Err(Error::NoMembers),
                (None, Some(absent)) => return Err(absent.error()),
                (None, None) => {
                    is_known = false;
                    view.serving.clone()
                }
            },
        };
        for joined in &owners {
            self.release_on(joined, domain, uid).await?;
        }
        // Whoever claims the name next is above everything that this owner ever wrote. A backend that is away
        // now takes part in a round when it is claimed.
        let snapshot = self.rounds.snapshot().await?;
        let asked = |joined: &Arc<Joined>| owners.iter().any(|owner| Arc::ptr_eq(owner, joined));
        if !is_known && !snapshot.view.serving.iter().all(asked) {
            return Err(Error::Deadline("the members have changed meanwhile".to_owned()));
        }
        owners
            .iter()
            .try_for_each(|joined| snapshot.cut(joined).map(drop))
    }

    async fn release_on(&self, joined: &Arc<Joined>, domain: &Domain, uid: &str) -> Result<(), Error> {
        for _ in 0..SWAP_TRIES_MAX {
            let Some(current) = self.read_owner(joined, domain).await? else {
                return Ok(());
            };
            if current.record.uid != uid && current.record.state == OwnerState::Claiming {
                // A claim is written after its placement: if that stands, this is the namespace's next life (seed 616).
                let placed = self.config.placements.ask(domain).await;
                let placed = placed.map_err(|_| standing::unsettled(domain))?;
                let (cluster, slot) = (&joined.member.name, joined.slot());
                if placed.is_some_and(|placed| placed.owns(cluster, slot, current.record.generation)) {
                    return Ok(());
                }
                // An earlier claim that nobody has finished: nothing was ever written under it. Its claimer, if there still
                // is one, finds the key gone.
                match self.swap_owner(joined, domain, current.revision, None).await? {
                    Some(_) => return Ok(()),
                    None => continue,
                }
            }
            if current.record.uid != uid {
                return Err(Error::Conflict(None));
            }
            let frozen = OwnerRecord {
                state: OwnerState::Frozen,
                ..current.record.clone()
            };
            let revision = if current.record == frozen {
                current.revision
            } else {
                match self
                    .swap_owner(joined, domain, current.revision, Some(&frozen))
                    .await?
                {
                    Some(revision) => revision,
                    None => continue,
                }
            };
            if !self.is_empty(joined, domain).await? {
                // It stays frozen only while it is being emptied: writes that finish finalizers must get through.
                let active = OwnerRecord {
                    state: OwnerState::Active,
                    ..frozen
                };
                self.swap_owner(joined, domain, revision, Some(&active)).await?;
                return Err(Error::Conflict(None));
            }
            if self.swap_owner(joined, domain, revision, None).await?.is_some() {
                return Ok(());
            }
        }
        Err(Error::Conflict(None))
    }

    /// The backend of a claim, if it is open.
    fn member_for_claim(&self, claim: &Claim) -> Result<Arc<Joined>, Error> {
        let view = self.view();
        let joined = view.connection(claim.slot);
        let joined =
            joined.ok_or_else(|| Error::Internal(format!("no backend has slot {}", claim.slot.0)))?;
        view.check_not_away(joined)?;
        if !view.is_open(joined) {
            return Err(joined.unavailable(CLOSED_TO_CLAIMS));
        }
        Ok(joined.clone())
    }

    /// The owner key, and the revision of `members`, which says that claims are welcome: a claim compares it, so that
    /// none lands on a member that has begun to leave.
    async fn read_owner_and_members(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
    ) -> Result<(Option<OwnerEntry>, Option<Revision>), Error> {
        let reads = [Range::key(domain.owner_key()), Range::key(key::MEMBERS)];
        let answer = joined.call(Txn::read(reads)).await.map_err(|e| joined.error(e))?;
        let mut ranges = answer.responses.into_iter().map(OpResponse::into_range);
        let owner = joined.observe_owner(domain, &ranges.next().unwrap_or_default(), answer.revision)?;
        let members = ranges.next().and_then(|range| range.kvs.into_iter().next());
        if !self.decided {
            return Ok((owner, None));
        }
        match members {
            Some(kv) if members::welcomes_claims(joined, &kv.value) => Ok((owner, Some(kv.mod_revision))),
            _ => Err(joined.unavailable(CLOSED_TO_CLAIMS)),
        }
    }

    /// The cluster of a placement, if this replica is connected to it.
    fn named(&self, placed: &Placed) -> Result<Arc<Joined>, Error> {
        let view = self.view();
        let named = |joined: &&Arc<Joined>| placed.names(&joined.member.name, joined.slot());
        let joined = view.connections.iter().find(named);
        joined.cloned().ok_or_else(|| Error::Unavailable {
            cluster: placed.cluster.to_string(),
            cause: "this replica has no connection to it".to_owned(),
        })
    }

    pub(crate) async fn read_owner(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
    ) -> Result<Option<OwnerEntry>, Error> {
        let answer = joined
            .call(Txn::read([Range::key(domain.owner_key())]))
            .await
            .map_err(|e| joined.error(e))?;
        let revision = answer.revision;
        joined.observe_owner(domain, &answer.into_range(), revision)
    }

    /// Replaces (or, with `None`, removes) the owner key if its mod_revision is `expected`. `None`: it is not, or nobody
    /// knows: every caller reads again and recognises its own record.
    async fn swap_owner(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        expected: Revision,
        record: Option<&OwnerRecord>,
    ) -> Result<Option<Revision>, Error> {
        self.swap_owner_guarded(joined, domain, expected, record, None)
            .await
    }

    /// The same, which also compares the mod_revision of `members`.
    async fn swap_owner_guarded(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        expected: Revision,
        record: Option<&OwnerRecord>,
        members: Option<Revision>,
    ) -> Result<Option<Revision>, Error> {
        let owner_key = domain.owner_key();
        let op = match record {
            Some(record) => Op::Put {
                key: owner_key.clone(),
                value: record.encode(),
            },
            None => Op::Delete {
                key: owner_key.clone(),
            },
        };
        let txn = Txn {
            compare: std::iter::once(Compare::mod_revision(owner_key, expected))
                .chain(members.map(|revision| Compare::mod_revision(key::MEMBERS, revision)))
                .collect(),
            success: vec![op],
            failure: vec![],
        };
        match joined.call(txn).await {
            Ok(answer) if answer.succeeded => {
                joined.update(|state| {
                    state
                        .owners
                        .observe(domain.clone(), answer.revision, record.cloned())
                });
                Ok(Some(answer.revision))
            }
            Ok(_) | Err(BackendError::Unavailable { sent: true, .. }) => Ok(None),
            Err(error) => Err(joined.error(error)),
        }
    }

    /// Whether the domain has no object on `joined`, of any kind.
    async fn is_empty(&self, joined: &Arc<Joined>, domain: &Domain) -> Result<bool, Error> {
        let namespace = match domain {
            Domain::Kind(resource) => return Ok(self.count(joined, resource.prefix()).await? == 0),
            Domain::Namespace(namespace) => namespace,
        };
        // Objects are ordered by kind first: go from kind to kind.
        let end = prefix_end(key::OBJECTS);
        let mut start = Bytes::from_static(key::OBJECTS);
        for _ in 0..KINDS_MAX {
            let next = Range {
                keys_only: true,
                ..Range::between(start, end.clone()).limit(1)
            };
            let answer = joined
                .call(Txn::read([next]))
                .await
                .map_err(|e| joined.error(e))?;
            let range = answer.into_range();
            let Some(kv) = range.kvs.first() else {
                return Ok(true);
            };
            let Some((group, resource, _, _)) = key::split_object_key(&kv.key) else {
                return Err(Error::Corrupt {
                    key: String::from_utf8_lossy(&kv.key).into_owned(),
                    cause: "not an object's key".to_owned(),
                });
            };
            let resource = crate::Resource::new(group, resource);
            if self.count(joined, resource.namespace_prefix(namespace)).await? > 0 {
                return Ok(false);
            }
            start = prefix_end(&resource.prefix());
        }
        Err(Error::Internal("too many kinds".to_owned()))
    }

    async fn count(&self, joined: &Arc<Joined>, prefix: Bytes) -> Result<u64, Error> {
        let end = prefix_end(&prefix);
        let range = Range {
            count_only: true,
            ..Range::between(prefix, end)
        };
        let answer = joined
            .call(Txn::read([range]))
            .await
            .map_err(|e| joined.error(e))?;
        Ok(answer
            .responses
            .into_iter()
            .next()
            .map_or(0, |r| r.into_range().count))
    }
}
