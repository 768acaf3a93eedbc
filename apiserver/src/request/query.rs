//! `Query`: the parameters of a URL, read like Go's `url.Values` reads them. It does not know what they mean.

use std::borrow::Cow;

/// The parameters of a URL in their order. `+` is a space; a pair that cannot be decoded is left out, as upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    /// The parameters of the query part of a URL (without the question mark).
    #[must_use]
    pub fn parse(query: &str) -> Self {
        let pairs = query
            .split('&')
            .filter(|pair| !pair.is_empty() && !pair.contains(';'))
            .filter_map(pair)
            .collect();
        Self { pairs }
    }

    /// The parameters of a request's URL.
    #[must_use]
    pub fn of(uri: &http::Uri) -> Self {
        uri.query().map(Self::parse).unwrap_or_default()
    }

    /// The first value of a parameter.
    #[must_use]
    pub fn first(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    }

    /// Whether the parameter is there, with or without a value.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.first(key).is_some()
    }

    /// A switch: everything but an absent parameter, `0` and `false` is true, the empty value too.
    #[must_use]
    pub fn switch(&self, key: &str) -> Option<bool> {
        self.first(key)
            .map(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

fn pair(pair: &str) -> Option<(String, String)> {
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    Some((decode(key)?, decode(value)?))
}

fn decode(text: &str) -> Option<String> {
    let text = match text.contains('+') {
        true => Cow::Owned(text.replace('+', " ")),
        false => Cow::Borrowed(text),
    };
    percent_decode(&text)
}

/// The text behind `%` escapes; `None` when an escape is malformed or the bytes are not UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let escapes_are_well_formed = text
        .split('%')
        .skip(1)
        .all(|rest| matches!(rest.as_bytes(), [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()));
    if !escapes_are_well_formed {
        return None;
    }
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .ok()
        .map(Cow::into_owned)
}

/// A text as Go and JSON quote it.
pub(crate) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_out_as_go_reads_them() {
        let q = Query::parse("labelSelector=app+in+%28a%2Cb%29&x=1&x=2&bad=%zz&se;mi=1&flag&watch=&e=%E4");
        assert_eq!(q.first("labelSelector"), Some("app in (a,b)"));
        assert_eq!(q.all("x").collect::<Vec<_>>(), ["1", "2"]);
        assert!(!q.has("bad") && !q.has("se;mi") && !q.has("e"));
        assert_eq!(q.first("flag"), Some(""));
    }

    #[test]
    fn only_0_and_false_are_false() {
        for (query, expect) in [
            ("", None),
            ("w", Some(true)),
            ("w=", Some(true)),
            ("w=0", Some(false)),
            ("w=False", Some(false)),
            ("w=no", Some(true)),
            ("w=1", Some(true)),
        ] {
            assert_eq!(Query::parse(query).switch("w"), expect, "{query}");
        }
    }
}
