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
use super::standing::Standing;
use super::view::{View, is_of};
use super::{Extent, ListOptions, Rule, Scope, WatchStart};
use crate::backend::Revision;
use crate::key::Domain;
use crate::membership::MemberState;
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
    /// The logs of all backends, as of a version of the view.
    All {
        version: u64,
        cursors: Vec<Place>,
        closed: Listener,
    },
}

/// Where a watch of all namespaces stands in one backend's log.
struct Place {
    joined: Arc<Joined>,
    /// `None` until the position is known.
    cursor: Option<Cursor>,
    /// Nothing above this revision is taken: the backend has left the fleet, or is lost from there on.
    last: Option<Revision>,
    /// The generation that it was open in when it was met: it may go and return unseen.
    opens: u64,
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
                closed.filter(|_| matches!(self.fleet.home_after(domain, position), Ok(None)))
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

    /// Backends that are away get their position when they are back: until then nothing is released.
    async fn all_after(&mut self, rv: ResourceVersion) -> Result<Source, Error> {
        let closed = self.fleet.closed_changes();
        let view = self.fleet.view();
        if rv.epoch() < view.membership.horizon {
            return Err(Error::Expired { requested: rv });
        }
        let mut cursors = Vec::new();
        for record in &view.membership.members {
            // Nothing of it is above the version, or nothing of it will be delivered above the version.
            if record
                .state
                .end()
                .is_some_and(|end| rv >= ResourceVersion::cut(end))
            {
                continue;
            }
            if matches!(record.state, MemberState::Offline { .. }) {
                // Perhaps for ever.
                return Err(Error::Expired { requested: rv });
            }
            let lost = matches!(record.state, MemberState::Lost { .. });
            let joined = view.connections.iter().find(|joined| is_of(joined, record));
            let Some(joined) = joined.filter(|_| !lost) else {
                return Err(Error::Unavailable {
                    cluster: record.name.clone(),
                    cause: "the watch needs changes from before it was lost".to_owned(),
                });
            };
            let cursor = self.cursor_of(joined, rv, &view).await?;
            cursors.push(Place {
                joined: joined.clone(),
                cursor,
                last: None,
                opens: record.opens,
            });
        }
        Ok(Source::All {
            version: view.version,
            cursors,
            closed,
        })
    }

    async fn cursor_of(
        &mut self,
        joined: &Arc<Joined>,
        rv: ResourceVersion,
        view: &View,
    ) -> Result<Option<Cursor>, Error> {
        if is_partial(rv) {
            // Who starts from a list that left a cluster out waits with it, and cannot go on once it is back.
            let complete = view.absent.is_empty() && view.serving.iter().all(|joined| joined.is_connected());
            return if complete {
                Err(Error::Expired { requested: rv })
            } else {
                Ok(None)
            };
        }
        if view.state(joined).is_some_and(MemberState::serves) && !view.is_open(joined) {
            // Its own log will say from where on it takes part.
            return Ok(None);
        }
        match self.fleet.position_beyond_gap(joined, rv, &self.prefix()).await {
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

    async fn next_of_all(&mut self) -> Result<(), Error> {
        if let State::Following(Source::All { closed, .. }) = &mut self.state {
            // Whatever changes from here on wakes the watch.
            closed.mark_seen();
        }
        let (released, view) = self.fleet.closed_view();
        self.meet_members(&view)?;
        self.place_cursors(&view).await?;
        let State::Following(Source::All { cursors, closed, .. }) = &mut self.state else {
            return Ok(());
        };
        let complete = cursors.iter().all(|place| place.cursor.is_some());
        let Some(released) = released.filter(|_| complete) else {
            if complete {
                closed.changed().await;
                return Ok(());
            }
            tokio::time::sleep(POSITION_PAUSE).await;
            return Ok(());
        };
        for place in cursors.iter_mut() {
            let Some(until) = place.released_until(&self.fleet, released)? else {
                // A newcomer whose log has not come as far as the others' (seed 916).
                tokio::time::sleep(POSITION_PAUSE).await;
                return Ok(());
            };
            if let Some(cursor) = &mut place.cursor {
                cursor.fill(until).await?;
            }
        }
        // Merge: every head is below the closed epoch, and whoever has no head has nothing left below it.
        while self.ready.len() < BATCH_EVENTS_MAX {
            let heads = cursors.iter().enumerate().filter_map(|(i, place)| {
                let cursor = place.cursor.as_ref()?;
                Some(cursor.resource_version_of(cursor.head()?).map(|rv| (rv, i)))
            });
            let Some((rv, i)) = heads.collect::<Result<Vec<_>, _>>()?.into_iter().min() else {
                break;
            };
            let place = &mut cursors[i];
            let Some(entry) = place.cursor.as_ref().and_then(|cursor| cursor.head().cloned()) else {
                break;
            };
            let standing = self.fleet.change_standing(&place.joined, &entry, rv);
            if standing == Standing::Forgotten {
                return Err(Error::Expired { requested: rv });
            }
            if standing == Standing::Unsettled {
                // Nothing above may pass before it is known.
                if self.ready.is_empty() {
                    self.fleet.something_settled().await;
                }
                return Ok(());
            }
            place.cursor.as_mut().and_then(Cursor::pop);
            self.position = Some(rv);
            if standing == Standing::Counts
                && let Some(event) = event_of(&place.joined, &self.predicate, &entry)?
            {
                self.ready.push(event);
            }
            let has_head = place
                .cursor
                .as_ref()
                .is_some_and(|cursor| cursor.head().is_some());
            if !has_head && !place.is_drained_below(released) {
                // What comes next of this backend is not read yet: nothing above may pass.
                return Ok(());
            }
        }
        let drained = cursors.iter().all(|place| place.is_drained_below(released));
        if self.ready.is_empty() && drained {
            self.position = self.position.max(Some(ResourceVersion::cut(released)));
            // Of whoever has left nothing more comes once its end was read; the others may still be behind that (seed 460).
            cursors.retain(|place| !place.is_finished());
            closed.changed().await;
            return Ok(());
        }
        Ok(())
    }

    /// Takes in members that have come since, and marks how far those who went are still read. Nothing is awaited: what
    /// is released afterwards is released for these members.
    fn meet_members(&mut self, view: &View) -> Result<(), Error> {
        let (fleet, position) = (self.fleet.clone(), self.position);
        let State::Following(Source::All { version, cursors, .. }) = &mut self.state else {
            return Ok(());
        };
        let left = cursors
            .iter()
            .any(|place| place.last.is_none() && view.leaves(&place.joined));
        if *version == view.version && !left {
            return Ok(());
        }
        // Of whom is away nothing more is delivered once the watch is past where it was lost.
        let is_passed = |place: &Place| match view.state(&place.joined) {
            Some(MemberState::Lost { from } | MemberState::Offline { from }) => {
                position >= Some(ResourceVersion::cut(from))
            }
            _ => false,
        };
        cursors.retain(|place| !is_passed(place));
        for place in cursors.iter_mut() {
            place.last = match view.state(&place.joined) {
                Some(state) if state.serves() => {
                    let opens = view.opens(&place.joined);
                    if place.opens < opens {
                        // Others may have gone on without it, and this version may be one of theirs: its gap is looked at.
                        (place.cursor, place.opens) = (None, opens);
                    }
                    None
                }
                Some(MemberState::Lost { from } | MemberState::Offline { from }) => {
                    Some(last_before(&place.joined, from)?)
                }
                Some(MemberState::Removed { .. }) if fleet.broken(Rule::LeaverIsReadToItsEnd) => {
                    Some(place.joined.state.lock().log.revision)
                }
                // Until its log has shown its end it counts as if it had not left.
                Some(MemberState::Removed { last }) => last_before(&place.joined, Epoch(last.0 + 1)).ok(),
                Some(MemberState::Active | MemberState::Leaving) | None => {
                    let requested = position.unwrap_or(ResourceVersion::cut(Epoch(0)));
                    return Err(Error::Expired { requested });
                }
            };
        }
        // Whoever was waited for and went is waited for on, unless this watch needs nothing of it.
        let needed = |place: &Place| {
            let end = view.state(&place.joined).and_then(MemberState::end);
            end.is_none_or(|end| position < Some(ResourceVersion::cut(end)))
        };
        cursors.retain(|place| place.cursor.is_some() || needed(place));
        // Who came and went before this replica heard of it is read as well (seed 1961).
        let Some(holders) = position.map_or(Some(Vec::new()), |rv| view.holders(rv.epoch())) else {
            let requested = position.unwrap_or(ResourceVersion::cut(Epoch(0)));
            return Err(Error::Expired { requested });
        };
        for joined in &holders {
            if !cursors.iter().any(|place| Arc::ptr_eq(&place.joined, joined)) {
                cursors.push(Place {
                    joined: joined.clone(),
                    cursor: None,
                    last: None,
                    opens: view.opens(joined),
                });
            }
        }
        *version = view.version;
        Ok(())
    }

    /// Finds the position of backends that were away.
    async fn place_cursors(&mut self, view: &View) -> Result<(), Error> {
        let State::Following(Source::All { cursors, .. }) = &self.state else {
            return Ok(());
        };
        let Some(rv) = self.position else { return Ok(()) };
        let away = |place: &Place| place.cursor.is_none().then(|| place.joined.clone());
        for joined in cursors.iter().filter_map(away).collect::<Vec<_>>() {
            let found = self.cursor_of(&joined, rv, view).await?;
            let State::Following(Source::All { cursors, .. }) = &mut self.state else {
                return Ok(());
            };
            if let Some(place) = cursors
                .iter_mut()
                .find(|place| Arc::ptr_eq(&place.joined, &joined))
            {
                place.cursor = found;
            }
        }
        Ok(())
    }
}

impl Place {
    /// The revision up to which the changes of this backend are below the closed epoch; `None`: its log does not say yet.
    fn released_until(&self, fleet: &Fleet, closed: Epoch) -> Result<Option<Revision>, Error> {
        let state = self.joined.state.lock();
        if fleet.broken(Rule::ReleaseWhenClosed) {
            return Ok(Some(state.log.revision));
        }
        match (state.log.ticks.cut(closed), self.last) {
            (Ok(Some(base)), Some(last)) => Ok(Some(last.min(base - 1))),
            (_, Some(last)) => Ok(Some(last)),
            (Ok(base), None) => Ok(base.map(|base| base - 1)),
            // Another backend has been away for longer than this one remembers.
            (Err(_), None) => Err(Error::Expired {
                requested: ResourceVersion::cut(closed),
            }),
        }
    }

    /// Whether the backend has left and everything that it ever held was taken.
    fn is_finished(&self) -> bool {
        let ended = |(last, cursor): (Revision, &Cursor)| cursor.is_drained(last);
        self.last.zip(self.cursor.as_ref()).is_some_and(ended)
    }

    fn is_drained_below(&self, closed: Epoch) -> bool {
        let cut = self.joined.state.lock().log.ticks.cut(closed);
        let Some(cursor) = &self.cursor else { return false };
        match (cut, self.last) {
            (Ok(Some(base)), last) => cursor.is_drained(last.map_or(base - 1, |last| last.min(base - 1))),
            (_, Some(last)) => cursor.is_drained(last),
            (_, None) => false,
        }
    }
}

/// The last revision below an epoch, by what the log has shown.
fn last_before(joined: &Joined, end: Epoch) -> Result<Revision, Error> {
    let cut = joined.state.lock().log.ticks.cut(end);
    match cut {
        Ok(Some(base)) => Ok(base - 1),
        Ok(None) | Err(_) => Err(joined.unavailable("it was lost before its log was read up to there")),
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
