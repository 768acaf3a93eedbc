//! The members as this replica acts on them, with their connections. A value that is replaced as a whole.
//!
//! It holds no lock and asks nobody; what the logs have shown it reads from the backends' state, and it knows since when
//! this replica lacks a connection.

use super::joined::Joined;
use crate::membership::report::BackendReport;
use crate::membership::{MemberRecord, MemberState, Membership};
use crate::resource_version::{Epoch, Slot};
use std::sync::Arc;
use tokio::time::Instant;

/// The members and their connections.
#[derive(Debug)]
pub(crate) struct View {
    /// Rises whenever the view is replaced.
    pub(crate) version: u64,
    /// Who has left does not count, whatever of its log is unread. Wrong: a test shows that it is noticed.
    hasty: bool,
    pub(crate) membership: Membership,
    /// Every backend that was handed over, in the order of slots: members, those who will be, and those who were.
    pub(crate) connections: Vec<Arc<Joined>>,
    /// Members that lists and watches over all namespaces need.
    pub(crate) serving: Vec<Arc<Joined>>,
    /// Members that have left, with the last epoch of theirs.
    pub(crate) removed: Vec<(Arc<Joined>, Epoch)>,
    /// The last epochs of members that have left and that this replica has no connection to.
    gone: Vec<Epoch>,
    /// Every member that this replica has no connection to, with the time since when.
    unconnected: Vec<(Slot, String, Instant)>,
    /// Members that cannot be asked, and why: a list of everything is not whole without them.
    pub(crate) absent: Vec<Absent>,
    /// Members that were given up: lists of everything are without them.
    pub(crate) given_up: Vec<Absent>,
    /// Only those above this epoch: others may not have known it yet when they began a list below.
    left_out_above: Epoch,
    /// Versions below are expired: of a member that was abandoned they may still have shown objects.
    horizon: Epoch,
}

/// A member that cannot be asked.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) name: String,
    /// What the membership says of it.
    state: MemberState,
    /// Its connection, if this replica has one: what its log has shown is known.
    joined: Option<Arc<Joined>>,
}

impl Absent {
    /// Whether its log was read up to an epoch, or up to where it was lost.
    fn was_read(&self, up_to: Epoch) -> bool {
        let up_to = self.state.end().map(|from| from.min(up_to));
        let seen = self.joined.as_ref().and_then(|joined| joined.newest_epoch());
        up_to.zip(seen).is_some_and(|(up_to, seen)| seen >= up_to)
    }

    pub(crate) fn error(&self) -> crate::Error {
        crate::Error::Unavailable {
            cluster: self.name.clone(),
            cause: why_away(self.state)
                .unwrap_or("this replica has no connection to it yet")
                .to_owned(),
        }
    }
}

/// Why a member with this state is not asked, if it is the state that says so.
fn why_away(state: MemberState) -> Option<&'static str> {
    match state {
        MemberState::Lost { .. } => Some("it is lost: no replica reaches it"),
        MemberState::Offline { .. } => Some("it was taken offline"),
        MemberState::Active | MemberState::Leaving | MemberState::Removed { .. } => None,
    }
}

impl View {
    pub(crate) fn new(
        version: u64,
        membership: Membership,
        connections: Vec<Arc<Joined>>,
        hasty: bool,
    ) -> Self {
        let mut view = Self {
            version,
            hasty,
            horizon: membership.horizon,
            membership,
            connections,
            serving: Vec::new(),
            removed: Vec::new(),
            gone: Vec::new(),
            unconnected: Vec::new(),
            absent: Vec::new(),
            given_up: Vec::new(),
            left_out_above: Epoch(0),
        };
        for record in &view.membership.members {
            let joined = view.connections.iter().find(|joined| is_of(joined, record));
            if joined.is_none() {
                view.unconnected
                    .push((record.slot, record.uid.clone(), Instant::now()));
            }
            let absent = || Absent {
                name: record.name.clone(),
                state: record.state,
                joined: joined.cloned(),
            };
            match (record.state, joined) {
                (MemberState::Lost { .. }, _) => view.absent.push(absent()),
                (MemberState::Offline { .. }, _) => view.given_up.push(absent()),
                (MemberState::Active | MemberState::Leaving, Some(joined)) => {
                    view.serving.push(joined.clone())
                }
                (MemberState::Active | MemberState::Leaving, None) => view.absent.push(absent()),
                (MemberState::Removed { last }, Some(joined)) => view.removed.push((joined.clone(), last)),
                (MemberState::Removed { last }, None) => view.gone.push(last),
            }
        }
        view
    }

    /// Who holds what a snapshot below `epoch` shows: serving members, and those that have left since. `None`: it cannot be
    /// had any more.
    pub(crate) fn holders(&self, epoch: Epoch) -> Option<Vec<Arc<Joined>>> {
        if self.is_expired(epoch) || self.gone.iter().any(|last| epoch <= *last) {
            return None;
        }
        let left = self.removed.iter().filter(|(_, last)| epoch <= *last);
        let left = left.map(|(joined, _)| joined);
        Some(self.serving.iter().chain(left).cloned().collect())
    }

    /// Whether nobody can say any more what all members held at this epoch.
    pub(crate) fn is_expired(&self, epoch: Epoch) -> bool {
        epoch < self.horizon
    }

    /// What the membership says of this backend.
    pub(crate) fn record(&self, joined: &Joined) -> Option<&MemberRecord> {
        self.membership
            .members
            .iter()
            .find(|record| is_of(joined, record))
    }

    /// The generation that it is open in.
    pub(crate) fn opens(&self, joined: &Joined) -> u64 {
        self.record(joined).map_or(0, |record| record.opens)
    }

    /// Its state as a member.
    pub(crate) fn state(&self, joined: &Joined) -> Option<MemberState> {
        self.record(joined).map(|record| record.state)
    }

    /// Whether new namespaces and writes may go to it: it is a member, and its own `members` says that it is open.
    pub(crate) fn is_open(&self, joined: &Joined) -> bool {
        self.record(joined).is_some_and(|record| match record.state {
            MemberState::Active | MemberState::Leaving => joined.own_generation() >= record.opens,
            MemberState::Removed { .. } | MemberState::Lost { .. } | MemberState::Offline { .. } => false,
        })
    }

    /// Whether it is back and does not take part yet: what was missed of it, it says when it is opened. Who was accepted
    /// after a restore may be connected before the members say so.
    pub(crate) fn returns(&self, joined: &Joined) -> bool {
        let Some(record) = self.record(joined) else {
            return joined.member.incarnation > 0;
        };
        record.missed.is_some() && record.state.serves() && !self.is_open(joined)
    }

    /// `Unavailable` for reads of a member that was accepted after a restore, until it is opened: what it holds has versions
    /// of before so far, and they are expired then (seeds 544, 408).
    pub(crate) fn check_begun(&self, joined: &Joined) -> Result<(), crate::Error> {
        match joined.member.incarnation > 0 && self.returns(joined) {
            true => Err(joined.unavailable("it was accepted as it is, and is not open yet")),
            false => Ok(()),
        }
    }

    /// Whether it is declared lost, or given up.
    pub(crate) fn is_away(&self, joined: &Joined) -> bool {
        self.check_not_away(joined).is_err()
    }

    /// `Unavailable`, at once, for what only a member has that is declared lost, or given up.
    pub(crate) fn check_not_away(&self, joined: &Joined) -> Result<(), crate::Error> {
        match self.state(joined).and_then(why_away) {
            Some(cause) => Err(joined.unavailable(cause)),
            None => Ok(()),
        }
    }

    /// Remembers since when the members are as they are; `highest` is the highest epoch that was seen before.
    pub(crate) fn follows(&mut self, before: &Self, highest: Epoch) {
        for (slot, uid, since) in &mut self.unconnected {
            let mut known = before.unconnected.iter();
            let known = known.find(|(known_slot, known_uid, _)| known_slot == slot && known_uid == uid);
            *since = known.map_or(*since, |known| known.2);
        }
        let names = |view: &Self| -> Vec<String> { view.given_up.iter().map(|m| m.name.clone()).collect() };
        // Who went without having left was abandoned. Others have released versions since that was decided, until they heard
        // of it; none of these is above what this replica has seen, as it has read the decision in a log.
        let stays = |was: &MemberRecord| {
            self.membership
                .members
                .iter()
                .any(|is| is.slot == was.slot && is.uid == was.uid)
        };
        let mut gone = before.membership.members.iter().filter(|was| !stays(was));
        if gone.any(|was| !matches!(was.state, MemberState::Removed { .. })) {
            self.horizon = self.horizon.max(Epoch(highest.0 + 1));
        }
        self.horizon = self.horizon.max(before.horizon);
        self.left_out_above = if names(self) == names(before) {
            before.left_out_above
        } else {
            highest
        };
    }

    /// Members whose absence a list over all namespaces cannot leave unsaid: those that are lost, and those that were given up
    /// if nobody else is there whose clock an answer could be dated by.
    pub(crate) fn missed_by_lists(&self) -> impl Iterator<Item = &Absent> {
        let given_up = self.given_up.iter().filter(|_| self.serving.is_empty());
        self.absent.iter().chain(given_up)
    }

    /// Whether a list at this epoch may have to show the objects of a member that is given up: a page before has shown
    /// them, or the list is older.
    pub(crate) fn may_lack_objects_at(&self, epoch: Epoch) -> bool {
        !self.given_up.is_empty() && epoch <= self.left_out_above
    }

    /// Serving members and those that have left, which are ticked on so that old versions find their place.
    pub(crate) fn ticked(&self) -> Vec<Arc<Joined>> {
        let removed = self.removed.iter().map(|(joined, _)| joined);
        let mut ticked: Vec<_> = self.serving.iter().chain(removed).cloned().collect();
        ticked.sort_by_key(|joined| joined.slot());
        ticked
    }

    /// The lowest clock that the logs of all who count have shown. `None`: one has not shown any.
    pub(crate) fn lowest_clock(&self) -> Option<Epoch> {
        // Who is lost is waited for no longer.
        if self.absent.iter().any(|absent| absent.state.serves()) {
            return None;
        }
        // Who has left counts until its log has shown all that it ever held.
        let leaving = self
            .removed
            .iter()
            .filter(|_| !self.hasty)
            .filter(|(joined, last)| joined.newest_epoch().is_none_or(|seen| seen <= *last))
            .map(|(joined, _)| joined);
        let mut lowest = None;
        for joined in self.serving.iter().chain(leaving) {
            let seen = joined.newest_epoch()?;
            lowest = Some(lowest.map_or(seen, |lowest: Epoch| lowest.min(seen)));
        }
        lowest
    }

    /// Why it is not known what all members held below an epoch: a log was not read so far.
    pub(crate) fn unread(&self, up_to: Epoch) -> Option<crate::Error> {
        let serving = self.serving.iter().map(|joined| (joined, up_to));
        let removed = self
            .removed
            .iter()
            .map(|(joined, last)| (joined, up_to.min(Epoch(last.0 + 1))));
        let mut known = serving.chain(removed);
        // Of a member that was restored nothing is known of before until it says so, when it is opened (seed 73).
        let unread = known.find(|(joined, up_to)| {
            self.check_begun(joined).is_err() || joined.newest_epoch().is_none_or(|seen| seen < *up_to)
        });
        let unread = unread.map(|(joined, _)| {
            joined.unavailable("its log was not read so far, and the namespace may have lived there")
        });
        unread.or_else(|| {
            let mut away = self.absent.iter().chain(&self.given_up);
            away.find(|absent| !absent.was_read(up_to)).map(Absent::error)
        })
    }

    /// Whether its changes end somewhere.
    pub(crate) fn leaves(&self, joined: &Joined) -> bool {
        self.state(joined).is_none_or(|state| !state.serves())
    }

    /// What this replica says of every backend. Who is not connected is not reached, and nothing of it was released.
    pub(crate) fn report(&self) -> Vec<BackendReport> {
        let connected = self.connections.iter().map(|joined| joined.report(self));
        let unconnected = self.unconnected.iter().map(|(slot, uid, since)| BackendReport {
            slot: *slot,
            uid: uid.clone(),
            unreachable_for: Some(since.elapsed()),
            clock: None,
            open: false,
        });
        connected.chain(unconnected).collect()
    }

    /// The slot's connection, member or not.
    pub(crate) fn connection(&self, slot: Slot) -> Option<&Arc<Joined>> {
        self.connections.iter().find(|joined| joined.slot() == slot)
    }
}

pub(crate) fn is_of(joined: &Joined, record: &MemberRecord) -> bool {
    let member = &joined.member;
    member.slot == record.slot && member.uid == record.uid && member.incarnation == record.incarnation
}
