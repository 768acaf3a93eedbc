//! `Impersonate-*` headers: a request in another user's name (`kubectl --as`). Pure: what is asked for, what the one who asks
//! must be allowed to do for it, and the user that comes of it. (Behind the aggregator kube-apiserver has done all that.)

use super::{ALL_AUTHENTICATED, ALL_UNAUTHENTICATED, ANONYMOUS, UserInfo};
use crate::request::RequestInfo;
use crate::request::query::percent_decode;
use crate::status::ApiError;
use http::{HeaderMap, HeaderName};
use std::collections::BTreeMap;

/// What all of these headers begin with.
pub const PREFIX: &str = "impersonate-";
/// Things of one request that are asked about one by one. More are an attack on whoever is asked.
const SUBJECTS_MAX: usize = 256;

/// A wish to be somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Impersonation {
    /// Who.
    pub user: UserInfo,
    /// What the one who asks must be allowed to do, as requests.
    pub needs: Vec<RequestInfo>,
}

/// Whether a header belongs to a wish. What comes after must not see it.
#[must_use]
pub fn is_wish(name: &HeaderName) -> bool {
    name.as_str().starts_with(PREFIX)
}

impl Impersonation {
    /// What headers ask for; `None` if nothing.
    ///
    /// # Errors
    /// 400 for headers that name no user.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, ApiError> {
        if !headers.keys().any(is_wish) {
            return Ok(None);
        }
        let texts = |name: &str| -> Result<Vec<String>, ApiError> {
            let values = headers.get_all(name).iter();
            values.map(|v| utf8(name, v.as_bytes())).collect()
        };
        let name = texts("impersonate-user")?.into_iter().next().unwrap_or_default();
        if name.is_empty() {
            return Err(ApiError::bad_request(
                "requested impersonation without impersonating a user",
            ));
        }
        let service_account = service_account(&name);
        let mut needs = vec![match service_account {
            Some((namespace, name)) => RequestInfo {
                namespace: namespace.to_owned(),
                ..need("", "serviceaccounts", name)
            },
            None => need("", "users", &name),
        }];
        let mut groups = texts("impersonate-group")?;
        needs.extend(groups.iter().map(|group| need("", "groups", group)));
        if let (Some((namespace, _)), true) = (service_account, groups.is_empty()) {
            groups = service_account_groups(namespace);
        }
        let has = |group: &str| groups.iter().any(|g| g == group);
        match name.as_str() {
            ANONYMOUS if !has(ALL_UNAUTHENTICATED) => groups.push(ALL_UNAUTHENTICATED.to_owned()),
            ANONYMOUS => {}
            _ if !has(ALL_AUTHENTICATED) && !has(ALL_UNAUTHENTICATED) => {
                groups.push(ALL_AUTHENTICATED.to_owned())
            }
            _ => {}
        }
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for header in headers.keys() {
            let Some(key) = header.as_str().strip_prefix("impersonate-extra-") else {
                continue;
            };
            let key = percent_decode(key).unwrap_or_else(|| key.to_owned());
            for value in texts(header.as_str())? {
                needs.push(RequestInfo {
                    subresource: key.clone(),
                    ..need("authentication.k8s.io", "userextras", &value)
                });
                extra.entry(key.clone()).or_default().push(value);
            }
        }
        let uid = texts("impersonate-uid")?.into_iter().next().unwrap_or_default();
        if !uid.is_empty() {
            needs.push(need("authentication.k8s.io", "uids", &uid));
        }
        if needs.len() > SUBJECTS_MAX {
            return Err(ApiError::bad_request(format!(
                "requested impersonation of more than {SUBJECTS_MAX} groups and attributes"
            )));
        }
        let user = UserInfo {
            name,
            uid,
            groups,
            extra,
        };
        Ok(Some(Self { user, needs }))
    }
}

fn utf8(header: &str, bytes: &[u8]) -> Result<String, ApiError> {
    let text = std::str::from_utf8(bytes).map(str::to_owned);
    text.map_err(|_| ApiError::bad_request(format!("the value of header {header} is not UTF-8")))
}

fn need(group: &str, resource: &str, name: &str) -> RequestInfo {
    RequestInfo {
        is_resource_request: true,
        verb: "impersonate".to_owned(),
        api_group: group.to_owned(),
        api_version: if group.is_empty() { "" } else { "v1" }.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..RequestInfo::default()
    }
}

/// `system:serviceaccount:<namespace>:<name>`
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (!namespace.is_empty() && !name.is_empty() && !name.contains(':')).then_some((namespace, name))
}

/// A service account belongs to the groups of all service accounts and of its namespace's.
fn service_account_groups(namespace: &str) -> Vec<String> {
    vec![
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{namespace}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    /// `name [groups]; what is needed`.
    fn check(headers: &[(&'static str, &'static str)], expect: Result<Option<&str>, &str>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let need = |n: &RequestInfo| {
            let parts = [
                &n.api_group,
                &n.api_version,
                &n.namespace,
                &n.resource,
                &n.subresource,
                &n.name,
            ];
            parts.map(String::as_str).join("/")
        };
        let text = |i: Impersonation| {
            let needs: Vec<String> = i.needs.iter().map(need).collect();
            let (name, uid, groups, extra) = (i.user.name, i.user.uid, i.user.groups.join(","), i.user.extra);
            format!("{name}/{uid} [{groups}] {extra:?}; {}", needs.join(" "))
        };
        let wish = Impersonation::of(&map)
            .map(|wish| wish.map(text))
            .map_err(|e| e.message);
        assert_eq!(
            wish,
            expect.map(|text| text.map(str::to_owned)).map_err(str::to_owned),
            "{headers:?}"
        );
    }

    #[test]
    fn wishes_are_read_as_upstream_reads_them() {
        check(&[], Ok(None));
        check(
            &[("impersonate-user", "jane")],
            Ok(Some("jane/ [system:authenticated] {}; ///users//jane")),
        );
        check(
            &[("impersonate-user", ANONYMOUS)],
            Ok(Some(
                "system:anonymous/ [system:unauthenticated] {}; ///users//system:anonymous",
            )),
        );
        check(
            &[
                ("impersonate-user", "jane"),
                ("impersonate-group", "a"),
                ("impersonate-group", "b"),
            ],
            Ok(Some(
                "jane/ [a,b,system:authenticated] {}; ///users//jane ///groups//a ///groups//b",
            )),
        );
        check(
            &[
                ("impersonate-user", "jane"),
                ("impersonate-group", ALL_UNAUTHENTICATED),
            ],
            Ok(Some(
                "jane/ [system:unauthenticated] {}; ///users//jane ///groups//system:unauthenticated",
            )),
        );
        check(
            &[("impersonate-user", "system:serviceaccount:ns:robot")],
            Ok(Some(
                "system:serviceaccount:ns:robot/ [system:serviceaccounts,system:serviceaccounts:ns,system:authenticated] {}; //ns/serviceaccounts//robot",
            )),
        );
        check(
            &[("impersonate-user", "system:serviceaccount:ns")],
            Ok(Some(
                "system:serviceaccount:ns/ [system:authenticated] {}; ///users//system:serviceaccount:ns",
            )),
        );
        check(
            &[
                ("impersonate-user", "j"),
                ("impersonate-uid", "7"),
                ("impersonate-extra-a%2fb", "x"),
            ],
            Ok(Some(
                "j/7 [system:authenticated] {\"a/b\": [\"x\"]}; ///users//j authentication.k8s.io/v1//userextras/a/b/x authentication.k8s.io/v1//uids//7",
            )),
        );
    }

    #[test]
    fn a_wish_without_a_user_is_none() {
        let message = "requested impersonation without impersonating a user";
        check(&[("impersonate-group", "a")], Err(message));
        check(&[("impersonate-extra-scopes", "root")], Err(message));
        check(
            &[("impersonate-user", ""), ("impersonate-uid", "7")],
            Err(message),
        );
    }
}
