//! What I1 to I7 say of a backend that was restored from a backup, or wiped: while it is not accepted nobody hears of the
//! older state, and nothing is written. Once it is, nobody goes on from a version of before without 410.

use super::{Violation, name, state, state_before_restores, violation};
use crate::history::{Delivered, History, Nanos, Restore, Truth, Watch, WriteResult};
use outrigger_storage::{Epoch, ResourceVersion};
use std::collections::BTreeMap;

/// What restores have undone, by version.
pub(super) struct Undone<'a>(BTreeMap<ResourceVersion, &'a Restore>);

impl<'a> Undone<'a> {
    pub(super) fn of(truth: &'a Truth) -> Self {
        let undone = truth.changes.iter().filter_map(|change| {
            let of_change = |restore: &&Restore| {
                restore.slot == change.slot && restore.begins.is_some() && restore.begins == change.undone
            };
            Some((change.version, truth.restores.iter().find(of_change)?))
        });
        Self(undone.collect())
    }

    /// Whether somebody who was answered then may not have seen it.
    pub(super) fn may_be_missed(&self, version: ResourceVersion, answered: Nanos) -> bool {
        let restore = self.0.get(&version);
        restore.is_some_and(|restore| restore.over.is_some_and(|over| over <= answered))
    }

    /// Whether nobody who asked then can have seen it.
    pub(super) fn must_be_missed(&self, version: ResourceVersion, asked: Nanos) -> bool {
        let restore = self.0.get(&version);
        restore.is_some_and(|restore| restore.replaced <= asked)
    }
}

/// Whether a version was expired by a restore, for somebody who heard so at that time.
pub(super) fn expires(truth: &Truth, at: ResourceVersion, heard: Nanos) -> bool {
    let mut restores = truth.restores.iter();
    restores.any(|restore| {
        let is_accepted = restore.over.is_some_and(|over| over <= heard);
        is_accepted && restore.opened.is_none_or(|opened| at.epoch().0 < opened) && restore.was_accepted
    })
}

/// Nobody hears anything of a backend that is not what it was, and a list without it is no list (I5, I6).
pub(super) fn restores_are_refused(truth: &Truth, history: &History, found: &mut Vec<Violation>) {
    let undone = Undone::of(truth);
    for restore in &truth.restores {
        let slot = restore.slot;
        if restore.was_written {
            let what = format!("backend {slot} was written to before it was accepted: {restore:?}");
            violation(found, "I7", what);
        }
        let is_offline = |at: ResourceVersion| {
            let mut gaps = truth.gaps.iter();
            gaps.any(|gap| gap.objects && gap.slot == slot && gap.holds(at))
        };
        for get in history.gets.iter().filter(|get| restore.is_under_way(get.time)) {
            if get.found.is_some_and(|(_, version)| version.slot().0 == slot) {
                violation(
                    found,
                    "I5",
                    format!("{get:?} is of a backend that was restored: {restore:?}"),
                );
            }
        }
        for write in history
            .writes
            .iter()
            .filter(|write| restore.is_under_way(write.time))
        {
            if let WriteResult::Acknowledged(version) = write.result
                && version.slot().0 == slot
            {
                violation(
                    found,
                    "I5",
                    format!("{write:?} is of a backend that was restored: {restore:?}"),
                );
            }
        }
        for list in history
            .lists
            .iter()
            .filter(|list| restore.is_under_way(list.time))
        {
            let is_of_it = list.items.iter().any(|(_, _, version)| version.slot().0 == slot);
            if is_of_it || list.namespace.is_none() && !is_offline(list.version) {
                let what = format!(
                    "a list of {:?} at {:?} came while a backend was restored and not accepted: {restore:?}",
                    list.namespace, list.version
                );
                violation(found, "I6", what);
            }
        }
    }
    for get in &history.gets {
        if let Some((_, version)) = get.found
            && undone.must_be_missed(version, get.time.0)
        {
            violation(found, "I5", format!("{get:?} found what a restore has undone"));
        }
    }
}

/// Versions of the new life lie above all from before, and nobody goes through from there (I1, I3).
pub(super) fn restores_are_expired(truth: &Truth, history: &History, found: &mut Vec<Violation>) {
    for restore in &truth.restores {
        let (Some(begins), Some(over)) = (restore.begins, restore.over) else {
            continue;
        };
        if begins <= restore.clock {
            violation(
                found,
                "I1",
                format!("the new life is not above the one before: {restore:?}"),
            );
        }
        // Of the backend: others have gone on, and cuts of them may be above the first tick.
        let of_it = |version: &ResourceVersion| version.slot().0 == restore.slot && version.offset() > 0;
        let writes = history.writes.iter().filter_map(|write| match write.result {
            WriteResult::Acknowledged(version) => Some((write.time.1, version)),
            WriteResult::Refused(_) | WriteResult::Unknown(_) => None,
        });
        let mut before = writes.filter(|(heard, version)| *heard < over && of_it(version));
        if let Some((_, version)) = before.find(|(_, version)| version.epoch().0 >= begins) {
            let what = format!("{version:?} was there before the new life of a backend: {restore:?}");
            violation(found, "I1", what);
        }
        for watch in &history.watches {
            // Of all namespaces it may have gone on without a backend that was lost, and not beyond its return.
            let end = match watch.namespace {
                Some(_) => begins,
                None => restore.opened.unwrap_or(u64::MAX),
            };
            let passes = watch.after.epoch().0 < begins && farthest(watch).epoch().0 > end;
            if passes && is_concerned(truth, watch, begins) {
                let what = format!(
                    "{} went on through the restore of a backend to {:?}: {restore:?}",
                    name(watch),
                    farthest(watch)
                );
                violation(found, "I3", what);
            }
        }
    }
}

fn farthest(watch: &Watch) -> ResourceVersion {
    let delivered = watch.delivered.iter().map(|delivered| match delivered {
        Delivered::Event(_, _, _, version) | Delivered::Bookmark(version) => *version,
    });
    delivered
        .max()
        .map_or(watch.after, |delivered| delivered.max(watch.after))
}

/// Whether there is a watch that shows something else than what is there: of all namespaces every one, for every kind is
/// expired there.
fn is_concerned(truth: &Truth, watch: &Watch, begins: u64) -> bool {
    let Some(namespace) = watch.namespace.as_deref() else {
        return true;
    };
    let at = ResourceVersion::cut(Epoch(begins));
    let before = state_before_restores(truth, Some(namespace), at, begins - 1);
    state(truth, Some(namespace), at) != before
}
