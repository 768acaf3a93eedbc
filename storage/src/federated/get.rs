//! Get: the owner alone answers, with owner, clock and key in one transaction. What nobody owns needs a round to be
//! called absent.

use super::cut::Snapshot;
use super::fleet::Fleet;
use super::joined::{Joined, compares_owners};
use super::standing::Standing;
use crate::backend::{OpResponse, Range, Txn};
use crate::key::{self, Domain, Key};
use crate::owners::OwnerEntry;
use crate::placements::{Known, Placed};
use crate::{Error, Object, ResourceVersion};
use futures::future::join_all;
use std::sync::Arc;

/// How often a read follows an owner that moves under it.
pub(crate) const ROUTE_TRIES_MAX: usize = 8;

/// Who owns a domain, for a read.
pub(crate) enum Located {
    /// This backend does, as far as the routing table knows.
    Owned(Arc<Joined>),
    /// Nobody did, at this resource version.
    Nobody(ResourceVersion),
}

impl Fleet {
    pub(crate) async fn get(&self, key: &Key) -> Result<Object, Error> {
        let (raw_key, domain) = (key.encode(), key.domain());
        for _ in 0..ROUTE_TRIES_MAX {
            let joined = match self.locate(&domain).await? {
                Located::Owned(joined) => joined,
                Located::Nobody(at) => {
                    return Err(Error::NotFound {
                        verified_at: Some(at),
                    });
                }
            };
            let mut reads = vec![Range::key(raw_key.clone()), Range::key(key::CLOCK)];
            if compares_owners(self.config.routing) {
                reads.push(Range::key(domain.owner_key()));
            }
            let answer = joined.call(Txn::read(reads)).await.map_err(|e| joined.error(e))?;
            let mut ranges = answer.responses.into_iter().map(OpResponse::into_range);
            let found = ranges.next().and_then(|range| range.kvs.into_iter().next());
            let clock = joined.observe_clock(&ranges.next().unwrap_or_default());
            if compares_owners(self.config.routing) {
                let owner =
                    joined.observe_owner(&domain, &ranges.next().unwrap_or_default(), answer.revision)?;
                if !self.owner_counts(&joined, &domain, owner.as_ref()) {
                    continue;
                }
            }
            return match found {
                Some(kv) => joined.object(kv).and_then(|object| {
                    if object.is_moved() {
                        Err(not_found())
                    } else {
                        Ok(object)
                    }
                }),
                None => {
                    let verified_at =
                        clock.and_then(|clock| clock.resource_version(answer.revision, joined.slot()));
                    Err(Error::NotFound { verified_at })
                }
            };
        }
        Err(Error::Deadline(format!(
            "the owner of {} keeps changing",
            domain.placement_name()
        )))
    }

    /// Who owns `domain`. What the routing table does not know is asked of all backends, at one cut.
    pub(crate) async fn locate(&self, domain: &Domain) -> Result<Located, Error> {
        for _ in 0..ROUTE_TRIES_MAX {
            if let Some(sole) = self.sole() {
                return Ok(Located::Owned(sole));
            }
            if let Some((joined, _)) = self.route_settled(domain).await? {
                self.view().check_not_away(&joined)?;
                self.view().check_begun(&joined)?;
                return Ok(Located::Owned(joined));
            }
            self.check_has_members()?;
            let snapshot = self.rounds.snapshot().await?;
            let found = self.owners_at(domain, &snapshot).await;
            let known = self.known(domain);
            let owned = found.iter().any(|(joined, owner)| {
                let owner = owner.as_ref().ok().and_then(Option::as_ref);
                owner.filter(|owner| owner.record.counts()).is_some_and(|owner| {
                    self.key_standing(&known, joined, domain, owner) != Standing::Impostor
                })
            });
            if owned {
                continue;
            }
            let silent = found.iter().filter(|(_, owner)| owner.is_err());
            let silent = silent.map(|(joined, _)| joined.member.name.clone());
            let away = snapshot.view.absent.iter().chain(&snapshot.view.given_up);
            let away = away.map(|member| member.name.clone());
            let missing: Vec<String> = silent.chain(away).collect();
            if !missing.is_empty() {
                return Err(Error::OwnerUnknown {
                    domain: domain.placement_name(),
                    missing,
                });
            }
            // A claim that nobody has finished: nothing was ever written under it.
            let is_claimed = found.iter().any(|(joined, owner)| {
                let owner = owner.as_ref().ok().and_then(Option::as_ref);
                owner.is_some_and(|owner| {
                    known.owns(&joined.member.name, joined.slot(), owner.record.generation)
                })
            });
            if !is_claimed {
                self.check_not_placed(domain, &known).await?;
            }
            return Ok(Located::Nobody(snapshot.resource_version()));
        }
        Err(Error::Deadline(format!(
            "the owner of {} keeps changing",
            domain.placement_name()
        )))
    }

    /// Nobody has an owner key: is that the truth, or has the cluster of a confirmed placement lost it?
    async fn check_not_placed(&self, domain: &Domain, known: &Known) -> Result<(), Error> {
        let confirmed = |placed: &Placed| placed.slot.is_some();
        let Known::Placed(placed) = known else {
            return Ok(());
        };
        // A namespace that was just deleted: its key goes before its placement, and what is known may be older than both.
        let now = match confirmed(placed) {
            true => self.config.placements.ask(domain).await,
            false => return Ok(()),
        };
        let placed = match now {
            Ok(now) => now.filter(confirmed),
            Err(_) => Some(placed.clone()),
        };
        match placed {
            None => Ok(()),
            Some(placed) => Err(Error::Unavailable {
                cluster: placed.cluster.to_string(),
                cause: format!(
                    "{} is placed on it, and it has no owner key of it: its etcd may have been wiped or restored",
                    domain.placement_name()
                ),
            }),
        }
    }

    /// Whether an owner key that an answer shows counts.
    pub(crate) fn owner_counts(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        owner: Option<&OwnerEntry>,
    ) -> bool {
        let owner = owner.filter(|owner| owner.record.counts());
        owner.is_some_and(|owner| {
            self.key_standing(&self.known(domain), joined, domain, owner) == Standing::Counts
        })
    }

    /// The owner keys of `domain` on all backends at a snapshot; the routing table learns them.
    async fn owners_at(
        &self,
        domain: &Domain,
        snapshot: &Snapshot,
    ) -> Vec<(Arc<Joined>, Result<Option<OwnerEntry>, Error>)> {
        let read = |joined: &Arc<Joined>| {
            let joined = joined.clone();
            async move {
                let owner = self.owner_at(&joined, domain, snapshot).await;
                (joined, owner)
            }
        };
        join_all(snapshot.view.serving.iter().map(read)).await
    }

    async fn owner_at(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        snapshot: &Snapshot,
    ) -> Result<Option<OwnerEntry>, Error> {
        let at = snapshot.cut(joined)? - 1;
        let answer = joined
            .call(Txn::read([Range::key(domain.owner_key()).at(at)]))
            .await
            .map_err(|e| joined.error(e))?;
        let range = answer.into_range();
        joined.observe_owner(domain, &range, at)
    }
}

fn not_found() -> Error {
    Error::NotFound { verified_at: None }
}
