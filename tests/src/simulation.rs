//! One seeded run: some replicas on some backends behind a bad network, with clients that write, read, list and watch.
//!
//! Everything that happens follows from the seed: a current-thread runtime with paused time, embedded backends in
//! memory, faults drawn from seeded generators. The run ends in peace: faults are healed, watches catch up, and the logs
//! of the backends are read for the validators.
mod actors;
mod control;
mod hoarder;
mod impostor;
mod restores;
mod site;
mod truth;
mod world;

use crate::history::{History, Truth};
use actors::{blackouts, disturber, finisher, lister, reader, releaser, watcher, writer};
use control::{leader, maintainer, operator};
use hoarder::hoarder;
use impostor::impostor;
use outrigger_storage::federated::Rule;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use restores::{recorder, restorer};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use truth::read_truth;
use world::{World, start_replica};

/// How long the run may need to come to rest.
const REST: Duration = Duration::from_secs(120);

/// The shape of a run. [`Settings::of_seed`] draws one.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The seed.
    pub seed: u64,
    /// Backends.
    pub backends: u16,
    /// Replicas.
    pub replicas: usize,
    /// How long clients work.
    pub duration: Duration,
    /// Round trip of each replica to each backend.
    pub round_trip: Duration,
    /// How far the wall clocks of the replicas are apart.
    pub clock_skew_max: Duration,
    /// Clients that list all the time.
    pub listers: u64,
    /// What the network does to what is sent.
    pub network: Network,
    /// Whether whole backends go away for a while.
    pub outages: bool,
    /// Whether history is compacted soon.
    pub compaction: bool,
    /// Whether namespaces are emptied, released and claimed elsewhere.
    pub releases: bool,
    /// Whether the last replica starts late, while a backend is away.
    pub late_replica: bool,
    /// Whether the members are decided while the run goes on: some backends join later.
    pub decided: bool,
    /// How many of the backends are no members at first.
    pub spares: u16,
    /// How long a decision about the members takes to a replica.
    pub handed_over_within: Duration,
    /// Whether members leave.
    pub leaves: bool,
    /// Whether members are lost to all replicas, or to some, for long enough that it is declared.
    pub losses: bool,
    /// Whether members are taken offline.
    pub offline: bool,
    /// How late replicas know where namespaces are placed. `None`: they do not, and every owner key counts.
    pub placements_late_by: Option<Duration>,
    /// Whether backends are restored from a backup, or wiped.
    pub restores: bool,
    /// Whether somebody accepts them as they are.
    pub accepts: bool,
    /// Whether backends have a quota, and somebody who fills them.
    pub fills: bool,
    /// Whether members are under maintenance for a while: they go, and are not declared lost.
    pub maintenance: bool,
    /// Whether somebody who holds a backend writes to it past the store.
    pub impostor: bool,
    /// A rule that is broken on purpose.
    pub broken: Option<Rule>,
}

impl Settings {
    /// The shape of the run with this seed.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x5eed);
        let round_trips = [1, 1, 2, 5, 30, 100];
        // Drawn apart, so that what was added later does not change the shapes of older seeds.
        let mut members = StdRng::seed_from_u64(seed ^ 0x3e3b_e125);
        let decided = members.random_bool(0.5);
        let spares = if decided { members.random_range(0..=2) } else { 0 };
        let leaves = decided && members.random_bool(0.5);
        let losses = decided && members.random_bool(0.5);
        let offline = losses && members.random_bool(0.3);
        let mut placed = StdRng::seed_from_u64(seed ^ 0x91ac_ed00);
        let late_by = [0, 30, 300, 1500].map(Duration::from_millis)[placed.random_range(0..4)];
        let placements_late_by = placed.random_bool(0.6).then_some(late_by);
        let impostor = placements_late_by.is_some() && !losses && placed.random_bool(0.6);
        // As in a real fleet: what is accepted is decided, and which owner keys count after it the placements say.
        let mut restored = StdRng::seed_from_u64(seed ^ 0x2e57_07ed);
        let may_restore = decided && placements_late_by.is_some() && !impostor;
        let restores = may_restore && restored.random_bool(0.6);
        let accepts = restored.random_bool(0.8);
        let mut filled = StdRng::seed_from_u64(seed ^ 0xf011_f011);
        let fills = filled.random_bool(0.5);
        let mut maintained = StdRng::seed_from_u64(seed ^ 0x3a17_7a1e);
        let maintenance = losses && maintained.random_bool(0.4);
        let drawn = Self {
            seed,
            backends: random.random_range(1..=3),
            replicas: random.random_range(1..=3),
            duration: Duration::from_secs(random.random_range(3..=6)),
            round_trip: Duration::from_millis(round_trips[random.random_range(0..round_trips.len())]),
            listers: random.random_range(1..=3),
            clock_skew_max: Duration::from_millis([0, 200, 200, 2000][random.random_range(0..4)]),
            network: match random.random_range(0..10) {
                0..4 => Network::Good,
                4..8 => Network::Lossy,
                8 => Network::LateWrites,
                _ => Network::LateWatches,
            },
            outages: random.random_bool(0.4),
            compaction: random.random_bool(0.2),
            releases: random.random_bool(0.4),
            // Who comes late cannot tell what was forged before from what is gone.
            late_replica: random.random_bool(0.3) && !impostor,
            decided,
            spares,
            handed_over_within: Duration::from_millis(600),
            leaves,
            losses,
            offline,
            placements_late_by,
            restores,
            accepts,
            fills: false,
            maintenance,
            impostor,
            broken: None,
        };
        let more = Duration::from_secs(if drawn.is_judged() { 5 } else { 0 });
        Self {
            backends: drawn.backends + spares,
            duration: drawn.duration + more,
            // What was deleted takes room until it is compacted.
            fills: fills && drawn.compaction,
            ..drawn
        }
    }
}

impl Settings {
    /// Whether a leader judges who is lost.
    fn is_judged(&self) -> bool {
        self.losses || self.restores
    }
}

/// What the network does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It delivers.
    Good,
    /// It loses, delays and repeats requests, answers and watch batches.
    Lossy,
    /// Requests are carried out seconds after the caller was told that nobody answers.
    LateWrites,
    /// Watches are late by up to one and a half seconds.
    LateWatches,
}

/// What a run leaves behind.
#[derive(Debug)]
pub struct Outcome {
    /// What clients saw.
    pub history: History,
    /// What the backends hold.
    pub truth: Truth,
    /// How often a backend was full, and how often it had room again.
    pub filled: (usize, usize),
    /// Whether everybody ended once the faults were healed.
    pub rested: bool,
}

/// Runs a seed.
///
/// # Panics
/// When the run itself cannot be set up, or a client panics.
#[must_use]
pub fn run(settings: Settings) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let outcome = runtime.block_on(local.run_until(simulate(settings)));
    drop(local);
    outcome
}

async fn simulate(settings: Settings) -> Outcome {
    let world = Rc::new(World::new(settings));
    let late = world.settings.late_replica && world.settings.replicas > 1;
    for replica in 0..world.settings.replicas - usize::from(late) {
        start_replica(&world, replica, false).await;
    }
    let mut actors = Vec::new();
    let actor = |n: u64| StdRng::seed_from_u64(world.settings.seed.wrapping_mul(1000) + n);
    for n in 0..4 {
        actors.push(tokio::task::spawn_local(writer(world.clone(), actor(n))));
    }
    actors.push(tokio::task::spawn_local(reader(world.clone(), actor(10))));
    for n in 0..world.settings.listers {
        actors.push(tokio::task::spawn_local(lister(world.clone(), actor(11 + n))));
    }
    for n in 0..4 {
        actors.push(tokio::task::spawn_local(watcher(world.clone(), actor(20 + n))));
    }
    actors.push(tokio::task::spawn_local(disturber(world.clone(), actor(30))));
    if world.settings.releases {
        actors.push(tokio::task::spawn_local(releaser(world.clone(), actor(31))));
    }
    if world.settings.decided {
        actors.push(tokio::task::spawn_local(operator(world.clone(), actor(32))));
    }
    actors.push(tokio::task::spawn_local(finisher(world.clone(), actor(36))));
    if world.settings.impostor {
        actors.push(tokio::task::spawn_local(impostor(world.clone(), actor(35))));
    }
    if world.settings.is_judged() {
        // Not awaited: what is lost comes back after the last fault.
        drop(tokio::task::spawn_local(leader(world.clone(), actor(33))));
    }
    if world.settings.restores {
        drop(tokio::task::spawn_local(recorder(world.clone(), actor(37))));
        actors.push(tokio::task::spawn_local(restorer(world.clone(), actor(38))));
    }
    if world.settings.fills {
        actors.push(tokio::task::spawn_local(hoarder(world.clone(), actor(39))));
    }
    if world.settings.maintenance {
        actors.push(tokio::task::spawn_local(maintainer(world.clone(), actor(40))));
    }
    if world.settings.losses {
        actors.push(tokio::task::spawn_local(blackouts(world.clone(), actor(34))));
    }
    if late {
        tokio::time::sleep(world.settings.duration / 3).await;
        start_replica(&world, world.settings.replicas - 1, true).await;
    }
    tokio::time::sleep_until(world.start + world.settings.duration).await;
    world.writing.set(false);
    let rest = async {
        for actor in &mut actors {
            actor.await.expect("an actor does not panic");
        }
    };
    let rested = tokio::time::timeout(REST, rest).await.is_ok();
    actors.iter().for_each(tokio::task::JoinHandle::abort);
    for store in world.replicas.borrow().iter() {
        store.close();
    }
    if world.settings.network == Network::Good && !world.settings.outages && !late {
        let suspected: u64 = world
            .faults
            .borrow()
            .iter()
            .flatten()
            .map(|faults| faults.suspected())
            .sum();
        assert_eq!(suspected, 0, "a healthy member is not suspected");
    }
    // Who is not heard in time does not know how much is in use.
    if world.settings.network == Network::Good && !world.settings.outages && !world.settings.losses {
        let refused = world.no_space.load(Ordering::Relaxed);
        assert_eq!(refused, 0, "ticks and deletes always fit");
    }
    let truth = read_truth(&world).await;
    Outcome {
        filled: world.filled.get(),
        history: world.history.take(),
        truth,
        rested,
    }
}
