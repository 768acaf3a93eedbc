//! Paths that everybody may read: load balancers and probes have no certificate.
//!
//! Not what is below them, as upstream: single checks say why they fail.

use crate::request::RequestInfo;

const PUBLIC_PATHS: [&str; 5] = ["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// Whether a request reads a public path.
#[must_use]
pub fn is_public(info: &RequestInfo) -> bool {
    !info.is_resource_request && info.verb == "get" && PUBLIC_PATHS.contains(&info.path.as_str())
}
