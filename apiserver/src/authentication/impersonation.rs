//! `Impersonate-*` headers: a request in another user's name (`kubectl --as`). Standalone, only those who may do all may
//! do that.

use super::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, SYSTEM_MASTERS, UserInfo};
use crate::authorization::forbidden;
use crate::request::RequestInfo;
use crate::request::query::percent_decode;
use crate::status::ApiError;
use http::HeaderMap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What all of these headers begin with.
pub const PREFIX: &str = "impersonate-";

/// The user in whose name the request is carried out: the one who asks, unless headers say otherwise.
///
/// # Errors
/// 403 for those who may not, 400 for headers that name no user.
pub fn impersonate(user: Arc<UserInfo>, headers: &HeaderMap) -> Result<Arc<UserInfo>, ApiError> {
    let asked = headers.keys().any(|name| name.as_str().starts_with(PREFIX));
    if !asked {
        return Ok(user);
    }
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect()
    };
    let name = texts("impersonate-user").into_iter().next().unwrap_or_default();
    if name.is_empty() {
        return Err(ApiError::bad_request(
            "requested impersonation without impersonating a user",
        ));
    }
    if !user.is_in(SYSTEM_MASTERS) {
        let info = RequestInfo {
            is_resource_request: true,
            verb: "impersonate".to_owned(),
            resource: "users".to_owned(),
            name,
            ..RequestInfo::default()
        };
        return Err(forbidden(&user, &info));
    }
    let mut groups = texts("impersonate-group");
    if groups.is_empty() {
        groups = service_account_groups(&name);
    }
    let everyone = if name == ANONYMOUS {
        ALL_UNAUTHENTICATED
    } else {
        ALL_AUTHENTICATED
    };
    if !groups
        .iter()
        .any(|g| g == ALL_AUTHENTICATED || g == ALL_UNAUTHENTICATED)
    {
        groups.push(everyone.to_owned());
    }
    let mut extra = BTreeMap::new();
    for header in headers.keys() {
        let Some(key) = header.as_str().strip_prefix("impersonate-extra-") else {
            continue;
        };
        let key = percent_decode(key).unwrap_or_else(|| key.to_owned());
        extra.insert(key, texts(header.as_str()));
    }
    let uid = texts("impersonate-uid").into_iter().next().unwrap_or_default();
    Ok(Arc::new(UserInfo {
        name,
        uid,
        groups,
        extra,
    }))
}

/// `system:serviceaccount:<namespace>:<name>` belongs to the groups of all service accounts and of its namespace's.
fn service_account_groups(user: &str) -> Vec<String> {
    match user
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
    {
        Some((namespace, _)) => vec![
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ],
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    fn check(
        group: &str,
        headers: &[(&'static str, &'static str)],
        expect: Result<(&str, &[&str]), (u16, &str)>,
    ) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let user = Arc::new(UserInfo {
            name: "admin".to_owned(),
            groups: vec![group.to_owned()],
            ..UserInfo::default()
        });
        let result = impersonate(user, &map);
        let result = result.as_ref().map(|u| {
            (
                u.name.as_str(),
                u.groups.iter().map(String::as_str).collect::<Vec<_>>(),
            )
        });
        let result = result.map_err(|e| (e.code, e.message.as_str()));
        assert_eq!(
            result,
            expect.map(|(name, groups)| (name, groups.to_vec())),
            "{headers:?}"
        );
    }

    #[test]
    fn masters_may_be_anybody() {
        check(SYSTEM_MASTERS, &[], Ok(("admin", &[SYSTEM_MASTERS])));
        check(
            SYSTEM_MASTERS,
            &[("impersonate-user", "jane")],
            Ok(("jane", &[ALL_AUTHENTICATED])),
        );
        check(
            SYSTEM_MASTERS,
            &[("impersonate-user", ANONYMOUS)],
            Ok((ANONYMOUS, &[ALL_UNAUTHENTICATED])),
        );
        check(
            SYSTEM_MASTERS,
            &[
                ("impersonate-user", "jane"),
                ("impersonate-group", "a"),
                ("impersonate-group", "b"),
            ],
            Ok(("jane", &["a", "b", ALL_AUTHENTICATED])),
        );
        check(
            SYSTEM_MASTERS,
            &[("impersonate-user", "system:serviceaccount:ns:robot")],
            Ok((
                "system:serviceaccount:ns:robot",
                &[
                    "system:serviceaccounts",
                    "system:serviceaccounts:ns",
                    ALL_AUTHENTICATED,
                ],
            )),
        );
        check(
            SYSTEM_MASTERS,
            &[("impersonate-group", "a")],
            Err((400, "requested impersonation without impersonating a user")),
        );
    }

    #[test]
    fn others_may_not() {
        check(
            "developers",
            &[("impersonate-user", "jane")],
            Err((
                403,
                "users \"jane\" is forbidden: User \"admin\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            )),
        );
    }
}
