//! What a list reads: which backends, each at which revision, and the resource version of the whole.
//!
//! In one namespace the owner's first transaction says it; over several backends a round of ticks does, or the cut of a
//! version that is asked for. It does not read on (`pager`), and orders nothing.

use crate::backend::{BackendError, OpResponse, Range, Revision, Txn};
use crate::federated::cut::Snapshot;
use crate::federated::fleet::Fleet;
use crate::federated::get::{Located, ROUTE_TRIES_MAX};
use crate::federated::joined::{Joined, compares_owners};
use crate::federated::pager::{FIRST_PAGE_OBJECTS, Page, PagerPlan};
use crate::federated::view::{Absent, View};
use crate::federated::{Extent, ListOptions, ListVersion, Missing, Rule, Scope};
use crate::key::{self, Domain};
use crate::resource_version::{Epoch, SLOT_MAX, Slot};
use crate::{Error, ResourceVersion};
use std::sync::Arc;

/// The slot in the resource version `(e, 0, slot)` of a list that leaves out a cluster: once the cluster is back, going
/// on from it is 410, because nobody can tell what was missing. No object has offset 0.
pub(crate) const PARTIAL_SLOT: Slot = Slot(SLOT_MAX);

pub(crate) fn is_partial(rv: ResourceVersion) -> bool {
    rv.offset() == 0 && rv.slot() == PARTIAL_SLOT
}

/// What a list reads: the state of these backends at these revisions.
pub(crate) struct ReadView {
    pub(crate) resource_version: ResourceVersion,
    pub(crate) parts: Vec<Part>,
    pub(crate) missing: Vec<String>,
}

/// One backend's part of a view.
pub(crate) struct Part {
    pub(crate) joined: Arc<Joined>,
    pub(crate) at: Revision,
    /// A page that was read together with the view.
    pub(crate) first: Option<Page>,
}

impl Fleet {
    /// Fixes what the list shows.
    pub(super) async fn fix_view(
        self: &Arc<Self>,
        scope: &Scope,
        options: &ListOptions,
        plan: &PagerPlan,
    ) -> Result<ReadView, Error> {
        let domain = match &scope.extent {
            Extent::AllNamespaces if self.sole().is_none() => return self.wide_view(options).await,
            Extent::AllNamespaces | Extent::Cluster => Domain::Kind(scope.resource.clone()),
            Extent::Namespace(namespace) => Domain::Namespace(namespace.clone()),
        };
        match &options.version {
            ListVersion::MostRecent | ListVersion::Any => self.narrow_view(&domain, plan).await,
            ListVersion::NotOlderThan(rv) => {
                self.check_not_above_everything(*rv).await?;
                let view = self.narrow_view(&domain, plan).await?;
                if view.resource_version >= *rv {
                    return Ok(view);
                }
                // The version is another backend's: this one's clock has to catch up.
                self.rounds.snapshot().await?;
                let view = self.narrow_view(&domain, plan).await?;
                if view.resource_version < *rv {
                    let owner = view
                        .parts
                        .first()
                        .map_or_else(String::new, |part| part.joined.member.name.clone());
                    let cause = format!("its clock does not reach resource version {rv}");
                    return Err(Error::Unavailable {
                        cluster: owner,
                        cause,
                    });
                }
                Ok(view)
            }
            ListVersion::Exact(rv) => self.narrow_view_at(&domain, *rv).await,
            ListVersion::Continue(token) => match ResourceVersion::from_u64(token.resource_version) {
                Ok(rv) => self.narrow_view_at(&domain, rv).await,
                Err(_) => self.narrow_view(&domain, plan).await,
            },
        }
    }

    /// One backend, now: its first transaction reads owner, clock and the first page.
    async fn narrow_view(self: &Arc<Self>, domain: &Domain, plan: &PagerPlan) -> Result<ReadView, Error> {
        let mut objects_max = FIRST_PAGE_OBJECTS;
        for _ in 0..ROUTE_TRIES_MAX {
            let joined = match self.locate(domain).await? {
                Located::Nobody(at) => {
                    return Ok(ReadView {
                        resource_version: at,
                        parts: Vec::new(),
                        missing: Vec::new(),
                    });
                }
                Located::Owned(joined) => joined,
            };
            let range = plan.first_range(objects_max);
            let mut reads = vec![Range::key(key::CLOCK), range.clone()];
            if compares_owners(self.config.routing) {
                reads.push(Range::key(domain.owner_key()));
            }
            let answer = match joined.call(Txn::read(reads)).await {
                Ok(answer) => answer,
                // Large objects: fewer of them fit into a message.
                Err(BackendError::TooLarge) if objects_max > 1 => {
                    objects_max /= 4;
                    continue;
                }
                Err(error) => return Err(joined.error(error)),
            };
            let mut ranges = answer.responses.into_iter().map(OpResponse::into_range);
            let clock = joined.observe_clock(&ranges.next().unwrap_or_default());
            let page = ranges.next().unwrap_or_default();
            if compares_owners(self.config.routing) {
                let owner =
                    joined.observe_owner(domain, &ranges.next().unwrap_or_default(), answer.revision)?;
                if !self.owner_counts(&joined, domain, owner.as_ref()) {
                    continue;
                }
            }
            let Some(clock) = clock else {
                return Err(joined.unavailable("it has no clock"));
            };
            let Some(resource_version) = clock.resource_version(answer.revision, joined.slot()) else {
                self.tick_alone(&joined).await?;
                continue;
            };
            let first = Page::of_range(page, &range);
            let part = Part {
                joined: joined.clone(),
                at: answer.revision,
                first: Some(first),
            };
            return Ok(ReadView {
                resource_version,
                parts: vec![part],
                missing: Vec::new(),
            });
        }
        Err(Error::Deadline(format!(
            "the owner of {} keeps changing",
            domain.placement_name()
        )))
    }

    /// One backend at a resource version.
    async fn narrow_view_at(
        self: &Arc<Self>,
        domain: &Domain,
        rv: ResourceVersion,
    ) -> Result<ReadView, Error> {
        self.check_not_above_everything(rv).await?;
        let located = match self.locate(domain).await? {
            Located::Owned(joined) => Some(joined),
            Located::Nobody(_) => None,
        };
        self.check_not_forgotten(rv)?;
        // Its home at that version may be another one than its home now.
        for _ in 0..ROUTE_TRIES_MAX {
            let home = self.await_home_after(domain, rv).await?.map(|home| home.joined);
            let Some(joined) = home.clone().or_else(|| located.clone()) else {
                return Ok(ReadView {
                    resource_version: rv,
                    parts: Vec::new(),
                    missing: Vec::new(),
                });
            };
            self.view().check_begun(&joined)?;
            let at = self.position(&joined, rv).await?;
            if joined.was_left_out_at(rv.epoch()) {
                return Err(Error::Expired { requested: rv });
            }
            // Its log is now past the version: has the domain left it before?
            let still = self.home_after(domain, rv)?.map(|home| home.joined);
            if still.as_ref().map(|j| j.slot()) == home.map(|j| j.slot()) {
                let part = Part {
                    joined,
                    at,
                    first: None,
                };
                return Ok(ReadView {
                    resource_version: rv,
                    parts: vec![part],
                    missing: Vec::new(),
                });
            }
        }
        Err(Error::Deadline(format!(
            "the owner of {} keeps changing",
            domain.placement_name()
        )))
    }

    /// All backends.
    async fn wide_view(self: &Arc<Self>, options: &ListOptions) -> Result<ReadView, Error> {
        if self.check_has_members().is_err() {
            // The lowest version that no object has: going on from it delivers everything there will be, or is 410.
            return Ok(ReadView {
                resource_version: ResourceVersion::new(Epoch(1), 0, PARTIAL_SLOT)
                    .map_err(|e| Error::Internal(e.to_string()))?,
                parts: Vec::new(),
                missing: Vec::new(),
            });
        }
        match &options.version {
            ListVersion::MostRecent => self.view_of_round(options.missing).await,
            ListVersion::Any => match self.recent_view(None) {
                Some(view) => Ok(view),
                None => self.view_of_round(options.missing).await,
            },
            ListVersion::NotOlderThan(rv) => {
                if let Some(view) = self.recent_view(Some(*rv)) {
                    return Ok(view);
                }
                self.check_not_above_everything(*rv).await?;
                self.view_of_round(options.missing).await
            }
            ListVersion::Exact(rv) => self.wide_view_at(*rv, options.missing).await,
            ListVersion::Continue(token) => match ResourceVersion::from_u64(token.resource_version) {
                Ok(rv) => self.wide_view_at(rv, options.missing).await,
                Err(_) => self.view_of_round(options.missing).await,
            },
        }
    }

    async fn view_of_round(&self, missing: Missing) -> Result<ReadView, Error> {
        let snapshot = self.rounds.snapshot().await?;
        self.view_of_snapshot(&snapshot, missing)
    }

    fn view_of_snapshot(&self, snapshot: &Snapshot, missing: Missing) -> Result<ReadView, Error> {
        let mut view = ReadView {
            resource_version: snapshot.resource_version(),
            parts: Vec::new(),
            missing: Vec::new(),
        };
        for absent in snapshot.view.missed_by_lists() {
            leave_out(absent, missing, &mut view)?;
        }
        for joined in &snapshot.view.serving {
            let begun = snapshot.view.check_begun(joined);
            match begun.and_then(|()| snapshot.cut(joined)) {
                Ok(cut) => {
                    let early = u64::from(self.broken(Rule::CutAtTheTick));
                    view.parts.push(Part {
                        joined: joined.clone(),
                        at: cut - 1 - early,
                        first: None,
                    });
                }
                Err(_) if missing == Missing::Allow || self.broken(Rule::RefuseMissing) => {
                    view.missing.push(joined.member.name.clone())
                }
                Err(error) => return Err(error),
            }
        }
        if !view.missing.is_empty() && missing == Missing::Allow {
            view.resource_version = partial_version(snapshot)?;
        }
        Ok(view)
    }

    /// The newest snapshot that all logs show, if it is not older than `rv`. Ticks nobody.
    fn recent_view(&self, rv: Option<ResourceVersion>) -> Option<ReadView> {
        let (closed, members) = self.closed_view();
        let closed = closed?;
        let resource_version = ResourceVersion::cut(closed);
        // What is closed may be older than the departure of a member (seed 1023).
        let holders = members
            .holders(closed)
            .filter(|_| !members.may_lack_objects_at(closed))?;
        if rv.is_some_and(|rv| resource_version < rv)
            || members.missed_by_lists().next().is_some()
            || !holders.iter().all(|joined| joined.is_connected())
            // Of a member that was restored since then it would show what it holds now (seed 408).
            || holders.iter().any(|joined| joined.began_anew_since(closed) || members.check_begun(joined).is_err())
        {
            return None;
        }
        let part = |joined: &Arc<Joined>| {
            let cut = joined.state.lock().log.ticks.cut(closed).ok()??;
            Some(Part {
                joined: joined.clone(),
                at: cut - 1,
                first: None,
            })
        };
        let parts = holders.iter().map(part).collect::<Option<Vec<_>>>()?;
        Some(ReadView {
            resource_version,
            parts,
            missing: Vec::new(),
        })
    }

    async fn wide_view_at(
        self: &Arc<Self>,
        rv: ResourceVersion,
        missing: Missing,
    ) -> Result<ReadView, Error> {
        self.check_not_above_everything(rv).await?;
        for _ in 0..ROUTE_TRIES_MAX {
            let members = self.view();
            let view = self.wide_view_of(&members, rv, missing).await?;
            // By now the logs are past the version, and have shown who belonged to the fleet then.
            if self.view().membership.generation == members.membership.generation {
                return Ok(view);
            }
        }
        Err(Error::Deadline("the members keep changing".to_owned()))
    }

    async fn wide_view_of(
        &self,
        members: &View,
        rv: ResourceVersion,
        missing: Missing,
    ) -> Result<ReadView, Error> {
        let mut view = ReadView {
            resource_version: rv,
            parts: Vec::new(),
            missing: Vec::new(),
        };
        // Who has left since then is read as it was then.
        let holders = members.holders(rv.epoch());
        let Some(holders) = holders.filter(|_| !members.may_lack_objects_at(rv.epoch())) else {
            return Err(Error::Expired { requested: rv });
        };
        for absent in members.missed_by_lists() {
            leave_out(absent, missing, &mut view)?;
        }
        for joined in &holders {
            let part = match self.position(joined, rv).await {
                // What was missed of it is not known yet.
                Ok(_) if members.returns(joined) => return Err(joined.unavailable("it is coming back")),
                Ok(_) if joined.was_left_out_at(rv.epoch()) => return Err(Error::Expired { requested: rv }),
                Ok(at) => Part {
                    joined: joined.clone(),
                    at,
                    first: None,
                },
                Err(Error::Unavailable { .. }) if missing == Missing::Allow => {
                    view.missing.push(joined.member.name.clone());
                    continue;
                }
                Err(error) => return Err(error),
            };
            view.parts.push(part);
        }
        // The pages before had left somebody out; a page with everybody would not fit to them.
        if is_partial(rv) && view.missing.is_empty() {
            return Err(Error::Expired { requested: rv });
        }
        Ok(view)
    }
}

fn leave_out(absent: &Absent, missing: Missing, view: &mut ReadView) -> Result<(), Error> {
    match missing {
        Missing::Refuse => Err(absent.error()),
        Missing::Allow => {
            view.missing.push(absent.name.clone());
            Ok(())
        }
    }
}

fn partial_version(snapshot: &Snapshot) -> Result<ResourceVersion, Error> {
    ResourceVersion::new(snapshot.epoch, 0, PARTIAL_SLOT).map_err(|e| Error::Internal(e.to_string()))
}
