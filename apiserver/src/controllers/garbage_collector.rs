//! Deletes objects whose owners are gone, and finishes owners that wait for their dependents (foreground) or want to
//! leave them behind (orphan). What kube-controller-manager does in a cluster; here only standalone.
//!
//! Its memory does not grow with the objects. kube-controller-manager keeps a graph of all of them; here the metadata of
//! every kind is watched and forgotten. What is kept: a bounded set of hashes of owners' uids (so that the deletion of
//! an object that owns nothing costs nothing), a bounded cache of owners known to exist, and the work at hand. When an
//! owner goes, its dependents are found by listing the metadata of its namespace.
//!
//! ```text
//! watches ─▶ consider(event) ─▶ items (examine one object) ─┐
//!                            └▶ gone  (scan a namespace)   ─┴▶ Collector: read again, decide, delete or patch
//! ```
//!
//! A watch that has to start over may have missed deletions, so all of them start over: then every object with owners is
//! examined again.

mod collect;
mod owners;

use super::collection;
use crate::controllers::Meta;
use crate::resources::ServedResources;
use crate::resources::definition::{Builtin, ResourceDefinition};
use collect::{Collector, Done};
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{Stream, StreamExt};
use kube::runtime::{WatchStreamExt, watcher};
use owners::{ItemRef, OwnersSeen, is_waiting};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::StreamMap;
use tracing::{debug, warn};

/// Items that wait to be examined; when there are more, the watches wait.
const ITEMS_MAX: usize = 10_000;
/// Items that wait for their next try; the rest is tried at once.
const RETRIES_MAX: usize = 10_000;
/// Uids of owners that are gone, waiting for one scan; when there are more, the watches wait.
const GONE_MAX: usize = 10_000;
/// Items examined at the same time.
const ITEMS_IN_FLIGHT_MAX: usize = 16;
/// How long deletions are gathered before a namespace is scanned for dependents.
const GATHER: Duration = Duration::from_millis(100);
/// First and longest pause before an item is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

type Events = BoxStream<'static, watcher::Result<watcher::Event<Meta>>>;

/// Where dependents of an owner can be: in its namespace, or (`None`, an owner without namespace) everywhere.
type Reach = Option<String>;

/// Collects garbage. Never ends.
pub async fn run(client: kube::Client, mut served: watch::Receiver<Arc<ServedResources>>) {
    loop {
        let collector = Collector::new(client.clone(), served.clone());
        let mut watches = Watches::default();
        let mut work = Work::default();
        let why = work.run(&collector, &mut watches, &mut served).await;
        debug!(why, "the garbage collector starts over");
        tokio::time::sleep(RETRY.0).await;
    }
}

/// One metadata watch a kind.
#[derive(Default)]
struct Watches {
    streams: StreamMap<(String, String), Events>,
    definitions: BTreeMap<(String, String), Arc<ResourceDefinition>>,
    started: BTreeSet<(String, String)>,
}

impl Watches {
    /// Follows what is served: new kinds are watched, those that went are not.
    fn follow(&mut self, client: &kube::Client, served: &ServedResources) {
        // Events name what they are about, and nobody owns them.
        let kinds = collection::kinds(served, |d| d.builtin != Some(Builtin::Event));
        let wanted: BTreeMap<(String, String), Arc<ResourceDefinition>> = kinds
            .into_iter()
            .map(|d| ((d.group.clone(), d.plural.clone()), d))
            .collect();
        let old: Vec<_> = self
            .definitions
            .iter()
            .map(|(key, d)| (key.clone(), d.version.clone()))
            .collect();
        for (key, version) in old {
            if wanted.get(&key).is_none_or(|d| d.version != version) {
                self.streams.remove(&key);
                self.started.remove(&key);
            }
        }
        for (key, definition) in &wanted {
            if !self.streams.contains_key(key) {
                let api = collection::metadata_api(client, definition, None);
                self.streams.insert(
                    key.clone(),
                    watcher(api, watcher::Config::default()).default_backoff().boxed(),
                );
            }
        }
        self.definitions = wanted;
    }

    async fn next(&mut self) -> Option<(Arc<ResourceDefinition>, watcher::Result<watcher::Event<Meta>>)> {
        loop {
            let (key, event) =
                std::future::poll_fn(|cx| std::pin::Pin::new(&mut self.streams).poll_next(cx)).await?;
            if let Some(definition) = self.definitions.get(&key) {
                return Some((Arc::clone(definition), event));
            }
        }
    }

    /// Whether this is the first time that the watch of this kind starts.
    fn starts(&mut self, definition: &ResourceDefinition) -> bool {
        self.started
            .insert((definition.group.clone(), definition.plural.clone()))
    }
}

/// What is to be done.
#[derive(Default)]
struct Work {
    owners: OwnersSeen,
    items: VecDeque<ItemRef>,
    queued: BTreeSet<ItemRef>,
    retries: BTreeMap<ItemRef, (Instant, Duration)>,
    gone: BTreeMap<Reach, BTreeSet<String>>,
    gone_count: usize,
    gather_until: Option<Instant>,
}

impl Work {
    /// Works until a watch starts over, and says why it ended.
    async fn run(
        &mut self,
        collector: &Collector,
        watches: &mut Watches,
        served: &mut watch::Receiver<Arc<ServedResources>>,
    ) -> &'static str {
        let resources = Arc::clone(&served.borrow_and_update());
        watches.follow(&collector.client, &resources);
        let mut in_flight = FuturesUnordered::new();
        let mut scan = FuturesUnordered::new();
        loop {
            self.take_due_retries();
            while in_flight.len() < ITEMS_IN_FLIGHT_MAX
                && let Some(item) = self.items.pop_front()
            {
                self.queued.remove(&item);
                let may_own = self.owners.may_contain(&item.uid);
                in_flight.push(async move { (collector.examine(&item, may_own).await, item) });
            }
            if scan.is_empty()
                && self.gather_until.is_some_and(|at| at <= Instant::now())
                && let Some((reach, uids)) = self.gone.pop_first()
            {
                self.gone_count = self.gone_count.saturating_sub(uids.len());
                self.gather_until = (!self.gone.is_empty()).then(Instant::now);
                scan.push(async move { (collector.scan(reach.as_deref(), &uids).await, reach, uids) });
            }
            let has_room = self.items.len() < ITEMS_MAX && self.gone_count < GONE_MAX;
            let timer = self.next_timer(scan.is_empty());
            tokio::select! {
                event = watches.next(), if has_room => match event {
                    Some((definition, Ok(watcher::Event::Init))) if !watches.starts(&definition) => {
                        return "a watch has to start over";
                    }
                    Some((definition, Ok(event))) => self.consider(collector, &definition, event),
                    Some((definition, Err(error))) => debug!(kind = %definition.group_resource(), %error, "watch"),
                    // No kind is served: nothing to do until one is.
                    None if served.changed().await.is_err() => return "the server is stopping",
                    None => watches.follow(&collector.client, &served.borrow_and_update().clone()),
                },
                changed = served.changed() => match changed {
                    Ok(()) => watches.follow(&collector.client, &served.borrow_and_update().clone()),
                    Err(_) => return "the server is stopping",
                },
                Some((done, item)) = in_flight.next() => self.finished(item, done),
                Some((result, reach, uids)) = scan.next() => if let Err(error) = result {
                    warn!(namespace = reach.as_deref().unwrap_or("all"), %error, "dependents could not be looked for, trying again");
                    self.owners_gone(reach, uids, RETRY.1 / 10);
                },
                () = sleep_until(timer) => {}
            }
        }
    }

    /// What an event asks for. Decides from the event alone; everything is read again before anything is done.
    fn consider(
        &mut self,
        collector: &Collector,
        definition: &ResourceDefinition,
        event: watcher::Event<Meta>,
    ) {
        match event {
            watcher::Event::Init | watcher::Event::InitDone => {}
            watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                let references = object.metadata.owner_references.as_deref().unwrap_or_default();
                references.iter().for_each(|r| self.owners.insert(&r.uid));
                let is_deleting = object.metadata.deletion_timestamp.is_some();
                if is_deleting {
                    collector.forget(object.metadata.uid.as_deref().unwrap_or_default());
                }
                let has_work = match is_deleting {
                    true => is_waiting(&object.metadata),
                    false => !references.iter().all(|r| collector.is_known(&r.uid)),
                };
                if has_work && let Some(item) = ItemRef::new(definition, &object.metadata) {
                    self.enqueue(item);
                }
            }
            watcher::Event::Delete(object) => {
                let uid = object.metadata.uid.clone().unwrap_or_default();
                collector.forget(&uid);
                for owner in object.metadata.owner_references.iter().flatten() {
                    // An owner in the foreground of its deletion may have waited for this one.
                    if let Some(owner) = collector.owner_item(owner, object.metadata.namespace.as_deref()) {
                        self.enqueue(owner);
                    }
                }
                if self.owners.may_contain(&uid) {
                    let reach = object.metadata.namespace.filter(|_| definition.namespaced);
                    self.owners_gone(reach, BTreeSet::from([uid]), GATHER);
                }
            }
        }
    }

    fn enqueue(&mut self, item: ItemRef) {
        if self.queued.insert(item.clone()) {
            self.items.push_back(item);
        }
    }

    fn owners_gone(&mut self, reach: Reach, uids: BTreeSet<String>, after: Duration) {
        let set = self.gone.entry(reach).or_default();
        let before = set.len();
        set.extend(uids);
        self.gone_count += set.len() - before;
        self.gather_until.get_or_insert(Instant::now() + after);
    }

    fn finished(&mut self, item: ItemRef, done: Result<Done, kube::Error>) {
        match done {
            Ok(Done::Finished) => {
                self.retries.remove(&item);
            }
            Ok(Done::OwnerIsGone) => {
                self.retries.remove(&item);
                self.owners_gone(item.namespace.clone(), BTreeSet::from([item.uid]), GATHER);
            }
            Ok(Done::Waits) => self.retry(item),
            Err(error) => {
                debug!(item = %item, %error, "trying again");
                self.retry(item);
            }
        }
    }

    fn retry(&mut self, item: ItemRef) {
        if self.retries.len() >= RETRIES_MAX && !self.retries.contains_key(&item) {
            return self.enqueue(item);
        }
        let pause = self
            .retries
            .get(&item)
            .map_or(RETRY.0, |(_, pause)| (*pause * 2).min(RETRY.1));
        self.retries.insert(item, (Instant::now() + pause, pause));
    }

    fn take_due_retries(&mut self) {
        let now = Instant::now();
        let due: Vec<ItemRef> = self
            .retries
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(item, _)| item.clone())
            .collect();
        for item in due {
            // It stays among the retries, for the length of the next pause, until it is finished.
            if let Some((at, _)) = self.retries.get_mut(&item) {
                *at = now + RETRY.1;
            }
            self.enqueue(item);
        }
    }

    fn next_timer(&self, can_scan: bool) -> Option<Instant> {
        let retry = self.retries.values().map(|(at, _)| *at).min();
        let scan = self.gather_until.filter(|_| can_scan);
        retry.into_iter().chain(scan).min()
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
