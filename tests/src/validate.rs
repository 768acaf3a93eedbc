//! The seven promises, each as a check of a recorded history against the logs of the backends.
//!
//! A validator names the promise that is broken and what was seen. It shares no code with the store: it computes
//! resource versions, snapshots and event sequences by itself.

mod restored;

use crate::history::{
    Change, Delivered, Gap, History, List, ObjectName, Truth, Watch, WriteKind, WriteResult,
};
use outrigger_storage::{EventKind, ResourceVersion};
use std::collections::{BTreeMap, BTreeSet};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// `I1` to `I7`, or `rest`: everybody ends once nothing is in the way.
    pub promise: &'static str,
    /// What was seen.
    pub what: String,
}

/// What a run allowed, besides.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowances {
    /// History was compacted: watches may end with 410.
    pub compaction: bool,
}

/// Checks all promises.
#[must_use]
pub fn validate(history: &History, truth: &Truth, allowances: Allowances) -> Vec<Violation> {
    let mut found = Vec::new();
    i1_versions_rise(truth, history, &mut found);
    i2_snapshots_are_exact(truth, history, &mut found);
    i3_watches_are_exact(truth, history, &mut found);
    i4_retained_versions_resume(truth, history, allowances, &mut found);
    i5_acknowledged_writes_stay(truth, history, &mut found);
    i7_owners_only(truth, &mut found);
    restored::restores_are_refused(truth, history, &mut found);
    restored::restores_are_expired(truth, history, &mut found);
    found
}

fn violation(found: &mut Vec<Violation>, promise: &'static str, what: String) {
    found.push(Violation { promise, what });
}

/// I1: versions rise along every key and every backend.
fn i1_versions_rise(truth: &Truth, history: &History, found: &mut Vec<Violation>) {
    let mut by_backend: BTreeMap<u16, Vec<&Change>> = BTreeMap::new();
    for change in &truth.changes {
        by_backend.entry(change.slot).or_default().push(change);
    }
    for (slot, mut changes) in by_backend {
        changes.sort_by_key(|change| (change.life, change.revision));
        for pair in changes.windows(2) {
            if pair[0].version >= pair[1].version {
                violation(
                    found,
                    "I1",
                    format!("backend {slot}: {:?} is not above {:?}", pair[1], pair[0]),
                );
            }
        }
    }
    for pair in truth.changes.windows(2) {
        if pair[0].version == pair[1].version {
            violation(
                found,
                "I1",
                format!("two changes have one version: {:?} and {:?}", pair[0], pair[1]),
            );
        }
    }
    // Along a key, in real time: what was acknowledged before a write began has a lower version.
    let mut acknowledged: BTreeMap<&ObjectName, Vec<(u64, u64, ResourceVersion)>> = BTreeMap::new();
    for write in &history.writes {
        if let WriteResult::Acknowledged(version) = write.result {
            acknowledged
                .entry(&write.object)
                .or_default()
                .push((write.time.0, write.time.1, version));
        }
    }
    for (object, writes) in acknowledged {
        for a in &writes {
            for b in &writes {
                if a.1 < b.0 && a.2 >= b.2 {
                    violation(
                        found,
                        "I1",
                        format!(
                            "{object:?}: a later write has {:?}, the earlier one {:?}",
                            b.2, a.2
                        ),
                    );
                }
            }
        }
    }
}

/// The state of a scope at a version.
fn state<'a>(
    truth: &'a Truth,
    namespace: Option<&str>,
    at: ResourceVersion,
) -> BTreeMap<&'a ObjectName, (u64, ResourceVersion)> {
    state_before_restores(truth, namespace, at, at.epoch().0)
}

/// The same, as if no restore had undone anything from `since` on, which is an epoch.
fn state_before_restores<'a>(
    truth: &'a Truth,
    namespace: Option<&str>,
    at: ResourceVersion,
    since: u64,
) -> BTreeMap<&'a ObjectName, (u64, ResourceVersion)> {
    let mut state = BTreeMap::new();
    for change in truth
        .changes
        .iter()
        .filter(|c| namespace.is_none_or(|ns| c.object.0 == ns) && c.version <= at)
        .filter(|c| c.undone.is_none_or(|undone| since < undone))
    {
        match change.tag {
            Some(tag) => state.insert(&change.object, (tag, change.version)),
            None => state.remove(&change.object),
        };
    }
    state
}

/// I2: a snapshot at T holds exactly the changes below T. What is missing because a whole backend is, is I6.
fn i2_snapshots_are_exact(truth: &Truth, history: &History, found: &mut Vec<Violation>) {
    for list in &history.lists {
        let expected = state(truth, list.namespace.as_deref(), list.version);
        let seen: BTreeMap<&ObjectName, (u64, ResourceVersion)> =
            list.items.iter().map(|(o, tag, rv)| (o, (*tag, *rv))).collect();
        if !list.items.windows(2).all(|pair| pair[0].0 < pair[1].0) {
            violation(
                found,
                "I2",
                format!(
                    "a list at {:?} is not in order, or repeats an object",
                    list.version
                ),
            );
        }
        if seen == expected || is_without_who_is_offline(truth, list, &expected, &seen) {
            continue;
        }
        let slots_seen: BTreeSet<u16> = seen.values().map(|(_, rv)| rv.slot().0).collect();
        let missing: Vec<_> = expected
            .iter()
            .filter(|(object, _)| !seen.contains_key(*object))
            .collect();
        let whole_backend = !missing.is_empty()
            && missing
                .iter()
                .all(|(_, (_, rv))| !slots_seen.contains(&rv.slot().0));
        let promise = if whole_backend && seen.iter().all(|(o, s)| expected.get(o) == Some(s)) {
            "I6"
        } else {
            "I2"
        };
        violation(found, promise, difference(list, &expected, &seen));
    }
}

/// Whether exactly the objects of members are missing that were offline then.
fn is_without_who_is_offline(
    truth: &Truth,
    list: &List,
    expected: &BTreeMap<&ObjectName, (u64, ResourceVersion)>,
    seen: &BTreeMap<&ObjectName, (u64, ResourceVersion)>,
) -> bool {
    let offline: BTreeSet<u16> = truth
        .gaps
        .iter()
        .filter(|gap| gap.objects && list.namespace.is_none() && gap.holds(list.version))
        .map(|gap| gap.slot)
        .collect();
    let slots = |objects: &BTreeMap<&ObjectName, (u64, ResourceVersion)>| -> BTreeSet<u16> {
        objects.values().map(|(_, rv)| rv.slot().0).collect()
    };
    let left_out: BTreeSet<u16> = offline.difference(&slots(seen)).copied().collect();
    let without = expected
        .iter()
        .filter(|(_, (_, rv))| !left_out.contains(&rv.slot().0));
    without
        .map(|(object, state)| (*object, *state))
        .eq(seen.iter().map(|(o, s)| (*o, *s)))
}

fn difference(
    list: &List,
    expected: &BTreeMap<&ObjectName, (u64, ResourceVersion)>,
    seen: &BTreeMap<&ObjectName, (u64, ResourceVersion)>,
) -> String {
    let only = |a: &BTreeMap<&ObjectName, (u64, ResourceVersion)>,
                b: &BTreeMap<&ObjectName, (u64, ResourceVersion)>| {
        a.iter()
            .filter(|(o, s)| b.get(*o) != Some(s))
            .map(|(o, s)| format!("{o:?}={s:?}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    format!(
        "a list of {:?} at {:?}: expected but not seen: {}; seen but not expected: {}",
        list.namespace,
        list.version,
        only(expected, seen),
        only(seen, expected)
    )
}

/// The gap that a change may be passed over for, in a watch over all namespaces that does not go on beyond the gap.
fn gap_of<'a>(truth: &'a Truth, watch: &Watch, change: &Change) -> Option<&'a Gap> {
    let of_change = |gap: &&Gap| gap.slot == change.slot && gap.holds(change.version);
    let gaps = truth.gaps.iter().filter(|_| watch.namespace.is_none());
    gaps.filter(of_change).max_by_key(|gap| gap.to)
}

/// I3: a watch from T delivers every change above T once, in the order of versions, or ends with 410. A deletion that
/// nobody made is I6.
fn i3_watches_are_exact(truth: &Truth, history: &History, found: &mut Vec<Violation>) {
    for watch in &history.watches {
        let in_scope = |change: &&Change| {
            watch.namespace.as_deref().is_none_or(|ns| change.object.0 == ns) && change.version > watch.after
        };
        let mut expected = truth.changes.iter().filter(in_scope).peekable();
        let mut ok = true;
        let mut last = watch.after;
        // The end of the gap that it has passed over a change for.
        let mut ends = u64::MAX;
        for delivered in &watch.delivered {
            let (Delivered::Event(_, _, _, version) | Delivered::Bookmark(version)) = delivered;
            while let Some(change) = expected.peek()
                && (change.version < *version
                    || change.version == *version && matches!(delivered, Delivered::Bookmark(_)))
                && let Some(gap) = gap_of(truth, watch, change)
            {
                ends = ends.min(gap.to);
                expected.next();
            }
            if version.epoch().0 >= ends {
                violation(
                    found,
                    "I3",
                    format!(
                        "{}: {delivered:?} is beyond a gap that ended in epoch {ends}, and a change of the gap was not delivered",
                        name(watch)
                    ),
                );
                ok = false;
                break;
            }
            match delivered {
                Delivered::Event(kind, object, tag, version) => {
                    let Some(change) = expected.next() else {
                        violation(
                            found,
                            "I3",
                            format!("{}: {delivered:?} did not happen", name(watch)),
                        );
                        ok = false;
                        break;
                    };
                    let event = event_of(change);
                    if event != (*kind, object, *tag, *version) {
                        let invented = *kind == EventKind::Deleted
                            && !truth
                                .changes
                                .iter()
                                .any(|c| c.tag.is_none() && c.version == *version);
                        let promise = if invented { "I6" } else { "I3" };
                        violation(
                            found,
                            promise,
                            format!("{}: expected {event:?}, got {delivered:?}", name(watch)),
                        );
                        ok = false;
                        break;
                    }
                    last = *version;
                }
                Delivered::Bookmark(version) => {
                    if *version < last {
                        violation(
                            found,
                            "I3",
                            format!("{}: bookmark {version:?} is below {last:?}", name(watch)),
                        );
                    }
                    if let Some(left) = expected.peek().filter(|change| change.version <= *version) {
                        violation(
                            found,
                            "I3",
                            format!("{}: bookmark {version:?} passes {left:?}", name(watch)),
                        );
                        ok = false;
                        break;
                    }
                    last = *version;
                }
            }
        }
        let passed = |left: &&&Change| watch.complete_to.is_some_and(|end| left.version <= end);
        if let Some(left) = expected.peek().filter(passed).filter(|_| ok) {
            violation(found, "I3", format!("{}: never delivered {left:?}", name(watch)));
        }
    }
}

fn name(watch: &Watch) -> String {
    format!("a watch of {:?} after {:?}", watch.namespace, watch.after)
}

fn event_of(change: &Change) -> (EventKind, &ObjectName, u64, ResourceVersion) {
    match (change.before, change.tag) {
        (None, tag) => (
            EventKind::Added,
            &change.object,
            tag.unwrap_or_default(),
            change.version,
        ),
        (Some(_), Some(tag)) => (EventKind::Modified, &change.object, tag, change.version),
        (Some(before), None) => (EventKind::Deleted, &change.object, before, change.version),
    }
}

/// I4: any replica resumes any retained version. Versions of a gap that holds changes are not, nor those from before a
/// member was forgotten.
fn i4_retained_versions_resume(
    truth: &Truth,
    history: &History,
    allowances: Allowances,
    found: &mut Vec<Violation>,
) {
    let holds_changes = |gap: &Gap| {
        let mut changes = truth.changes.iter();
        changes.any(|change| change.slot == gap.slot && gap.holds(change.version))
    };
    let lost: Vec<&Gap> = truth
        .gaps
        .iter()
        .filter(|gap| gap.objects || holds_changes(gap))
        .collect();
    for watch in &history.watches {
        let is_of_gap = |at: ResourceVersion| {
            // Whoever stands below where a member was taken offline cannot go on meanwhile.
            let wide = watch.namespace.is_none();
            let mut gaps = lost.iter().filter(|gap| gap.objects || wide);
            let may_have_come_to = |gap: &Gap| (gap.objects || watch.was_running) && at.epoch().0 < gap.from;
            gaps.any(|gap| gap.holds(at) || wide && may_have_come_to(gap))
        };
        let is_forgotten = |at: ResourceVersion| at.epoch().0 < truth.horizon;
        let is_before_restore = |at: ResourceVersion| restored::expires(truth, at, watch.ended);
        let is_retained = |at: &ResourceVersion| {
            !allowances.compaction && !is_of_gap(*at) && !is_forgotten(*at) && !is_before_restore(*at)
        };
        if let Some(at) = watch.expired.filter(is_retained) {
            violation(
                found,
                "I4",
                format!(
                    "{} ended with 410 at {at:?}, and nothing was compacted",
                    name(watch)
                ),
            );
        }
    }
}

/// I5: an acknowledged write is in every later list and get; one that was refused is nowhere.
fn i5_acknowledged_writes_stay(truth: &Truth, history: &History, found: &mut Vec<Violation>) {
    let mut by_tag: BTreeMap<u64, Vec<&Change>> = BTreeMap::new();
    for change in &truth.changes {
        if let Some(tag) = change.tag {
            by_tag.entry(tag).or_default().push(change);
        }
    }
    let mut deletions: BTreeSet<(u64, ResourceVersion)> = BTreeSet::new();
    for change in &truth.changes {
        if let (None, Some(before)) = (change.tag, change.before) {
            deletions.insert((before, change.version));
        }
    }
    let mut acknowledged_deletions: BTreeSet<ResourceVersion> = BTreeSet::new();
    for write in &history.writes {
        let committed = by_tag.get(&write.tag).map_or(&[][..], |c| &c[..]);
        match (&write.result, write.kind) {
            (WriteResult::Acknowledged(version), WriteKind::Delete) => {
                if !deletions.contains(&(write.tag, *version)) {
                    violation(
                        found,
                        "I5",
                        format!("an acknowledged delete is not in the log: {write:?}"),
                    );
                }
                if !acknowledged_deletions.insert(*version) {
                    violation(
                        found,
                        "I5",
                        format!("two deletes were acknowledged for one: {write:?}"),
                    );
                }
            }
            (WriteResult::Acknowledged(version), _) => {
                if committed.len() != 1 || committed[0].version != *version {
                    violation(found, "I5", format!("{write:?} is in the log as {committed:?}"));
                }
            }
            (WriteResult::Refused(_), WriteKind::Create | WriteKind::Update) if !committed.is_empty() => {
                violation(
                    found,
                    "I5",
                    format!("{write:?} was refused and is in the log as {committed:?}"),
                );
            }
            (WriteResult::Unknown(_), WriteKind::Create | WriteKind::Update) if committed.len() > 1 => {
                violation(
                    found,
                    "I5",
                    format!("{write:?} was carried out more than once: {committed:?}"),
                );
            }
            (WriteResult::Refused(_) | WriteResult::Unknown(_), _) => {}
        }
    }
    for write in &history.writes {
        let WriteResult::Acknowledged(version) = write.result else {
            continue;
        };
        for list in history
            .lists
            .iter()
            .filter(|list| list.most_recent && list.time.0 > write.time.1)
        {
            let in_scope = list.namespace.as_ref().is_none_or(|ns| *ns == write.object.0);
            let is_offline =
                |gap: &Gap| gap.objects && gap.slot == version.slot().0 && gap.holds(list.version);
            if list.namespace.is_none() && truth.gaps.iter().any(is_offline) {
                continue;
            }
            if in_scope && list.version < version {
                violation(
                    found,
                    "I5",
                    format!("a list at {:?} began after {write:?}", list.version),
                );
            }
        }
    }
    let undone = restored::Undone::of(truth);
    for get in &history.gets {
        let before = history
            .writes
            .iter()
            .filter(|w| w.object == get.object && w.time.1 < get.time.0);
        let newest = before.filter_map(|w| match w.result {
            WriteResult::Acknowledged(version) => Some(version),
            _ => None,
        });
        // What a restore has undone is excused once that was accepted.
        let newest = newest.filter(|version| !undone.may_be_missed(*version, get.time.1));
        let Some(newest) = newest.max() else { continue };
        let ok = match get.found {
            Some((tag, version)) => {
                version >= newest
                    && by_tag
                        .get(&tag)
                        .is_some_and(|c| c.iter().any(|c| c.version == version))
            }
            // Absent: something at or above the newest acknowledged write deleted it.
            None => truth.changes.iter().any(|c| {
                c.object == get.object
                    && c.tag.is_none()
                    && c.version >= newest
                    && !undone.must_be_missed(c.version, get.time.0)
            }),
        };
        if !ok {
            let promise = if get.found.is_none() { "I6" } else { "I5" };
            violation(
                found,
                promise,
                format!("{get:?} came after a write acknowledged at {newest:?}"),
            );
        }
    }
}

/// I7: no write lands on a backend that does not own the namespace.
fn i7_owners_only(truth: &Truth, found: &mut Vec<Violation>) {
    for change in truth.changes.iter().filter(|change| !change.owned) {
        violation(
            found,
            "I7",
            format!("{change:?} landed on a backend that did not own the namespace"),
        );
    }
    for (slot, last) in &truth.removed {
        let too_late = |version: &ResourceVersion| version.slot().0 == *slot && version.epoch().0 > *last;
        for (namespace, keys) in &truth.owners {
            let claims = keys.iter().filter(|(_, _, value)| value.is_some());
            for (_, version, value) in claims.filter(|(_, version, _)| too_late(version)) {
                violation(
                    found,
                    "I7",
                    format!(
                        "backend {slot} had left after epoch {last}, and {namespace:?} was claimed on it at {version:?}: {value:?}"
                    ),
                );
            }
        }
        for change in truth.changes.iter().filter(|change| too_late(&change.version)) {
            violation(
                found,
                "I7",
                format!("{change:?} landed on a backend that had left after epoch {last}"),
            );
        }
    }
}
