//! The writer of `ServedResources` in a control plane: follows its CustomResourceDefinitions and publishes those that
//! it is told to. It writes nothing: kube-apiserver keeps their status, and `apiservice`, which says what is ours, their
//! registration.

use super::apply_crd_events;
use super::definitions::api_resource;
use crate::resources::ServedResources;
use crate::resources::definition::{ResourceDefinition, condition_is_true};
use futures::StreamExt;
use kube::api::DynamicObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::watch;

/// How a kind is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// Reads only.
    Closed,
    /// Everything.
    Open,
    /// Everything but creates.
    Terminating,
}

/// What is ours, by the names of the CRDs. `None`: not known yet.
pub type Wanted = Option<Arc<BTreeMap<String, Serving>>>;

/// What each CRD that is distributed serves.
#[derive(Default)]
struct Kinds {
    known: BTreeMap<String, Vec<Arc<ResourceDefinition>>>,
    /// What the watch has listed so far, while it starts over.
    listed: BTreeMap<String, Vec<Arc<ResourceDefinition>>>,
    /// Whether all were seen once.
    is_synced: bool,
}

/// Follows the CRDs; `synced` becomes true once all that were there at the start are served. Never ends.
pub async fn run(
    client: Client,
    mut wanted: watch::Receiver<Wanted>,
    served: watch::Sender<Arc<ServedResources>>,
    synced: watch::Sender<bool>,
) {
    let api = Api::<DynamicObject>::all_with(client, &api_resource());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut kinds = Kinds::default();
    loop {
        let mut changed = false;
        tokio::select! {
            event = events.next() => {
                match apply_crd_events(event, &mut events, |event| kinds.apply(event)) {
                    Some(news) => changed = news,
                    None => return,
                }
            }
            told = wanted.changed() => match told {
                Ok(()) => changed = true,
                // Nobody says any more what is ours: what was said last counts.
                Err(_) => std::future::pending().await,
            },
        }
        let told = wanted.borrow_and_update().clone();
        if let (true, true, Some(told)) = (changed, kinds.is_synced, told) {
            kinds.publish(&told, &served);
            synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
    }
}

impl Kinds {
    /// Applies an event; whether anything may have changed.
    fn apply(&mut self, event: watcher::Event<DynamicObject>) -> bool {
        match event {
            watcher::Event::Init => {
                self.listed.clear();
                false
            }
            watcher::Event::InitApply(crd) => {
                let (name, kinds) = serves(crd);
                self.listed.insert(name, kinds);
                false
            }
            watcher::Event::InitDone => {
                self.known = std::mem::take(&mut self.listed);
                self.is_synced = true;
                true
            }
            watcher::Event::Apply(crd) => {
                let (name, kinds) = serves(crd);
                self.known.insert(name, kinds);
                true
            }
            watcher::Event::Delete(crd) => {
                self.known.remove(&crd.metadata.name.unwrap_or_default());
                true
            }
        }
    }

    fn publish(&self, wanted: &BTreeMap<String, Serving>, served: &watch::Sender<Arc<ServedResources>>) {
        let as_wanted = |(name, serving): (&String, &Serving)| {
            let kinds = self.known.get(name).map(Vec::as_slice).unwrap_or_default();
            let kinds = kinds.iter().map(|kind| as_told(kind, *serving));
            kinds.collect::<Vec<_>>()
        };
        super::publish(served, ServedResources::new(wanted.iter().flat_map(as_wanted)));
    }
}

/// The kind, open or not.
fn as_told(kind: &Arc<ResourceDefinition>, serving: Serving) -> Arc<ResourceDefinition> {
    let (closed, terminating) = (serving == Serving::Closed, serving == Serving::Terminating);
    match (kind.closed, kind.terminating) == (closed, kind.terminating || terminating) {
        true => Arc::clone(kind),
        false => Arc::new(ResourceDefinition {
            closed,
            terminating: kind.terminating || terminating,
            ..ResourceDefinition::clone(kind)
        }),
    }
}

/// The name of a CRD, and what it serves.
fn serves(crd: DynamicObject) -> (String, Vec<Arc<ResourceDefinition>>) {
    let name = crd.metadata.name.clone().unwrap_or_default();
    let crd = serde_json::to_value(crd).unwrap_or_default();
    let kinds = match condition_is_true(&crd, "Established") {
        true => ResourceDefinition::from_crd(&crd)
            .into_iter()
            .map(Arc::new)
            .collect(),
        false => Vec::new(),
    };
    (name, kinds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::builtin;
    use serde_json::json;

    const NAME: &str = "applications.paas.example.com";

    fn crd(uid: &str, established: bool) -> DynamicObject {
        let mut crd = builtin::example_crd();
        crd["metadata"]["uid"] = uid.into();
        let status = if established { "True" } else { "False" };
        crd["status"] = json!({"conditions": [{"type": "Established", "status": status}]});
        serde_json::from_value(crd).expect("a CRD")
    }

    fn check(
        events: Vec<watcher::Event<DynamicObject>>,
        wanted: &[(&str, Serving)],
        expect: &[(&str, bool)],
    ) {
        let mut kinds = Kinds::default();
        for event in events {
            kinds.apply(event);
        }
        let (sender, served) = watch::channel(Arc::new(ServedResources::new([])));
        let wanted = wanted
            .iter()
            .map(|(name, serving)| ((*name).to_owned(), *serving))
            .collect();
        kinds.publish(&wanted, &sender);
        let served: Vec<(String, bool)> = served
            .borrow()
            .iter()
            .map(|d| (d.crd_uid.clone(), d.closed))
            .collect();
        let served: Vec<(&str, bool)> = served
            .iter()
            .map(|(uid, closed)| (uid.as_str(), *closed))
            .collect();
        assert_eq!(served, expect);
    }

    #[test]
    fn what_is_ours_and_established_is_served() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let ours = [(NAME, Serving::Open)];
        check(
            vec![Init, InitApply(crd("1", true)), InitDone],
            &ours,
            &[("1", false)],
        );
        check(
            vec![Apply(crd("1", true))],
            &[(NAME, Serving::Closed)],
            &[("1", true)],
        );
        check(vec![Apply(crd("1", true))], &[], &[]);
        check(vec![Apply(crd("1", false))], &ours, &[]);
        check(vec![Apply(crd("1", true)), Delete(crd("1", true))], &ours, &[]);
        check(vec![Apply(crd("1", true)), Init, InitDone], &ours, &[]);
        check(vec![Apply(crd("1", true)), Init], &ours, &[("1", false)]);
        check(vec![], &ours, &[]);
    }
}
