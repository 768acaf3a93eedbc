//! `RequestInfo`: method and path → verb, group, version, resource, subresource, namespace, name. Pure.
//!
//! It must agree with kube-apiserver's `endpoints/request/requestinfo.go`, because authorization was decided on its
//! parse of the same URL.

use super::Query;
use super::options::ListOptions;
use super::query::percent_decode;
use http::Method;

/// What a method and a path mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names API resources (`/api/v1/...`, `/apis/<group>/<version>/...` with something behind it).
    pub is_resource_request: bool,
    /// The path without the query, `%` escapes decoded.
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
    /// The path's segments after the version (after `namespaces/<namespace>` where a resource follows).
    pub parts: Vec<String>,
}

/// A URL that has no meaning. The client must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestInfoError {
    /// `/api/v1/watch` and nothing behind it.
    #[error("unable to determine kind and namespace from url, {0}")]
    NothingToWatch(String),
    /// An escape that is not one, or bytes that are not UTF-8.
    #[error("the path {0:?} cannot be decoded")]
    Undecodable(String),
}

/// Verbs in the path: `/api/v1/watch/...`.
const SPECIAL_VERBS: [&str; 2] = ["proxy", "watch"];
/// What follows the name of a namespace and is not a resource in it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];
/// Requests that run until the client or the server has enough of them.
const LONG_RUNNING_VERBS: [&str; 2] = ["watch", "proxy"];
/// Likewise.
const LONG_RUNNING_SUBRESOURCES: [&str; 5] = ["attach", "exec", "proxy", "log", "portforward"];

impl RequestInfo {
    /// What `method` on `path` (as it came, still escaped) with `query` means.
    ///
    /// # Errors
    /// When a path cannot be decoded, or a verb in the path has nothing behind it.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Result<Self, RequestInfoError> {
        // As in Go, the path is decoded before it is cut: an escaped slash separates like a plain one.
        let path = percent_decode(path).ok_or_else(|| RequestInfoError::Undecodable(path.to_owned()))?;
        let segments: Vec<String> = match path.trim_matches('/') {
            "" => Vec::new(),
            path => path.split('/').map(str::to_owned).collect(),
        };
        let mut info = Self {
            path,
            verb: method.as_str().to_ascii_lowercase(),
            ..Self::default()
        };
        let rest = match segments.as_slice() {
            [prefix, version, rest @ ..] if prefix == "api" && !rest.is_empty() => {
                (info.api_prefix, info.api_version) = (prefix.clone(), version.clone());
                rest
            }
            [prefix, group, version, rest @ ..] if prefix == "apis" && !rest.is_empty() => {
                (info.api_prefix, info.api_group, info.api_version) =
                    (prefix.clone(), group.clone(), version.clone());
                rest
            }
            // Upstream names the prefix (and no more) of a path below it that is too short to name a resource.
            [prefix, _, _] if prefix == "apis" => {
                info.api_prefix.clone_from(prefix);
                return Ok(info);
            }
            _ => return Ok(info),
        };
        info.is_resource_request = true;
        let parts = info.take_verb(method, rest)?;
        let parts = info.take_namespace(parts);
        info.parts = parts.to_vec();
        let part = |i: usize| parts.get(i).cloned().unwrap_or_default();
        (info.resource, info.name) = (part(0), part(1));
        if info.verb != "proxy" {
            info.subresource = part(2);
        }
        info.refine_collection_verb(query);
        Ok(info)
    }

    /// Whether the request has no deadline and does not count as in flight.
    #[must_use]
    pub fn is_long_running(&self) -> bool {
        LONG_RUNNING_VERBS.contains(&self.verb.as_str())
            || (self.is_resource_request && LONG_RUNNING_SUBRESOURCES.contains(&self.subresource.as_str()))
            || (!self.is_resource_request && self.path.starts_with("/debug/pprof/"))
    }

    /// Whether the request leaves everything as it is.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    /// Group and plural, as errors name them.
    #[must_use]
    pub fn group_resource(&self) -> crate::status::GroupResource<'_> {
        crate::status::GroupResource {
            group: &self.api_group,
            resource: &self.resource,
        }
    }

    fn take_verb<'a>(
        &mut self,
        method: &Method,
        parts: &'a [String],
    ) -> Result<&'a [String], RequestInfoError> {
        if let [special, rest @ ..] = parts
            && SPECIAL_VERBS.contains(&special.as_str())
        {
            if rest.is_empty() {
                return Err(RequestInfoError::NothingToWatch(self.path.clone()));
            }
            self.verb.clone_from(special);
            return Ok(rest);
        }
        let verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        };
        verb.clone_into(&mut self.verb);
        Ok(parts)
    }

    fn take_namespace<'a>(&mut self, parts: &'a [String]) -> &'a [String] {
        match parts {
            [namespaces, namespace, rest @ ..] if namespaces == "namespaces" => {
                self.namespace.clone_from(namespace);
                match rest.first() {
                    Some(next) if !NAMESPACE_SUBRESOURCES.contains(&next.as_str()) => rest,
                    _ => parts,
                }
            }
            _ => parts,
        }
    }

    /// Without a name, get is list or watch (of one object if a field selector says so) and delete is deletecollection.
    fn refine_collection_verb(&mut self, query: &Query) {
        if !self.name.is_empty() {
            return;
        }
        if self.verb == "get" {
            let options = ListOptions::decode(query).unwrap_or_else(|_| {
                // Options that cannot be read count as absent, but for the verb.
                ListOptions {
                    watch: query.switch("watch").unwrap_or_default(),
                    ..ListOptions::default()
                }
            });
            let verb = if options.watch { "watch" } else { "list" };
            verb.clone_into(&mut self.verb);
            if let Some(name) = options.predicate.fields.requires_exact("metadata.name")
                && can_be_segment(name)
            {
                self.name = name.to_owned();
            }
        }
        if self.verb == "delete" {
            "deletecollection".clone_into(&mut self.verb);
        }
    }
}

/// Whether a name can stand in a path. (In words: `registry::names::is_path_segment`, which lies above this module.)
fn can_be_segment(name: &str) -> bool {
    name != "." && name != ".." && !name.contains(['/', '%'])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `verb prefix group version namespace resource subresource name parts`, `-` for empty.
    fn check(method: &str, url: &str, expect: &str) {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let info = RequestInfo::parse(&method, path, &Query::parse(query)).expect("a meaning");
        let parts = info.parts.join("/");
        let fields = [
            &info.verb,
            &info.api_prefix,
            &info.api_group,
            &info.api_version,
            &info.namespace,
            &info.resource,
            &info.subresource,
            &info.name,
            &parts,
        ];
        let fields = fields.map(|f| if f.is_empty() { "-" } else { f }).join(" ");
        assert_eq!(fields, expect, "{method} {url}");
        assert_eq!(info.is_resource_request, !info.resource.is_empty(), "{url}");
    }

    #[test]
    fn resource_paths() {
        check(
            "GET",
            "/api/v1/namespaces",
            "list api - v1 - namespaces - - namespaces",
        );
        check(
            "GET",
            "/api/v1/namespaces/other",
            "get api - v1 other namespaces - other namespaces/other",
        );
        check(
            "PUT",
            "/api/v1/namespaces/other/finalize",
            "update api - v1 other namespaces finalize other namespaces/other/finalize",
        );
        check(
            "PATCH",
            "/api/v1/namespaces/other/status",
            "patch api - v1 other namespaces status other namespaces/other/status",
        );
        check(
            "GET",
            "/api/v1/namespaces/other/pods",
            "list api - v1 other pods - - pods",
        );
        check(
            "GET",
            "/api/v1/namespaces/other/pods/foo",
            "get api - v1 other pods - foo pods/foo",
        );
        check(
            "HEAD",
            "/api/v1/namespaces/other/pods/foo",
            "get api - v1 other pods - foo pods/foo",
        );
        check(
            "HEAD",
            "/api/v1/namespaces/other/pods",
            "list api - v1 other pods - - pods",
        );
        check("GET", "/api/v1/pods", "list api - v1 - pods - - pods");
        check(
            "GET",
            "/api/v1/nodes/n1/proxy/metrics",
            "get api - v1 - nodes proxy n1 nodes/n1/proxy/metrics",
        );
        check(
            "POST",
            "/api/v1/namespaces/other/pods",
            "create api - v1 other pods - - pods",
        );
        check(
            "POST",
            "/api/v1/namespaces/other/pods/foo/eviction",
            "create api - v1 other pods eviction foo pods/foo/eviction",
        );
        check(
            "DELETE",
            "/api/v1/namespaces/other/pods",
            "deletecollection api - v1 other pods - - pods",
        );
        check(
            "DELETE",
            "/api/v1/namespaces/other/pods/foo",
            "delete api - v1 other pods - foo pods/foo",
        );
        check(
            "DELETE",
            "/api/v1/namespaces",
            "deletecollection api - v1 - namespaces - - namespaces",
        );
        check(
            "GET",
            "/apis/paas.example.com/v1/applications/",
            "list apis paas.example.com v1 - applications - - applications",
        );
        check(
            "PUT",
            "/apis/g.example/v1/namespaces/ns/applications/a/scale",
            "update apis g.example v1 ns applications scale a applications/a/scale",
        );
        check("OPTIONS", "/api/v1/pods", "- api - v1 - pods - - pods");
        check("GET", "/api/v1/namespaces/a%2Fb", "list api - v1 a b - - b");
        check(
            "GET",
            "/api/v1/namespaces/x/pods/a%20b",
            "get api - v1 x pods - a b pods/a b",
        );
    }

    #[test]
    fn watches() {
        check("GET", "/api/v1/pods?watch=true", "watch api - v1 - pods - - pods");
        check("GET", "/api/v1/pods?watch", "watch api - v1 - pods - - pods");
        check("GET", "/api/v1/pods?watch=false", "list api - v1 - pods - - pods");
        check(
            "GET",
            "/api/v1/pods?watch=1&timeoutSeconds=x",
            "watch api - v1 - pods - - pods",
        );
        check("GET", "/api/v1/watch/pods", "watch api - v1 - pods - - pods");
        check(
            "GET",
            "/api/v1/watch/namespaces/other/pods/foo",
            "watch api - v1 other pods - foo pods/foo",
        );
        check(
            "GET",
            "/apis/g.example/v1/watch/namespaces/other/as",
            "watch apis g.example v1 other as - - as",
        );
        check(
            "GET",
            "/api/v1/watch/namespaces/other",
            "watch api - v1 other namespaces - other namespaces/other",
        );
        check(
            "GET",
            "/api/v1/proxy/namespaces/other/pods/foo",
            "proxy api - v1 other pods - foo pods/foo",
        );
        check(
            "GET",
            "/api/v1/proxy/pods/foo/sub",
            "proxy api - v1 - pods - foo pods/foo/sub",
        );
    }

    #[test]
    fn a_field_selector_of_one_name_is_a_request_for_that_name() {
        check(
            "GET",
            "/api/v1/namespaces/x/pods?fieldSelector=metadata.name%3Dfoo",
            "list api - v1 x pods - foo pods",
        );
        check(
            "GET",
            "/api/v1/namespaces/x/pods?watch=1&fieldSelector=metadata.name%3Dfoo",
            "watch api - v1 x pods - foo pods",
        );
        check(
            "GET",
            "/api/v1/pods?fieldSelector=metadata.name!%3Dfoo",
            "list api - v1 - pods - - pods",
        );
        check(
            "GET",
            "/api/v1/pods?fieldSelector=metadata.name%3Da%2Fb",
            "list api - v1 - pods - - pods",
        );
        check(
            "GET",
            "/api/v1/pods?limit=x&fieldSelector=metadata.name%3Dfoo",
            "list api - v1 - pods - - pods",
        );
        check(
            "DELETE",
            "/api/v1/namespaces/x/pods?fieldSelector=metadata.name%3Dfoo",
            "deletecollection api - v1 x pods - - pods",
        );
    }

    #[test]
    fn other_paths() {
        for (method, path, expect) in [
            ("GET", "/", "get - - - - - - - -"),
            ("GET", "", "get - - - - - - - -"),
            ("GET", "/api", "get - - - - - - - -"),
            ("GET", "/api/v1", "get - - - - - - - -"),
            ("GET", "/apis/g/v1", "get apis - - - - - - -"),
            ("POST", "/apis/g", "post - - - - - - - -"),
            ("GET", "/healthz/ping/a/b", "get - - - - - - - -"),
        ] {
            check(method, path, expect);
        }
    }

    #[test]
    fn paths_without_meaning() {
        let parse = |path| RequestInfo::parse(&Method::GET, path, &Query::default());
        assert_eq!(
            parse("/api/v1/watch"),
            Err(RequestInfoError::NothingToWatch("/api/v1/watch".to_owned()))
        );
        assert!(parse("/apis/g/v1/proxy/").is_err());
        assert!(parse("/api/v1/%zz").is_err() && parse("/api/%ff/x").is_err());
    }

    #[test]
    fn long_running_requests() {
        let check = |url: &str, expect| {
            let (path, query) = url.split_once('?').unwrap_or((url, ""));
            let info = RequestInfo::parse(&Method::GET, path, &Query::parse(query)).expect("a meaning");
            assert_eq!(info.is_long_running(), expect, "{url}");
        };
        check("/api/v1/pods?watch=1", true);
        check("/api/v1/pods", false);
        check("/api/v1/namespaces/x/pods/p/log", true);
        check("/debug/pprof/heap", true);
        check("/metrics", false);
    }
}
