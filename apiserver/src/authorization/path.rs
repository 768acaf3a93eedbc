//! Paths that everybody may use: load balancers and probes have no certificate.
//!
//! Not what is below them, unless a path ends in `*`, as upstream: single checks say why they fail.

use crate::request::RequestInfo;
use std::sync::Arc;

/// What standalone mode lets everybody read.
const STANDALONE: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
/// What kube-apiserver's delegation lets pass.
const DELEGATED: [&str; 3] = ["/healthz", "/readyz", "/livez"];

/// The paths. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlwaysAllowPaths {
    paths: Arc<[String]>,
    reads_only: bool,
}

impl AlwaysAllowPaths {
    /// What standalone mode lets everybody read. (RBAC gives the version to everybody; there is none here.)
    #[must_use]
    pub fn standalone() -> Self {
        Self {
            paths: STANDALONE.map(str::to_owned).into(),
            reads_only: true,
        }
    }

    /// Paths, or beginnings of paths with a `*` behind them.
    #[must_use]
    pub fn new(paths: impl IntoIterator<Item = String>) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            reads_only: false,
        }
    }

    /// Whether a request may pass.
    #[must_use]
    pub fn allow(&self, info: &RequestInfo) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => info.path.starts_with(beginning),
            None => info.path == *pattern,
        };
        let may_be = !info.is_resource_request && (!self.reads_only || info.verb == "get");
        may_be && self.paths.iter().any(matches)
    }
}

impl Default for AlwaysAllowPaths {
    /// What kube-apiserver's delegation lets pass.
    fn default() -> Self {
        Self::new(DELEGATED.map(str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use http::Method;

    #[test]
    fn paths_pass_as_upstream() {
        let check = |paths: &AlwaysAllowPaths, path: &str, expect| {
            let info = RequestInfo::parse(&Method::GET, path, &Query::default()).expect("a meaning");
            assert_eq!(paths.allow(&info), expect, "{path}");
        };
        let default = AlwaysAllowPaths::default();
        check(&default, "/livez", true);
        check(&default, "/livez/ping", false);
        check(&default, "/livez/", false);
        check(&default, "/version", false);
        check(&default, "/api/v1/livez", false);
        let below = AlwaysAllowPaths::new(["/livez*".to_owned()]);
        check(&below, "/livez/ping", true);
        check(&below, "/readyz", false);
        let all = AlwaysAllowPaths::new(["*".to_owned()]);
        check(&all, "/api/v1/nodes", false);
    }
}
