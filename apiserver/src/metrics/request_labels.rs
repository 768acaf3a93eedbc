//! What a request is counted under: kube-apiserver's labels, of which there are only so many. Pure.

use super::OTHER;
use crate::request::{Query, RequestInfo};

/// What a request is counted under.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestLabels {
    pub(super) verb: &'static str,
    pub(super) dry_run: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

impl RequestLabels {
    /// The labels of a request; `served` tells whether its resource is one that the server knows.
    #[must_use]
    pub fn new(info: &RequestInfo, query: &Query, is_apply: bool, served: bool) -> Self {
        let verb = match info.verb.as_str() {
            "patch" if is_apply => "APPLY",
            "create" | "post" => "POST",
            "get" | "head" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "update" | "put" => "PUT",
            "patch" => "PATCH",
            "delete" | "deletecollection" => "DELETE",
            _ => OTHER,
        };
        let scope = match info {
            info if !info.is_resource_request => "",
            info if !info.name.is_empty() || info.verb == "create" => "resource",
            info if !info.namespace.is_empty() => "namespace",
            _ => "cluster",
        };
        let dry_run = match (info.is_read_only(), query.has("dryRun")) {
            (true, _) | (_, false) => "",
            _ if query.all("dryRun").all(|value| value == "All") => "All",
            _ => "invalid",
        };
        let labels = Self {
            verb,
            dry_run,
            group: String::new(),
            version: String::new(),
            resource: String::new(),
            subresource: String::new(),
            scope,
        };
        match info {
            info if !info.is_resource_request => Self {
                subresource: known_path(&info.path).to_owned(),
                ..labels
            },
            info if served => Self {
                group: info.api_group.clone(),
                version: info.api_version.clone(),
                resource: info.resource.clone(),
                subresource: known_subresource(&info.subresource).to_owned(),
                ..labels
            },
            _ => Self {
                resource: OTHER.to_owned(),
                ..labels
            },
        }
    }

    pub(super) fn folded(&self) -> Self {
        Self {
            group: String::new(),
            version: String::new(),
            resource: OTHER.to_owned(),
            subresource: String::new(),
            ..self.clone()
        }
    }

    pub(super) fn pairs(&self) -> [(&'static str, &str); 8] {
        [
            ("verb", self.verb),
            ("dry_run", self.dry_run),
            ("group", &self.group),
            ("version", &self.version),
            ("resource", &self.resource),
            ("subresource", &self.subresource),
            ("scope", self.scope),
            ("component", "apiserver"),
        ]
    }

    /// Without `dry_run`.
    pub(super) fn short_pairs(&self) -> [(&'static str, &str); 7] {
        let [verb, _, rest @ ..] = self.pairs();
        let [group, version, resource, subresource, scope, component] = rest;
        [verb, group, version, resource, subresource, scope, component]
    }
}

fn known_subresource(subresource: &str) -> &str {
    match subresource {
        "" | "status" | "scale" | "finalize" => subresource,
        _ => OTHER,
    }
}

fn known_path(path: &str) -> &str {
    const PATHS: [&str; 11] = [
        "/",
        "/api",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
        "/openapi",
    ];
    let tree = |prefix: &str| {
        path.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('/'))
    };
    PATHS
        .into_iter()
        .find(|known| *known == path)
        .or_else(|| PATHS.into_iter().find(|known| known.len() > 1 && tree(known)))
        .unwrap_or(OTHER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn labels(method: &Method, url: &str, served: bool) -> RequestLabels {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let query = Query::parse(query);
        let info = RequestInfo::parse(method, path, &query).expect("a meaning");
        RequestLabels::new(&info, &query, false, served)
    }

    fn check(method: &Method, url: &str, served: bool, expect: &str) {
        let labels = labels(method, url, served);
        let text: Vec<String> = labels
            .pairs()
            .iter()
            .map(|(_, v)| {
                if v.is_empty() {
                    "-".to_owned()
                } else {
                    (*v).to_owned()
                }
            })
            .collect();
        assert_eq!(text.join(" "), format!("{expect} apiserver"), "{url}");
    }

    #[test]
    fn labels_are_those_of_kube_apiserver() {
        check(
            &Method::GET,
            "/apis/a.example/v1/apps",
            true,
            "LIST - a.example v1 apps - cluster",
        );
        check(
            &Method::GET,
            "/apis/a.example/v1/namespaces/x/apps?watch=1",
            true,
            "WATCH - a.example v1 apps - namespace",
        );
        check(
            &Method::GET,
            "/api/v1/namespaces/x/secrets/s",
            true,
            "GET - - v1 secrets - resource",
        );
        check(
            &Method::POST,
            "/api/v1/namespaces/x/secrets?dryRun=All",
            true,
            "POST All - v1 secrets - resource",
        );
        check(
            &Method::PUT,
            "/apis/a.example/v1/namespaces/x/apps/a/status?dryRun=x",
            true,
            "PUT invalid a.example v1 apps status resource",
        );
        check(
            &Method::DELETE,
            "/apis/a.example/v1/namespaces/x/apps",
            true,
            "DELETE - a.example v1 apps - namespace",
        );
    }

    #[test]
    fn unknown_things_are_folded() {
        check(
            &Method::GET,
            "/apis/random.example/v9/things",
            false,
            "LIST - - - other - cluster",
        );
        check(
            &Method::from_bytes(b"BREW").expect("a method"),
            "/api/v1/pods",
            true,
            "other - - v1 pods - cluster",
        );
        check(
            &Method::PUT,
            "/api/v1/namespaces/x/secrets/s/anything",
            true,
            "PUT - - v1 secrets other resource",
        );
        check(&Method::GET, "/wp-admin/setup.php", false, "GET - - - - other -");
        check(&Method::GET, "/readyz/ping", false, "GET - - - - /readyz -");
    }
}
