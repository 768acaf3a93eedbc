//! Who is asking.
//!
//! Standalone: the client certificate of the connection, or nobody. Tokens are not known here.

pub mod impersonation;

pub mod x509;

use crate::request::context::{Connection, LoopbackUser};
use crate::status::ApiError;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use std::sync::Arc;

/// Everyone who is known.
pub const ALL_AUTHENTICATED: &str = "system:authenticated";
/// Everyone else.
pub const ALL_UNAUTHENTICATED: &str = "system:unauthenticated";
/// The name of everyone else.
pub const ANONYMOUS: &str = "system:anonymous";
/// Those who may do all.
pub const SYSTEM_MASTERS: &str = "system:masters";
/// The name of the server when it asks itself.
pub const API_SERVER_USER: &str = "system:apiserver";

/// The user that a request comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// `system:anonymous` when nobody is known.
    pub name: String,
    /// Empty if there is none.
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// Extra attributes.
    pub extra: std::collections::BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// Nobody.
    #[must_use]
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![ALL_UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The server itself, which may do all.
    #[must_use]
    pub fn api_server() -> Self {
        Self {
            name: API_SERVER_USER.to_owned(),
            groups: vec![ALL_AUTHENTICATED.to_owned(), SYSTEM_MASTERS.to_owned()],
            ..Self::default()
        }
    }

    /// Whether the user belongs to a group.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// Finds out who asks. The strongest proof decides: a request from inside, the certificate, then nothing at all. A token
/// is a claim that nobody here can check, so it is refused rather than ignored.
///
/// # Errors
/// 401 for a token, 403 for a request in another user's name by somebody who may not do that.
pub fn authenticate(
    loopback: Option<&LoopbackUser>,
    connection: Option<&Connection>,
    headers: &HeaderMap,
) -> Result<Arc<UserInfo>, ApiError> {
    let certificate = connection.and_then(|connection| connection.client.as_ref());
    let user = match (loopback, certificate) {
        (Some(LoopbackUser(user)), _) => Arc::clone(user),
        (None, Some(user)) => Arc::clone(user),
        (None, None) if has_bearer_token(headers) => return Err(ApiError::unauthorized()),
        (None, None) => Arc::new(UserInfo::anonymous()),
    };
    impersonation::impersonate(user, headers)
}

/// Whether a header proves (or claims) who asks. What comes after authentication must not see it.
#[must_use]
pub fn is_proof(name: &HeaderName) -> bool {
    *name == AUTHORIZATION
        || ["x-remote-user", "x-remote-uid", "x-remote-group"].contains(&name.as_str())
        || name.as_str().starts_with("x-remote-extra-")
        || name.as_str().starts_with(impersonation::PREFIX)
}

fn has_bearer_token(headers: &HeaderMap) -> bool {
    let is_bearer = |value: &[u8]| {
        value
            .get(..7)
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer "))
            && value.len() > 7
    };
    headers
        .get_all(AUTHORIZATION)
        .iter()
        .any(|value| is_bearer(value.as_bytes().trim_ascii()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn check(
        certificate: Option<&str>,
        header: Option<(&'static str, &'static str)>,
        expect: Result<&str, u16>,
    ) {
        let client = certificate.map(|name| {
            Arc::new(UserInfo {
                name: name.to_owned(),
                ..UserInfo::default()
            })
        });
        let connection = Connection {
            remote_addr: ([127, 0, 0, 1], 1).into(),
            client,
        };
        let headers: HeaderMap = header
            .into_iter()
            .map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v)))
            .collect();
        let user = authenticate(None, Some(&connection), &headers).map_err(|e| e.code);
        assert_eq!(
            user.as_ref().map(|u| u.name.as_str()).map_err(|e| *e),
            expect,
            "{certificate:?} {header:?}"
        );
    }

    #[test]
    fn who_asks() {
        check(Some("jane"), None, Ok("jane"));
        check(None, None, Ok(ANONYMOUS));
        check(None, Some(("authorization", "Bearer abc")), Err(401));
        check(None, Some(("authorization", "bearer  abc")), Err(401));
        check(None, Some(("authorization", "Basic abc")), Ok(ANONYMOUS));
        check(Some("jane"), Some(("authorization", "Bearer abc")), Ok("jane"));
        check(Some("jane"), Some(("x-remote-user", "root")), Ok("jane"));
        check(None, Some(("x-remote-user", "root")), Ok(ANONYMOUS));
        check(Some("jane"), Some(("impersonate-user", "root")), Err(403));
        check(None, Some(("impersonate-extra-scopes", "root")), Err(400));
    }

    #[test]
    fn a_request_from_inside_is_the_servers_own() {
        let loopback = LoopbackUser(Arc::new(UserInfo::api_server()));
        let user = authenticate(Some(&loopback), None, &HeaderMap::new()).expect("a user");
        assert!(user.is_in(SYSTEM_MASTERS) && user.name == API_SERVER_USER);
    }
}
