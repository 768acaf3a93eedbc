//! `FederatedStore`: get, list, watch, create, update and delete over all backends, under one order.
//!
//! This file is the store's surface: its settings, its options and its verbs. Each verb is a file below it:
//!
//! ```text
//! get ─┐                                  ┌─ joined: one backend, its clock, its owners, its log
//! write ├─▶ fleet: routing, closed epoch ─┤    feed ─▶ ring ◀─ cursor
//! list ─┤     cut: rounds of ticks        └─ members, maintenance, position
//! watch ┘     pager, standing    view ─┘    feed, gap, roll_out: members that come, go, and come back
//! ```

mod claim;
mod cursor;
mod cut;
mod feed;
mod fleet;
mod gap;
mod get;
mod joined;
mod list;
mod maintenance;
mod members;
mod pager;
mod position;
mod ring;
mod roll_out;
mod standing;
mod view;
mod watch;
mod write;

use crate::backend::{Backend, Revision};
use crate::continue_token::ContinueToken;
use crate::key::{Domain, Key, Resource};
use crate::membership::report::BackendReport;
use crate::membership::{MemberRecord, MemberState, Membership};
use crate::metrics::StoreMetrics;
use crate::placements::{EveryKeyCounts, Placements};
use crate::{Epoch, Error, Object, ResourceVersion, SealedObject, SelectionPredicate, Slot, WatchEvent};
use fleet::Fleet;
use futures::future::BoxFuture;
use joined::Joined;
use serde::{Deserialize, Serialize};
use standing::Routed;
use std::sync::Arc;
use std::time::Duration;

/// One backend of the fleet.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its number, written into its identity.
    pub slot: Slot,
    /// The cluster's name, for people.
    pub name: String,
    /// The cluster's uid, written into its identity.
    pub uid: String,
    /// The backend.
    pub backend: Arc<dyn Backend>,
    /// Nobody else uses it, so that we may compact it.
    pub exclusive: bool,
    /// What was last seen of it, as it was recorded outside of it. A backend below that is refused ([`Error::Restored`]).
    pub seen: Option<Seen>,
    /// That of its [`MemberRecord`]. What was seen of an earlier one does not count; who says it is a later one is refused.
    pub incarnation: u64,
}

/// How far a backend has been seen. A backend never falls behind it, unless it was restored from a backup, or wiped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seen {
    /// The [`MemberRecord::incarnation`] that it was seen in.
    #[serde(default, skip_serializing_if = "crate::membership::is_zero")]
    pub incarnation: u64,
    /// Its clock.
    pub epoch: Epoch,
    /// The revision of its store.
    pub revision: Revision,
}

/// How keys find their backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routing {
    /// By owner keys: a fleet.
    Owned,
    /// Everything lives on the only member (the system backend of standalone mode): no owners, no ticks for reads.
    Sole,
}

/// Wall time, for epochs. Milliseconds since 1970-01-01T00:00:00Z.
pub type WallClock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The settings of a store.
#[derive(Clone)]
pub struct StoreConfig {
    /// The fleet's uid, written into every backend's identity.
    pub fleet: String,
    /// How keys find their backend.
    pub routing: Routing,
    /// What all lists together may hold in memory, in bytes; a quarter of it is for lists of one namespace.
    pub list_bytes_max: usize,
    /// What the event rings of all backends together may hold, in bytes.
    pub ring_bytes_max: usize,
    /// How long a write may take, retries included.
    pub write_deadline: Duration,
    /// How long history is kept.
    pub retention: Duration,
    /// How often exclusive backends are compacted.
    pub compact_every: Duration,
    /// Wall time.
    pub wall_clock: WallClock,
    /// Seed of everything random.
    pub seed: u64,
    /// Where measurements go.
    pub metrics: StoreMetrics,
    /// Which owner keys count.
    pub placements: Arc<dyn Placements>,
    /// A rule of the protocol that is broken on purpose, to show that the validators see it.
    #[cfg(feature = "testing")]
    pub broken: Option<Rule>,
}

impl StoreConfig {
    /// The defaults, for a fleet with this uid and this wall clock (milliseconds since 1970).
    #[must_use]
    pub fn new(fleet: &str, routing: Routing, wall_clock: WallClock, seed: u64) -> Self {
        Self {
            fleet: fleet.to_owned(),
            routing,
            list_bytes_max: 64 * 1024 * 1024,
            ring_bytes_max: 16 * 1024 * 1024,
            write_deadline: Duration::from_secs(30),
            retention: Duration::from_secs(600),
            compact_every: Duration::from_secs(300),
            wall_clock,
            seed,
            metrics: StoreMetrics::new(),
            placements: Arc::new(EveryKeyCounts),
            #[cfg(feature = "testing")]
            broken: None,
        }
    }
}

/// The rules of the protocol that a test may break, one at a time. Each is there for a reason that a validator names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// A write compares the clock.
    ClockCompare,
    /// A write compares the owner.
    OwnerCompare,
    /// A watch over several backends releases an epoch only when all logs are past it.
    ReleaseWhenClosed,
    /// A snapshot reads just below the cut, not earlier.
    CutAtTheTick,
    /// A round whose tick was not the first at its epoch starts over.
    RoundStartsOver,
    /// A write of unknown outcome is settled after a tick, not by a read alone.
    SettleByTick,
    /// A write of unknown outcome is settled at all, not repeated blindly.
    SettleUnknown,
    /// A resume is limited by the next tick, and looks at the slot.
    ResumeAtTheLimit,
    /// A cluster that does not answer fails a list of all namespaces.
    RefuseMissing,
    /// A replica acts on `members` as its logs show it, before it releases later epochs; not when it hears of it.
    MembersFromTheLog,
    /// A newcomer is ticked above the old members' clocks before it is opened.
    NewcomerAbove,
    /// A round whose answers show a newer membership starts again with it.
    RoundSeesMembers,
    /// A member that has left counts until its log has been read to its end.
    LeaverIsReadToItsEnd,
    /// Nobody is declared lost, or back, before every replica acts on what was decided before.
    OneDecisionAtATime,
    /// Versions of the time when a member was lost are expired for kinds that changed on it meanwhile.
    GapsAreRemembered,
    /// A backend that is older than it was is refused until it is accepted as it is.
    RestoredAreRefused,
    /// Versions from before a restore are expired once it is accepted.
    RestoresExpire,
    /// An owner key counts only on the cluster that the placement names.
    PlacementNamesTheOwner,
    /// A watch passes on only what was written under an owner key.
    ChangesOfOwnersOnly,
}

impl Fleet {
    /// Whether a test has broken this rule.
    fn broken(&self, rule: Rule) -> bool {
        #[cfg(feature = "testing")]
        return self.config.broken == Some(rule);
        #[cfg(not(feature = "testing"))]
        {
            let _ = rule;
            false
        }
    }
}

/// A background task of the store, to be spawned by the caller; it ends when the store is dropped or closed.
pub struct Task {
    /// Its name.
    pub name: String,
    /// Its work.
    pub run: BoxFuture<'static, ()>,
}

/// The store. Cheap to clone.
#[derive(Clone)]
pub struct FederatedStore {
    fleet: Arc<Fleet>,
}

/// What a list or a watch covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Group and plural.
    pub resource: Resource,
    /// Which part of it.
    pub extent: Extent,
}

/// Which part of a resource a list or a watch covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Extent {
    /// One namespace.
    Namespace(Arc<str>),
    /// All namespaces of a kind with namespaces.
    AllNamespaces,
    /// A kind without namespaces.
    Cluster,
}

/// Which state a list shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ListVersion {
    /// The newest: everything acknowledged before the call is in it.
    #[default]
    MostRecent,
    /// Any recent state (`resourceVersion=0`).
    Any,
    /// At least this one.
    NotOlderThan(ResourceVersion),
    /// Exactly this one, or `Expired`.
    Exact(ResourceVersion),
    /// The next page.
    Continue(ContinueToken),
}

/// What to do with a list over several backends when one of them does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Missing {
    /// `Unavailable`. For programs: absence means deletion to them.
    #[default]
    Refuse,
    /// List the others, and say so ([`List::missing`]). For people (Table).
    Allow,
}

/// Options of [`FederatedStore::list`].
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Which state.
    pub version: ListVersion,
    /// Which objects.
    pub predicate: SelectionPredicate,
    /// At most so many objects, then a continue token; 0: all.
    pub limit: u64,
    /// What to do when a backend does not answer.
    pub missing: Missing,
}

/// A running list: batches of objects, ordered by namespace and name (bytewise).
pub struct List(list::Listing);

/// Some objects of a list, in order. The bytes count against the budget until it is dropped.
pub struct ObjectBatch {
    /// The objects.
    pub objects: Vec<Object>,
}

/// What is known at the end of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListEnd {
    /// The token for the next page, if there is one.
    pub continue_token: Option<String>,
    /// How many objects are left after this page (only without selectors, and with a limit).
    pub remaining: Option<u64>,
}

impl List {
    /// The snapshot's resource version: the same on every page.
    #[must_use]
    pub fn resource_version(&self) -> ResourceVersion {
        self.0.resource_version()
    }
    /// Clusters that did not answer and are left out (only with [`Missing::Allow`]).
    #[must_use]
    pub fn missing(&self) -> &[String] {
        self.0.missing()
    }
    /// The next objects; `None` at the end. Waits for the byte budget. After an error the list is over and incomplete.
    ///
    /// # Errors
    /// `Unavailable`, `Expired`, `Corrupt`.
    pub async fn next_batch(&mut self) -> Result<Option<ObjectBatch>, Error> {
        self.0.next_batch().await
    }
    /// After the last batch: the continue token and what is left.
    #[must_use]
    pub fn end(&self) -> ListEnd {
        self.0.end()
    }
}

/// Where a watch starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchStart {
    /// Changes above this resource version.
    After(ResourceVersion),
    /// Changes from now on (`resourceVersionMatch=NotOlderThan&sendInitialEvents=false` without a version).
    Now,
    /// The objects as `Added` events, then [`WatchEvent::InitialEventsEnd`], then changes. `Any` or a version not older
    /// than the given one; `MostRecent` for an unset version.
    Initial(ListVersion),
}

/// A running watch.
pub struct Watch(watch::Watching);

impl Watch {
    /// The next events, at least one. Pending until there is one; an error (`Expired`, ...) ends the watch.
    /// Cancel-safe: a dropped call loses nothing.
    ///
    /// # Errors
    /// `Expired` when the watch cannot go on without a gap.
    pub async fn next_batch(&mut self) -> Result<Vec<WatchEvent>, Error> {
        self.0.next_batch().await
    }
    /// A resource version below which everything has been delivered, not below what this watch has delivered: for a
    /// bookmark. `None` until the watch has a position.
    #[must_use]
    pub fn bookmark(&mut self) -> Option<ResourceVersion> {
        self.0.bookmark()
    }
}

/// A claim of a namespace (or of a kind without namespaces) for a cluster, as the placement has decided it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed.
    pub domain: Domain,
    /// The namespace's uid (the CRD's uid for a kind).
    pub uid: String,
    /// The placement's generation: its resource version, so that it never restarts.
    pub generation: u64,
    /// The backend.
    pub slot: Slot,
}

/// A claim that is written as `Claiming`; to be confirmed in the placement, then activated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claiming {
    /// The claim.
    pub claim: Claim,
    /// The owner key's mod_revision.
    pub revision: u64,
}

/// What the routing cache says of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The backend.
    pub slot: Slot,
    /// The cluster's name.
    pub cluster: String,
    /// Its state.
    pub state: OwnerState,
    /// The placement's generation.
    pub generation: u64,
    /// The namespace's uid.
    pub uid: String,
}

/// The state of an owner key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum OwnerState {
    /// Written, not yet confirmed by the placement: no writes.
    Claiming,
    /// Writes and reads.
    Active,
    /// No writes any more: the namespace is being deleted.
    Frozen,
}

/// A member as an operator wants to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Its slot.
    pub slot: Slot,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// That of the connection: [`MemberRecord::incarnation`].
    pub incarnation: u64,
    /// What it is to the fleet, as this replica acts on it. `None`: it is connected, and no member (yet, or any more).
    pub membership: Option<MemberState>,
    /// Whether it takes writes and namespaces: it is a member, and its own `members` says so.
    pub open: bool,
    /// Whether its log is being followed.
    pub reachable: bool,
    /// How late it answers ticks, or shows in its log what it has acknowledged.
    pub lag: Duration,
    /// How far it has been seen: to be recorded outside of it. `None`: never.
    pub seen: Option<Seen>,
    /// It is older than it was: restored from a backup, or wiped. Nothing is read from it or written to it.
    pub restored: bool,
    /// Namespaces it owns.
    pub namespaces: u64,
    /// What it last said of its sizes.
    pub status: crate::backend::BackendStatus,
    /// Why it is not reachable.
    pub problem: Option<String>,
}

impl FederatedStore {
    /// Opens the store: identities and clocks are written where they are missing. Backends that do not answer are tried
    /// again in the background. The tasks must be spawned, or nothing moves.
    ///
    /// # Errors
    /// When a backend that answers belongs to another fleet or slot.
    pub async fn open(config: StoreConfig, members: Vec<Member>) -> Result<(Self, Vec<Task>), Error> {
        if members.is_empty() || (config.routing == Routing::Sole && members.len() != 1) {
            return Err(Error::Internal(format!(
                "{} members do not fit this routing",
                members.len()
            )));
        }
        let record = |member: &Member| MemberRecord {
            slot: member.slot,
            name: member.name.clone(),
            uid: member.uid.clone(),
            state: MemberState::Active,
            since: 0,
            opens: 0,
            incarnation: 0,
            missed: None,
        };
        let mut fixed = Membership {
            members: members.iter().map(record).collect(),
            ..Membership::default()
        };
        fixed.members.sort_by_key(|record| record.slot);
        Self::start(Fleet::new(config, fixed, false, members)).await
    }

    /// Opens the store of a fleet whose members are decided outside: `membership` is the newest decision that could be
    /// read, the connections may hold more or fewer backends than it names. What the backends say themselves counts as
    /// soon as they are read. Backends that do not answer are tried again in the background.
    ///
    /// # Errors
    /// When a backend that answers belongs to another fleet or slot, or the routing is not `Owned`.
    pub async fn open_decided(
        config: StoreConfig,
        membership: Membership,
        connections: Vec<Member>,
    ) -> Result<(Self, Vec<Task>), Error> {
        if config.routing != Routing::Owned {
            return Err(Error::Internal(
                "a store without owners has no members to decide on".to_owned(),
            ));
        }
        Self::start(Fleet::new(config, membership, true, connections)).await
    }

    async fn start(fleet: Fleet) -> Result<(Self, Vec<Task>), Error> {
        let fleet = Arc::new(fleet);
        let connections = fleet.view().connections.clone();
        let attempts = connections.iter().map(|joined| fleet.check(joined));
        for (joined, checked) in connections.iter().zip(futures::future::join_all(attempts).await) {
            match checked {
                Err(error @ Error::Foreign { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(cluster = %joined.member.name, %error, "a cluster cannot be reached yet")
                }
                Ok(()) => {}
            }
        }
        let mut tasks = vec![Task {
            name: "rounds of ticks".to_owned(),
            run: Box::pin(fleet.clone().run_rounds()),
        }];
        if fleet.config.routing == Routing::Owned {
            tasks.push(Task {
                name: "placements of owner keys".to_owned(),
                run: Box::pin(fleet.clone().run_questions()),
            });
        }
        if fleet.decided {
            tasks.push(Task {
                name: "roll-out of the membership".to_owned(),
                run: Box::pin(fleet.clone().run_roll_out()),
            });
            tasks.push(Task {
                name: "probes of members that do not answer".to_owned(),
                run: Box::pin(fleet.clone().run_probes()),
            });
        }
        tasks.extend(connections.iter().flat_map(|joined| tasks_of(&fleet, joined)));
        Ok((Self { fleet }, tasks))
    }

    /// Hands a decision over, together with the connections to whoever it names that is not connected yet (others may be
    /// among them: candidates are connected before they are decided on). Every replica calls it whenever it reads the
    /// object; older decisions and known connections change nothing. The tasks of new connections must be spawned. The
    /// store carries the decision to the backends by itself, and acts on it when they show it.
    #[must_use]
    pub fn hand_over(&self, membership: Membership, connections: Vec<Member>) -> Vec<Task> {
        let added = self.fleet.connect(connections);
        #[cfg(feature = "testing")]
        if self.fleet.broken(Rule::MembersFromTheLog) {
            self.fleet.act_on_hearsay(&membership);
        }
        self.fleet.take_decision(membership);
        added
            .iter()
            .flat_map(|joined| tasks_of(&self.fleet, joined))
            .collect()
    }

    /// Gives up the connection to a backend that is no member any more. Its tasks end.
    pub fn disconnect(&self, slot: Slot, uid: &str) {
        self.fleet.disconnect(slot, uid);
    }

    /// What this replica says of every member, and of who was one, for whoever judges (`membership::report`).
    #[must_use]
    pub fn report(&self) -> Vec<BackendReport> {
        self.fleet.view().report()
    }

    /// The generation of the membership that whatever this replica releases from now on is by, for whoever judges.
    #[must_use]
    pub fn acts_on(&self) -> u64 {
        self.fleet.acts_on()
    }

    /// The membership as this replica acts on it.
    #[must_use]
    pub fn membership(&self) -> Membership {
        self.fleet.view().membership.clone()
    }

    /// Whether this replica knows of any member. Until then every verb fails with `NoMembers`, but for lists over all
    /// namespaces that may leave clusters out: those are empty.
    #[must_use]
    pub fn has_members(&self) -> bool {
        self.fleet.check_has_members().is_ok()
    }

    /// Whether a member whose own `members` says `Leaving` owns nothing any more: then `Some`, with the epoch that
    /// [`Membership::removed`] takes. `None`: it still owns something, or does not know yet that it leaves.
    ///
    /// # Errors
    /// `Unavailable`: nobody knows.
    pub async fn verify_owns_nothing(&self, slot: Slot) -> Result<Option<Epoch>, Error> {
        self.fleet.verify_owns_nothing(slot).await
    }

    /// Ends the tasks. Calls still work for a while; watches do not move on.
    pub fn close(&self) {
        self.fleet.close();
    }

    /// Waits until the logs of all members are being followed.
    pub async fn ready(&self) {
        for joined in &self.fleet.view().serving {
            let mut changes = joined.changes();
            while !joined.is_connected() {
                changes.changed().await;
            }
        }
    }

    /// The object, in its newest state.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `OwnerUnknown`.
    pub async fn get(&self, key: &Key) -> Result<Object, Error> {
        self.fleet.get(key).await
    }

    /// Creates the object.
    ///
    /// # Errors
    /// `AlreadyExists` with the object that is there, `Unplaced`, `Unavailable`, `Full`, `UnknownOutcome`.
    pub async fn create(&self, key: &Key, object: &SealedObject) -> Result<Object, Error> {
        self.fleet.create(key, object).await
    }

    /// Replaces the state `expected` (as returned by this store).
    ///
    /// # Errors
    /// `Conflict` with the current state, and as for create.
    pub async fn update(&self, expected: &Object, object: &SealedObject) -> Result<Object, Error> {
        self.fleet.update(expected, object).await
    }

    /// Deletes the state `expected`. Returns that state with the resource version of the deletion.
    ///
    /// # Errors
    /// `Conflict` with the current state (`None`: gone), and as for create.
    pub async fn delete(&self, expected: &Object) -> Result<Object, Error> {
        self.fleet.delete(expected).await
    }

    /// Lists a scope. Returns when the snapshot is fixed; objects follow by [`List::next_batch`].
    ///
    /// # Errors
    /// `Unavailable`, `Expired`, `ResourceVersionTooLarge`, `InvalidContinue`, `Busy`.
    pub async fn list(&self, scope: &Scope, options: ListOptions) -> Result<List, Error> {
        Ok(List(self.fleet.list(scope, options).await?))
    }

    /// Watches a scope.
    ///
    /// # Errors
    /// `Expired`, `ResourceVersionTooLarge`, `Unavailable` (initial events over all namespaces while a backend is lost).
    pub async fn watch(
        &self,
        scope: &Scope,
        predicate: SelectionPredicate,
        start: WatchStart,
    ) -> Result<Watch, Error> {
        Ok(Watch(self.fleet.watch(scope, predicate, start).await?))
    }

    /// Who owns a domain, by the routing cache (no I/O). `None`: not known here.
    #[must_use]
    pub fn owner(&self, domain: &Domain) -> Option<Owner> {
        let (joined, entry) = match self.fleet.route(domain) {
            Routed::Owned(joined, entry) => (joined, entry),
            Routed::Nobody | Routed::Unsettled => self.fleet.claimed(domain)?,
        };
        Some(Owner {
            slot: joined.slot(),
            cluster: joined.member.name.clone(),
            state: entry.record.state,
            generation: entry.record.generation,
            uid: entry.record.uid,
        })
    }

    /// First step of a claim: the owner key as `Claiming`. Repeating it is harmless; a claim of a higher generation
    /// replaces a `Claiming` of a lower one.
    ///
    /// # Errors
    /// `Conflict(None)` when the backend has another owner key already, `Unavailable`.
    pub async fn begin_claim(&self, claim: &Claim) -> Result<Claiming, Error> {
        self.fleet.begin_claim(claim).await
    }

    /// The first step of a claim that the placement has confirmed already, for whoever finishes what another replica
    /// began. It never writes: a confirmed claim whose owner key is gone was released, or its backend was wiped.
    ///
    /// # Errors
    /// `Conflict(None)` when the backend does not hold this claim, `Unavailable`.
    pub async fn resume_claim(&self, claim: &Claim) -> Result<Claiming, Error> {
        self.fleet.resume_claim(claim).await
    }

    /// Last step of a claim, after the placement names the cluster: `Claiming` becomes `Active`. Writes work afterwards.
    ///
    /// # Errors
    /// `Conflict(None)` when the owner key changed since, `Unavailable`.
    pub async fn activate(&self, claiming: &Claiming) -> Result<(), Error> {
        self.fleet.activate(claiming).await
    }

    /// A deleted namespace: `Frozen`, verified empty, owner key removed, a round of ticks. The placement may be deleted
    /// afterwards. A domain without owner is already released.
    ///
    /// # Errors
    /// `Conflict(None)` when there are still objects or the uid is another one; `Unavailable`.
    pub async fn release(&self, domain: &Domain, uid: &str) -> Result<(), Error> {
        self.fleet.release(domain, uid).await
    }

    /// The members, as an operator wants to see them.
    #[must_use]
    pub fn clusters(&self) -> Vec<ClusterStatus> {
        let view = self.fleet.view();
        let status = |joined: &Arc<Joined>| joined.cluster_status(&view);
        view.connections.iter().map(status).collect()
    }
}

/// What follows and maintains one backend.
fn tasks_of(fleet: &Arc<Fleet>, joined: &Arc<Joined>) -> [Task; 2] {
    let name = &joined.member.name;
    let follow = fleet.clone().follow_log(joined.clone());
    let maintain = fleet.clone().maintain(joined.clone());
    [
        Task {
            name: format!("log of {name}"),
            run: Box::pin(follow),
        },
        Task {
            name: format!("maintenance of {name}"),
            run: Box::pin(maintain),
        },
    ]
}
