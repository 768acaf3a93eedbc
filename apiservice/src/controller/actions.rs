//! The single writes and questions that steps are made of, each of which may be repeated. It decides nothing.

use super::Worker;
use crate::FIELD_MANAGER;
use crate::admission::{Admission, Binding, Policy, WebhookConfiguration};
use crate::condition::{self, Condition, Finding};
use crate::crd::{AUTOMANAGED_LABEL, ApiService, Crd, KINDS_ANNOTATION, MANAGED_BY, crd_resource};
use crate::desired::{self, PRIORITIES};
use crate::guard;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(20);
/// Lists of admission are read in pages.
const PER_PAGE: u32 = 250;
const ADMISSION: &str = "admissionregistration.k8s.io";
/// A category that a kind has for a moment.
const MOVING_CATEGORY: &str = "outrigger-moving";

/// Why a step did not succeed. It is tried again; what stays is said in the condition of the CRD or in the log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ActionError {
    /// kube-apiserver refused or could not be reached.
    #[error("{attempt}: {source}")]
    Request {
        attempt: String,
        source: Box<kube::Error>,
    },
    /// It did not answer in time.
    #[error("{attempt}: no answer in time")]
    Timeout { attempt: String },
    /// The keeper of our objects cannot say.
    #[error("the objects of {kind}: {source}")]
    Objects {
        kind: String,
        source: crate::ObjectsError,
    },
}

impl ActionError {
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Request { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, ActionError>;
/// CRDs that have a guard, and whether it is whole.
pub(super) type Guards = BTreeMap<String, bool>;

async fn attempt<T>(attempt: &str, request: impl Future<Output = kube::Result<T>>) -> Result<T> {
    match tokio::time::timeout(REQUEST, request).await {
        Err(_) => Err(ActionError::Timeout {
            attempt: attempt.to_owned(),
        }),
        Ok(Err(error)) => Err(ActionError::Request {
            attempt: attempt.to_owned(),
            source: Box::new(error),
        }),
        Ok(Ok(value)) => Ok(value),
    }
}

/// What is not there need not be deleted; what changed meanwhile is looked at again.
fn unless_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(()),
        other => other,
    }
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

fn guard_resources() -> [ApiResource; 2] {
    [
        resource(
            ADMISSION,
            "v1",
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
        ),
        resource(
            ADMISSION,
            "v1",
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
    ]
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Worker<B> {
    fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        Api::all_with(self.config.client.clone(), resource)
    }

    async fn apply(&self, what: &str, resource: &ApiResource, object: &Value) -> Result<()> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let api = self.api(resource);
        let patch = Patch::Apply(object);
        attempt(&format!("{what} {name}"), api.patch(name, &params, &patch)).await?;
        Ok(())
    }

    /// Applies the finalizer of a CRD, or withdraws it.
    pub(super) async fn set_finalizer(&self, crd: &Crd, is_wanted: bool) -> Result<()> {
        if crd.has_finalizer == is_wanted {
            return Ok(());
        }
        let object = desired::finalizers(crd, is_wanted);
        unless_gone(self.apply("the finalizer of", &crd_resource(), &object).await)
    }

    /// Writes our conditions of a CRD, if they differ, and sends an event. The write fails if the CRD has changed since it
    /// was read, when that matters. Says whether it was written.
    pub(super) async fn say(&mut self, crd: &Crd, finding: Option<&Finding>, is_step: bool) -> Result<bool> {
        let now = jiff::Timestamp::from_second((self.config.clock)()).unwrap_or_default();
        if let Some(conditions) = condition::desired(crd, finding, &now.to_string())
            && !self.write_conditions(crd, &conditions, is_step).await?
        {
            return Ok(false);
        }
        let Some(finding) = finding else {
            self.memory.said.remove(&crd.name);
            return Ok(true);
        };
        // What already stands in the CRD was said by whoever wrote it.
        let stands = |f: &Finding| {
            let mut conditions = crd.conditions.iter();
            conditions.any(|c| c.reason == f.reason && c.message == f.message)
        };
        if self.memory.said.get(&crd.name) != Some(finding) && !stands(finding) {
            self.send_event(crd, finding).await;
        }
        self.memory.said.insert(crd.name.clone(), finding.clone());
        Ok(true)
    }

    async fn write_conditions(&self, crd: &Crd, conditions: &[Condition], is_step: bool) -> Result<bool> {
        let mut object = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": crd.name, "uid": crd.uid},
            "status": {"conditions": conditions},
        });
        if is_step {
            object["metadata"]["resourceVersion"] = crd.resource_version.clone().into();
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let (api, patch) = (self.api(&crd_resource()), Patch::Apply(&object));
        let what = format!("the conditions of {}", crd.name);
        match attempt(&what, api.patch_status(&crd.name, &params, &patch)).await {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.code(), Some(404 | 409)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn send_event(&self, crd: &Crd, finding: &Finding) {
        let is_problem = !finding.is_distributed && !desired_steps(finding.reason);
        let event = Event {
            type_: if is_problem {
                EventType::Warning
            } else {
                EventType::Normal
            },
            reason: finding.reason.to_owned(),
            note: Some(finding.message.clone()),
            action: "Distribute".to_owned(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some("apiextensions.k8s.io/v1".to_owned()),
            kind: Some("CustomResourceDefinition".to_owned()),
            name: Some(crd.name.clone()),
            uid: Some(crd.uid.clone()),
            ..ObjectReference::default()
        };
        // The condition says the same; an event that is lost is not worth a retry.
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::debug!(%error, crd = crd.name, "an event could not be written");
        }
    }

    /// Ends the watches that began at kube-apiserver before the switch: they would hear nothing any more until they time
    /// out, and their clients would not know. kube-apiserver makes a kind's storage anew, which ends them, when its
    /// accepted names change; its naming controller puts these right by itself.
    pub(super) async fn end_local_watches(&self, crd: &Crd) -> Result<()> {
        let patch = json!({
            "metadata": {"uid": crd.uid},
            "status": {"acceptedNames": {"categories": [MOVING_CATEGORY]}},
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = self.api(&crd_resource());
        let what = format!("the end of watches of {}", crd.name);
        let patched = attempt(&what, api.patch_status(&crd.name, &params, &Patch::Merge(&patch))).await;
        unless_gone(patched.map(|_| ()))
    }

    /// Puts the guard of a kind in place.
    pub(super) async fn put_guard(&self, crd: &Crd) -> Result<()> {
        let [policies, bindings] = guard_resources();
        self.apply("the policy", &policies, &guard::policy(crd)).await?;
        self.apply("the policy binding", &bindings, &guard::binding(crd))
            .await
    }

    /// Removes the guard of a CRD.
    pub(super) async fn remove_guard(&self, crd: &str) -> Result<()> {
        let name = guard::name(crd);
        // The binding first: a binding without its policy is an error by itself.
        for resource in guard_resources().iter().rev() {
            let what = format!("deletion of {} {name}", resource.kind);
            let deleted = attempt(&what, self.api(resource).delete(&name, &DeleteParams::default())).await;
            unless_gone(deleted.map(|_| ()))?;
        }
        Ok(())
    }

    /// Whether the guard denies, as the kube-apiserver that we talk to sees it.
    pub(super) async fn is_guard_in_force(&self, crd: &str) -> Result<bool> {
        let namespace = &self.config.service.namespace;
        let leases = resource("coordination.k8s.io", "v1", "Lease", "leases");
        let api: Api<DynamicObject> = Api::namespaced_with(self.config.client.clone(), namespace, &leases);
        let what = format!("the probe of the guard of {crd}");
        let probe: DynamicObject =
            serde_json::from_value(guard::probe(crd, namespace)).map_err(|e| ActionError::Request {
                attempt: what.clone(),
                source: Box::new(kube::Error::SerdeError(e)),
            })?;
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        match attempt(&what, api.create(&params, &probe)).await {
            Ok(_) => Ok(false),
            // Denied by our policy, and not by the lack of a right.
            Err(ActionError::Request { source, .. }) if matches!(source.as_ref(), kube::Error::Api(s) if s.message.contains(&guard::name(crd)) && s.message.contains("ValidatingAdmissionPolicy")) => {
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether kube-apiserver keeps an object of the kind; `None` when it serves no version of it now.
    pub(super) async fn has_objects_in_control_plane(&self, crd: &Crd) -> Result<Option<bool>> {
        let is_local = |version: &&String| {
            let name = crate::crd::api_service_name(&crd.group, version);
            let found = self.api_services.known.get(&name);
            found.is_some_and(|a| a.service.is_none())
        };
        let Some(version) = crd.served.iter().find(is_local) else {
            return Ok(None);
        };
        let api = self.api(&crd.api_resource(version));
        // Without a resourceVersion it is read from the store, after every write that was acknowledged.
        let params = ListParams::default().limit(1);
        let what = format!("the objects of {} in the control plane", crd.name);
        let list = attempt(&what, api.list_metadata(&params)).await?;
        Ok(Some(!list.items.is_empty()))
    }

    /// Whether we keep an object of the kind.
    pub(super) async fn has_objects(&self, crd: &Crd) -> Result<bool> {
        let kind = crd.kind();
        self.ask(&crd.name, self.config.objects.exist(&kind)).await
    }

    /// Deletes objects of the kind; whether none is left.
    pub(super) async fn delete_objects(&self, crd: &Crd) -> Result<bool> {
        let kind = crd.kind();
        self.ask(&crd.name, self.config.objects.delete_all(&kind)).await
    }

    async fn ask(
        &self,
        kind: &str,
        question: impl Future<Output = std::result::Result<bool, crate::ObjectsError>>,
    ) -> Result<bool> {
        match tokio::time::timeout(REQUEST, question).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(ActionError::Objects {
                kind: kind.to_owned(),
                source,
            }),
            Err(elapsed) => Err(ActionError::Objects {
                kind: kind.to_owned(),
                source: Box::new(elapsed),
            }),
        }
    }

    /// Points an APIService at us.
    pub(super) async fn register(
        &self,
        group: &str,
        version: &str,
        found: Option<&ApiService>,
        kinds: &str,
    ) -> Result<()> {
        let bundle = ByteString((*self.config.bundle.borrow()).as_ref().as_ref().to_vec());
        let bundle = serde_json::to_value(bundle).unwrap_or_default();
        let object = desired::api_service(group, version, &self.config.service, &bundle, kinds);
        let needs_removal = found.filter(|a| a.is_automanaged || a.skips_verification);
        let Some(found) = needs_removal else {
            let resource = resource("apiregistration.k8s.io", "v1", "APIService", "apiservices");
            return self.apply("the APIService", &resource, &object).await;
        };
        // The label goes and the Service comes in one write: with the label kube-apiserver would put its own back. What
        // others own, apply cannot remove.
        let mut patch = json!({"metadata": object["metadata"], "spec": object["spec"]});
        patch["metadata"]["labels"][AUTOMANAGED_LABEL] = Value::Null;
        patch["metadata"]["resourceVersion"] = found.resource_version.clone().into();
        patch["spec"]["insecureSkipTLSVerify"] = Value::Null;
        self.patch_api_service(&found.name, &patch).await
    }

    /// Gives an APIService back to kube-apiserver, without a moment in which there is none.
    pub(super) async fn unregister(&self, found: &ApiService) -> Result<()> {
        let patch = json!({
            "metadata": {
                "resourceVersion": found.resource_version,
                "labels": {AUTOMANAGED_LABEL: "true", MANAGED_BY.0: null},
                "annotations": {KINDS_ANNOTATION: null},
            },
            "spec": {
                "service": null, "caBundle": null, "insecureSkipTLSVerify": null,
                "groupPriorityMinimum": PRIORITIES.0, "versionPriority": PRIORITIES.1,
            },
        });
        self.patch_api_service(&found.name, &patch).await
    }

    async fn patch_api_service(&self, name: &str, patch: &Value) -> Result<()> {
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api: Api<APIService> = Api::all(self.config.client.clone());
        let what = format!("the APIService {name}");
        let patched = attempt(&what, api.patch(name, &params, &Patch::Merge(patch))).await;
        unless_gone(patched.map(|_| ()))
    }

    /// Deletes an APIService of ours.
    pub(super) async fn delete_api_service(&self, found: &ApiService) -> Result<()> {
        let preconditions = kube::api::Preconditions {
            resource_version: Some(found.resource_version.clone()),
            uid: Some(found.uid.clone()),
        };
        let params = DeleteParams::default().preconditions(preconditions);
        let api: Api<APIService> = Api::all(self.config.client.clone());
        let what = format!("deletion of the APIService {}", found.name);
        unless_gone(attempt(&what, api.delete(&found.name, &params)).await.map(|_| ()))
    }

    /// The admission of the cluster, and the CRDs that have guards.
    pub(super) async fn read_admission(&self) -> Result<(Admission, Guards)> {
        let mut admission = Admission::default();
        for family in ["Validating", "Mutating"] {
            let kind = format!("{family}WebhookConfiguration");
            let plural = kind.to_lowercase() + "s";
            for object in self.list(&kind, &plural).await? {
                let mut found: WebhookConfiguration = parse(&object)?;
                found.shown = format!("{kind} {}", object.name_any());
                admission.webhooks.push(found);
            }
        }
        let (mut policies, mut bindings) = (Vec::new(), Vec::new());
        for family in ["Validating", "Mutating"] {
            let kind = format!("{family}AdmissionPolicy");
            let lower = family.to_lowercase();
            for object in self.list(&kind, &format!("{lower}admissionpolicies")).await? {
                let mut found: Policy = parse(&object)?;
                found.shown = format!("{kind} {}", object.name_any());
                (found.name, found.family) = (object.name_any(), family);
                admission.policies.push(found);
                policies.push(object);
            }
            let kind = format!("{kind}Binding");
            for object in self
                .list(&kind, &format!("{lower}admissionpolicybindings"))
                .await?
            {
                let mut found: Binding = parse(&object)?;
                found.family = family;
                admission.bindings.push(found);
                bindings.push(object);
            }
        }
        Ok((admission, self.guards(&policies, &bindings)))
    }

    /// The CRDs that have a guard or a part of one, and whether it is whole and as it should be.
    fn guards(&self, policies: &[DynamicObject], bindings: &[DynamicObject]) -> Guards {
        let guarded = |object: &DynamicObject| {
            let crd = object.annotations().get(guard::GUARD_ANNOTATION)?;
            (guard::name(crd) == object.name_any()).then(|| crd.clone())
        };
        let is_right = |crd: &str, objects: &[DynamicObject], wanted: fn(&Crd) -> Value| {
            let crd = self.crds.known.get(crd);
            crd.is_some_and(|crd| {
                let (name, wanted) = (guard::name(&crd.name), wanted(crd));
                let mut found = objects.iter().filter(|o| o.name_any() == name);
                found.any(|o| {
                    o.data
                        .get("spec")
                        .is_some_and(|spec| guard::covers(spec, &wanted["spec"]))
                })
            })
        };
        let crds = policies.iter().chain(bindings).filter_map(guarded);
        crds.map(|crd| {
            let is_whole =
                is_right(&crd, policies, guard::policy) && is_right(&crd, bindings, guard::binding);
            (crd, is_whole)
        })
        .collect()
    }

    /// All objects of a kind of admission, in the newest version that the control plane serves; none if it has no such
    /// kind.
    async fn list(&self, kind: &str, plural: &str) -> Result<Vec<DynamicObject>> {
        for version in ["v1", "v1beta1", "v1alpha1"] {
            match self.list_version(version, kind, plural).await {
                Err(error) if error.code() == Some(404) => {}
                other => return other,
            }
        }
        Ok(Vec::new())
    }

    async fn list_version(&self, version: &str, kind: &str, plural: &str) -> Result<Vec<DynamicObject>> {
        let api = self.api(&resource(ADMISSION, version, kind, plural));
        let what = format!("a list of {plural}");
        let (mut all, mut params) = (Vec::new(), ListParams::default().limit(PER_PAGE));
        loop {
            let page = attempt(&what, api.list(&params)).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|c| !c.is_empty()) {
                None => return Ok(all),
                Some(token) => params = params.continue_token(&token),
            }
        }
    }
}

/// What of an object of admission matters.
fn parse<T: DeserializeOwned>(object: &DynamicObject) -> Result<T> {
    serde_json::from_value(object.data.clone()).map_err(|e| ActionError::Request {
        attempt: format!("what {} says", object.name_any()),
        source: Box::new(kube::Error::SerdeError(e)),
    })
}

/// Reasons that are steps of a way, not obstacles.
fn desired_steps(reason: &str) -> bool {
    [crate::crd::SWITCHING, crate::crd::RELEASING, "TakingOver"].contains(&reason)
}
