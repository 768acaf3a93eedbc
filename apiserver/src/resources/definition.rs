//! `ResourceDefinition`: one kind in one served version, as discovery, verbs, tables and OpenAPI need it.

use std::sync::Arc;

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
}

impl ResourceDefinition {
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
}
