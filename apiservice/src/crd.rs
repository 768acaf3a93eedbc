//! CustomResourceDefinitions and APIServices, as little of them as decisions need: schemas are not kept.

use crate::Kind;
use crate::condition::Condition;
use crate::desired::ServiceReference;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::core::{ApiResource, Object};
use serde::{Deserialize, Serialize};

/// `"true"`: the kind's objects shall be kept by us.
pub const DISTRIBUTED_ANNOTATION: &str = "outrigger.dev/distributed";
/// `confirmed`: the kind is given back although we keep objects of it.
pub const RELEASE_ANNOTATION: &str = "outrigger.dev/release";
/// `accepted`: the kind is taken over although admission of the cluster matches it.
pub const WITHOUT_ADMISSION_ANNOTATION: &str = "outrigger.dev/without-admission";
/// Of an APIService: the kinds behind it, with the generations of their CRDs. kube-aggregator asks what a group/version
/// consists of when its APIService changes, and otherwise once a minute: then nobody would find a new kind for so long.
pub(crate) const KINDS_ANNOTATION: &str = "outrigger.dev/kinds";
/// Holds a CRD until our objects of its kind are deleted.
pub const FINALIZER: &str = "outrigger.dev/objects";
/// The condition of a CRD that says whether its kind is ours, and if not, why.
pub const DISTRIBUTED_CONDITION: &str = "Distributed";
/// Reasons of that condition that say how far it is.
pub(crate) const SWITCHING: &str = "Switching";
pub(crate) const RELEASING: &str = "Releasing";
/// With this label and the value `"true"` an APIService belongs to kube-apiserver.
pub(crate) const AUTOMANAGED_LABEL: &str = "kube-aggregator.kubernetes.io/automanaged";
/// What is ours, by its label.
pub(crate) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "outrigger");

pub(crate) type CrdObject = Object<CrdSpec, CrdStatus>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CrdSpec {
    group: String,
    names: CrdNames,
    #[serde(default)]
    scope: String,
    #[serde(default)]
    versions: Vec<CrdVersion>,
    #[serde(default)]
    conversion: CrdConversion,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CrdConversion {
    #[serde(default)]
    strategy: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CrdNames {
    plural: String,
    kind: String,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CrdVersion {
    name: String,
    #[serde(default)]
    served: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct CrdStatus {
    conditions: Vec<Condition>,
    stored_versions: Vec<String>,
}

/// How far a kind is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// kube-apiserver's.
    Away,
    /// Ours from now on; the APIServices are on the way.
    Switching,
    /// Ours.
    Distributed,
    /// Ours, and takes no writes: it is about to be given back.
    Releasing,
}

/// A CustomResourceDefinition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crd {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) generation: i64,
    pub(crate) group: String,
    pub(crate) plural: String,
    pub(crate) kind: String,
    pub(crate) is_namespaced: bool,
    /// Its versions differ in more than their names: somebody has to be asked.
    pub(crate) is_converted: bool,
    pub(crate) versions: Vec<String>,
    pub(crate) served: Vec<String>,
    pub(crate) stored_versions: Vec<String>,
    pub(crate) is_wanted: bool,
    pub(crate) is_release_confirmed: bool,
    pub(crate) is_without_admission: bool,
    pub(crate) is_established: bool,
    pub(crate) is_deleting: bool,
    pub(crate) has_finalizer: bool,
    pub(crate) phase: Phase,
    pub(crate) conditions: Vec<Condition>,
}

impl Crd {
    pub(crate) fn read(object: &CrdObject) -> Self {
        let metadata = &object.metadata;
        let annotation = |key: &str, value: &str| {
            metadata
                .annotations
                .as_ref()
                .and_then(|a| a.get(key))
                .is_some_and(|v| v == value)
        };
        let status = object.status.clone().unwrap_or_default();
        let condition = |name: &str| status.conditions.iter().find(|c| c.type_ == name);
        let phase = match condition(DISTRIBUTED_CONDITION) {
            Some(c) if c.status == "True" => Phase::Distributed,
            Some(c) if c.reason == SWITCHING => Phase::Switching,
            Some(c) if c.reason == RELEASING => Phase::Releasing,
            _ => Phase::Away,
        };
        let finalizers = metadata.finalizers.as_deref().unwrap_or_default();
        let spec = &object.spec;
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            group: spec.group.clone(),
            plural: spec.names.plural.clone(),
            kind: spec.names.kind.clone(),
            is_namespaced: spec.scope != "Cluster",
            is_converted: spec.conversion.strategy == "Webhook" && spec.versions.len() > 1,
            versions: spec.versions.iter().map(|v| v.name.clone()).collect(),
            served: spec
                .versions
                .iter()
                .filter(|v| v.served)
                .map(|v| v.name.clone())
                .collect(),
            stored_versions: status.stored_versions.clone(),
            is_wanted: annotation(DISTRIBUTED_ANNOTATION, "true"),
            is_release_confirmed: annotation(RELEASE_ANNOTATION, "confirmed"),
            is_without_admission: annotation(WITHOUT_ADMISSION_ANNOTATION, "accepted"),
            is_established: condition("Established").is_some_and(|c| c.status == "True"),
            is_deleting: metadata.deletion_timestamp.is_some(),
            has_finalizer: finalizers.iter().any(|f| f == FINALIZER),
            phase,
            conditions: status.conditions,
        }
    }

    /// The names of its APIServices.
    pub(crate) fn api_services(&self) -> impl Iterator<Item = String> + '_ {
        self.served.iter().map(|v| api_service_name(&self.group, v))
    }

    /// The kind, for those who keep its objects.
    pub(crate) fn kind(&self) -> Kind {
        Kind {
            crd: self.name.clone(),
            group: self.group.clone(),
            plural: self.plural.clone(),
            is_namespaced: self.is_namespaced,
        }
    }

    /// Its objects in this version.
    pub(crate) fn api_resource(&self, version: &str) -> ApiResource {
        ApiResource {
            group: self.group.clone(),
            version: version.to_owned(),
            api_version: format!("{}/{version}", self.group),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }
}

/// An APIService.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiService {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) is_automanaged: bool,
    /// It bears our label.
    pub(crate) is_labelled: bool,
    /// What it says of the kinds behind it.
    pub(crate) kinds: String,
    pub(crate) service: Option<ServiceReference>,
    pub(crate) ca_bundle: Vec<u8>,
    pub(crate) skips_verification: bool,
    pub(crate) priorities: (i32, i32),
    /// A kube-apiserver has reached the Service that it names now.
    pub(crate) is_available: bool,
    pub(crate) why_unavailable: String,
}

impl ApiService {
    pub(crate) fn read(object: &APIService) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let label = |key: &str| object.metadata.labels.as_ref().and_then(|l| l.get(key));
        let annotations = object.metadata.annotations.as_ref();
        let conditions = object.status.as_ref().and_then(|s| s.conditions.as_deref());
        let available = conditions
            .unwrap_or_default()
            .iter()
            .find(|c| c.type_ == "Available");
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            uid: object.metadata.uid.clone().unwrap_or_default(),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
            group: spec.group.unwrap_or_default(),
            version: spec.version.unwrap_or_default(),
            is_automanaged: label(AUTOMANAGED_LABEL).is_some(),
            is_labelled: label(MANAGED_BY.0).is_some_and(|v| v == MANAGED_BY.1),
            kinds: annotations
                .and_then(|a| a.get(KINDS_ANNOTATION))
                .cloned()
                .unwrap_or_default(),
            service: spec.service.map(|s| ServiceReference {
                namespace: s.namespace.unwrap_or_default(),
                name: s.name.unwrap_or_default(),
                port: s.port.and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            }),
            ca_bundle: spec.ca_bundle.map(|b| b.0).unwrap_or_default(),
            skips_verification: spec.insecure_skip_tls_verify.unwrap_or_default(),
            priorities: (spec.group_priority_minimum, spec.version_priority),
            // Local ones are Available too; right after the switch that is still what the status says.
            is_available: available
                .is_some_and(|c| c.status == "True" && c.reason.as_deref() != Some("Local")),
            why_unavailable: available
                .filter(|c| c.reason.as_deref() != Some("Local"))
                .and_then(|c| c.message.clone())
                .unwrap_or_default(),
        }
    }
}

/// `<version>.<group>`, as kube-apiserver demands it.
pub(crate) fn api_service_name(group: &str, version: &str) -> String {
    format!("{version}.{group}")
}

/// The resource of CustomResourceDefinitions.
pub(crate) fn crd_resource() -> ApiResource {
    ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    }
}
