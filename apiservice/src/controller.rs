//! Watches CRDs and APIServices, compares with what we want, and makes it so. Every replica watches and publishes what it
//! sees; only the leader writes.
//!
//! A pass looks at everything and never waits: what takes time (a guard that is not in force yet, an APIService that is not
//! Available yet) is looked at again in the next pass. Each step is written down in the CRD before the next one begins, by
//! a write that fails if the CRD has changed since it was read, so another leader goes on where this one stopped.

mod actions;
mod steps;

use crate::crd::{ApiService, Crd, CrdObject, crd_resource};
use crate::desired::{Inputs, Kinds, ServiceReference, kinds};
use crate::{Objects, condition};
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
    ValidatingWebhookConfiguration,
};
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, Resource};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// How often everything is looked at without a reason.
const RESYNC: Duration = Duration::from_secs(30);
/// Changes that come together are one pass.
const GATHER: Duration = Duration::from_millis(50);
/// How soon a pass that failed, or that waits for something, is followed by another.
const AGAIN: Duration = Duration::from_secs(1);
/// How the pass itself is called where failures are remembered.
const PASS: &str = "all distributed kinds";
/// CRDs come with their schemas: few of them are read at once.
const CRDS_PER_PAGE: u32 = 50;

/// How long to wait where nothing can be seen.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// A write that kube-apiserver admitted before the guard was in force has ended after so long.
    pub guard_settle: Duration,
    /// The same for a kind that admission webhooks match, which make writes slow: kube-apiserver ends them after 34 s.
    pub guard_settle_with_webhooks: Duration,
    /// All kube-apiservers have seen a changed APIService after so long.
    pub switch_settle: Duration,
    /// All our replicas have seen that a kind takes no more writes, and their last ones have ended, after so long.
    pub release_settle: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            guard_settle: Duration::from_secs(5),
            guard_settle_with_webhooks: Duration::from_secs(36),
            switch_settle: Duration::from_secs(2),
            release_settle: Duration::from_secs(15),
        }
    }
}

/// What the controller needs, and where it publishes.
pub struct Controller<B> {
    /// A client of the control plane.
    pub client: Client,
    /// Who this replica is, for events.
    pub identity: String,
    /// How kube-apiserver reaches us.
    pub service: ServiceReference,
    /// Whom it must trust, as PEM. Empty: not known yet.
    pub bundle: watch::Receiver<Arc<B>>,
    /// Whether this replica may write.
    pub is_leader: watch::Receiver<bool>,
    /// Who keeps the objects.
    pub objects: Arc<dyn Objects>,
    /// Wall time in seconds since 1970, for conditions.
    pub clock: Arc<dyn Fn() -> i64 + Send + Sync>,
    /// How long to wait where nothing can be seen.
    pub timing: Timing,
    /// The kinds to serve. `None` until the control plane has been seen whole.
    pub kinds: watch::Sender<Option<Arc<Kinds>>>,
    /// The CA bundles, as PEM, of the APIServices that point at us. `None` until they have been seen.
    pub carried: watch::Sender<Option<Arc<Vec<String>>>>,
}

/// What has been seen of one kind of object.
struct Cache<T> {
    known: BTreeMap<String, T>,
    /// A list that is coming in.
    incoming: BTreeMap<String, T>,
    is_synced: bool,
}

/// Something happened.
enum Change {
    Crd(Event<CrdObject>),
    ApiService(Event<APIService>),
    Other,
}

/// What is remembered between passes. Losing it costs time, nothing else.
#[derive(Default)]
struct Memory {
    /// Since when a CRD's guard is seen in force.
    guarded: BTreeMap<String, Instant>,
    /// Since when all its APIServices are seen Available.
    available: BTreeMap<String, Instant>,
    /// Since when it takes no writes.
    released: BTreeMap<String, Instant>,
    /// What was said of it last, so that an event is sent once.
    said: BTreeMap<String, condition::Finding>,
    /// There were no guards, not even forgotten ones, when it was last looked.
    has_no_guards: bool,
    /// The last failure of a CRD or an APIService, or of the pass itself.
    failed: BTreeMap<String, String>,
}

/// The whole at work.
struct Worker<B> {
    config: Controller<B>,
    recorder: Recorder,
    crds: Cache<Crd>,
    api_services: Cache<ApiService>,
    memory: Memory,
}

/// Keeps the APIServices what they should be. Never ends; dropping it deregisters nothing.
pub async fn run<B: AsRef<[u8]> + Send + Sync + 'static>(config: Controller<B>) {
    let reporter = Reporter {
        controller: "outrigger-apiservice".to_owned(),
        instance: Some(config.identity.clone()),
    };
    let mut changes = changes(&config.client);
    let (mut bundle, mut is_leader) = (config.bundle.clone(), config.is_leader.clone());
    let mut worker = Worker {
        recorder: Recorder::new(config.client.clone(), reporter),
        config,
        crds: Cache::new(),
        api_services: Cache::new(),
        memory: Memory::default(),
    };
    let mut at = Instant::now();
    loop {
        let changed = tokio::select! {
            Some(change) = changes.next() => worker.take(change),
            () = changed(&mut bundle) => true,
            () = changed(&mut is_leader) => true,
            () = tokio::time::sleep_until(at) => {
                let wait = worker.pass().await;
                at = Instant::now() + wait;
                false
            }
        };
        if changed {
            at = at.min(Instant::now() + GATHER);
        }
    }
}

/// A value without a writer does not change any more.
async fn changed<T>(value: &mut watch::Receiver<T>) {
    if value.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Everything that may be a reason to look again. Kinds of admission that older control planes do not have are not watched
/// but read in each pass.
fn changes(client: &Client) -> BoxStream<'static, Change> {
    let crds: Api<CrdObject> = Api::all_with(client.clone(), &crd_resource());
    let config = watcher::Config::default().page_size(CRDS_PER_PAGE);
    let crds = events(watch_objects(crds, config).default_backoff(), Change::Crd);
    let api_services = watch_objects(Api::all(client.clone()), watcher::Config::default()).default_backoff();
    let streams = vec![
        crds,
        events(api_services, Change::ApiService),
        others::<ValidatingWebhookConfiguration>(client),
        others::<MutatingWebhookConfiguration>(client),
        others::<ValidatingAdmissionPolicy>(client),
        others::<ValidatingAdmissionPolicyBinding>(client),
    ];
    futures::stream::select_all(streams).boxed()
}

fn others<K>(client: &Client) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = ()> + Clone + serde::de::DeserializeOwned + Debug + Send + 'static,
{
    let metadata: Api<PartialObjectMeta<K>> = Api::all(client.clone());
    let stream = watch_objects(metadata, watcher::Config::default());
    events(stream.default_backoff(), |_| Change::Other)
}

fn events<T: 'static>(
    stream: impl futures::Stream<Item = watcher::Result<Event<T>>> + Send + 'static,
    change: impl Fn(Event<T>) -> Change + Send + 'static,
) -> BoxStream<'static, Change> {
    let take = move |event: watcher::Result<Event<T>>| {
        let taken = match event {
            Ok(event) => Some(change(event)),
            Err(error) => {
                tracing::debug!(%error, "a watch ended, trying again");
                None
            }
        };
        futures::future::ready(taken)
    };
    stream.filter_map(take).boxed()
}

impl<T: PartialEq> Cache<T> {
    fn new() -> Self {
        Self {
            known: BTreeMap::new(),
            incoming: BTreeMap::new(),
            is_synced: false,
        }
    }

    /// Takes an event, and says whether anything is different.
    fn take<K: Resource>(&mut self, event: Event<K>, read: impl Fn(&K) -> T) -> bool {
        let name = |object: &K| object.meta().name.clone().unwrap_or_default();
        match event {
            Event::Init => {
                self.incoming.clear();
                false
            }
            Event::InitApply(object) => {
                self.incoming.insert(name(&object), read(&object));
                false
            }
            Event::InitDone => {
                let incoming = std::mem::take(&mut self.incoming);
                let is_new = !self.is_synced || incoming != self.known;
                self.known = incoming;
                self.is_synced = true;
                is_new
            }
            Event::Apply(object) => {
                let new = read(&object);
                let is_new = self.known.get(&name(&object)) != Some(&new);
                self.known.insert(name(&object), new);
                is_new
            }
            Event::Delete(object) => self.known.remove(&name(&object)).is_some(),
        }
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Worker<B> {
    fn take(&mut self, change: Change) -> bool {
        match change {
            Change::Crd(event) => self.crds.take(event, Crd::read),
            Change::ApiService(event) => self.api_services.take(event, ApiService::read),
            Change::Other => true,
        }
    }

    /// Publishes what is seen and, as the leader, does what is due. Says when to look again.
    async fn pass(&mut self) -> Duration {
        if !(self.crds.is_synced && self.api_services.is_synced) {
            return RESYNC;
        }
        self.publish();
        if !*self.config.is_leader.borrow() {
            // Who leads next starts with what it sees then.
            self.memory = Memory::default();
            return RESYNC;
        }
        let result = self.reconcile().await;
        match self.settled(PASS, result) {
            true => RESYNC,
            false => AGAIN,
        }
    }

    fn publish(&self) {
        let (nothing, bundle) = (BTreeMap::new(), Arc::clone(&self.config.bundle.borrow()));
        let inputs = self.inputs((*bundle).as_ref(), &nothing);
        let kinds = Some(Arc::new(kinds(inputs)));
        let ours = |a: &&ApiService| a.service.as_ref() == Some(&self.config.service);
        let pem = |a: &ApiService| String::from_utf8_lossy(&a.ca_bundle).into_owned();
        let carried: Vec<String> = self.api_services.known.values().filter(ours).map(pem).collect();
        let carried = Some(Arc::new(carried));
        self.config.kinds.send_if_modified(|known| replace(known, kinds));
        self.config
            .carried
            .send_if_modified(|known| replace(known, carried));
    }

    fn inputs<'a>(&'a self, bundle: &'a [u8], matched: &'a BTreeMap<String, Vec<String>>) -> Inputs<'a> {
        Inputs {
            crds: &self.crds.known,
            api_services: &self.api_services.known,
            service: &self.config.service,
            bundle,
            matched,
        }
    }
}

fn replace<T: PartialEq>(known: &mut T, new: T) -> bool {
    let is_new = *known != new;
    *known = new;
    is_new
}
