//! `ResourceDefinition`: one kind in one served version, as discovery, verbs, tables and OpenAPI need it.

use crate::resources::version;
use base64::Engine;
use serde_json::Value;
use sha2::Digest;
use std::cmp::Ordering;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// The group of our own kinds. Their CRDs are served from the system backend.
pub const OUTRIGGER_GROUP: &str = "outrigger.dev";

/// The verbs of a built-in kind, in the order in which kube-apiserver names them.
const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Namespaces have no collection to delete: each is emptied first.
const NAMESPACE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
/// The verbs of a custom resource, in upstream's (other) order.
const CUSTOM_VERBS: &[&str] = &[
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "create",
    "update",
    "watch",
];
/// Once a CRD is being deleted, its objects can only be read and deleted.
const TERMINATING_VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "watch"];
const SUBRESOURCE_VERBS: &[&str] = &["get", "patch", "update"];
const FINALIZE_VERBS: &[&str] = &["update"];

/// Which store holds a kind's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// The system backend of standalone mode.
    System,
    /// The workload clusters' backends, by the owner of the namespace.
    Distributed,
}

/// The kinds that the server knows by itself. They also take and give protobuf and strategic merge patch
/// (those of `outrigger.dev` do not: they are CRD-like).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Builtin {
    /// v1 Namespace.
    Namespace,
    /// v1 Secret.
    Secret,
    /// v1 Event and events.k8s.io/v1 Event: one store, two forms.
    Event,
    /// coordination.k8s.io/v1 Lease.
    Lease,
    /// apiextensions.k8s.io/v1 CustomResourceDefinition.
    CustomResourceDefinition,
}

/// One column of a Table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrinterColumn {
    /// Header.
    pub name: String,
    /// `integer`, `number`, `boolean`, `string` or `date`.
    pub kind: String,
    /// OpenAPI format.
    pub format: String,
    /// For people.
    pub description: String,
    /// 0: always shown; more: only with `-o wide`.
    pub priority: i32,
    /// kubectl's JSONPath, `.spec.image`.
    pub json_path: String,
}

/// Paths of the scale subresource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// `.spec.replicas`.
    pub spec_replicas: String,
    /// `.status.replicas`.
    pub status_replicas: String,
    /// `.status.selector`.
    pub label_selector: Option<String>,
}

/// A subresource, as discovery and OpenAPI show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `scale`, `finalize`.
    pub name: &'static str,
    /// What it can do.
    pub verbs: &'static [&'static str],
    /// Whether bodies are `autoscaling/v1 Scale`; otherwise they are of the kind itself.
    pub is_scale: bool,
}

/// One kind in one served version.
#[derive(Debug, Clone)]
pub struct ResourceDefinition {
    /// Empty for the core group.
    pub group: String,
    /// `v1`.
    pub version: String,
    /// The version that objects are stored in; conversion is `None`: only apiVersion differs.
    pub storage_version: String,
    /// Plural, lower case: the path segment.
    pub plural: String,
    /// Singular, lower case.
    pub singular: String,
    /// Kind.
    pub kind: String,
    /// Kind of its list.
    pub list_kind: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories (`all`).
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Which store holds it.
    pub backing: Backing,
    /// Set for the kinds that the server knows by itself.
    pub builtin: Option<Builtin>,
    /// Whether there is a status subresource.
    pub status: bool,
    /// Whether there is a scale subresource.
    pub scale: Option<ScalePaths>,
    /// Columns between Name and Age; empty: Name and Age only (an explicit list of a CRD replaces Age, as upstream).
    pub columns: Vec<PrinterColumn>,
    /// JSON paths of selectableFields, `.spec.color`.
    pub selectable_fields: Vec<String>,
    /// The OpenAPI v3 schema (structural, as in the CRD); `None`: anything goes.
    pub schema: Option<Arc<serde_json::Value>>,
    /// A number that changes with the schema.
    pub fingerprint: u64,
    /// The warning of a deprecated version.
    pub deprecation_warning: Option<String>,
    /// The uid of the CRD; empty for the server's own kinds.
    pub crd_uid: String,
    /// Whether the CRD is being deleted: creates are refused.
    pub terminating: bool,
    /// Reads only: the kind is on its way from the control plane to us, or back.
    pub closed: bool,
}

impl ResourceDefinition {
    /// What an Established CRD serves: a definition for each served version, in its order. Nothing before the CRD is
    /// Established, and nothing that has no names: such a CRD was not validated.
    #[must_use]
    pub fn from_crd(crd: &Value) -> Vec<Self> {
        if condition_is_true(crd, "Established") {
            Self::versions_of_crd(crd)
        } else {
            Vec::new()
        }
    }

    /// The served versions of a CRD, Established or not.
    pub(crate) fn versions_of_crd(crd: &Value) -> Vec<Self> {
        let versions = list(crd, "/spec/versions");
        let storage_version = versions
            .iter()
            .find(|version| flag(version, "/storage"))
            .map_or("", |version| text(version, "/name"));
        let served = versions.iter().filter(|version| flag(version, "/served"));
        served
            .filter_map(|version| Self::from_crd_version(crd, version, storage_version))
            .collect()
    }

    fn from_crd_version(crd: &Value, version: &Value, storage_version: &str) -> Option<Self> {
        // A conflict of names leaves the accepted ones as they were, and the accepted ones are what is served.
        let names = if text(crd, "/status/acceptedNames/plural").is_empty() {
            "/spec/names"
        } else {
            "/status/acceptedNames"
        };
        let name = |field: &str| text(crd, &format!("{names}/{field}")).to_owned();
        let names_of = |field: &str| {
            list(crd, &format!("{names}/{field}"))
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        };
        let group = text(crd, "/spec/group").to_owned();
        let (plural, kind) = (name("plural"), name("kind"));
        if group.is_empty() || plural.is_empty() || kind.is_empty() {
            return None;
        }
        let or = |value: String, default: String| if value.is_empty() { default } else { value };
        let schema = version.pointer("/schema/openAPIV3Schema").cloned();
        Some(Self {
            version: text(version, "/name").to_owned(),
            storage_version: storage_version.to_owned(),
            singular: or(name("singular"), kind.to_lowercase()),
            list_kind: or(name("listKind"), format!("{kind}List")),
            short_names: names_of("shortNames"),
            categories: names_of("categories"),
            namespaced: text(crd, "/spec/scope") == "Namespaced",
            backing: if group == OUTRIGGER_GROUP {
                Backing::System
            } else {
                Backing::Distributed
            },
            builtin: None,
            status: version
                .pointer("/subresources/status")
                .is_some_and(|status| !status.is_null()),
            scale: version
                .pointer("/subresources/scale")
                .and_then(ScalePaths::from_crd),
            columns: list(version, "/additionalPrinterColumns")
                .iter()
                .map(PrinterColumn::from_crd)
                .collect(),
            selectable_fields: list(version, "/selectableFields")
                .iter()
                .map(|field| text(field, "/jsonPath").to_owned())
                .collect(),
            fingerprint: schema.as_ref().map_or(0, fingerprint),
            schema: schema.map(Arc::new),
            deprecation_warning: deprecation_warning(crd, version, &group, &kind),
            crd_uid: text(crd, "/metadata/uid").to_owned(),
            terminating: !text(crd, "/metadata/deletionTimestamp").is_empty(),
            closed: false,
            group,
            plural,
            kind,
        })
    }

    /// `group/version`, or `version` for the core group.
    #[must_use]
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// Group and plural, as errors name them.
    #[must_use]
    pub fn group_resource(&self) -> crate::status::GroupResource<'_> {
        crate::status::GroupResource {
            group: &self.group,
            resource: &self.plural,
        }
    }

    /// Group and plural, as storage names them. Both forms of Event are one resource.
    #[must_use]
    pub fn storage_resource(&self) -> outrigger_storage::Resource {
        match self.builtin {
            Some(Builtin::Event) => outrigger_storage::Resource::new("", "events"),
            _ => outrigger_storage::Resource::new(&self.group, &self.plural),
        }
    }

    /// What can be done with the kind, as discovery lists it.
    #[must_use]
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.builtin {
            Some(Builtin::Namespace) => NAMESPACE_VERBS,
            Some(_) => VERBS,
            None if self.terminating => TERMINATING_VERBS,
            None => CUSTOM_VERBS,
        }
    }

    /// The subresources, in the order in which discovery lists them.
    #[must_use]
    pub fn subresources(&self) -> Vec<Subresource> {
        let finalize =
            (self.builtin == Some(Builtin::Namespace)).then_some(("finalize", FINALIZE_VERBS, false));
        let status = self.status.then_some(("status", SUBRESOURCE_VERBS, false));
        let scale = self.scale.is_some().then_some(("scale", SUBRESOURCE_VERBS, true));
        let all = [finalize, status, scale].into_iter().flatten();
        all.map(|(name, verbs, is_scale)| Subresource {
            name,
            verbs,
            is_scale,
        })
        .collect()
    }

    /// The subresource of this name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources()
            .into_iter()
            .find(|subresource| subresource.name == name)
    }

    /// A hash of group, version and kind in which objects are stored, as discovery shows it.
    #[must_use]
    pub fn storage_version_hash(&self) -> String {
        // Both forms of Event are stored in that of the core group.
        let group = if self.builtin == Some(Builtin::Event) {
            ""
        } else {
            &self.group
        };
        let hash = sha2::Sha256::digest(format!("{group}/{}/{}", self.storage_version, self.kind));
        base64::engine::general_purpose::STANDARD.encode(hash.get(..8).unwrap_or_default())
    }

    /// The JSON path in the *stored* object that a field selector's field means (`spec.tier` → `.spec.tier`), if the
    /// kind can be selected by it. `metadata.name` and `metadata.namespace` are for the caller.
    #[must_use]
    pub fn selectable_path(&self, field: &str) -> Option<String> {
        let declared = self
            .selectable_fields
            .iter()
            .any(|path| path.strip_prefix('.') == Some(field));
        let stored = match (self.builtin, field) {
            // Names that kube-apiserver keeps for old clients.
            (Some(Builtin::Namespace), "name") => return Some(".metadata.name".to_owned()),
            (Some(Builtin::Event), "source") if declared => return Some(".source.component".to_owned()),
            (Some(Builtin::Event), "reportingController") => "reportingComponent".to_owned(),
            (Some(Builtin::Event), field) => match field.strip_prefix("regarding.") {
                Some(rest) => format!("involvedObject.{rest}"),
                None => field.to_owned(),
            },
            (_, field) => field.to_owned(),
        };
        declared.then(|| format!(".{stored}"))
    }

    /// A number that changes with anything that clients can see of the kind: its names, verbs, columns or schema.
    #[must_use]
    pub fn published_hash(&self) -> u64 {
        let names = (
            &self.group,
            &self.version,
            &self.storage_version,
            &self.plural,
            &self.singular,
            &self.kind,
            &self.list_kind,
        );
        let lists = (
            &self.short_names,
            &self.categories,
            &self.columns,
            &self.selectable_fields,
        );
        let rest = (
            self.namespaced,
            self.status,
            &self.scale,
            self.fingerprint,
            &self.deprecation_warning,
            self.terminating,
        );
        xxh3_64(format!("{names:?}{lists:?}{rest:?}").as_bytes())
    }
}

impl PrinterColumn {
    fn from_crd(column: &Value) -> Self {
        let field = |pointer| text(column, pointer).to_owned();
        let priority = column
            .pointer("/priority")
            .and_then(Value::as_i64)
            .and_then(|priority| i32::try_from(priority).ok());
        Self {
            name: field("/name"),
            kind: field("/type"),
            format: field("/format"),
            description: field("/description"),
            priority: priority.unwrap_or(0),
            json_path: field("/jsonPath"),
        }
    }
}

impl ScalePaths {
    fn from_crd(scale: &Value) -> Option<Self> {
        let label_selector = Some(text(scale, "/labelSelectorPath")).filter(|path| !path.is_empty());
        (!scale.is_null()).then(|| Self {
            spec_replicas: text(scale, "/specReplicasPath").to_owned(),
            status_replicas: text(scale, "/statusReplicasPath").to_owned(),
            label_selector: label_selector.map(str::to_owned),
        })
    }
}

/// A number that changes with the schema and is the same on every replica: objects carry it, so that a read knows
/// whether they were written under this schema.
fn fingerprint(schema: &Value) -> u64 {
    xxh3_64(schema.to_string().as_bytes())
}

/// The warning that every use of a deprecated version gets.
fn deprecation_warning(crd: &Value, version: &Value, group: &str, kind: &str) -> Option<String> {
    if !flag(version, "/deprecated") {
        return None;
    }
    if let Some(warning) = version.pointer("/deprecationWarning").and_then(Value::as_str) {
        return Some(warning.to_owned());
    }
    let name = text(version, "/name");
    let usable = list(crd, "/spec/versions")
        .iter()
        .filter(|version| flag(version, "/served") && !flag(version, "/deprecated"));
    let better = usable
        .map(|version| text(version, "/name"))
        .filter(|other| version::by_preference(other, name) == Ordering::Less);
    let warning = format!("{group}/{name} {kind} is deprecated");
    Some(match better.min_by(|a, b| version::by_preference(a, b)) {
        Some(better) => format!("{warning}; use {group}/{better} {kind}"),
        None => warning,
    })
}

/// Whether a condition of this type has status True.
pub(crate) fn condition_is_true(object: &Value, kind: &str) -> bool {
    list(object, "/status/conditions")
        .iter()
        .any(|condition| text(condition, "/type") == kind && text(condition, "/status") == "True")
}

/// The text at a JSON pointer; empty if there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer; empty if there is none.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// Whether there is `true` at a JSON pointer.
pub(crate) fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn crd() -> Value {
        let names = json!({"plural": "apps", "singular": "app", "kind": "App", "listKind": "AppList", "shortNames": ["a"], "categories": ["all"]});
        json!({
            "metadata": {"name": "apps.example.com", "uid": "u1"},
            "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [
                {"name": "v1alpha1", "served": true, "deprecated": true},
                {"name": "v1beta1", "served": true, "deprecated": true, "deprecationWarning": "move on"},
                {"name": "v1", "served": true, "storage": true,
                 "schema": {"openAPIV3Schema": {"type": "object"}},
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                 "additionalPrinterColumns": [{"name": "Image", "type": "string", "jsonPath": ".spec.image", "priority": 1}],
                 "selectableFields": [{"jsonPath": ".spec.tier"}]},
                {"name": "v2", "served": false},
            ]},
            "status": {"acceptedNames": names, "conditions": [{"type": "Established", "status": "True"}]},
        })
    }

    #[test]
    fn a_crd_becomes_a_definition_for_each_served_version() {
        let definitions = ResourceDefinition::from_crd(&crd());
        assert_eq!(
            definitions.iter().map(|d| d.version.as_str()).collect::<Vec<_>>(),
            ["v1alpha1", "v1beta1", "v1"]
        );
        let v1 = &definitions[2];
        assert_eq!(
            (
                v1.api_version().as_str(),
                v1.storage_version.as_str(),
                v1.namespaced,
                v1.backing
            ),
            ("example.com/v1", "v1", true, Backing::Distributed)
        );
        assert_eq!(
            (
                v1.plural.as_str(),
                v1.singular.as_str(),
                v1.kind.as_str(),
                v1.list_kind.as_str()
            ),
            ("apps", "app", "App", "AppList")
        );
        assert_eq!(
            (&v1.short_names[..], &v1.categories[..]),
            (&["a".to_owned()][..], &["all".to_owned()][..])
        );
        assert_eq!(
            v1.subresources().iter().map(|s| s.name).collect::<Vec<_>>(),
            ["status", "scale"]
        );
        assert_eq!(v1.scale.as_ref().map(|s| s.label_selector.clone()), Some(None));
        assert_eq!(
            (v1.columns[0].json_path.as_str(), v1.columns[0].priority),
            (".spec.image", 1)
        );
        assert_eq!(
            (v1.selectable_path("spec.tier"), v1.selectable_path("spec.image")),
            (Some(".spec.tier".to_owned()), None)
        );
        assert_ne!(v1.fingerprint, 0);
        assert_eq!(v1.verbs(), CUSTOM_VERBS);
    }

    #[test]
    fn warnings_of_deprecated_versions() {
        let warnings: Vec<_> = ResourceDefinition::from_crd(&crd())
            .into_iter()
            .map(|d| d.deprecation_warning)
            .collect();
        assert_eq!(
            warnings,
            [
                Some("example.com/v1alpha1 App is deprecated; use example.com/v1 App".to_owned()),
                Some("move on".to_owned()),
                None
            ]
        );
    }

    #[test]
    fn only_established_crds_are_served() {
        let mut crd = crd();
        crd["status"]["conditions"][0]["status"] = "False".into();
        assert!(ResourceDefinition::from_crd(&crd).is_empty());
        assert!(ResourceDefinition::from_crd(&json!({})).is_empty());
        assert!(ResourceDefinition::from_crd(&json!({"spec": {"versions": "x"}, "status": 1})).is_empty());
    }

    #[test]
    fn a_crd_in_deletion_takes_no_writes() {
        let mut crd = crd();
        crd["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let definitions = ResourceDefinition::from_crd(&crd);
        assert!(
            definitions
                .iter()
                .all(|d| d.terminating && !d.verbs().contains(&"create"))
        );
    }

    #[test]
    fn accepted_names_are_served_when_the_requested_ones_are_taken() {
        let mut crd = crd();
        crd["spec"]["names"]["shortNames"] = json!(["taken"]);
        assert_eq!(ResourceDefinition::from_crd(&crd)[0].short_names, ["a"]);
    }
}
