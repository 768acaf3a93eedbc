//! WATCH: a read that does not end.
//!
//! In one domain the owner's log is passed on as it arrives, and the watch follows the owner. Over several backends the
//! changes of epoch e are released, in RV order, when every backend's clock as seen in its log is past e:
//!
//! ```text
//! A  tick 7 ── a1 ── a2 ── tick 8 ── a3 ──────────      closed = min(8, 9) = 8
//! B  tick 7 ── b1 ──────── tick 8 ── tick 9 ── b2       released: (7,1,A) (7,1,B) (7,2,A)
//! ```
//!
//! Unreleased changes stay in the ring (or in etcd's history): nothing is buffered for a watch but a few entries.

mod wide;

use super::cursor::Cursor;
use super::fleet::Fleet;
use super::joined::Joined;
use super::list::Listing;
use super::ring::LogEntry;
use super::standing::Standing;
use super::{Extent, ListOptions, Scope, WatchStart};
use crate::key::Domain;
use crate::signal::Listener;
use crate::{Error, EventKind, Object, ObjectEvent, ResourceVersion, SelectionPredicate, WatchEvent};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use wide::Place;

/// Events handed out at once.
const BATCH_EVENTS_MAX: usize = 128;
/// The pause before a backend that went away is asked again for its position.
const POSITION_PAUSE: Duration = Duration::from_millis(250);

/// A running watch.
pub(crate) struct Watching {
    fleet: Arc<Fleet>,
    scope: Scope,
    predicate: SelectionPredicate,
    state: State,
    /// Everything at or below was delivered (or was not asked for).
    position: Option<ResourceVersion>,
    /// What was produced and not handed out yet, so that a cancelled call loses nothing.
    ready: Vec<WatchEvent>,
    _wide: Option<WideGuard>,
}

/// What the watch is doing.
enum State {
    /// Delivering the snapshot that it starts with.
    Initial(Box<Listing>),
    /// Following changes.
    Following(Source),
}

/// Where changes come from.
enum Source {
    /// The log of one backend, which owns the domain.
    Owner {
        domain: Option<Domain>,
        cursor: Cursor,
        changes: Listener,
    },
    /// A domain that nobody owns, as of `position`.
    Nobody { domain: Domain },
    /// The logs of all backends, as of a version of the view.
    All {
        version: u64,
        cursors: Vec<Place>,
        closed: Listener,
    },
}

/// Counts the watches over several backends.
struct WideGuard(Arc<Fleet>);

impl Drop for WideGuard {
    fn drop(&mut self) {
        self.0.wide_watches.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Fleet {
    pub(crate) async fn watch(
        self: &Arc<Self>,
        scope: &Scope,
        predicate: SelectionPredicate,
        start: WatchStart,
    ) -> Result<Watching, Error> {
        self.check_has_members()?;
        let wide = matches!(scope.extent, Extent::AllNamespaces) && self.sole().is_none();
        let guard = wide.then(|| {
            self.wide_watches.fetch_add(1, Ordering::SeqCst);
            WideGuard(self.clone())
        });
        let mut watching = Watching {
            fleet: self.clone(),
            scope: scope.clone(),
            predicate: predicate.clone(),
            state: State::Following(Source::Nobody {
                domain: Domain::Namespace("".into()),
            }),
            position: None,
            ready: Vec::new(),
            _wide: guard,
        };
        match start {
            WatchStart::Initial(version) => {
                let options = ListOptions {
                    version,
                    predicate,
                    ..ListOptions::default()
                };
                let listing = self.list(scope, options).await?;
                watching.position = Some(listing.resource_version());
                watching.state = State::Initial(Box::new(listing));
            }
            WatchStart::After(rv) => {
                self.check_not_above_everything(rv).await?;
                watching.position = Some(rv);
                watching.state = State::Following(watching.source_after(rv).await?);
            }
            WatchStart::Now => {
                // The version of an empty list: what is acknowledged before this call is not delivered.
                let rv = watching.now().await?;
                watching.position = Some(rv);
                watching.state = State::Following(watching.source_after(rv).await?);
            }
        }
        // What is there already and not released yet was written before anybody watched.
        self.request_round_for_watches();
        Ok(watching)
    }
}

impl Watching {
    /// The next events. Whatever is awaited in here may be cancelled: progress is only made between awaits.
    pub(crate) async fn next_batch(&mut self) -> Result<Vec<WatchEvent>, Error> {
        while self.ready.is_empty() {
            match &mut self.state {
                State::Initial(_) => self.next_initial().await?,
                State::Following(Source::Owner { .. }) => self.next_of_owner().await?,
                State::Following(Source::Nobody { .. }) => self.next_owner().await?,
                State::Following(Source::All { .. }) => self.next_of_all().await?,
            }
        }
        Ok(std::mem::take(&mut self.ready))
    }

    /// A resource version below which everything was delivered, and not below what was delivered.
    pub(crate) fn bookmark(&mut self) -> Option<ResourceVersion> {
        let position = self.position?;
        let State::Following(source) = &self.state else {
            return None;
        };
        if !self.ready.is_empty() {
            return None;
        }
        let (closed, view) = self.fleet.closed_view();
        let seen = match source {
            Source::Owner { domain, cursor, .. } => {
                // The domain lives here and nowhere else since the position, so this log alone tells.
                let stays = domain.as_ref().is_none_or(|domain| {
                    let home = self.fleet.home_after(domain, position).ok().flatten();
                    home.is_some_and(|home| home.until.is_none() && Arc::ptr_eq(&home.joined, &cursor.joined))
                });
                let state = cursor.joined.state.lock();
                let drained = cursor.is_drained(state.log.revision);
                state
                    .log
                    .ticks
                    .newest()
                    .filter(|_| drained && stays)
                    .map(|tick| tick.epoch)
            }
            Source::Nobody { domain } => {
                let closed = self.fleet.complete_epoch();
                let is_nowhere = || matches!(self.fleet.home_after(domain, position), Ok(None));
                closed.filter(|_| is_nowhere() && !self.fleet.began_anew_since(position.epoch()))
            }
            // Of members that came or went since it last looked, this watch knows nothing yet.
            Source::All { version, cursors, .. } => closed
                .filter(|_| *version == view.version)
                .filter(|closed| cursors.iter().all(|place| place.is_drained_below(*closed))),
        };
        // Remembered: a later bookmark is not below this one.
        self.position = Some(seen.map_or(position, |epoch| position.max(ResourceVersion::cut(epoch))));
        self.position
    }

    fn prefix(&self) -> Bytes {
        match &self.scope.extent {
            Extent::Namespace(namespace) => self.scope.resource.namespace_prefix(namespace),
            Extent::AllNamespaces | Extent::Cluster => self.scope.resource.prefix(),
        }
    }

    fn domain(&self) -> Option<Domain> {
        match &self.scope.extent {
            Extent::Namespace(namespace) => Some(Domain::Namespace(namespace.clone())),
            Extent::Cluster => Some(Domain::Kind(self.scope.resource.clone())),
            Extent::AllNamespaces => None,
        }
    }

    async fn now(&mut self) -> Result<ResourceVersion, Error> {
        let options = ListOptions {
            limit: 1,
            ..ListOptions::default()
        };
        Ok(self.fleet.list(&self.scope, options).await?.resource_version())
    }

    async fn source_after(&mut self, rv: ResourceVersion) -> Result<Source, Error> {
        if let Some(sole) = self.fleet.sole() {
            let changes = sole.changes();
            let position = self.fleet.position(&sole, rv).await?;
            return Ok(Source::Owner {
                domain: None,
                cursor: Cursor::new(sole, self.prefix(), position),
                changes,
            });
        }
        let Some(domain) = self.domain() else {
            return self.all_after(rv).await;
        };
        // A round, if the routing table does not know the domain: an owner that exists is then known.
        self.fleet.locate(&domain).await?;
        self.fleet.check_not_forgotten(rv)?;
        match self.fleet.await_home_after(&domain, rv).await? {
            Some(home) => self.source_at(home.joined, domain, rv).await,
            None => Ok(Source::Nobody { domain }),
        }
    }

    async fn source_at(
        &mut self,
        joined: Arc<Joined>,
        domain: Domain,
        rv: ResourceVersion,
    ) -> Result<Source, Error> {
        let changes = joined.changes();
        // Versions from before a restore have a place in its log, and nobody may go on from there (seed 73).
        self.fleet.view().check_begun(&joined)?;
        let position = self.fleet.position(&joined, rv).await?;
        if joined.was_left_out_at(rv.epoch()) {
            return Err(Error::Expired { requested: rv });
        }
        Ok(Source::Owner {
            domain: Some(domain),
            cursor: Cursor::new(joined, self.prefix(), position),
            changes,
        })
    }

    async fn next_initial(&mut self) -> Result<(), Error> {
        let State::Initial(listing) = &mut self.state else {
            return Ok(());
        };
        let rv = listing.resource_version();
        if let Some(batch) = listing.next_batch().await? {
            let added = |object| {
                WatchEvent::Object(ObjectEvent {
                    kind: EventKind::Added,
                    object,
                    frames: Default::default(),
                })
            };
            self.ready.extend(batch.objects.into_iter().map(added));
            return Ok(());
        }
        let source = self.source_after(rv).await?;
        self.state = State::Following(source);
        self.ready.push(WatchEvent::InitialEventsEnd(rv));
        Ok(())
    }

    async fn next_of_owner(&mut self) -> Result<(), Error> {
        let State::Following(Source::Owner {
            domain,
            cursor,
            changes,
        }) = &mut self.state
        else {
            return Ok(());
        };
        changes.mark_seen();
        let log = cursor.joined.state.lock().log.revision;
        // The log ends here for this domain where its owner key was removed.
        let mut left = None;
        if let (Some(domain), Some(position)) = (&*domain, self.position) {
            match self.fleet.home_after(domain, position) {
                Ok(Some(home)) if Arc::ptr_eq(&home.joined, &cursor.joined) => left = home.until,
                // It lives elsewhere, or nowhere, as of the position.
                _ => {
                    self.state = State::Following(Source::Nobody {
                        domain: domain.clone(),
                    });
                    return Ok(());
                }
            }
        }
        let until = left.map_or(log, |left| left.revision.min(log));
        cursor.fill(until).await?;
        while self.ready.len() < BATCH_EVENTS_MAX
            && let Some(entry) = cursor.head().cloned()
        {
            let version = cursor.resource_version_of(&entry)?;
            let standing = self.fleet.change_standing(&cursor.joined, &entry, version);
            if standing == Standing::Forgotten {
                return Err(Error::Expired { requested: version });
            }
            if standing == Standing::Unsettled {
                if self.ready.is_empty() {
                    self.fleet.something_settled().await;
                }
                return Ok(());
            }
            cursor.pop();
            self.position = Some(version);
            if standing == Standing::Counts
                && let Some(event) = event_of(&cursor.joined, &self.predicate, &entry)?
            {
                self.ready.push(event);
            }
        }
        if !self.ready.is_empty() || !cursor.is_drained(until) {
            return Ok(());
        }
        if let (Some(left), Some(domain)) = (left, &*domain) {
            self.position = self.position.max(Some(left.version));
            self.state = State::Following(Source::Nobody {
                domain: domain.clone(),
            });
            return Ok(());
        }
        changes.changed().await;
        Ok(())
    }

    /// Waits until the logs show where the domain lives as of the position, and goes over to that log.
    async fn next_owner(&mut self) -> Result<(), Error> {
        let State::Following(Source::Nobody { domain }) = &self.state else {
            return Ok(());
        };
        let domain = domain.clone();
        let (joined, position) = loop {
            // Members may come and go: whom to listen to is looked up every time.
            let mut members = self.fleet.closed_changes();
            let view = self.fleet.view();
            let mut changes: Vec<_> = view.connections.iter().map(|joined| joined.changes()).collect();
            let Some(position) = self.position else {
                return Err(Error::Internal("a watch without a position".to_owned()));
            };
            // Nobody has claimed the domain below what all logs have shown.
            let closed = self.fleet.complete_epoch();
            match self.fleet.settled_home_after(&domain, position) {
                Ok(Some(home)) => break (home.joined, position),
                Ok(None) => {}
                Err(error @ Error::Expired { .. }) => return Err(error),
                Err(_) => {
                    self.fleet.rounds.request();
                    tokio::time::sleep(POSITION_PAUSE).await;
                    continue;
                }
            }
            self.position =
                Some(closed.map_or(position, |closed| position.max(ResourceVersion::cut(closed))));
            let any = changes.iter_mut().chain(std::iter::once(&mut members));
            futures::future::select_all(any.map(|changes| Box::pin(changes.changed()))).await;
        };
        match self.source_at(joined, domain, position).await {
            Ok(source) => self.state = State::Following(source),
            Err(Error::Unavailable { .. }) => tokio::time::sleep(POSITION_PAUSE).await,
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// The event that a change is for a watcher with this predicate, if it is one.
fn event_of(
    joined: &Joined,
    predicate: &SelectionPredicate,
    entry: &LogEntry,
) -> Result<Option<WatchEvent>, Error> {
    let rv = joined.resource_version(entry.clock, entry.revision)?;
    let expired = || Error::Expired { requested: rv };
    let before = || -> Result<Object, Error> { joined.object(entry.before.clone().ok_or_else(expired)?) };
    let event = |kind, object: Object| {
        Ok(Some(WatchEvent::Object(ObjectEvent {
            kind,
            object,
            frames: entry.frames.clone(),
        })))
    };
    let Some(now) = &entry.now else {
        // A deletion; without the state before it nobody can be told what was deleted.
        let before = before()?;
        if before.is_moved() || !predicate.matches(&before)? {
            return Ok(None);
        }
        return event(EventKind::Deleted, before.with_resource_version(rv));
    };
    let created = now.create_revision == now.mod_revision;
    let object = joined.object(now.clone())?;
    if object.is_pinned() || object.is_moved() {
        return Ok(None);
    }
    if object.resource_version() != rv {
        return Err(Error::Corrupt {
            key: String::from_utf8_lossy(&entry.key).into_owned(),
            cause: format!(
                "it says {:?} where the log says {rv:?}",
                object.resource_version()
            ),
        });
    }
    if predicate.is_everything() {
        return event(
            if created {
                EventKind::Added
            } else {
                EventKind::Modified
            },
            object,
        );
    }
    let matches = predicate.matches(&object)?;
    let matched = if created { None } else { Some(before()?) };
    let matched = match matched {
        Some(before) if predicate.matches(&before)? => Some(before),
        _ => None,
    };
    match (matched, matches) {
        (None, false) => Ok(None),
        (None, true) => event(EventKind::Added, object),
        (Some(_), true) => event(EventKind::Modified, object),
        (Some(before), false) => event(EventKind::Deleted, before.with_resource_version(rv)),
    }
}
