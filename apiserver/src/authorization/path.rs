//! Paths that everybody may read: load balancers and probes have no certificate.

use crate::request::RequestInfo;

/// These and what is below them.
const PUBLIC_TREES: [&str; 3] = ["/healthz", "/livez", "/readyz"];
/// These alone.
const PUBLIC_PATHS: [&str; 2] = ["/version", "/version/"];

/// Whether a request reads a public path.
#[must_use]
pub fn is_public(info: &RequestInfo) -> bool {
    let path = info.path.as_str();
    let below = |tree: &str| {
        path.strip_prefix(tree)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let public = PUBLIC_PATHS.contains(&path) || PUBLIC_TREES.iter().any(|tree| below(tree));
    !info.is_resource_request && matches!(info.verb.as_str(), "get" | "head") && public
}
