//! The headers by which a front proxy (kube-apiserver's aggregator) says who asks: which they are, what they say, and that
//! nobody below sees them. Pure. Whether the peer may say so is not decided here.

use super::UserInfo;
use crate::request::query::percent_decode;
use http::{HeaderMap, HeaderName};
use std::collections::BTreeMap;

/// The headers, all in lower case as [`HeaderName`] is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RequestHeaders {
    /// The first with a value names the user.
    pub username: Vec<HeaderName>,
    /// The first with a value is the user's uid.
    pub uid: Vec<HeaderName>,
    /// All values of all of them are groups.
    pub group: Vec<HeaderName>,
    /// What begins with one of these is an extra attribute; the rest of the name is its key, `%` escaped.
    pub extra_prefixes: Vec<String>,
}

/// A header that says who asks and cannot be read. Who runs the front proxy must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value of header {0} is not UTF-8")]
pub struct UnreadableHeader(pub HeaderName);

impl RequestHeaders {
    /// Whom the headers name; `None` when they name nobody.
    ///
    /// # Errors
    /// When a value is not UTF-8: two such users must not look like one.
    pub fn user(&self, headers: &HeaderMap) -> Result<Option<UserInfo>, UnreadableHeader> {
        let name = first(headers, &self.username)?;
        if name.is_empty() {
            return Ok(None);
        }
        let mut groups = Vec::new();
        for header in &self.group {
            let values = texts(headers, header)?.into_iter();
            groups.extend(values.filter(|group| !group.is_empty()));
        }
        Ok(Some(UserInfo {
            name,
            uid: first(headers, &self.uid)?,
            groups,
            extra: self.extra(headers)?,
        }))
    }

    /// Whether a header is one of these.
    #[must_use]
    pub fn contains(&self, header: &HeaderName) -> bool {
        [&self.username, &self.uid, &self.group]
            .iter()
            .any(|names| names.contains(header))
            || self.extra_key(header).is_some()
    }

    fn extra(&self, headers: &HeaderMap) -> Result<BTreeMap<String, Vec<String>>, UnreadableHeader> {
        let mut extra = BTreeMap::<String, Vec<String>>::new();
        for prefix in &self.extra_prefixes {
            for header in headers.keys() {
                let Some(key) = header.as_str().strip_prefix(prefix.as_str()) else {
                    continue;
                };
                // What is no escape stays as it came, as upstream.
                let key = percent_decode(key).unwrap_or_else(|| key.to_owned());
                extra.entry(key).or_default().extend(texts(headers, header)?);
            }
        }
        Ok(extra)
    }

    fn extra_key<'a>(&self, header: &'a HeaderName) -> Option<&'a str> {
        let prefixes = self.extra_prefixes.iter();
        prefixes
            .into_iter()
            .find_map(|prefix| header.as_str().strip_prefix(prefix.as_str()))
    }
}

/// The first value of the first header that has one, as upstream: a second value of the same header does not count.
fn first(headers: &HeaderMap, names: &[HeaderName]) -> Result<String, UnreadableHeader> {
    for name in names {
        let value = texts(headers, name)?.into_iter().next().unwrap_or_default();
        if !value.is_empty() {
            return Ok(value);
        }
    }
    Ok(String::new())
}

fn texts(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<String>, UnreadableHeader> {
    let values = headers.get_all(name).iter();
    values
        .map(|value| std::str::from_utf8(value.as_bytes()).map(str::to_owned))
        .collect::<Result<_, _>>()
        .map_err(|_| UnreadableHeader(name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers() -> RequestHeaders {
        RequestHeaders {
            username: vec![
                HeaderName::from_static("x-remote-user"),
                HeaderName::from_static("x-user"),
            ],
            uid: vec![HeaderName::from_static("x-remote-uid")],
            group: vec![HeaderName::from_static("x-remote-group")],
            extra_prefixes: vec!["x-remote-extra-".to_owned()],
        }
    }

    /// `name uid groups extra` of the user.
    fn check(given: &[(&'static str, &[u8])], expect: Result<Option<&str>, &str>) {
        let mut map = HeaderMap::new();
        for (name, value) in given {
            map.append(*name, HeaderValue::from_bytes(value).expect("a value"));
        }
        let user = headers().user(&map).map_err(|e| e.0.to_string());
        let text = |u: UserInfo| format!("{} {} {:?} {:?}", u.name, u.uid, u.groups, u.extra);
        assert_eq!(
            user.map(|user| user.map(text)),
            expect.map(|user| user.map(str::to_owned)).map_err(str::to_owned),
            "{given:?}"
        );
    }

    #[test]
    fn headers_name_a_user() {
        check(&[], Ok(None));
        check(&[("x-remote-group", b"system:masters")], Ok(None));
        check(&[("x-remote-user", b"")], Ok(None));
        check(&[("x-remote-user", b"jane")], Ok(Some("jane  [] {}")));
        check(
            &[("x-remote-user", b"jane"), ("x-remote-user", b"root")],
            Ok(Some("jane  [] {}")),
        );
        check(&[("x-remote-user", b""), ("x-remote-user", b"root")], Ok(None));
        check(
            &[("x-remote-user", b""), ("x-user", b"joe")],
            Ok(Some("joe  [] {}")),
        );
        check(
            &[
                ("x-remote-user", "jörg".as_bytes()),
                ("x-remote-uid", b"7"),
                ("x-remote-group", b"a"),
                ("x-remote-group", b""),
                ("x-remote-group", b"b,c"),
                ("x-remote-extra-scopes", b"one"),
                ("x-remote-extra-scopes", b"two"),
                ("x-remote-extra-example.com%2fproject", b""),
                ("x-remote-extra-bad%zz", b"x"),
            ],
            Ok(Some(
                r#"jörg 7 ["a", "b,c"] {"bad%zz": ["x"], "example.com/project": [""], "scopes": ["one", "two"]}"#,
            )),
        );
        check(&[("x-remote-user", b"j\xf6rg")], Err("x-remote-user"));
        check(
            &[("x-remote-user", b"j"), ("x-remote-extra-a", b"\xff")],
            Err("x-remote-extra-a"),
        );
    }

    #[test]
    fn its_own_headers_are_known() {
        for (name, expect) in [
            ("x-remote-user", true),
            ("x-user", true),
            ("x-remote-uid", true),
            ("x-remote-extra-", true),
            ("x-remote-extra-a%2fb", true),
            ("x-remote-users", false),
            ("user-agent", false),
        ] {
            assert_eq!(
                headers().contains(&HeaderName::from_static(name)),
                expect,
                "{name}"
            );
        }
    }
}
