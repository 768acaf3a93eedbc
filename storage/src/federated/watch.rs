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

use super::cursor::Cursor;
use super::fleet::Fleet;
use super::joined::Joined;
use super::list::{Listing, is_partial};
use super::ring::LogEntry;
use super::{Extent, ListOptions, Rule, Scope, WatchStart};
use crate::backend::Revision;
use crate::key::Domain;
use crate::resource_version::Epoch;
use crate::signal::Listener;
use crate::{Error, EventKind, Object, ObjectEvent, ResourceVersion, SelectionPredicate, WatchEvent};
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

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
    /// The logs of all backends; `None` until a backend's position is known.
    All {
        cursors: Vec<(Arc<Joined>, Option<Cursor>)>,
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
        let closed = self.fleet.closed_epoch();
        let seen = match source {
            Source::Owner { domain, cursor, .. } => {
                // The domain lives here and nowhere else since the position, so this log alone tells.
                let stays = domain.as_ref().is_none_or(|domain| {
                    let home = self.fleet.home_after(domain, position);
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
            Source::Nobody { domain } => closed.filter(|_| self.fleet.home_after(domain, position).is_none()),
            Source::All { cursors, .. } => closed.filter(|closed| {
                cursors
                    .iter()
                    .all(|(joined, cursor)| is_drained_below(joined, cursor.as_ref(), *closed))
            }),
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
            let position = self.fleet.position(sole, rv).await?;
            return Ok(Source::Owner {
                domain: None,
                cursor: Cursor::new(sole.clone(), self.prefix(), position),
                changes,
            });
        }
        let Some(domain) = self.domain() else {
            return self.all_after(rv).await;
        };
        // A round, if the routing table does not know the domain: an owner that exists is then known.
        self.fleet.locate(&domain).await?;
        self.fleet.check_not_forgotten(rv)?;
        match self.fleet.home_after(&domain, rv) {
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
        let position = self.fleet.position(&joined, rv).await?;
        Ok(Source::Owner {
            domain: Some(domain),
            cursor: Cursor::new(joined, self.prefix(), position),
            changes,
        })
    }

    /// Backends that are away get their position when they are back: until then nothing is released.
    async fn all_after(&mut self, rv: ResourceVersion) -> Result<Source, Error> {
        let closed = self.fleet.closed_changes();
        let mut cursors = Vec::new();
        for joined in &self.fleet.clone().backends {
            let cursor = self.cursor_of(joined, rv).await?;
            cursors.push((joined.clone(), cursor));
        }
        Ok(Source::All { cursors, closed })
    }

    async fn cursor_of(
        &mut self,
        joined: &Arc<Joined>,
        rv: ResourceVersion,
    ) -> Result<Option<Cursor>, Error> {
        if is_partial(rv) {
            // Who starts from a list that left a cluster out waits with it, and cannot go on once it is back.
            let complete = self.fleet.backends.iter().all(|joined| joined.is_connected());
            return if complete {
                Err(Error::Expired { requested: rv })
            } else {
                Ok(None)
            };
        }
        match self.fleet.position(joined, rv).await {
            Ok(position) => Ok(Some(Cursor::new(joined.clone(), self.prefix(), position))),
            Err(Error::Unavailable { .. }) => Ok(None),
            Err(error) => Err(error),
        }
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
                Some(home) if Arc::ptr_eq(&home.joined, &cursor.joined) => left = home.until,
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
            && let Some(entry) = cursor.pop()
        {
            self.position = Some(cursor.resource_version_of(&entry)?);
            if let Some(event) = event_of(&cursor.joined, &self.predicate, &entry)? {
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
        let mut changes: Vec<_> = self
            .fleet
            .backends
            .iter()
            .map(|joined| joined.changes())
            .collect();
        let (joined, position) = loop {
            let Some(position) = self.position else {
                return Err(Error::Internal("a watch without a position".to_owned()));
            };
            // Nobody has claimed the domain below what all logs have shown.
            let closed = self.fleet.closed_epoch();
            if let Some(home) = self.fleet.home_after(&domain, position) {
                break (home.joined, position);
            }
            self.position =
                Some(closed.map_or(position, |closed| position.max(ResourceVersion::cut(closed))));
            futures::future::select_all(changes.iter_mut().map(|changes| Box::pin(changes.changed()))).await;
        };
        match self.source_at(joined, domain, position).await {
            Ok(source) => self.state = State::Following(source),
            Err(Error::Unavailable { .. }) => tokio::time::sleep(POSITION_PAUSE).await,
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn next_of_all(&mut self) -> Result<(), Error> {
        self.place_cursors().await?;
        let State::Following(Source::All { cursors, closed }) = &mut self.state else {
            return Ok(());
        };
        closed.mark_seen();
        let released = self.fleet.closed_epoch();
        let complete = cursors.iter().all(|(_, cursor)| cursor.is_some());
        let Some(released) = released.filter(|_| complete) else {
            if complete {
                closed.changed().await;
                return Ok(());
            }
            tokio::time::sleep(POSITION_PAUSE).await;
            return Ok(());
        };
        for (joined, cursor) in cursors.iter_mut() {
            let Some(cursor) = cursor else { continue };
            cursor
                .fill(released_until(&self.fleet, joined, released)?)
                .await?;
        }
        // Merge: every head is below the closed epoch, and whoever has no head has nothing left below it.
        while self.ready.len() < BATCH_EVENTS_MAX {
            let heads = cursors.iter().enumerate().filter_map(|(i, (_, cursor))| {
                let cursor = cursor.as_ref()?;
                Some(cursor.resource_version_of(cursor.head()?).map(|rv| (rv, i)))
            });
            let Some((rv, i)) = heads.collect::<Result<Vec<_>, _>>()?.into_iter().min() else {
                break;
            };
            let (joined, Some(cursor)) = &mut cursors[i] else {
                break;
            };
            let Some(entry) = cursor.pop() else { break };
            self.position = Some(rv);
            if let Some(event) = event_of(joined, &self.predicate, &entry)? {
                self.ready.push(event);
            }
            if cursor.head().is_none() && !is_drained_below(joined, Some(cursor), released) {
                // What comes next of this backend is not read yet: nothing above may pass.
                return Ok(());
            }
        }
        let drained = cursors
            .iter()
            .all(|(joined, cursor)| is_drained_below(joined, cursor.as_ref(), released));
        if self.ready.is_empty() && drained {
            self.position = self.position.max(Some(ResourceVersion::cut(released)));
            closed.changed().await;
            return Ok(());
        }
        Ok(())
    }

    /// Finds the position of backends that were away.
    async fn place_cursors(&mut self) -> Result<(), Error> {
        let State::Following(Source::All { cursors, .. }) = &self.state else {
            return Ok(());
        };
        let Some(rv) = self.position else { return Ok(()) };
        let away: Vec<usize> = (0..cursors.len()).filter(|i| cursors[*i].1.is_none()).collect();
        for i in away {
            let State::Following(Source::All { cursors, .. }) = &self.state else {
                return Ok(());
            };
            let joined = cursors[i].0.clone();
            let cursor = self.cursor_of(&joined, rv).await?;
            let State::Following(Source::All { cursors, .. }) = &mut self.state else {
                return Ok(());
            };
            cursors[i].1 = cursor;
        }
        Ok(())
    }
}

/// The revision up to which the changes of one backend are below the closed epoch.
fn released_until(fleet: &Fleet, joined: &Joined, closed: Epoch) -> Result<Revision, Error> {
    let state = joined.state.lock();
    if fleet.broken(Rule::ReleaseWhenClosed) {
        return Ok(state.log.revision);
    }
    match state.log.ticks.cut(closed) {
        Ok(Some(base)) => Ok(base - 1),
        // Another backend has been away for longer than this one remembers.
        Ok(None) | Err(_) => Err(Error::Expired {
            requested: ResourceVersion::cut(closed),
        }),
    }
}

fn is_drained_below(joined: &Joined, cursor: Option<&Cursor>, closed: Epoch) -> bool {
    let cut = joined.state.lock().log.ticks.cut(closed);
    let Some(cursor) = cursor else { return false };
    matches!(cut, Ok(Some(base)) if cursor.is_drained(base - 1))
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
