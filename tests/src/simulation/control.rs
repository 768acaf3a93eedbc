//! The control plane of a run: the decision about the members, the agents that hand it to the replicas, and the operator
//! who lets clusters join and leave.

use super::actors::empty_and_release;
use super::world::{Shared, pause};
use outrigger_storage::membership::{MemberState, Membership, MembershipError};
use outrigger_storage::{FederatedStore, Slot};
use rand::Rng;
use rand::rngs::StdRng;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// How often an operator looks whether a leaving member owns nothing any more.
const DRAIN_TRIES_MAX: usize = 12;

/// The object of the control plane, with all its states: who reads it may read an old one.
#[derive(Default)]
pub(super) struct Control {
    decisions: RefCell<Vec<Membership>>,
    /// Slots that are connected before it is decided on them.
    candidates: RefCell<BTreeSet<u16>>,
    /// Members that are being emptied: nobody creates anything there.
    pub(super) draining: RefCell<BTreeSet<u16>>,
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
        pause(&mut random, 600).await;
        let decision = world.control.read(&mut random);
        let wanted: BTreeSet<u16> = decision
            .members
            .iter()
            .map(|member| member.slot.0)
            .chain(world.control.candidates.borrow().iter().copied())
            .collect();
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

/// Lets clusters join and leave.
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
        let here: Vec<_> = {
            let placements = world.placements.borrow();
            let here = placements
                .by_name
                .iter()
                .filter(|(_, placement)| placement.slot == slot);
            here.map(|(name, placement)| (name.clone(), placement.clone()))
                .collect()
        };
        for (namespace, placement) in here {
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
