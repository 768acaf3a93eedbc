//! What a user may do. Standalone: `system:masters` everything, everybody the health paths, others nothing.

pub mod path;

use crate::authentication::{SYSTEM_MASTERS, UserInfo};
use crate::request::RequestInfo;
use crate::status::{ApiError, GroupResource};
use std::sync::Arc;

/// The proof that a user may do what a request asks. Only [`authorize`] makes one.
#[derive(Debug, Clone)]
pub struct Authorized {
    user: Arc<UserInfo>,
    info: Arc<RequestInfo>,
}

impl Authorized {
    /// Who may.
    #[must_use]
    pub fn user(&self) -> &Arc<UserInfo> {
        &self.user
    }

    /// What they may.
    #[must_use]
    pub fn info(&self) -> &Arc<RequestInfo> {
        &self.info
    }
}

/// Decides.
///
/// # Errors
/// 403, in kube-apiserver's words.
pub fn authorize(user: &Arc<UserInfo>, info: &Arc<RequestInfo>) -> Result<Authorized, ApiError> {
    let allowed = user.is_in(SYSTEM_MASTERS) || path::is_public(info);
    if !allowed {
        return Err(forbidden(user, info));
    }
    Ok(Authorized {
        user: Arc::clone(user),
        info: Arc::clone(info),
    })
}

/// The refusal of a request, in kube-apiserver's words.
pub(crate) fn forbidden(user: &UserInfo, info: &RequestInfo) -> ApiError {
    let (user, verb) = (quote(&user.name), &info.verb);
    if !info.is_resource_request {
        let cause = format!("User {user} cannot {verb} path {}", quote(&info.path));
        return ApiError::forbidden(
            GroupResource {
                group: "",
                resource: "",
            },
            "",
            &harmless(&cause),
        );
    }
    let resource = match info.subresource.as_str() {
        "" => info.resource.clone(),
        subresource => format!("{}/{subresource}", info.resource),
    };
    let place = match info.namespace.as_str() {
        "" => "at the cluster scope".to_owned(),
        namespace => format!("in the namespace {}", quote(namespace)),
    };
    let cause = format!(
        "User {user} cannot {verb} resource {} in API group {} {place}",
        quote(&resource),
        quote(&info.api_group)
    );
    ApiError::forbidden(info.group_resource(), &info.name, &harmless(&cause))
}

/// What a browser would take for HTML is escaped.
fn harmless(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use http::Method;

    fn check(groups: &[&str], method: Method, path: &str, expect: Result<(), &str>) {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        let user = Arc::new(UserInfo {
            name: "jane".to_owned(),
            groups,
            ..UserInfo::default()
        });
        let info = RequestInfo::parse(&method, path, &Query::default()).expect("a meaning");
        let decision = authorize(&user, &Arc::new(info))
            .map(|_| ())
            .map_err(|e| (e.code, e.message));
        assert_eq!(
            decision,
            expect.map_err(|message| (403, message.to_owned())),
            "{groups:?} {path}",
            groups = user.groups
        );
    }

    #[test]
    fn masters_may_do_all() {
        check(&[SYSTEM_MASTERS], Method::DELETE, "/api/v1/namespaces/x", Ok(()));
        check(&[SYSTEM_MASTERS], Method::GET, "/metrics", Ok(()));
    }

    #[test]
    fn everybody_may_look_at_health_and_version() {
        let below = "forbidden: User \"jane\" cannot get path \"/livez/ping\"";
        check(&[], Method::GET, "/livez/ping", Err(below));
        for path in ["/healthz", "/livez", "/readyz", "/version", "/version/"] {
            check(&[], Method::GET, path, Ok(()));
        }
        check(
            &[],
            Method::POST,
            "/healthz",
            Err("forbidden: User \"jane\" cannot post path \"/healthz\""),
        );
    }

    #[test]
    fn others_are_told_what_they_may_not() {
        let g = &["system:authenticated"];
        check(
            g,
            Method::GET,
            "/metrics",
            Err("forbidden: User \"jane\" cannot get path \"/metrics\""),
        );
        check(
            g,
            Method::GET,
            "/<b>",
            Err("forbidden: User \"jane\" cannot get path \"/&lt;b&gt;\""),
        );
        check(
            g,
            Method::GET,
            "/healthzz",
            Err("forbidden: User \"jane\" cannot get path \"/healthzz\""),
        );
        check(
            g,
            Method::GET,
            "/api/v1/namespaces/ns/pods",
            Err(
                "pods is forbidden: User \"jane\" cannot list resource \"pods\" in API group \"\" in the namespace \"ns\"",
            ),
        );
        check(
            g,
            Method::PUT,
            "/apis/a.example/v1/namespaces/ns/apps/x/status",
            Err(
                "apps.a.example \"x\" is forbidden: User \"jane\" cannot update resource \"apps/status\" in API group \"a.example\" in the namespace \"ns\"",
            ),
        );
        check(
            g,
            Method::DELETE,
            "/api/v1/nodes",
            Err(
                "nodes is forbidden: User \"jane\" cannot deletecollection resource \"nodes\" in API group \"\" at the cluster scope",
            ),
        );
    }
}
