//! What we want: for every CRD whether its kind is ours, becomes ours, stays where it is or goes back, and for every
//! group/version the APIService. Pure.
//!
//! CRDs that share a group/version hang together, over all their versions: they move together or not at all, because an
//! APIService is for a group/version as a whole, and a kind served in two places would be two kinds.

use crate::condition::{Finding, POLICIES_NOT_ENFORCED};
use crate::crd::{ApiService, Crd, FINALIZER, KINDS_ANNOTATION, MANAGED_BY, Phase, api_service_name};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The priorities that kube-apiserver gives to the group/versions of CRDs. With the same ones the order of discovery, and
/// with it what `kubectl get` takes, does not change by the move.
pub(crate) const PRIORITIES: (i32, i32) = (1000, 100);
/// The reason of a kind whose versions a webhook converts.
const CONVERSION_NOT_SUPPORTED: &str = "ConversionNotSupported";
/// So many names are listed in a message.
const NAMES_SHOWN_MAX: usize = 5;

/// The Service through which kube-apiserver reaches us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceReference {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
}

/// How a kind is served by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KindState {
    /// Reads only: it is on its way to us, or back. Writes get 503 with Retry-After.
    Closed,
    /// Everything.
    Open,
    /// Everything but creates: its CRD is being deleted.
    Terminating,
}

/// The kinds to serve, by the names of their CRDs.
pub type Kinds = BTreeMap<String, KindState>;

/// What decisions are made from.
#[derive(Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) crds: &'a BTreeMap<String, Crd>,
    pub(crate) api_services: &'a BTreeMap<String, ApiService>,
    pub(crate) service: &'a ServiceReference,
    pub(crate) bundle: &'a [u8],
    /// By CRD: the admission that matches it.
    pub(crate) matched: &'a BTreeMap<String, Vec<String>>,
}

/// What becomes of a CRD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is not our matter; what we left there goes.
    LeaveAlone,
    /// It stays where it is, and this is why.
    Refused(Finding),
    /// It becomes ours, with its group.
    TakeOver,
    /// It is ours. What an administrator should know of it.
    Hold(Option<Finding>),
    /// It goes back, with its group.
    GiveBack,
    /// It is ours and is being deleted.
    Remove,
}

/// What becomes of an APIService.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Registration {
    /// It points at us.
    Ours,
    /// It points at kube-apiserver, which owns it.
    Local,
    /// It goes: no CRD has its group/version.
    Deleted,
}

/// The whole of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) verdicts: BTreeMap<String, Verdict>,
    pub(crate) registrations: BTreeMap<String, Registration>,
    /// CRDs that move together.
    pub(crate) components: Vec<BTreeSet<String>>,
}

impl Inputs<'_> {
    /// Whether the kind is ours, or was when the last word about it was written. The finalizer together with an
    /// APIService says it even when somebody has wiped the conditions.
    pub(crate) fn is_held(&self, crd: &Crd) -> bool {
        crd.phase != Phase::Away || (crd.has_finalizer && crd.api_services().any(|name| self.is_ours(&name)))
    }

    fn is_ours(&self, api_service: &str) -> bool {
        let found = self.api_services.get(api_service);
        found.is_some_and(|a| a.service.as_ref() == Some(self.service))
    }

    /// An APIService that names another Service than ours, and that we did not write.
    fn is_foreign(&self, api_service: &str) -> bool {
        let found = self.api_services.get(api_service);
        found.is_some_and(|a| {
            a.service.is_some() && a.service.as_ref() != Some(self.service) && !a.is_labelled
        })
    }
}

/// The kinds that we serve, and how.
pub(crate) fn kinds(inputs: Inputs<'_>) -> Kinds {
    let state = |crd: &Crd| match (inputs.is_held(crd), crd.phase) {
        (false, _) if crd.is_wanted && !crd.is_deleting => Some(KindState::Closed),
        (false, _) => None,
        (true, Phase::Distributed) if crd.is_deleting => Some(KindState::Terminating),
        (true, Phase::Distributed) => Some(KindState::Open),
        // Our objects are deleted first, and their finalizers are removed by updates.
        (true, _) if crd.is_deleting => Some(KindState::Terminating),
        (true, _) => Some(KindState::Closed),
    };
    inputs
        .crds
        .values()
        .filter_map(|crd| Some((crd.name.clone(), state(crd)?)))
        .collect()
}

/// The kinds of a group/version as its APIService tells them: `applications/3 open, widgets/1 closed`.
pub(crate) fn kinds_of(inputs: Inputs<'_>, api_service: &str) -> String {
    let kinds = kinds(inputs);
    let told = inputs.crds.values().filter_map(|crd| {
        let state = match kinds.get(&crd.name)? {
            KindState::Closed => "closed",
            KindState::Open => "open",
            KindState::Terminating => "terminating",
        };
        let is_there = crd.api_services().any(|name| name == api_service);
        is_there.then(|| format!("{}/{} {state}", crd.plural, crd.generation))
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Decides.
pub(crate) fn plan(inputs: Inputs<'_>) -> Plan {
    let mut plan = Plan {
        components: components(inputs.crds),
        ..Plan::default()
    };
    for component in &plan.components {
        let members: Vec<&Crd> = component.iter().filter_map(|n| inputs.crds.get(n)).collect();
        plan.verdicts.extend(verdicts(inputs, &members));
    }
    plan.registrations = registrations(inputs, &plan.verdicts);
    plan
}

/// CRDs that share a group/version, over all steps.
fn components(crds: &BTreeMap<String, Crd>) -> Vec<BTreeSet<String>> {
    let mut found: Vec<(BTreeSet<String>, BTreeSet<String>)> = Vec::new();
    for crd in crds.values() {
        let mut names = BTreeSet::from([crd.name.clone()]);
        let mut api_services: BTreeSet<String> = crd.api_services().collect();
        let (joined, apart): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|(_, theirs)| !theirs.is_disjoint(&api_services));
        for (more_names, more) in joined {
            names.extend(more_names);
            api_services.extend(more);
        }
        found = apart;
        found.push((names, api_services));
    }
    found.into_iter().map(|(names, _)| names).collect()
}

fn verdicts(inputs: Inputs<'_>, members: &[&Crd]) -> Vec<(String, Verdict)> {
    let unwanted = shown(members.iter().filter(|c| !c.is_wanted && !c.is_deleting));
    let still_wanted = shown(
        members
            .iter()
            .filter(|c| c.is_wanted && inputs.is_held(c) && !c.is_deleting),
    );
    let obstacles: Vec<(String, Option<Finding>)> = members
        .iter()
        .map(|c| (c.name.clone(), obstacle(inputs, c, &unwanted)))
        .collect();
    let others = |name: &str| {
        let first = obstacles.iter().find(|(other, o)| other != name && o.is_some());
        first.and_then(|(other, o)| o.as_ref().map(|o| (other.clone(), o.message.clone())))
    };
    let verdict = |crd: &Crd| {
        if inputs.is_held(crd) {
            return held(inputs, crd, &still_wanted);
        }
        if crd.is_deleting || !crd.is_wanted {
            let is_dark = !crd.is_deleting && crd.api_services().any(|name| inputs.is_ours(&name));
            return if is_dark {
                Verdict::Refused(dark())
            } else {
                Verdict::LeaveAlone
            };
        }
        let own = obstacles.iter().find(|(name, _)| *name == crd.name);
        match (own.and_then(|(_, o)| o.clone()), others(&crd.name)) {
            (Some(finding), _) => Verdict::Refused(finding),
            (None, Some((other, message))) => Verdict::Refused(Finding::no(
                "OthersRefused",
                format!("It shares a group/version with {other}, which cannot move: {message}"),
            )),
            (None, None) => Verdict::TakeOver,
        }
    };
    members.iter().map(|c| (c.name.clone(), verdict(c))).collect()
}

/// Of a kind that is ours.
fn held(inputs: Inputs<'_>, crd: &Crd, still_wanted: &str) -> Verdict {
    if crd.is_deleting {
        return Verdict::Remove;
    }
    if crd.is_wanted && crd.is_converted {
        return Verdict::Hold(Some(Finding::yes(CONVERSION_NOT_SUPPORTED, not_converted())));
    }
    if crd.is_wanted {
        let matched = inputs
            .matched
            .get(&crd.name)
            .filter(|_| !crd.is_without_admission);
        return Verdict::Hold(matched.map(|m| Finding::yes(POLICIES_NOT_ENFORCED, not_enforced(m))));
    }
    if still_wanted.is_empty() {
        return Verdict::GiveBack;
    }
    Verdict::Hold(Some(Finding::yes(
        "NotAllReleased",
        format!(
            "It is not given back: it shares a group/version with {still_wanted}. Remove the annotation there too, or put \
             it back here"
        ),
    )))
}

/// What is in the way of a kind that shall become ours.
fn obstacle(inputs: Inputs<'_>, crd: &Crd, unwanted: &str) -> Option<Finding> {
    if inputs.is_held(crd) || !crd.is_wanted {
        return None;
    }
    if crd.is_deleting {
        return Some(Finding::no(
            "Terminating",
            "The CustomResourceDefinition is being deleted",
        ));
    }
    if !crd.is_established {
        return Some(Finding::no(
            "NotEstablished",
            "The CustomResourceDefinition is not Established; see its other conditions",
        ));
    }
    if crd.is_converted {
        return Some(Finding::no(CONVERSION_NOT_SUPPORTED, not_converted()));
    }
    if !unwanted.is_empty() {
        return Some(Finding::no(
            "NotAllAnnotated",
            format!(
                "A group/version moves with all its kinds. Annotate these too with outrigger.dev/distributed=true, or move \
                 them to another group: {unwanted}"
            ),
        ));
    }
    if let Some(foreign) = crd.api_services().find(|name| inputs.is_foreign(name)) {
        return Some(Finding::no(
            "ServedByOthers",
            format!("The APIService {foreign} names another Service. Delete it if that is no longer used"),
        ));
    }
    if inputs.bundle.is_empty() {
        return Some(Finding::no(
            "NoCertificateAuthority",
            "Outrigger has no certificate authority yet",
        ));
    }
    match inputs.matched.get(&crd.name) {
        Some(matched) if !crd.is_without_admission => {
            Some(Finding::no(POLICIES_NOT_ENFORCED, not_enforced(matched)))
        }
        _ => None,
    }
}

fn not_converted() -> String {
    "Its versions are converted by a webhook, which Outrigger does not call: objects would be shown in the other versions as \
     they are stored. Keep one version, or use the strategy None"
        .to_owned()
}

fn not_enforced(matched: &[String]) -> String {
    format!(
        "Admission of the cluster matches this kind and would not be enforced: {}. Exclude the kind there, or accept it with \
         the annotation outrigger.dev/without-admission=accepted",
        shown_names(matched.iter().map(String::as_str))
    )
}

/// A kind in a group/version that is ours, and not annotated: nobody serves it.
fn dark() -> Finding {
    Finding::no(
        "GroupVersionDistributed",
        "Its group/version is served by Outrigger, so kube-apiserver does not serve this kind. Annotate it with \
         outrigger.dev/distributed=true, or use another group",
    )
}

fn shown<'a>(crds: impl Iterator<Item = &'a &'a Crd>) -> String {
    let names: Vec<&str> = crds.map(|c| c.name.as_str()).collect();
    shown_names(names.into_iter())
}

fn shown_names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    let more = names.len().saturating_sub(NAMES_SHOWN_MAX);
    let text = names[..names.len() - more].join(", ");
    if more == 0 {
        text
    } else {
        format!("{text} and {more} more")
    }
}

fn registrations(inputs: Inputs<'_>, verdicts: &BTreeMap<String, Verdict>) -> BTreeMap<String, Registration> {
    let mut servers: BTreeMap<String, Vec<&Crd>> = BTreeMap::new();
    for crd in inputs.crds.values() {
        for name in crd.api_services() {
            servers.entry(name).or_default().push(crd);
        }
    }
    // The step that gives a kind back says itself when its APIServices go.
    let is_going = |c: &Crd| matches!(verdicts.get(&c.name), Some(Verdict::GiveBack));
    let mut registrations = BTreeMap::new();
    for (name, crds) in &servers {
        let is_held = crds.iter().any(|c| inputs.is_held(c) && !is_going(c));
        let are_all_held = crds.iter().all(|c| inputs.is_held(c));
        if is_held && (are_all_held || inputs.is_ours(name)) {
            if !inputs.bundle.is_empty() && !inputs.is_foreign(name) {
                registrations.insert(name.clone(), Registration::Ours);
            }
        } else if inputs.is_ours(name) && !crds.iter().any(|c| inputs.is_held(c)) {
            registrations.insert(name.clone(), Registration::Local);
        }
    }
    let is_orphan = |a: &&ApiService| {
        a.is_labelled && a.service.as_ref() == Some(inputs.service) && !servers.contains_key(&a.name)
    };
    for orphan in inputs.api_services.values().filter(is_orphan) {
        registrations.insert(orphan.name.clone(), Registration::Deleted);
    }
    registrations
}

/// The APIService that points at us, for server-side apply.
pub(crate) fn api_service(
    group: &str,
    version: &str,
    service: &ServiceReference,
    bundle_base64: &Value,
    kinds: &str,
) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {
            "name": api_service_name(group, version),
            "labels": {MANAGED_BY.0: MANAGED_BY.1},
            "annotations": {KINDS_ANNOTATION: kinds},
        },
        "spec": {
            "group": group, "version": version,
            "groupPriorityMinimum": PRIORITIES.0, "versionPriority": PRIORITIES.1,
            "service": {"namespace": service.namespace, "name": service.name, "port": service.port},
            "caBundle": bundle_base64,
        },
    })
}

/// Whether an APIService is as [`api_service`] says.
pub(crate) fn is_as_desired(
    found: &ApiService,
    service: &ServiceReference,
    bundle: &[u8],
    kinds: &str,
) -> bool {
    !found.is_automanaged
        && found.is_labelled
        && found.service.as_ref() == Some(service)
        && found.ca_bundle == bundle
        && found.kinds == kinds
        && !found.skips_verification
        && found.priorities == PRIORITIES
}

/// The finalizer, for server-side apply: with it, or without.
pub(crate) fn finalizers(crd: &Crd, is_wanted: bool) -> Value {
    let finalizers: &[&str] = if is_wanted { &[FINALIZER] } else { &[] };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": crd.name, "uid": crd.uid, "finalizers": finalizers},
    })
}

#[cfg(test)]
pub(crate) mod tests;
