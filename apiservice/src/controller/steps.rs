//! One pass of the leader: the steps that are due, in the order that keeps every kind in one place.

use super::Worker;
use super::actions::ActionError;
use crate::condition::{Finding, OBJECTS_EXIST};
use crate::crd::{Crd, Phase, RELEASING, SWITCHING, api_service_name};
use crate::desired::{Registration, Verdict, is_as_desired, kinds_of, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

type Result<T> = std::result::Result<T, ActionError>;
type Matched = BTreeMap<String, Vec<String>>;

impl<B: AsRef<[u8]> + Send + Sync + 'static> Worker<B> {
    /// Whether nothing is on the way any more.
    pub(super) async fn reconcile(&mut self) -> Result<bool> {
        let is_concerned = |c: &Crd| c.is_wanted || c.has_finalizer || c.phase != Phase::Away;
        let is_ours = |a: &crate::crd::ApiService| a.service.as_ref() == Some(&self.config.service);
        let is_anything = self.crds.known.values().any(is_concerned)
            || self.api_services.known.values().any(is_ours)
            || !self.memory.has_no_guards;
        if !is_anything {
            return Ok(true);
        }
        // What somebody deleted or edited comes first: it must be right at once, whatever else can be read.
        let bundle = Arc::clone(&self.config.bundle.borrow());
        let mut is_done = true;
        let first = plan(self.inputs((*bundle).as_ref(), &Matched::new()));
        for (name, registration) in &first.registrations {
            let result = self
                .set_registration(name, *registration, (*bundle).as_ref())
                .await;
            is_done &= self.settled(name, result.map(|()| true));
        }
        let (admission, guarded) = self.read_admission().await?;
        let matched = admission.matched(self.crds.known.values());
        let plan = plan(self.inputs((*bundle).as_ref(), &matched));
        for component in &plan.components {
            let crds = |wanted: fn(&Verdict) -> bool| -> Vec<Crd> {
                let is_wanted = |name: &&String| plan.verdicts.get(*name).is_some_and(wanted);
                let names = component.iter().filter(is_wanted);
                names.filter_map(|n| self.crds.known.get(n).cloned()).collect()
            };
            let taken = crds(|v| *v == Verdict::TakeOver);
            let given = crds(|v| *v == Verdict::GiveBack);
            for crd in crds(|v| !matches!(v, Verdict::TakeOver | Verdict::GiveBack)) {
                let verdict = plan
                    .verdicts
                    .get(&crd.name)
                    .cloned()
                    .unwrap_or(Verdict::LeaveAlone);
                let guard = guarded.get(&crd.name).copied();
                let result = self.keep(&crd, verdict, guard).await;
                is_done &= self.settled(&crd.name, result);
            }
            if let Some(first) = taken.first() {
                let result = self.take_over(&taken, &matched).await;
                is_done &= self.settled(&first.name, result);
            }
            if let Some(first) = given.first() {
                let result = self.give_back(&given).await;
                is_done &= self.settled(&first.name, result);
            }
        }
        let is_orphan = |crd: &&String| !self.crds.known.contains_key(*crd);
        for orphan in guarded.keys().filter(is_orphan) {
            self.remove_guard(orphan).await?;
        }
        self.memory.has_no_guards = guarded.is_empty();
        let known: BTreeSet<String> = self.crds.known.keys().cloned().collect();
        self.memory.said.retain(|name, _| known.contains(name));
        let is_known = |name: &String| {
            name == super::PASS || known.contains(name) || self.api_services.known.contains_key(name)
        };
        self.memory.failed.retain(|name, _| is_known(name));
        Ok(is_done)
    }

    async fn set_registration(&self, name: &str, registration: Registration, bundle: &[u8]) -> Result<()> {
        let found = self.api_services.known.get(name);
        let kinds = kinds_of(self.inputs(bundle, &Matched::new()), name);
        match (registration, found) {
            (Registration::Ours, Some(a)) if is_as_desired(a, &self.config.service, bundle, &kinds) => Ok(()),
            (Registration::Ours, found) => match name.split_once('.') {
                Some((version, group)) => self.register(group, version, found, &kinds).await,
                None => Ok(()),
            },
            (Registration::Local, Some(a)) => self.unregister(a).await,
            (Registration::Deleted, Some(a)) => self.delete_api_service(a).await,
            (Registration::Local | Registration::Deleted, None) => Ok(()),
        }
    }

    /// A kind that neither comes nor goes. Whether nothing is to be waited for.
    async fn keep(&mut self, crd: &Crd, verdict: Verdict, guard: Option<bool>) -> Result<bool> {
        match verdict {
            Verdict::Hold(finding) => self.hold(crd, finding, guard).await,
            Verdict::Remove => self.remove(crd).await,
            Verdict::Refused(finding) => {
                self.clean(crd, guard.is_some()).await?;
                self.say(crd, Some(&finding), false).await
            }
            // The others are not for single kinds.
            _ => {
                self.clean(crd, guard.is_some()).await?;
                self.say(crd, None, false).await
            }
        }
    }

    /// Nothing of ours stays at a kind that is not ours.
    async fn clean(&mut self, crd: &Crd, has_guard: bool) -> Result<()> {
        self.memory.guarded.remove(&crd.name);
        self.memory.available.remove(&crd.name);
        self.memory.released.remove(&crd.name);
        if has_guard {
            self.remove_guard(&crd.name).await?;
        }
        self.set_finalizer(crd, false).await
    }

    async fn hold(&mut self, crd: &Crd, finding: Option<Finding>, guard: Option<bool>) -> Result<bool> {
        self.memory.released.remove(&crd.name);
        if guard == Some(false) {
            // What others added, apply cannot remove.
            self.remove_guard(&crd.name).await?;
        }
        if guard != Some(true) {
            self.put_guard(crd).await?;
        }
        self.set_finalizer(crd, true).await?;
        if crd.phase != Phase::Distributed && !self.is_switched(crd) {
            let problems: Vec<String> = crd
                .api_services()
                .filter_map(|name| self.api_services.known.get(&name))
                .filter(|a| !a.is_available && !a.why_unavailable.is_empty())
                .map(|a| format!("{}: {}", a.name, a.why_unavailable))
                .collect();
            let message = match problems.is_empty() {
                true => "Waiting until kube-apiserver reaches Outrigger".to_owned(),
                false => format!("kube-apiserver does not reach Outrigger: {}", problems.join("; ")),
            };
            self.say(crd, Some(&Finding::no(SWITCHING, message)), false)
                .await?;
            return Ok(false);
        }
        if crd.phase != Phase::Distributed {
            self.end_local_watches(crd).await?;
        }
        let service = &self.config.service;
        let distributed = || {
            Finding::yes(
                "Distributed",
                format!(
                    "Served by Outrigger through the Service {}/{}",
                    service.namespace, service.name
                ),
            )
        };
        let finding = finding.unwrap_or_else(distributed);
        self.say(crd, Some(&finding), false).await
    }

    /// Whether kube-apiserver has reached us for all its versions, for a while.
    fn is_switched(&mut self, crd: &Crd) -> bool {
        let service = &self.config.service;
        let is_through = |name: String| {
            let found = self.api_services.known.get(&name);
            found.is_some_and(|a| a.service.as_ref() == Some(service) && a.is_available)
        };
        if !crd.api_services().all(is_through) {
            self.memory.available.remove(&crd.name);
            return false;
        }
        let since = *self
            .memory
            .available
            .entry(crd.name.clone())
            .or_insert_with(Instant::now);
        since.elapsed() >= self.config.timing.switch_settle
    }

    /// Our objects go first, then the finalizer.
    async fn remove(&mut self, crd: &Crd) -> Result<bool> {
        if !crd.has_finalizer {
            return Ok(true);
        }
        if !self.delete_objects(crd).await? {
            return Ok(false);
        }
        self.set_finalizer(crd, false).await?;
        Ok(true)
    }

    /// The way to us: empty, guarded, still empty, switched. All of them or none.
    async fn take_over(&mut self, crds: &[Crd], matched: &Matched) -> Result<bool> {
        for crd in crds {
            if let Some(finding) = self.why_not_empty(crd).await? {
                for other in crds {
                    self.clean(other, true).await?;
                    let finding = match other.name == crd.name {
                        true => finding.clone(),
                        false => Finding::no(
                            "OthersRefused",
                            format!("It shares a group/version with {}: {}", crd.name, finding.message),
                        ),
                    };
                    self.say(other, Some(&finding), false).await?;
                }
                return Ok(true);
            }
        }
        let mut is_settled = true;
        for crd in crds {
            is_settled &= self.is_guarded(crd, matched.contains_key(&crd.name)).await?;
        }
        if !is_settled {
            let finding = Finding::no(
                "TakingOver",
                "Writes in the control plane are denied while it is made sure that it keeps no objects of this kind",
            );
            for crd in crds {
                self.say(crd, Some(&finding), false).await?;
            }
            return Ok(false);
        }
        // The emptiness that counts: nobody can have written since.
        for crd in crds {
            if self.why_not_empty(crd).await?.is_some() {
                return Ok(false);
            }
        }
        for crd in crds {
            let finding = Finding::no(SWITCHING, "The APIServices are being pointed at Outrigger");
            // A CRD that changed meanwhile (its annotation, its versions) is looked at again from the beginning.
            if !self.say(crd, Some(&finding), true).await? {
                tracing::debug!(crd = crd.name, "it changed on its way, looking again");
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// Whether the guard has been in force for long enough.
    async fn is_guarded(&mut self, crd: &Crd, is_matched: bool) -> Result<bool> {
        self.set_finalizer(crd, true).await?;
        if !self.memory.guarded.contains_key(&crd.name) {
            self.put_guard(crd).await?;
        }
        if !self.is_guard_in_force(&crd.name).await? {
            self.memory.guarded.remove(&crd.name);
            return Ok(false);
        }
        let since = *self
            .memory
            .guarded
            .entry(crd.name.clone())
            .or_insert_with(Instant::now);
        let settle = match is_matched {
            true => self.config.timing.guard_settle_with_webhooks,
            false => self.config.timing.guard_settle,
        };
        // The finalizer must have come back in the watch, or the step that follows would fail for the change.
        Ok(since.elapsed() >= settle && crd.has_finalizer)
    }

    async fn why_not_empty(&self, crd: &Crd) -> Result<Option<Finding>> {
        match self.has_objects_in_control_plane(crd).await {
            Ok(Some(false)) => Ok(None),
            Ok(Some(true)) => Ok(Some(Finding::no(
                OBJECTS_EXIST,
                format!(
                    "The control plane keeps objects of this kind, and they would disappear. Delete them (kubectl delete \
                     {}.{} --all --all-namespaces), or adopt them, and it is tried again",
                    crd.plural, crd.group
                ),
            ))),
            Ok(None) if self.cannot_have_objects(crd) => Ok(None),
            Ok(None) => Ok(Some(Finding::no(
                "CannotVerify",
                "The control plane may keep objects of this kind that it no longer serves: status.storedVersions names \
                 versions that are not served by Outrigger. Serve one of them until they are migrated or deleted",
            ))),
            Err(error) => match error.code() {
                // Whoever installed us has not named this group.
                Some(403) => Ok(Some(Finding::no(
                    "RightsMissing",
                    format!(
                        "Outrigger may not list {}.{} in the control plane, and must see that there are none before it \
                         serves the kind. Name the group in the chart's rbac.distributedGroups (helm upgrade outrigger \
                         CHART --reuse-values --set 'rbac.distributedGroups={{{}}}', with those that are there already), or \
                         let its ServiceAccount list them, and it is tried again: {error}",
                        crd.plural, crd.group, crd.group
                    ),
                ))),
                // Not served yet, or the conversion webhook is down.
                Some(code) if code == 404 || code >= 500 => Ok(Some(Finding::no(
                    "CannotVerify",
                    format!("The control plane does not say whether it keeps objects of this kind: {error}"),
                ))),
                _ => Err(error),
            },
        }
    }

    /// A kind that came into group/versions that were ours already, and was never stored in another.
    fn cannot_have_objects(&self, crd: &Crd) -> bool {
        let is_ours = |version: &String| {
            let found = self
                .api_services
                .known
                .get(&api_service_name(&crd.group, version));
            found.is_some_and(|a| a.service.as_ref() == Some(&self.config.service))
        };
        crd.stored_versions.iter().chain(&crd.versions).all(is_ours)
    }

    /// The way back: closed, empty or confirmed, local again. All of them or none.
    async fn give_back(&mut self, crds: &[Crd]) -> Result<bool> {
        for crd in crds.iter().filter(|c| !c.is_release_confirmed) {
            let is_refused = match self.has_objects(crd).await {
                Ok(false) => continue,
                Ok(true) => "Outrigger keeps objects of this kind, and they would disappear".to_owned(),
                Err(error) => {
                    format!("it is not known whether Outrigger keeps objects of this kind: {error}")
                }
            };
            let message = format!(
                "It is not given back: {}: {is_refused}. Delete the objects, put outrigger.dev/distributed=true back, or \
                 confirm with the annotation outrigger.dev/release=confirmed",
                crd.name
            );
            // Those that were closed take writes again.
            for other in crds {
                self.memory.released.remove(&other.name);
                let finding = Finding::yes(OBJECTS_EXIST, message.clone());
                self.say(other, Some(&finding), false).await?;
            }
            return Ok(true);
        }
        let closed: Vec<&Crd> = crds.iter().filter(|c| c.phase != Phase::Releasing).collect();
        if !closed.is_empty() {
            let finding = Finding::no(
                RELEASING,
                "It takes no writes while it is given back to the control plane",
            );
            for crd in closed {
                self.memory.released.remove(&crd.name);
                self.say(crd, Some(&finding), true).await?;
            }
            return Ok(false);
        }
        let settle: Duration = self.config.timing.release_settle;
        let mut is_settled = true;
        for crd in crds {
            let since = *self
                .memory
                .released
                .entry(crd.name.clone())
                .or_insert_with(Instant::now);
            is_settled &= since.elapsed() >= settle;
        }
        if !is_settled {
            return Ok(false);
        }
        // No writes since the settling, and the question above was asked after it.
        let mut are_local = true;
        for name in crds.iter().flat_map(Crd::api_services).collect::<BTreeSet<_>>() {
            let Some(found) = self.api_services.known.get(&name) else {
                continue;
            };
            if found.service.as_ref() == Some(&self.config.service) {
                self.unregister(found).await?;
                are_local = false;
            }
        }
        if !are_local {
            return Ok(false);
        }
        for crd in crds {
            tracing::info!(crd = crd.name, "given back to the control plane");
            self.say(crd, None, false).await?;
            self.clean(crd, true).await?;
        }
        Ok(false)
    }

    /// What happened to one does not hold up the others. A failure is said once, not each time it is tried again.
    pub(super) fn settled(&mut self, name: &str, result: Result<bool>) -> bool {
        match result {
            Ok(is_settled) => {
                self.memory.failed.remove(name);
                is_settled
            }
            Err(error) => {
                let said = error.to_string();
                if self.memory.failed.get(name) != Some(&said) {
                    tracing::warn!(%error, name, "a step failed, trying again");
                    self.memory.failed.insert(name.to_owned(), said);
                }
                false
            }
        }
    }
}
