//! The workload clusters of `outrigger serve`: WorkloadCluster objects become members of the fleet, and leave it.
//!
//! A cluster that appears joins, by any replica's decision; one that is deleted or drained leaves, by the leader's
//! (`departures`). A decision is a new membership in the `fleet` object, which every replica hands to its store together
//! with `connections`.

use super::connections::{Connections, SecretWatches};
use super::departures::{self, FINALIZER, Facts, has_finalizer, is_deleted, may_go};
use super::fleet::FleetObject;
use crate::app::Spawner;
use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::reflector::Store;
use kube::runtime::reflector::store::Writer;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use outrigger_apiserver::controllers::backends::{self, Settings};
use outrigger_storage::clock::epoch_at;
use outrigger_storage::federated::{Member, WallClock};
use outrigger_storage::membership::{MemberRecord, MemberState, Membership};
use outrigger_storage::{Epoch, FederatedStore};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often the members are looked at when nothing has changed: what did not work is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The clusters, as the control plane describes them.
pub(crate) struct Clusters {
    pub(crate) client: Client,
    pub(crate) fleet: FleetObject,
    pub(crate) connections: Connections,
    /// Whether this replica decides who leaves.
    pub(crate) is_leader: watch::Receiver<bool>,
    /// For how long history is retained.
    pub(crate) retention: Duration,
    pub(crate) wall_clock: WallClock,
    /// Where it is told what became of their settings.
    pub(crate) settings: watch::Sender<Arc<Settings>>,
    /// Since when this replica has known of members, by uid, that they are removed.
    pub(crate) removed_since: BTreeMap<String, Instant>,
}

impl Clusters {
    /// Who belongs to the fleet at the start, all clusters that are described included, and connections to them. What is
    /// wrong with one does not keep the others away.
    pub(crate) async fn first(&mut self) -> Result<(Membership, Vec<Member>)> {
        let clusters = self.all().await?;
        let membership = self
            .fleet
            .decide(|known| Ok(news(known, joined(known, &clusters).0)))
            .await?;
        let (connections, _) = self.connect(&membership.members, &clusters).await;
        Ok((membership, connections))
    }

    /// All WorkloadClusters. Those that are there to stay carry our finalizer, or cannot be written just now.
    async fn all(&self) -> Result<Vec<DynamicObject>> {
        let list = self.api().list(&Default::default()).await;
        let mut clusters = list.context("WorkloadClusters cannot be listed")?.items;
        self.keep(&mut clusters).await;
        Ok(clusters)
    }

    /// Those that were watched, and the newest of members that the watch does not show: who is not there is to go.
    async fn watched(
        &self,
        store: &Store<DynamicObject>,
        membership: &Membership,
    ) -> Result<Vec<DynamicObject>> {
        let watched = store.state();
        let mut clusters: Vec<DynamicObject> = watched.iter().map(|c| DynamicObject::clone(c)).collect();
        let is_unseen =
            |record: &&MemberRecord| !clusters.iter().any(|c| c.uid().as_deref() == Some(&record.uid));
        let unseen: Vec<_> = membership
            .members
            .iter()
            .filter(|record| !is_removed(record))
            .filter(is_unseen)
            .map(|record| (record.name.clone(), record.uid.clone()))
            .collect();
        for (name, uid) in unseen {
            let found = self.api().get_opt(&name).await?;
            clusters.extend(found.filter(|found| found.uid() == Some(uid)));
        }
        self.keep(&mut clusters).await;
        Ok(clusters)
    }

    /// Puts our finalizer on those that are there to stay.
    async fn keep(&self, clusters: &mut [DynamicObject]) {
        let missing = |cluster: &&mut DynamicObject| !is_deleted(cluster) && !has_finalizer(cluster);
        for cluster in clusters.iter_mut().filter(missing) {
            let finalizers = cluster.finalizers().iter().map(String::as_str).chain([FINALIZER]);
            match self.set_finalizers(cluster, finalizers.collect()).await {
                Ok(written) => *cluster = written,
                Err(error) => tracing::warn!(
                    cluster = cluster.name_any(),
                    %error,
                    "it cannot be kept from vanishing while it owns namespaces; it joins when it can"
                ),
            }
        }
    }

    fn api(&self) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &backends::api_resource())
    }

    /// If nobody has changed the object since.
    async fn set_finalizers(
        &self,
        cluster: &DynamicObject,
        finalizers: Vec<&str>,
    ) -> Result<DynamicObject, kube::Error> {
        let metadata = json!({"resourceVersion": cluster.resource_version(), "finalizers": finalizers});
        let patch = Patch::Merge(json!({"metadata": metadata}));
        self.api()
            .patch(&cluster.name_any(), &PatchParams::default(), &patch)
            .await
    }

    /// Connections to those that are described, and what is wrong with the others.
    async fn connect(
        &mut self,
        records: &[MemberRecord],
        clusters: &[DynamicObject],
    ) -> (Vec<Member>, Settings) {
        let (mut connections, mut problems) = (Vec::new(), Settings::new());
        for record in records.iter().filter(|record| !is_removed(record)) {
            let is_of_record = |c: &&DynamicObject| c.uid().as_deref() == Some(record.uid.as_str());
            let connected = match clusters.iter().find(is_of_record) {
                Some(cluster) => self.connections.connect(record, cluster).await,
                None => Err(anyhow!("its WorkloadCluster is not there")),
            };
            match connected {
                Ok(member) => connections.push(member),
                Err(error) => {
                    let problem = format!("{error:#}");
                    let told = self.settings.borrow().get(&record.name).cloned().flatten();
                    if told.as_ref() != Some(&problem) {
                        tracing::error!(cluster = record.name, problem, "it cannot be connected");
                    }
                    problems.insert(record.name.clone(), Some(problem));
                }
            }
        }
        (connections, problems)
    }
}

fn is_removed(record: &MemberRecord) -> bool {
    matches!(record.state, MemberState::Removed { .. })
}

/// The membership with every described cluster that can join, and what is wrong with the others.
fn joined(membership: &Membership, clusters: &[DynamicObject]) -> (Membership, Settings) {
    let (mut next, mut problems) = (membership.clone(), Settings::new());
    for cluster in clusters.iter().filter(|c| !is_deleted(c) && has_finalizer(c)) {
        let (name, uid) = (cluster.name_any(), cluster.uid().unwrap_or_default());
        if membership.members.iter().any(|member| member.uid == uid) {
            continue;
        }
        let Some(slot) = next.free_slot() else {
            problems.insert(name, Some("the fleet has no free slot".to_owned()));
            continue;
        };
        match next.joined(slot, &name, &uid) {
            Ok(with) => next = with,
            Err(error) => {
                let problem = format!("it cannot join the fleet yet: {error}");
                problems.insert(name, Some(problem));
            }
        }
    }
    (next, problems)
}

/// The newest membership that this replica has heard of.
pub(crate) fn newest(decided: &Arc<Membership>, store: &FederatedStore) -> Membership {
    let acted_on = store.membership();
    match decided.generation >= acted_on.generation {
        true => Membership::clone(decided),
        false => acted_on,
    }
}

/// A decision, if there is one to make.
fn news(known: &Membership, next: Membership) -> Option<Membership> {
    (next != *known).then_some(next)
}

/// Keeps what the control plane says of WorkloadClusters, and tells `changed` whenever it says something new. Never ends.
pub(crate) async fn reflect(client: Client, writer: Writer<DynamicObject>, changed: watch::Sender<()>) {
    let api = Api::<DynamicObject>::all_with(client, &backends::api_resource());
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let events = reflector(writer, events).for_each(|event| {
        match event {
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Ok(_) => changed.send_replace(()),
            Err(error) => tracing::debug!(%error, "the watch of WorkloadClusters is opened again"),
        }
        std::future::ready(())
    });
    events.await;
}

/// What is watched.
pub(crate) struct Watched {
    /// The WorkloadClusters.
    pub(crate) clusters: Store<DynamicObject>,
    /// Tells when they have changed.
    pub(crate) changed: watch::Receiver<()>,
    /// What was decided last.
    pub(crate) decided: watch::Receiver<Arc<Membership>>,
}

/// Follows the WorkloadClusters, their Secrets and the decisions about them, and hands all to the store. Never ends.
pub(crate) async fn follow(
    mut clusters: Clusters,
    mut watched: Watched,
    store: FederatedStore,
    spawner: Spawner,
) {
    let mut secrets = SecretWatches::new(clusters.client.clone());
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    if watched.clusters.wait_until_ready().await.is_err() {
        return;
    }
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            secret = secrets.changed() => clusters.connections.mark_unread(secret),
            Ok(()) = watched.changed.changed() => {}
            Ok(()) = watched.decided.changed() => {}
        }
        if let Err(error) = clusters.look(&watched, &store, &spawner, &mut secrets).await {
            tracing::warn!(
                error = format!("{error:#}"),
                "the members of the fleet could not be looked at, trying again"
            );
        }
    }
}

impl Clusters {
    async fn look(
        &mut self,
        watched: &Watched,
        store: &FederatedStore,
        spawner: &Spawner,
        secrets: &mut SecretWatches,
    ) -> Result<()> {
        let known = newest(&watched.decided.borrow(), store);
        let clusters = self.watched(&watched.clusters, &known).await?;
        secrets.set(self.connections.secrets(&clusters));
        self.connections.refresh(&clusters).await;
        let leads = *self.is_leader.borrow();
        let facts = match leads {
            true => Some(self.facts(store, &known, &clusters).await),
            false => None,
        };
        let decision = |known: &Membership| {
            let next = match &facts {
                Some(facts) => departures::departed(known, &clusters, facts)?,
                None => known.clone(),
            };
            Ok(news(known, joined(&next, &clusters).0))
        };
        // The control plane is asked only when there seems to be something to decide.
        let membership = match decision(&known)? {
            Some(_) => self.fleet.decide(decision).await?,
            None => known,
        };
        let mut problems = joined(&membership, &clusters).1;
        let connected = store.clusters();
        let is_new = |record: &&MemberRecord| {
            let is_connected = connected.iter().any(|cluster| cluster.uid == record.uid);
            !is_connected || !self.connections.has(record)
        };
        let missing: Vec<_> = membership.members.iter().filter(is_new).cloned().collect();
        let (connections, unconnected) = self.connect(&missing, &clusters).await;
        problems.extend(unconnected);
        for task in store.hand_over(membership.clone(), connections) {
            spawner.spawn(&format!("workload store: {}", task.name), task.run);
        }
        self.part(store, &membership);
        self.note_removed(&membership);
        if leads {
            self.let_go(&membership, &clusters).await?;
        }
        problems.extend(self.connections.settings(&clusters));
        self.settings.send_if_modified(|told| {
            let is_news = **told != problems;
            if is_news {
                *told = Arc::new(problems);
            }
            is_news
        });
        Ok(())
    }

    fn now(&self) -> Epoch {
        epoch_at((self.wall_clock)())
    }

    /// What decides about departures. A backend that does not answer owns what it owns.
    async fn facts(
        &self,
        store: &FederatedStore,
        membership: &Membership,
        clusters: &[DynamicObject],
    ) -> Facts {
        let mut empty = BTreeMap::new();
        for (slot, since) in departures::to_be_verified(membership, clusters) {
            match store.verify_owns_nothing(slot).await {
                Ok(Some(last)) => {
                    empty.insert((slot, since), last);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(slot = slot.0, %error, "nobody knows what it owns"),
            }
        }
        Facts {
            now: self.now(),
            retention: self.retention,
            empty,
        }
    }

    /// Gives up connections to backends that nobody needs: neither by what was decided, nor by what this replica acts on.
    fn part(&mut self, store: &FederatedStore, decided: &Membership) {
        let acted_on = store.membership();
        let records = || decided.members.iter().chain(&acted_on.members);
        for cluster in store.clusters() {
            if !records().any(|record| record.uid == cluster.uid) {
                tracing::info!(cluster = cluster.name, "its history is not needed any more");
                store.disconnect(cluster.slot, &cluster.uid);
                self.connections.forget(&cluster.uid);
            }
        }
    }

    fn note_removed(&mut self, membership: &Membership) {
        let removed = membership.members.iter().filter(|record| is_removed(record));
        let removed: BTreeMap<_, _> = removed
            .map(|record| {
                let known = self.removed_since.get(&record.uid).copied();
                (record.uid.clone(), known.unwrap_or_else(Instant::now))
            })
            .collect();
        self.removed_since = removed;
    }

    /// Deleted clusters that nothing lives on any more are let go.
    async fn let_go(&self, membership: &Membership, clusters: &[DynamicObject]) -> Result<()> {
        let removed_for = |cluster: &DynamicObject| {
            let since = self.removed_since.get(&cluster.uid().unwrap_or_default());
            since.map_or(Duration::ZERO, Instant::elapsed)
        };
        let goes = |cluster: &&DynamicObject| {
            is_deleted(cluster) && has_finalizer(cluster) && may_go(membership, cluster, removed_for(cluster))
        };
        for cluster in clusters.iter().filter(goes) {
            let finalizers = cluster.finalizers().iter().map(String::as_str);
            let others = finalizers.filter(|finalizer| *finalizer != FINALIZER).collect();
            self.set_finalizers(cluster, others)
                .await
                .with_context(|| format!("WorkloadCluster {} cannot be let go", cluster.name_any()))?;
            tracing::info!(cluster = cluster.name_any(), "it has left the fleet");
        }
        Ok(())
    }
}
