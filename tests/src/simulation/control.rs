//! The control plane of a run: the decision about the members, the agents that hand it to the replicas, what replicas
//! report, the leader that judges who is lost, and the operator who lets clusters join and leave.

use super::actors::empty_and_release;
use super::world::{Shared, pause};
use outrigger_storage::federated::Rule;
use outrigger_storage::membership::report::{BackendReport, ReplicaReport, Verdict, Wishes, is_ready, judge};
use outrigger_storage::membership::{MemberState, Membership, MembershipError, Missed};
use outrigger_storage::testing::faulty_backend::Outage;
use outrigger_storage::{Epoch, FederatedStore, Slot};
use rand::Rng;
use rand::rngs::StdRng;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// How often an operator looks whether a leaving member owns nothing any more.
const DRAIN_TRIES_MAX: usize = 12;
/// How long nobody has reached a member before it is lost. (Runs are short.)
const LOSS_AFTER: Duration = Duration::from_millis(1200);

/// How long a decision takes to be written.
const DECIDED_WITHIN: Duration = Duration::from_millis(600);

/// What a replica said last.
#[derive(Clone)]
pub(super) struct Reported {
    at: Instant,
    ready: bool,
    generation: u64,
    backends: Vec<BackendReport>,
}

/// The object of the control plane, with all its states: who reads it may read an old one.
#[derive(Default)]
pub(super) struct Control {
    decisions: RefCell<Vec<Membership>>,
    /// Slots that are connected before it is decided on them.
    candidates: RefCell<BTreeSet<u16>>,
    /// Members that are being emptied: nobody creates anything there.
    pub(super) draining: RefCell<BTreeSet<u16>>,
    /// Members that are wanted offline.
    offline: RefCell<BTreeSet<u16>>,
    /// Members under maintenance: they are not declared lost.
    held_back: RefCell<BTreeSet<u16>>,
    /// Members that were restored or wiped, and are wanted as they are.
    pub(super) accept: RefCell<BTreeSet<u16>>,
    /// The replica that leads.
    pub(super) leads: Cell<usize>,
}

impl Control {
    /// A fleet of these first members.
    pub(super) fn new(members: u16) -> Self {
        let first = (0..members).fold(Membership::default(), |membership, slot| {
            let (name, uid) = (format!("cluster-{slot}"), format!("uid-{slot}"));
            membership.joined(Slot(slot), &name, &uid).expect("it is free")
        });
        Self {
            decisions: RefCell::new(vec![first]),
            ..Self::default()
        }
    }

    pub(super) fn current(&self) -> Membership {
        self.decisions.borrow().last().cloned().unwrap_or_default()
    }

    /// Compare-and-swap: what is decided is decided on the newest state.
    fn decide(&self, change: impl Fn(&Membership) -> Result<Membership, MembershipError>) -> bool {
        let next = change(&self.current());
        match next {
            Ok(next) => {
                self.decisions.borrow_mut().push(next);
                true
            }
            Err(_) => false,
        }
    }

    /// The object as a reader with a cache sees it: sometimes an older state.
    pub(super) fn read(&self, random: &mut StdRng) -> Membership {
        let decisions = self.decisions.borrow();
        let back = if random.random_bool(0.4) {
            random.random_range(0..3)
        } else {
            0
        };
        decisions[decisions.len() - 1 - back.min(decisions.len() - 1)].clone()
    }

    /// What was missed of members, by slot, and the generation in which each return opens; `None`: it is not back.
    pub(super) fn gaps(&self) -> Vec<(u16, Option<u64>, Missed)> {
        let decisions = self.decisions.borrow();
        let members = decisions.iter().flat_map(|decision| &decision.members);
        let returned = members.filter_map(|member| {
            let missed = member.missed?;
            // Who was accepted as it is, and lost again before it was opened: what lists show the restore says.
            let is_restored = member.incarnation > 0 && missed.from == Epoch(0);
            let missed = Missed {
                objects: missed.objects && !is_restored,
                ..missed
            };
            Some(((member.slot.0, Some(member.opens)), missed))
        });
        let current = self.current();
        let away = current.members.iter().filter_map(|member| {
            let objects = matches!(member.state, MemberState::Offline { .. });
            let from = member
                .state
                .end()
                .filter(|_| !matches!(member.state, MemberState::Removed { .. }))?;
            Some(((member.slot.0, None), Missed { from, objects }))
        });
        let mut by_opening: BTreeMap<_, _> = returned.chain(away).collect();
        // Who was accepted as it is: nothing else is missing than while it was lost before that.
        for pair in decisions.windows(2) {
            for member in &pair[1].members {
                let Some(was) = pair[0].member(member.slot) else {
                    continue;
                };
                if was.incarnation == member.incarnation {
                    continue;
                }
                let key = (member.slot.0, Some(member.opens));
                by_opening.remove(&key);
                if let Some(from) = was.state.end() {
                    let objects = matches!(was.state, MemberState::Offline { .. });
                    by_opening.insert(key, Missed { from, objects });
                }
            }
        }
        let gaps = by_opening.into_iter();
        gaps.map(|((slot, opens), missed)| (slot, opens, missed))
            .collect()
    }

    /// Who has left, and the last epoch in which they may have changed.
    pub(super) fn removed(&self) -> Vec<(u16, u64)> {
        let current = self.current();
        let removed = current.members.iter().filter_map(|member| match member.state {
            MemberState::Removed { last } => Some((member.slot.0, last.0)),
            _ => None,
        });
        removed.collect()
    }

    /// Where a namespace may be placed.
    pub(super) fn any_member(&self, random: &mut StdRng) -> Option<Slot> {
        let current = self.current();
        let active: Vec<Slot> = current
            .members
            .iter()
            .filter(|member| member.state == MemberState::Active)
            .map(|member| member.slot)
            .collect();
        (!active.is_empty()).then(|| active[random.random_range(0..active.len())])
    }
}

/// Hands what it reads to one replica, with the connections it needs, until the run is over.
pub(super) async fn agent(world: Shared, store: FederatedStore, replica: usize, mut random: StdRng) {
    loop {
        let within = world.settings.handed_over_within.as_millis();
        pause(&mut random, within as u64).await;
        let decision = world.control.read(&mut random);
        let wanted: BTreeSet<u16> = decision
            .members
            .iter()
            .map(|member| member.slot.0)
            .chain(world.control.candidates.borrow().iter().copied())
            .collect();
        for member in &decision.members {
            world.connect(replica, member);
        }
        let connections = world.connections.borrow()[replica]
            .iter()
            .filter(|member| wanted.contains(&member.slot.0))
            .cloned()
            .collect();
        for task in store.hand_over(decision, connections) {
            tokio::task::spawn_local(task.run);
        }
    }
}

fn name_of(replica: usize) -> String {
    format!("replica-{replica}")
}

/// What the replicas said, as old as it is.
fn reports(world: &Shared) -> Vec<ReplicaReport> {
    let reports = world.reports.borrow();
    let report = |(replica, said): (&usize, &Reported)| ReplicaReport {
        replica: name_of(*replica),
        ready: said.ready,
        age: said.at.elapsed(),
        generation: said.generation,
        backends: said.backends.clone(),
    };
    reports.iter().map(report).collect()
}

/// Says what one replica reaches, until the run is over; now and then it cannot say anything for a while.
pub(super) async fn reporter(world: Shared, store: FederatedStore, replica: usize, mut random: StdRng) {
    loop {
        pause(&mut random, 300).await;
        if random.random_bool(0.05) {
            pause(&mut random, 2500).await;
        }
        let mine = ReplicaReport {
            replica: name_of(replica),
            ready: true,
            age: Duration::ZERO,
            generation: match world.settings.broken {
                Some(Rule::OneDecisionAtATime) => u64::MAX,
                _ => store.acts_on(),
            },
            backends: store.report(),
        };
        let ready = is_ready(&store.membership(), &mine, &reports(&world), LOSS_AFTER);
        let reported = Reported {
            at: Instant::now(),
            ready,
            generation: mine.generation,
            backends: mine.backends,
        };
        // On its way.
        pause(&mut random, 50).await;
        world.reports.borrow_mut().insert(replica, reported);
    }
}

/// Judges who is lost and who is back, until the run is over. Leadership goes from replica to replica, and a decision may
/// take a while to be written.
pub(super) async fn leader(world: Shared, mut random: StdRng) {
    let any = |random: &mut StdRng| random.random_range(0..world.settings.replicas);
    let leads = &world.control.leads;
    leads.set(any(&mut random));
    loop {
        pause(&mut random, 400).await;
        if random.random_bool(0.1) {
            leads.set(any(&mut random));
        }
        let (current, reports) = (world.control.current(), reports(&world));
        let wishes = Wishes {
            held_back: world
                .control
                .held_back
                .borrow()
                .iter()
                .copied()
                .map(Slot)
                .collect(),
            offline: world.control.offline.borrow().iter().copied().map(Slot).collect(),
        };
        let verdict = match judge(&current, &name_of(leads.get()), &reports, &wishes, LOSS_AFTER) {
            Verdict::Nothing => accepted(&world, &current, &reports),
            verdict => verdict,
        };
        match verdict {
            Verdict::Nothing => {}
            Verdict::Resign => leads.set(any(&mut random)),
            Verdict::Decide(next) => {
                if random.random_bool(0.3) {
                    pause(&mut random, DECIDED_WITHIN.as_millis() as u64).await;
                }
                let unchanged = world.control.current().generation == current.generation;
                if unchanged {
                    let is_news = |slot: &u16| {
                        let incarnation = |of: &Membership| of.member(Slot(*slot)).map(|m| m.incarnation);
                        incarnation(&next) == incarnation(&current)
                    };
                    world.control.accept.borrow_mut().retain(is_news);
                    world.control.decisions.borrow_mut().push(next);
                }
            }
        }
    }
}

/// The next member that the administrator accepts as it is. As with every loss, all replicas have to act on what was decided
/// before.
fn accepted(world: &Shared, current: &Membership, reports: &[ReplicaReport]) -> Verdict {
    if reports
        .iter()
        .any(|report| report.generation < current.generation)
    {
        return Verdict::Nothing;
    }
    let accepted = world.control.accept.borrow().first().copied();
    let next = accepted.and_then(|slot| current.accepted(Slot(slot)).ok());
    next.map_or(Verdict::Nothing, Verdict::Decide)
}

/// A member is taken offline for a while.
async fn take_offline(world: &Shared, slot: Slot, random: &mut StdRng) {
    world.control.offline.borrow_mut().insert(slot.0);
    pause(random, 3000).await;
    world.control.offline.borrow_mut().remove(&slot.0);
}

/// Takes members away for so long that they would be lost, and says before that it will: watches wait for them.
pub(super) async fn maintainer(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 3000).await;
        let Some(slot) = world.control.any_member(&mut random) else {
            continue;
        };
        let away = |world: &Shared| {
            world
                .control
                .current()
                .member(slot)
                .is_none_or(|m| m.state.end().is_some())
        };
        world.control.held_back.borrow_mut().insert(slot.0);
        // What was decided before it was said may still be on its way.
        tokio::time::sleep(DECIDED_WITHIN).await;
        if !away(&world) {
            let wanted_offline = world.settings.offline;
            let faults = world.faults.borrow().clone();
            let of_slot = || faults.iter().map(|replica| &replica[usize::from(slot.0)]);
            of_slot().for_each(|faults| faults.outage(Outage::Down));
            tokio::time::sleep(LOSS_AFTER).await;
            pause(&mut random, 2000).await;
            let is_lost = matches!(
                world.control.current().member(slot).map(|member| member.state),
                Some(MemberState::Lost { .. })
            );
            assert!(
                !is_lost || wanted_offline,
                "who is under maintenance is not declared lost"
            );
            of_slot().for_each(|faults| faults.outage(Outage::None));
            // Everybody reaches it again before it may be lost.
            tokio::time::sleep(LOSS_AFTER).await;
        }
        world.control.held_back.borrow_mut().remove(&slot.0);
    }
}

/// Lets clusters join and leave, and takes them offline.
pub(super) async fn operator(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 1200).await;
        let current = world.control.current();
        let spare = (0..world.settings.backends).find(|slot| current.member(Slot(*slot)).is_none());
        let active: Vec<Slot> = current
            .members
            .iter()
            .filter(|member| member.state == MemberState::Active)
            .map(|member| member.slot)
            .collect();
        if world.settings.offline && !active.is_empty() && random.random_bool(0.4) {
            let slot = active[random.random_range(0..active.len())];
            take_offline(&world, slot, &mut random).await;
            continue;
        }
        match spare {
            Some(slot) if active.len() < 2 || random.random_bool(0.7) => {
                join(&world, slot, &mut random).await
            }
            _ if active.len() > 1 && world.settings.leaves => {
                let slot = active[random.random_range(0..active.len())];
                leave(&world, slot, &mut random).await;
            }
            _ => {}
        }
    }
}

/// A candidate is connected, and decided on once somebody reaches it.
async fn join(world: &Shared, slot: u16, random: &mut StdRng) {
    world.control.candidates.borrow_mut().insert(slot);
    for _ in 0..20 {
        pause(random, 300).await;
        let clusters = world.store(random).clusters();
        if clusters
            .iter()
            .any(|cluster| cluster.slot.0 == slot && cluster.reachable)
        {
            let (name, uid) = (format!("cluster-{slot}"), format!("uid-{slot}"));
            world
                .control
                .decide(|current| current.joined(Slot(slot), &name, &uid));
            return;
        }
    }
}

/// A member is emptied, and removed when it owns nothing; if that does not come to pass it stays.
async fn leave(world: &Shared, slot: Slot, random: &mut StdRng) {
    if !world.control.decide(|current| current.leaving(slot)) {
        return;
    }
    world.control.draining.borrow_mut().insert(slot.0);
    for _ in 0..DRAIN_TRIES_MAX {
        if !world.writing.get() {
            break;
        }
        pause(random, 300).await;
        for (namespace, placement) in world.placed_on(slot) {
            empty_and_release(world, &world.store(random), &namespace, &placement).await;
        }
        if let Ok(Some(last)) = world.store(random).verify_owns_nothing(slot).await {
            world.control.decide(|current| current.removed(slot, last));
            break;
        }
    }
    world.control.draining.borrow_mut().remove(&slot.0);
    world.control.decide(|current| current.staying(slot));
}
