//! LIST: a stream from backend pages to the caller, ordered by namespace and name, under a byte budget.
//!
//! The snapshot is fixed first (one backend: its first transaction; several: a round of ticks). Then every backend has a
//! `Pager` that reads its part in order, one page ahead; the list takes from the pager whose next object comes first.
//! Nothing collects a list.

use super::cut::Snapshot;
use super::fleet::Fleet;
use super::get::{Located, ROUTE_TRIES_MAX};
use super::joined::{Joined, compares_owners};
use super::pager::{FIRST_PAGE_OBJECTS, Page, Pager, PagerPlan, Start};
use super::view::{Absent, View as Members};
use super::{Extent, ListEnd, ListOptions, ListVersion, Missing, ObjectBatch, Rule, Scope};
use crate::backend::{BackendError, OpResponse, Range, Revision, Txn};
use crate::clock::Position;
use crate::continue_token::ContinueToken;
use crate::key::{self, Domain, prefix_end};
use crate::resource_version::{Epoch, SLOT_MAX, Slot};
use crate::{Error, Object, ResourceVersion, SelectionPredicate};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// How many lists of the whole fleet the byte budget is cut for.
const LISTS_AT_ONCE: usize = 12;
/// A page is not aimed to be larger or smaller than this, in bytes.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
const PAGE_BYTES_MIN: usize = 64 * 1024;
/// Lists of one backend are many and mostly short: their pages are smaller.
const NARROW_PAGE_BYTES_MAX: usize = 512 * 1024;
/// How long a list waits for its share of the budget.
const BUDGET_WAIT: Duration = Duration::from_secs(30);
/// Objects handed out in one batch.
const BATCH_OBJECTS_MAX: usize = 256;

/// The slot in the resource version `(e, 0, slot)` of a list that leaves out a cluster: once the cluster is back, going
/// on from it is 410, because nobody can tell what was missing. No object has offset 0.
pub(crate) const PARTIAL_SLOT: Slot = Slot(SLOT_MAX);

pub(crate) fn is_partial(rv: ResourceVersion) -> bool {
    rv.offset() == 0 && rv.slot() == PARTIAL_SLOT
}

/// What a list reads: the state of these backends at these revisions.
pub(crate) struct View {
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

/// A running list.
pub(crate) struct Listing {
    view_version: ResourceVersion,
    missing: Vec<String>,
    predicate: SelectionPredicate,
    sources: Vec<Source>,
    limit: u64,
    returned: u64,
    seen_before: u64,
    total: Option<u64>,
    last: Option<(String, String)>,
    more: bool,
    _budget: Option<OwnedSemaphorePermit>,
}

/// One pager: the page that is handed out, the next one, and the request for the one after. Two pages in memory.
struct Source {
    joined: Arc<Joined>,
    ready: VecDeque<Object>,
    next: Option<VecDeque<Object>>,
    reading: Reading,
}

/// What a source's pager is doing.
enum Reading {
    /// Waiting for its page.
    Page(BoxFuture<'static, (Pager, Result<Option<Page>, Error>)>),
    /// Waiting until its page is wanted.
    Idle(Box<Pager>),
    /// At the end.
    Done,
}

impl Fleet {
    pub(crate) async fn list(
        self: &Arc<Self>,
        scope: &Scope,
        options: ListOptions,
    ) -> Result<Listing, Error> {
        let leaves_out = options.missing == Missing::Allow && matches!(scope.extent, Extent::AllNamespaces);
        if !leaves_out {
            self.check_has_members()?;
        }
        let parts = if matches!(scope.extent, Extent::AllNamespaces) {
            self.view().serving.len().max(1)
        } else {
            1
        };
        let share = self.config.list_bytes_max / (LISTS_AT_ONCE * 2 * parts);
        let page_bytes_max = if parts == 1 {
            NARROW_PAGE_BYTES_MAX
        } else {
            PAGE_BYTES_MAX
        };
        let page_bytes = share.clamp(PAGE_BYTES_MIN, page_bytes_max);
        let budget = self.reserve(page_bytes * 2 * parts).await?;
        let start = match &options.version {
            ListVersion::Continue(token) => Some((token.namespace.clone(), token.name.clone())),
            _ => None,
        };
        let plan = PagerPlan {
            resource: scope.resource.clone(),
            extent: scope.extent.clone(),
            name: options
                .predicate
                .fields
                .requires_exact("metadata.name")
                .map(str::to_owned),
            compares_owners: compares_owners(self.config.routing),
            start: start.map_or(Start::Beginning, |(namespace, name)| Start::After {
                namespace,
                name,
            }),
            page_bytes,
            objects_max: if options.predicate.is_everything() && options.limit > 0 {
                options.limit + 1
            } else {
                u64::MAX
            },
        };
        let view = self.fix_view(scope, &options, &plan).await?;
        let counts = options.limit > 0 && options.predicate.is_everything() && view.missing.is_empty();
        let total = if counts {
            self.count_all(scope, &view).await?
        } else {
            None
        };
        let sources = view
            .parts
            .into_iter()
            .map(|part| Source::new(self, &plan, part, view.resource_version))
            .collect::<Result<_, Error>>()?;
        let seen_before = match &options.version {
            ListVersion::Continue(token) => token.seen,
            _ => 0,
        };
        Ok(Listing {
            view_version: view.resource_version,
            missing: view.missing,
            predicate: options.predicate,
            sources,
            limit: options.limit,
            returned: 0,
            seen_before,
            total,
            last: None,
            more: false,
            _budget: Some(budget),
        })
    }

    async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let permits =
            u32::try_from((bytes / 1024).min(self.config.list_bytes_max / 1024)).unwrap_or(u32::MAX);
        let acquire = self.list_budget.clone().acquire_many_owned(permits);
        match tokio::time::timeout(BUDGET_WAIT, acquire).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(Error::Busy("the store is closed".to_owned())),
            Err(_) => Err(Error::Busy("all memory for lists is in use".to_owned())),
        }
    }

    /// Fixes what the list shows.
    async fn fix_view(
        self: &Arc<Self>,
        scope: &Scope,
        options: &ListOptions,
        plan: &PagerPlan,
    ) -> Result<View, Error> {
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
    async fn narrow_view(self: &Arc<Self>, domain: &Domain, plan: &PagerPlan) -> Result<View, Error> {
        let mut objects_max = FIRST_PAGE_OBJECTS;
        for _ in 0..ROUTE_TRIES_MAX {
            let joined = match self.locate(domain).await? {
                Located::Nobody(at) => {
                    return Ok(View {
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
            return Ok(View {
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
    async fn narrow_view_at(self: &Arc<Self>, domain: &Domain, rv: ResourceVersion) -> Result<View, Error> {
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
                return Ok(View {
                    resource_version: rv,
                    parts: Vec::new(),
                    missing: Vec::new(),
                });
            };
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
                return Ok(View {
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

    /// Where a domain lived since `rv` is known only as far back as every log is retained.
    pub(crate) fn check_not_forgotten(&self, rv: ResourceVersion) -> Result<(), Error> {
        let view = self.view();
        let forgotten = view.connections.iter().any(|joined| joined.is_forgotten(rv));
        if forgotten || rv.epoch() < view.membership.horizon {
            Err(Error::Expired { requested: rv })
        } else {
            Ok(())
        }
    }

    /// All backends.
    async fn wide_view(self: &Arc<Self>, options: &ListOptions) -> Result<View, Error> {
        if self.check_has_members().is_err() {
            // The lowest version that no object has: going on from it delivers everything there will be, or is 410.
            return Ok(View {
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

    async fn view_of_round(&self, missing: Missing) -> Result<View, Error> {
        let snapshot = self.rounds.snapshot().await?;
        self.view_of_snapshot(&snapshot, missing)
    }

    fn view_of_snapshot(&self, snapshot: &Snapshot, missing: Missing) -> Result<View, Error> {
        let mut view = View {
            resource_version: snapshot.resource_version(),
            parts: Vec::new(),
            missing: Vec::new(),
        };
        for absent in snapshot.view.missed_by_lists() {
            leave_out(absent, missing, &mut view)?;
        }
        for joined in &snapshot.view.serving {
            match snapshot.cut(joined) {
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
    fn recent_view(&self, rv: Option<ResourceVersion>) -> Option<View> {
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
        Some(View {
            resource_version,
            parts,
            missing: Vec::new(),
        })
    }

    async fn wide_view_at(self: &Arc<Self>, rv: ResourceVersion, missing: Missing) -> Result<View, Error> {
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
        members: &Members,
        rv: ResourceVersion,
        missing: Missing,
    ) -> Result<View, Error> {
        let mut view = View {
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

    /// A resource version above everything known is no version of ours, unless the clocks have moved meanwhile.
    pub(crate) async fn check_not_above_everything(&self, rv: ResourceVersion) -> Result<(), Error> {
        if rv.epoch() <= self.highest_epoch() {
            return Ok(());
        }
        for joined in &self.view().serving {
            let Ok(answer) = joined.call(Txn::read([Range::key(key::CLOCK)])).await else {
                continue;
            };
            let range = answer
                .responses
                .into_iter()
                .next()
                .map(OpResponse::into_range)
                .unwrap_or_default();
            if let Some(clock) = joined.observe_clock(&range) {
                self.saw_epoch(clock.epoch);
            }
        }
        if rv.epoch() <= self.highest_epoch() {
            return Ok(());
        }
        Err(Error::ResourceVersionTooLarge {
            requested: rv,
            current: ResourceVersion::cut(self.highest_epoch()),
        })
    }

    /// The revision of `joined` up to which everything is at or below `rv`, and above which everything is above it.
    pub(crate) async fn position(
        &self,
        joined: &Arc<Joined>,
        rv: ResourceVersion,
    ) -> Result<Revision, Error> {
        let expired = || Error::Expired { requested: rv };
        for _ in 0..ROUTE_TRIES_MAX {
            let (position, connected, revision, compacted) = {
                let state = joined.state.lock();
                let position = if self.broken(Rule::ResumeAtTheLimit) {
                    state.log.ticks.position_without_limit(rv)
                } else {
                    state.log.ticks.position(rv, joined.slot())
                };
                (position, state.connected, state.revision, state.log.compacted)
            };
            if !connected {
                let problem = joined.state.lock().problem.clone();
                return Err(joined.unavailable(problem.unwrap_or_default()));
            }
            match position {
                Position::Expired => return Err(expired()),
                Position::After(at) if at < compacted => return Err(expired()),
                Position::After(at) if at <= revision || rv.offset() == 0 => return Ok(at),
                // Either our knowledge is old, or it is a version that nobody has given out.
                Position::After(at) => {
                    let answer = joined
                        .call(Txn::read([Range::key(key::CLOCK)]))
                        .await
                        .map_err(|e| joined.error(e))?;
                    return if at <= answer.revision {
                        Ok(at)
                    } else {
                        Err(expired())
                    };
                }
                Position::NeedsTick => {
                    let snapshot = self.rounds.snapshot().await?;
                    snapshot.cut(joined)?;
                    self.cut_from_log(joined, snapshot.epoch).await?;
                }
            }
        }
        Err(joined.unavailable("its clock does not pass the resource version"))
    }

    /// How many objects the view holds, for remainingItemCount.
    async fn count_all(&self, scope: &Scope, view: &View) -> Result<Option<u64>, Error> {
        let mut total = 0;
        for part in &view.parts {
            let prefix = match &scope.extent {
                Extent::Namespace(namespace) => scope.resource.namespace_prefix(namespace),
                Extent::AllNamespaces | Extent::Cluster => scope.resource.prefix(),
            };
            let end = prefix_end(&prefix);
            let range = Range {
                count_only: true,
                ..Range::between(prefix, end).at(part.at)
            };
            let answer = part
                .joined
                .call(Txn::read([range]))
                .await
                .map_err(|e| part.joined.error(e))?;
            total += answer
                .responses
                .into_iter()
                .next()
                .map_or(0, |r| r.into_range().count);
        }
        Ok(Some(total))
    }
}

fn leave_out(absent: &Absent, missing: Missing, view: &mut View) -> Result<(), Error> {
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

impl Source {
    fn new(
        fleet: &Arc<Fleet>,
        plan: &PagerPlan,
        part: Part,
        version: ResourceVersion,
    ) -> Result<Self, Error> {
        let joined = part.joined.clone();
        let at = (part.at, version);
        let mut pager = Pager::new(fleet.clone(), plan.clone(), part.joined, at);
        let Some(page) = part.first else {
            return Ok(Self {
                joined,
                ready: VecDeque::new(),
                next: None,
                reading: Reading::Page(read(pager)),
            });
        };
        pager.resume_after(&page);
        let reading = if page.last {
            Reading::Done
        } else {
            Reading::Page(read(pager))
        };
        let ready = objects(&joined, page)?;
        Ok(Self {
            joined,
            ready,
            next: None,
            reading,
        })
    }

    /// Drives the next page on. Ready when the next object is known, or that there is none.
    fn poll_head(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            if let Reading::Page(page) = &mut self.reading
                && let Poll::Ready((pager, page)) = Pin::new(page).poll(context)
            {
                self.reading = Reading::Done;
                if let Some(page) = page? {
                    if !page.last {
                        self.reading = Reading::Idle(Box::new(pager));
                    }
                    self.next = Some(objects(&self.joined, page)?);
                }
            }
            if !self.ready.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match self.next.take() {
                Some(next) => {
                    self.ready = next;
                    self.reading = match std::mem::replace(&mut self.reading, Reading::Done) {
                        Reading::Idle(pager) => Reading::Page(read(*pager)),
                        other => other,
                    };
                }
                None if matches!(self.reading, Reading::Page(_)) => return Poll::Pending,
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

fn objects(joined: &Joined, page: Page) -> Result<VecDeque<Object>, Error> {
    page.kvs.into_iter().map(|kv| joined.object(kv)).collect()
}

fn read(mut pager: Pager) -> BoxFuture<'static, (Pager, Result<Option<Page>, Error>)> {
    Box::pin(async move {
        let page = pager.next_page().await;
        (pager, page)
    })
}

impl Listing {
    pub(crate) fn resource_version(&self) -> ResourceVersion {
        self.view_version
    }

    pub(crate) fn missing(&self) -> &[String] {
        &self.missing
    }

    pub(crate) async fn next_batch(&mut self) -> Result<Option<ObjectBatch>, Error> {
        let mut objects = Vec::new();
        while objects.is_empty() {
            self.wait_for_heads().await?;
            let Some(source) = self.first_source() else {
                return Ok(None);
            };
            if self.limit > 0 && self.returned == self.limit {
                self.more = true;
                return Ok(None);
            }
            self.take_run(source, &mut objects)?;
        }
        Ok(Some(ObjectBatch { objects }))
    }

    /// Waits until the next object of every source is known. All sources are driven on meanwhile.
    async fn wait_for_heads(&mut self) -> Result<(), Error> {
        futures::future::poll_fn(|context| {
            let mut pending = false;
            for source in &mut self.sources {
                match source.poll_head(context) {
                    Poll::Pending => pending = true,
                    Poll::Ready(head) => head?,
                }
            }
            if pending {
                Poll::Pending
            } else {
                Poll::Ready(Ok(()))
            }
        })
        .await
    }

    fn first_source(&self) -> Option<usize> {
        let heads = self
            .sources
            .iter()
            .enumerate()
            .filter_map(|(i, source)| Some((order(source.ready.front()?), i)));
        heads.min().map(|(_, i)| i)
    }

    /// Takes from one source while its objects come before all others'.
    fn take_run(&mut self, source: usize, objects: &mut Vec<Object>) -> Result<(), Error> {
        let others = self.sources.iter().enumerate().filter(|(i, _)| *i != source);
        let bound = others
            .filter_map(|(_, other)| other.ready.front().cloned())
            .min_by(|a, b| order(a).cmp(&order(b)));
        let ready = &mut self.sources[source].ready;
        while objects.len() < BATCH_OBJECTS_MAX && (self.limit == 0 || self.returned < self.limit) {
            // Two of one name cannot be; if they were, the list should still come to its end.
            let before = |object: &Object| bound.as_ref().is_none_or(|bound| order(object) <= order(bound));
            let Some(object) = ready.pop_front_if(|object| before(object)) else {
                break;
            };
            if object.is_moved() || !self.predicate.matches(&object)? {
                continue;
            }
            self.returned += 1;
            if self.limit > 0 && self.returned == self.limit {
                self.last = Some((object.namespace().to_owned(), object.name().to_owned()));
            }
            objects.push(object);
        }
        Ok(())
    }

    pub(crate) fn end(&self) -> ListEnd {
        let (Some((namespace, name)), true) = (&self.last, self.more) else {
            return ListEnd::default();
        };
        let seen = self.seen_before + self.returned;
        let token = ContinueToken::new(self.view_version, namespace, name, seen);
        let remaining = self
            .total
            .map(|total| total.saturating_sub(seen))
            .filter(|remaining| *remaining > 0);
        ListEnd {
            continue_token: Some(token.encode()),
            remaining,
        }
    }
}

fn order(object: &Object) -> (&str, &str) {
    (object.namespace(), object.name())
}
