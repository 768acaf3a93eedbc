//! The watch of all namespaces: the logs of all members, merged in the order of resource versions as far as they are
//! closed. It meets members that come, leave, are lost and return.

use super::{BATCH_EVENTS_MAX, POSITION_PAUSE, Source, State, Watching, event_of};
use crate::backend::Revision;
use crate::federated::Rule;
use crate::federated::cursor::Cursor;
use crate::federated::fleet::Fleet;
use crate::federated::joined::Joined;
use crate::federated::list::is_partial;
use crate::federated::standing::Standing;
use crate::federated::view::{View, is_of};
use crate::membership::MemberState;
use crate::resource_version::Epoch;
use crate::{Error, ResourceVersion};
use std::sync::Arc;

/// Where a watch of all namespaces stands in one backend's log.
pub(super) struct Place {
    joined: Arc<Joined>,
    /// `None` until the position is known.
    cursor: Option<Cursor>,
    /// Nothing above this revision is taken: the backend has left the fleet, or is lost from there on.
    last: Option<Revision>,
    /// The generation that it was open in when it was met: it may go and return unseen.
    opens: u64,
}

impl Watching {
    /// Backends that are away get their position when they are back: until then nothing is released.
    pub(super) async fn all_after(&mut self, rv: ResourceVersion) -> Result<Source, Error> {
        let closed = self.fleet.closed_changes();
        let view = self.fleet.view();
        if view.is_expired(rv.epoch()) {
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
                    cause: NEEDED_FROM_BEFORE.to_owned(),
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

    pub(super) async fn next_of_all(&mut self) -> Result<(), Error> {
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
                // Where it stands in that log was never found, and will not be until it is back; perhaps never.
                Some(MemberState::Offline { .. }) if place.cursor.is_none() => return Err(expired(position)),
                Some(MemberState::Lost { .. }) if place.cursor.is_none() => {
                    return Err(place.joined.unavailable(NEEDED_FROM_BEFORE));
                }
                Some(MemberState::Lost { from } | MemberState::Offline { from }) => {
                    Some(last_before(&place.joined, from)?)
                }
                Some(MemberState::Removed { .. }) if fleet.broken(Rule::LeaverIsReadToItsEnd) => {
                    Some(place.joined.state.lock().log.revision)
                }
                // Until its log has shown its end it counts as if it had not left.
                Some(MemberState::Removed { last }) => last_before(&place.joined, Epoch(last.0 + 1)).ok(),
                Some(MemberState::Active | MemberState::Leaving) | None => return Err(expired(position)),
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
            return Err(expired(position));
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

    pub(super) fn is_drained_below(&self, closed: Epoch) -> bool {
        let cut = self.joined.state.lock().log.ticks.cut(closed);
        let Some(cursor) = &self.cursor else { return false };
        match (cut, self.last) {
            (Ok(Some(base)), last) => cursor.is_drained(last.map_or(base - 1, |last| last.min(base - 1))),
            (_, Some(last)) => cursor.is_drained(last),
            (_, None) => false,
        }
    }
}

/// Why a watch ends when a member is lost that it is behind of.
const NEEDED_FROM_BEFORE: &str = "the watch needs changes from before it was lost";

fn expired(position: Option<ResourceVersion>) -> Error {
    let requested = position.unwrap_or(ResourceVersion::cut(Epoch(0)));
    Error::Expired { requested }
}

/// The last revision below an epoch, by what the log has shown.
fn last_before(joined: &Joined, end: Epoch) -> Result<Revision, Error> {
    let cut = joined.state.lock().log.ticks.cut(end);
    match cut {
        Ok(Some(base)) => Ok(base - 1),
        Ok(None) | Err(_) => Err(joined.unavailable("it was lost before its log was read up to there")),
    }
}
