//! `RequestInfo`: method and path → verb, group, version, resource, subresource, namespace, name. Pure.
//!
//! It must agree with kube-apiserver's `endpoints/request/requestinfo.go`, because authorization was decided on its
//! parse of the same URL.

/// What a method and a path mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names API resources (`/api/v1/...`, `/apis/<group>/<version>/...` with something behind it).
    pub is_resource_request: bool,
    /// The path without the query.
    pub path: String,
    /// get, list, watch, create, update, patch, delete, deletecollection; for other paths the method in lower case.
    pub verb: String,
    /// `api` or `apis`.
    pub api_prefix: String,
    /// Empty for the core group.
    pub api_group: String,
    /// `v1`.
    pub api_version: String,
    /// Empty for kinds without namespaces and for all namespaces.
    pub namespace: String,
    /// The plural.
    pub resource: String,
    /// `status`, `scale`, ...
    pub subresource: String,
    /// Empty for collections.
    pub name: String,
    /// The path's segments after the version.
    pub parts: Vec<String>,
}
