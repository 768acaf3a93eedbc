//! What a user may do. Standalone: `system:masters` everything, everybody the health paths, others nothing. In a control
//! plane kube-apiserver decides about those others.

pub mod delegated;

pub mod path;

mod subject_access_review;

use crate::authentication::{SYSTEM_MASTERS, UserInfo};
use crate::request::{Query, RequestInfo};
use crate::status::{ApiError, GroupResource};
use delegated::{Delegated, DelegatedConfig};
use path::AlwaysAllowPaths;
use std::sync::Arc;

/// The proof that a user may do what a request asks. Only [`Authorizer::authorize`] makes one.
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

/// Decides what users may. Cheap to clone.
#[derive(Clone)]
pub struct Authorizer {
    paths: AlwaysAllowPaths,
    /// `None`: standalone.
    delegated: Option<Delegated>,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// They may.
    Allow,
    /// They may not. The reason may be empty.
    Deny(String),
}

impl Default for Authorizer {
    fn default() -> Self {
        Self::standalone()
    }
}

impl Authorizer {
    /// `system:masters` may do all, everybody may look at health and version.
    #[must_use]
    pub fn standalone() -> Self {
        Self {
            paths: AlwaysAllowPaths::standalone(),
            delegated: None,
        }
    }

    /// kube-apiserver decides, but for `system:masters` and the paths of probes.
    #[must_use]
    pub fn delegated(config: DelegatedConfig) -> Self {
        Self {
            paths: config.always_allow_paths.clone(),
            delegated: Some(Delegated::new(config)),
        }
    }

    /// Whether `system:masters` are few, and not everybody.
    #[must_use]
    pub fn is_delegated(&self) -> bool {
        self.delegated.is_some()
    }

    /// Decides about a request.
    ///
    /// # Errors
    /// 403, in kube-apiserver's words; 500 when nobody can decide.
    pub async fn authorize(
        &self,
        user: &Arc<UserInfo>,
        info: &Arc<RequestInfo>,
        query: &Query,
    ) -> Result<Authorized, ApiError> {
        match self.decide(user, info, query).await? {
            Decision::Allow => Ok(Authorized {
                user: Arc::clone(user),
                info: Arc::clone(info),
            }),
            Decision::Deny(reason) => Err(forbidden(user, info, &reason)),
        }
    }

    /// Decides about something that is no request of its own. Whoever cannot be asked says no, as upstream.
    ///
    /// # Errors
    /// 403, in kube-apiserver's words.
    pub async fn permit(&self, user: &UserInfo, info: &RequestInfo) -> Result<(), ApiError> {
        match self.decide(user, info, &Query::default()).await {
            Ok(Decision::Allow) => Ok(()),
            Ok(Decision::Deny(reason)) => Err(forbidden(user, info, &reason)),
            Err(_) => Err(forbidden(user, info, "")),
        }
    }

    async fn decide(&self, user: &UserInfo, info: &RequestInfo, query: &Query) -> Result<Decision, ApiError> {
        if user.is_in(SYSTEM_MASTERS) || self.paths.allow(info) {
            return Ok(Decision::Allow);
        }
        match &self.delegated {
            Some(delegated) => delegated.decide(user, info, query).await,
            None => Ok(Decision::Deny(String::new())),
        }
    }
}

/// The refusal of a request, in kube-apiserver's words. What clients wrote is made harmless; the reason is not theirs.
fn forbidden(user: &UserInfo, info: &RequestInfo, reason: &str) -> ApiError {
    let because = |cause: &str| match reason {
        "" => harmless(cause),
        reason => format!("{}: {reason}", harmless(cause)),
    };
    let (user, verb) = (quote(&user.name), &info.verb);
    if !info.is_resource_request {
        let cause = format!("User {user} cannot {verb} path {}", quote(&info.path));
        return ApiError::forbidden(
            GroupResource {
                group: "",
                resource: "",
            },
            "",
            &because(&cause),
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
    ApiError::forbidden(info.group_resource(), &info.name, &because(&cause))
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
    use futures::FutureExt;
    use http::Method;

    fn check(groups: &[&str], method: Method, path: &str, expect: Result<(), &str>) {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        let user = Arc::new(UserInfo {
            name: "jane".to_owned(),
            groups,
            ..UserInfo::default()
        });
        let info = RequestInfo::parse(&method, path, &Query::default()).expect("a meaning");
        let decision = Authorizer::standalone()
            .authorize(&user, &Arc::new(info), &Query::default())
            .now_or_never()
            .expect("nothing to wait for")
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
    fn a_reason_follows_the_refusal() {
        let info = RequestInfo {
            verb: "get".to_owned(),
            path: "/<a>".to_owned(),
            ..RequestInfo::default()
        };
        let message = forbidden(&UserInfo::anonymous(), &info, "RBAC: <no>").message;
        assert_eq!(
            message,
            "forbidden: User \"system:anonymous\" cannot get path \"/&lt;a&gt;\": RBAC: <no>"
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
