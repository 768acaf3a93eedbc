//! What replicas report of the backends, and what follows from it: who is lost, who is back, who is ready. Pure.
//!
//! A member is lost when every ready replica says that it has not been able to tick it for a while (a tick, not a read: a
//! full etcd reads well). A leader that is alone in its view decides nothing: perhaps it is the one that is cut off.

use crate::membership::{MemberRecord, MemberState, Membership};
use crate::resource_version::{Epoch, Slot};
use std::time::Duration;

/// How long no ready replica has been able to tick a member before it is lost.
pub const LOSS_AFTER: Duration = Duration::from_secs(10);

/// A replica that has not said anything for so many times as long as it takes to lose a member is gone.
const GONE_AFTER_LOSSES: u32 = 3;

/// What one replica says. It repeats this every second or so, wherever the leader reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaReport {
    /// The replica's name.
    pub replica: String,
    /// Whether it is ready, as [`is_ready`] says.
    pub ready: bool,
    /// How old the report is; one older than half of the time until a loss does not count.
    pub age: Duration,
    /// The membership that it acts on: [`crate::FederatedStore::acts_on`].
    pub generation: u64,
    /// What it says of each backend. Of a member that it has not heard of it says nothing.
    pub backends: Vec<BackendReport>,
}

/// What a replica says of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendReport {
    /// Its slot.
    pub slot: Slot,
    /// Its uid.
    pub uid: String,
    /// For how long it could not be ticked, or there was no connection; `None`: the last tick was answered.
    pub unreachable_for: Option<Duration>,
    /// The clock that its log has shown here: no watch of this replica has released anything of it from there on.
    pub clock: Option<Epoch>,
    /// Whether it is open, as far as this replica knows.
    pub open: bool,
}

/// What the leader does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Nothing,
    /// Give up leadership: it sees a loss, and no other ready replica to confirm it.
    Resign,
    /// Write this, by compare-and-swap on the generation that it was computed from.
    Decide(Membership),
}

/// What the administrators want of members that may be lost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Under maintenance: they are not declared lost.
    pub held_back: Vec<Slot>,
    /// Given up for now: they are taken out, whether they can be reached or not, and do not return.
    pub offline: Vec<Slot>,
}

/// Who is lost, back, or gone before it was read to its end, one member at a time, and only once every replica acts on what was decided before: whoever heard of
/// two decisions at once could miss that the members it listens to are all gone.
#[must_use]
pub fn judge(
    current: &Membership,
    leader: &str,
    reports: &[ReplicaReport],
    wishes: &Wishes,
    loss_after: Duration,
) -> Verdict {
    let live: Vec<&ReplicaReport> = reports.iter().filter(|r| r.age <= loss_after / 2).collect();
    let ready: Vec<&ReplicaReport> = live.iter().filter(|r| r.ready).copied().collect();
    let alone = ready.iter().all(|report| report.replica == leader);
    let is_other = |report: &&ReplicaReport| report.replica != leader;
    let is_gone = |report: &ReplicaReport| report.age > loss_after * GONE_AFTER_LOSSES;
    let others_exist = reports.iter().filter(is_other).any(|report| !is_gone(report));
    // Whoever is silent cannot lead either: the leader waits until it speaks, or is gone.
    let unconfirmed = match live.iter().copied().any(|report| is_other(&report)) {
        true => Verdict::Resign,
        false => Verdict::Nothing,
    };
    let lags = |report: &ReplicaReport| !is_gone(report) && report.generation < current.generation;
    if ready.is_empty() || reports.iter().any(lags) {
        return Verdict::Nothing;
    }
    for member in &current.members {
        let of_member = |report: &&&ReplicaReport| report.of(member).cloned();
        let said: Vec<BackendReport> = ready.iter().filter_map(|report| of_member(&report)).collect();
        let everybody_says =
            |what: &dyn Fn(&BackendReport) -> bool| said.len() == ready.len() && said.iter().all(what);
        // Who has not heard of it does not reach it, and has released nothing of it.
        let is_unreachable =
            |said: &BackendReport| said.unreachable_for.is_some_and(|for_| for_ >= loss_after);
        let is_lost = || !said.is_empty() && said.iter().all(is_unreachable);
        let is_back = || everybody_says(&|said| said.unreachable_for.is_none());
        let live_said = live.iter().filter_map(|report| report.of(member));
        let wants_offline = wishes.offline.contains(&member.slot);
        let next = match member.state {
            MemberState::Active | MemberState::Leaving | MemberState::Lost { .. } if wants_offline => {
                current.offline(member.slot, lost_from(member, live_said))
            }
            MemberState::Active | MemberState::Leaving if !wishes.held_back.contains(&member.slot) => {
                if !is_lost() {
                    continue;
                }
                if alone && others_exist {
                    return unconfirmed;
                }
                current.lost(member.slot, lost_from(member, live_said))
            }
            // Its log cannot be read to its end any more: nobody shall wait for that.
            MemberState::Removed { .. } if current.is_served_without(member.slot) && is_lost() => {
                if alone && others_exist {
                    return unconfirmed;
                }
                current.forgotten(member.slot)
            }
            MemberState::Lost { .. } | MemberState::Offline { .. } if !wants_offline && is_back() => {
                current.returned(member.slot)
            }
            _ => continue,
        };
        if let Ok(next) = next {
            return Verdict::Decide(next);
        }
    }
    Verdict::Nothing
}

/// Whether a replica is ready: not while it cannot tick a member that another ready replica reaches. The last one stays.
#[must_use]
pub fn is_ready(
    current: &Membership,
    mine: &ReplicaReport,
    reports: &[ReplicaReport],
    loss_after: Duration,
) -> bool {
    let others: Vec<&ReplicaReport> = reports
        .iter()
        .filter(|r| r.replica != mine.replica && r.ready && r.age <= loss_after / 2)
        .collect();
    let cut_off = |member: &MemberRecord| {
        let unreachable = |report: &ReplicaReport| report.of(member).and_then(|said| said.unreachable_for);
        let reaches = |report: &&ReplicaReport| report.of(member).is_some() && unreachable(report).is_none();
        unreachable(mine).is_some_and(|for_| for_ >= loss_after) && others.iter().any(reaches)
    };
    // Who is lost comes back when all ready replicas reach it: one that alone does not must not be in the way.
    let counts = |state: MemberState| state.serves() || matches!(state, MemberState::Lost { .. });
    let mut members = current.members.iter().filter(|member| counts(member.state));
    others.is_empty() || !members.any(cut_off)
}

/// The lowest clock of the member that any live replica has released up to.
fn lost_from<'a>(member: &MemberRecord, said: impl Iterator<Item = &'a BackendReport> + Clone) -> Epoch {
    let lowest = said
        .clone()
        .filter_map(|said| said.clock)
        .min()
        .unwrap_or_default();
    // A return that never opened it: what was missed before is still missing.
    match member.missed {
        Some(missed) if !said.clone().any(|said| said.open) => lowest.min(missed.from),
        _ => lowest,
    }
}

impl ReplicaReport {
    fn of(&self, member: &MemberRecord) -> Option<&BackendReport> {
        self.backends
            .iter()
            .find(|said| said.slot == member.slot && said.uid == member.uid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Option<Duration> = Some(Duration::from_secs(11));

    fn fleet() -> Membership {
        let one = Membership::default().joined(Slot(0), "a", "uid-0").expect("free");
        one.joined(Slot(1), "b", "uid-1").expect("free")
    }

    /// What a replica says of member 1; member 0 is well.
    fn report(replica: &str, ready: bool, unreachable_for: Option<Duration>, clock: u64) -> ReplicaReport {
        let backend = |slot: u16, unreachable_for, clock| BackendReport {
            slot: Slot(slot),
            uid: format!("uid-{slot}"),
            unreachable_for,
            clock: Some(Epoch(clock)),
            open: true,
        };
        ReplicaReport {
            replica: replica.to_owned(),
            ready,
            age: Duration::from_secs(1),
            generation: 9,
            backends: vec![backend(0, None, 99), backend(1, unreachable_for, clock)],
        }
    }

    #[test]
    fn a_member_is_lost_when_all_ready_replicas_say_so() {
        let check = |reports: &[ReplicaReport], expect: Verdict| {
            assert_eq!(
                judge(&fleet(), "x", reports, &Wishes::default(), LOSS_AFTER),
                expect
            );
        };
        let lost = |from| Verdict::Decide(fleet().lost(Slot(1), Epoch(from)).expect("active"));
        let short = Some(Duration::from_secs(9));
        check(&[report("x", true, LONG, 8), report("y", true, LONG, 7)], lost(7));
        check(
            &[report("x", true, LONG, 8), report("y", true, None, 7)],
            Verdict::Nothing,
        );
        check(
            &[report("x", true, LONG, 8), report("y", true, short, 7)],
            Verdict::Nothing,
        );
        // Who is not ready has no say, and its clock counts while it lives.
        let three = [
            report("x", true, LONG, 8),
            report("y", true, LONG, 7),
            report("z", false, None, 5),
        ];
        check(&three, lost(5));
        // Alone in its view.
        check(
            &[report("x", true, LONG, 8), report("y", false, LONG, 7)],
            Verdict::Resign,
        );
        check(&[report("x", true, LONG, 8)], lost(8));
        // It may be that the other one has died with the member: nobody else could lead.
        let silent = ReplicaReport {
            age: Duration::from_secs(20),
            ..report("y", true, None, 7)
        };
        check(&[report("x", true, LONG, 8), silent], Verdict::Nothing);
        let unconnected = ReplicaReport {
            backends: Vec::new(),
            ..report("y", true, None, 7)
        };
        check(&[report("x", true, LONG, 8), unconnected], lost(8));
        let maintained = Wishes {
            held_back: vec![Slot(1)],
            ..Wishes::default()
        };
        let held = judge(
            &fleet(),
            "x",
            &[report("x", true, LONG, 8)],
            &maintained,
            LOSS_AFTER,
        );
        assert_eq!(held, Verdict::Nothing);
    }

    #[test]
    fn one_decision_follows_another_when_all_have_heard_of_it() {
        let lagging = |age| ReplicaReport {
            generation: 1,
            age: Duration::from_secs(age),
            ..report("y", true, LONG, 7)
        };
        let check = |age, expect: Verdict| {
            let reports = [report("x", true, LONG, 8), lagging(age)];
            assert_eq!(
                judge(&fleet(), "x", &reports, &Wishes::default(), LOSS_AFTER),
                expect
            );
        };
        check(1, Verdict::Nothing);
        check(29, Verdict::Nothing);
        // It is gone.
        check(
            31,
            Verdict::Decide(fleet().lost(Slot(1), Epoch(8)).expect("active")),
        );
    }

    #[test]
    fn who_is_given_up_is_out_until_it_is_wanted_again() {
        let wish = Wishes {
            offline: vec![Slot(1)],
            ..Wishes::default()
        };
        let check = |membership: &Membership, wishes: &Wishes, unreachable_for, expect: Verdict| {
            let reports = [report("x", true, unreachable_for, 8)];
            assert_eq!(judge(membership, "x", &reports, wishes, LOSS_AFTER), expect);
        };
        let given_up = |m: &Membership| Verdict::Decide(m.offline(Slot(1), Epoch(8)).expect("it serves"));
        let lost = fleet().lost(Slot(1), Epoch(9)).expect("active");
        check(&fleet(), &wish, None, given_up(&fleet()));
        check(&lost, &wish, LONG, given_up(&lost));
        let offline = fleet().offline(Slot(1), Epoch(8)).expect("active");
        check(&offline, &wish, None, Verdict::Nothing);
        check(&offline, &Wishes::default(), LONG, Verdict::Nothing);
        let back = Verdict::Decide(offline.returned(Slot(1)).expect("offline"));
        check(&offline, &Wishes::default(), None, back);
    }

    #[test]
    fn who_has_left_and_cannot_be_read_any_more_is_forgotten() {
        let leaving = fleet().leaving(Slot(1)).expect("active");
        let removed = leaving.removed(Slot(1), Epoch(7)).expect("leaving");
        let check = |unreachable_for, expect: Verdict| {
            let reports = [report("x", true, unreachable_for, 7)];
            assert_eq!(
                judge(&removed, "x", &reports, &Wishes::default(), LOSS_AFTER),
                expect
            );
        };
        check(None, Verdict::Nothing);
        check(
            LONG,
            Verdict::Decide(removed.forgotten(Slot(1)).expect("removed")),
        );
    }

    #[test]
    fn a_member_is_back_when_all_ready_replicas_reach_it() {
        let lost = fleet().lost(Slot(1), Epoch(7)).expect("active");
        let check = |reports: &[ReplicaReport], expect: Verdict| {
            assert_eq!(judge(&lost, "x", reports, &Wishes::default(), LOSS_AFTER), expect);
        };
        let back = Verdict::Decide(lost.returned(Slot(1)).expect("lost"));
        check(&[report("x", true, None, 8), report("y", true, None, 7)], back);
        check(
            &[report("x", true, None, 8), report("y", true, LONG, 7)],
            Verdict::Nothing,
        );
    }

    #[test]
    fn who_is_cut_off_is_not_ready_unless_it_is_the_last() {
        let check = |mine: ReplicaReport, others: &[ReplicaReport], expect: bool| {
            assert_eq!(is_ready(&fleet(), &mine, others, LOSS_AFTER), expect);
        };
        check(report("x", true, LONG, 1), &[report("y", true, None, 1)], false);
        check(report("x", true, LONG, 1), &[report("y", true, LONG, 1)], true);
        check(report("x", true, LONG, 1), &[report("y", false, None, 1)], true);
        check(report("x", true, LONG, 1), &[], true);
        check(report("x", true, None, 1), &[report("y", true, None, 1)], true);
        let lost = fleet().lost(Slot(1), Epoch(1)).expect("active");
        let (mine, others) = (report("x", true, LONG, 1), [report("y", true, None, 1)]);
        assert!(!is_ready(&lost, &mine, &others, LOSS_AFTER));
    }
}
