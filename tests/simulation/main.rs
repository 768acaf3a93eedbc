//! The protocol under a thousand seeds, and the proof that the validators see a broken rule.
//!
//! `OUTRIGGER_SEEDS=5000` runs more seeds, `OUTRIGGER_SEED=17` replays one. A failing seed is printed with what it broke.

mod far_writers;

use outrigger_storage::ResourceVersion;
use outrigger_storage::federated::Rule;
use outrigger_tests::history::Delivered;
use outrigger_tests::simulation::{Network, Outcome, Settings, run};
use outrigger_tests::validate::{Allowances, Violation, validate};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

fn check(settings: Settings) -> (Outcome, Vec<Violation>) {
    let allowances = Allowances {
        compaction: settings.compaction,
    };
    let outcome = run(settings);
    let mut violations = validate(&outcome.history, &outcome.truth, allowances);
    if !outcome.rested {
        violations.push(Violation {
            promise: "rest",
            what: "somebody still waits, long after the faults were healed".to_owned(),
        });
    }
    (outcome, violations)
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok());
    match number("OUTRIGGER_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OUTRIGGER_SEEDS").unwrap_or(100),
    }
}

/// A run takes a second or two; one that takes this long stands still.
const STANDSTILL: Duration = Duration::from_secs(120);

/// The runs under way. One that stands still cannot be ended from outside, so the process ends, and says which it was:
/// a mutex that is locked twice knows no deadline.
#[derive(Default)]
struct Watchdog {
    running: Mutex<BTreeMap<u64, Instant>>,
}

impl Watchdog {
    fn run<T>(&self, seed: u64, run: impl FnOnce() -> T) -> T {
        #[expect(
            clippy::disallowed_methods,
            reason = "a run on paused time is watched from outside"
        )]
        let began = Instant::now();
        self.running().insert(seed, began);
        let result = run();
        self.running().remove(&seed);
        result
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches until `done` is closed.
    fn watch(&self, done: mpsc::Receiver<()>) {
        let open = Err(mpsc::RecvTimeoutError::Timeout);
        while done.recv_timeout(Duration::from_secs(1)) == open {
            let still = |(_, began): &(&u64, &Instant)| began.elapsed() > STANDSTILL;
            if let Some((seed, _)) = self.running().iter().find(still) {
                eprintln!("seed {seed} stands still ({:?})", Settings::of_seed(*seed));
                std::process::abort();
            }
        }
    }
}

#[test]
fn every_promise_holds_under_every_seed() {
    let seeds = seeds();
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get() as u64)
        .min(seeds.end - seeds.start);
    let next = AtomicU64::new(seeds.start);
    let watchdog = Watchdog::default();
    let (running, done) = mpsc::channel();
    let totals: Vec<[usize; 10]> = std::thread::scope(|scope| {
        let watchdog = &watchdog;
        scope.spawn(move || watchdog.watch(done));
        // Dropped at the end of this closure, by a panic too.
        let _running = running;
        let work = || {
            let mut total = [0; 10];
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return total;
                }
                let (outcome, violations) = watchdog.run(seed, || check(Settings::of_seed(seed)));
                let first = &violations[..violations.len().min(3)];
                assert!(
                    violations.is_empty(),
                    "seed {seed} ({:?}), gaps {:?}, restores {:?}: {first:#?}",
                    Settings::of_seed(seed),
                    outcome.truth.gaps,
                    outcome.truth.restores
                );
                let history = &outcome.history;
                total[0] += history.writes.len();
                total[1] += history.lists.len();
                total[2] += history.watches.len();
                total[3] += history
                    .watches
                    .iter()
                    .map(|watch| watch.delivered.len())
                    .sum::<usize>();
                total[4] += outcome.truth.gaps.len();
                total[5] += passed_over(&outcome);
                total[6] += expired_by_gaps(&outcome);
                total[7] += outcome.truth.restores.len();
                total[8] += outcome.filled.0;
                total[9] += outcome.filled.1;
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles
            .into_iter()
            .map(|handle| handle.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
            .collect()
    });
    let sum = |i: usize| totals.iter().map(|total| total[i]).sum::<usize>();
    let (writes, lists, watches, events) = (sum(0), sum(1), sum(2), sum(3));
    let replays = seeds.end - seeds.start == 1;
    assert!(replays || writes > 0 && lists > 0, "a run does something");
    let (gaps, passed, expired) = (sum(4), sum(5), sum(6));
    assert!(
        seeds.end - seeds.start < 100 || gaps > 0 && passed > 0 && expired > 0,
        "members are lost, watches go on without them, and end when they are back"
    );
    let (restores, full, room) = (sum(7), sum(8), sum(9));
    assert!(
        seeds.end - seeds.start < 100 || restores > 0 && full > 0 && room > 0,
        "backends are restored; others are full, and have room again"
    );
    eprintln!("{writes} writes, {lists} lists, {watches} watches with {events} events: all promises hold");
    eprintln!(
        "{gaps} members were lost and came back; {passed} watches went on meanwhile, {expired} had to end for it"
    );
    eprintln!(
        "{restores} backends were restored or wiped; {full} were full, {room} of them had room again soon"
    );
}

/// Watches of all namespaces that delivered something while a member was lost.
fn passed_over(outcome: &Outcome) -> usize {
    let wide = outcome
        .history
        .watches
        .iter()
        .filter(|watch| watch.namespace.is_none());
    let in_gap = |delivered: &Delivered| {
        let (Delivered::Event(_, _, _, version) | Delivered::Bookmark(version)) = delivered;
        outcome.truth.gaps.iter().any(|gap| gap.holds(*version))
    };
    wide.filter(|watch| watch.delivered.iter().any(in_gap)).count()
}

fn expired_by_gaps(outcome: &Outcome) -> usize {
    let mut expired = outcome.history.watches.iter().filter_map(|watch| watch.expired);
    let in_gap = |at: &ResourceVersion| outcome.truth.gaps.iter().any(|gap| gap.holds(*at));
    expired.by_ref().filter(in_gap).count()
}

#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in [3, 17, 40] {
        let (first, second) = (run(Settings::of_seed(seed)), run(Settings::of_seed(seed)));
        assert_eq!(
            format!("{:?}", first.history),
            format!("{:?}", second.history),
            "seed {seed}"
        );
        assert_eq!(
            format!("{:?}", first.truth),
            format!("{:?}", second.truth),
            "seed {seed}"
        );
    }
}

/// Breaks one rule and returns what the validators say about the first seed that shows it.
fn break_rule(rule: Rule, promises: &[&str], shape: impl Fn(&mut Settings)) {
    const SEEDS_MAX: u64 = 150;
    let expected: BTreeSet<&str> = promises.iter().copied().collect();
    for seed in 0..SEEDS_MAX {
        let mut settings = Settings {
            broken: Some(rule),
            compaction: false,
            decided: false,
            spares: 0,
            leaves: false,
            losses: false,
            placements_late_by: None,
            impostor: false,
            restores: false,
            fills: false,
            maintenance: false,
            offline: false,
            ..Settings::of_seed(seed)
        };
        shape(&mut settings);
        let (_, violations) = check(settings);
        let seen: BTreeSet<&str> = violations.iter().map(|violation| violation.promise).collect();
        if !seen.is_disjoint(&expected) {
            return;
        }
    }
    panic!("no validator noticed in {SEEDS_MAX} seeds that {rule:?} is broken");
}

#[test]
fn hearing_of_members_late_breaks_the_order() {
    break_rule(Rule::MembersFromTheLog, &["I2", "I3", "I5"], joins);
}

#[test]
fn a_round_that_passes_over_new_members_misses_them() {
    // Some replicas hear of it long after the others, from the control plane as from the logs.
    break_rule(Rule::RoundSeesMembers, &["I2", "I5", "I6"], |s| {
        joins(s);
        s.handed_over_within = Duration::from_millis(1500);
        s.duration = Duration::from_secs(8);
    });
}

#[test]
fn a_leaver_whose_log_is_not_read_to_its_end_loses_events() {
    break_rule(Rule::LeaverIsReadToItsEnd, &["I3"], |s| {
        leaves(s);
        s.network = Network::LateWatches;
    });
}

#[test]
fn a_newcomer_that_is_not_above_the_others_breaks_the_order() {
    break_rule(Rule::NewcomerAbove, &["I2", "I3", "I5"], |s| {
        loses(s);
        s.round_trip = Duration::from_millis(30);
    });
}

#[test]
fn a_gap_that_is_forgotten_loses_events() {
    break_rule(Rule::GapsAreRemembered, &["I3"], loses);
}

#[test]
fn losses_in_a_row_that_nobody_waits_for_lose_what_is_there() {
    break_rule(Rule::OneDecisionAtATime, &["I2", "I3", "I6"], |s| {
        loses(s);
        (s.backends, s.offline) = (2, true);
    });
}

#[test]
fn a_restored_backend_that_is_taken_for_what_it_was_loses_what_is_there() {
    break_rule(Rule::RestoredAreRefused, &["I5", "I6", "I7"], |s| {
        restores(s);
        s.accepts = false;
    });
}

#[test]
fn going_on_from_before_a_restore_is_not_seeing_it() {
    break_rule(Rule::RestoresExpire, &["I2", "I3"], restores);
}

fn restores(s: &mut Settings) {
    loses(s);
    (s.losses, s.restores, s.accepts) = (false, true, true);
    s.placements_late_by = Some(Duration::from_millis(30));
}

fn loses(s: &mut Settings) {
    (s.decided, s.backends, s.spares, s.losses, s.replicas) = (true, 3, 0, true, 3);
    (s.network, s.outages, s.late_replica) = (Network::Good, false, false);
    (s.round_trip, s.duration) = (Duration::from_millis(5), Duration::from_secs(10));
}

fn joins(s: &mut Settings) {
    (s.decided, s.backends, s.spares, s.leaves, s.replicas) = (true, 4, 3, false, 3);
    (s.network, s.outages, s.late_replica) = (Network::Good, false, false);
    (s.round_trip, s.listers) = (Duration::from_millis(5), 4);
}

fn leaves(s: &mut Settings) {
    (s.decided, s.backends, s.spares, s.leaves, s.replicas) = (true, 3, 0, true, 3);
    (s.network, s.outages, s.late_replica) = (Network::Good, false, false);
    (s.round_trip, s.duration) = (Duration::from_millis(5), Duration::from_secs(8));
}

#[test]
fn without_the_clock_compare_versions_lie() {
    break_rule(Rule::ClockCompare, &["I1", "I2", "I3", "I5"], |s| {
        (s.backends, s.replicas) = (3, 2);
    });
}

#[test]
fn without_the_owner_compare_writes_land_anywhere() {
    break_rule(Rule::OwnerCompare, &["I7"], |s| {
        (s.backends, s.replicas, s.releases) = (2, 3, true);
    });
}

#[test]
fn releasing_before_the_epoch_is_closed_breaks_the_order() {
    break_rule(Rule::ReleaseWhenClosed, &["I3"], |s| {
        (s.backends, s.replicas) = (3, 2)
    });
}

#[test]
fn a_cut_one_revision_early_loses_a_write() {
    break_rule(Rule::CutAtTheTick, &["I2", "I5"], |s| s.backends = 2);
}

#[test]
fn a_round_that_does_not_start_over_is_older_than_its_list() {
    break_rule(Rule::RoundStartsOver, &["I2", "I5"], |s| {
        (s.backends, s.replicas, s.listers, s.outages) = (2, 3, 9, false);
        (s.network, s.round_trip) = (Network::LateWatches, Duration::from_millis(10));
        s.clock_skew_max = Duration::from_millis(500);
    });
}

#[test]
fn settling_by_a_read_alone_tells_lies() {
    break_rule(Rule::SettleByTick, &["I5"], |s| {
        (s.network, s.backends, s.outages) = (Network::LateWrites, 1, false);
    });
}

#[test]
fn repeating_blindly_tells_lies() {
    break_rule(Rule::SettleUnknown, &["I5"], |s| s.network = Network::Lossy);
}

#[test]
fn a_resume_that_forgets_the_next_tick_loses_events() {
    break_rule(Rule::ResumeAtTheLimit, &["I3", "I4"], |s| s.backends = 3);
}

#[test]
fn an_owner_key_that_counts_wherever_it_is_takes_namespaces() {
    break_rule(
        Rule::PlacementNamesTheOwner,
        &["I2", "I3", "I5", "I6", "I7"],
        holds_a_backend,
    );
}

#[test]
fn a_watch_that_passes_on_what_nobody_owns_shows_forged_objects() {
    break_rule(Rule::ChangesOfOwnersOnly, &["I3"], holds_a_backend);
}

fn holds_a_backend(s: &mut Settings) {
    (s.backends, s.replicas, s.impostor) = (3, 2, true);
    s.placements_late_by = Some(Duration::from_millis(30));
    (s.network, s.outages, s.late_replica) = (Network::Good, false, false);
}

#[test]
fn leaving_out_a_lost_cluster_looks_like_deletion() {
    break_rule(Rule::RefuseMissing, &["I6", "I2"], |s| {
        (s.backends, s.outages) = (3, true)
    });
}
