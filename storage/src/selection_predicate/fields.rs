//! `fieldSelector`: `a.b=c`, `a.b==c`, `a.b!=c`, joined by commas; `\`, `,` and `=` in a value are escaped by `\`.
//!
//! A term's field is a path in the object, `spec.color`; `metadata.name` and `metadata.namespace` are answered by the
//! key. A missing value matches as the empty text. Which fields are allowed is the caller's business.

use super::{SelectorError, check_length};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// A parsed `fieldSelector`; empty selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

/// One condition on one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldTerm {
    field: String,
    operator: FieldOperator,
    value: String,
    /// `field`, split into the names of an object's members.
    path: Vec<String>,
}

/// How a field relates to the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldOperator {
    /// `=` or `==`
    Equals,
    /// `!=`
    NotEquals,
}

impl FieldSelector {
    /// Parses a `fieldSelector`.
    ///
    /// # Errors
    /// With kube-apiserver's text.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        check_length("field", text)?;
        let mut parts = split_terms(text);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let Some((field, operator, value)) = split_term(part) else {
                return Err(SelectorError(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            terms.push(FieldTerm::new(field, operator, unescape(value)?));
        }
        Ok(Self { terms })
    }

    /// The selector of one field with one value.
    #[must_use]
    pub fn equals(field: &str, value: &str) -> Self {
        Self {
            terms: vec![FieldTerm::new(field, FieldOperator::Equals, value.to_owned())],
        }
    }

    /// Its conditions, all of which must hold.
    #[must_use]
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that this field must have, if the selector says so: `metadata.name=x` asks for one object.
    #[must_use]
    pub fn requires_exact(&self, field: &str) -> Option<&str> {
        let exact = |t: &&FieldTerm| t.field == field && t.operator == FieldOperator::Equals;
        self.terms.iter().find(exact).map(|t| t.value.as_str())
    }

    /// The terms that the key decides.
    pub(super) fn matches_key(&self, namespace: &str, name: &str) -> bool {
        self.terms
            .iter()
            .all(|t| t.of_key(namespace, name).is_none_or(|text| t.matches_text(text)))
    }

    /// The terms that the key does not decide, on an object's JSON.
    pub(super) fn matches_body(&self, body: &[u8]) -> Result<bool, serde_json::Error> {
        for term in self.terms.iter().filter(|t| t.of_key("", "").is_none()) {
            if !term.matches_body(body)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl FieldTerm {
    fn new(field: &str, operator: FieldOperator, value: String) -> Self {
        Self {
            path: split_path(field),
            field: field.to_owned(),
            operator,
            value,
        }
    }

    /// The field as it was written: `spec.color`.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }

    /// How it relates to the value.
    #[must_use]
    pub fn operator(&self) -> FieldOperator {
        self.operator
    }

    /// The value, without escapes.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether it holds for a field with this text.
    #[must_use]
    pub fn matches_text(&self, text: &str) -> bool {
        (text == self.value) == (self.operator == FieldOperator::Equals)
    }

    fn of_key<'a>(&self, namespace: &'a str, name: &'a str) -> Option<&'a str> {
        match self.field.as_str() {
            "metadata.name" => Some(name),
            "metadata.namespace" => Some(namespace),
            _ => None,
        }
    }

    fn matches_body(&self, body: &[u8]) -> Result<bool, serde_json::Error> {
        let mut equal = None;
        let mut json = serde_json::Deserializer::from_slice(body);
        let read = Find {
            path: &self.path,
            want: &self.value,
            equal: &mut equal,
        }
        .deserialize(&mut json);
        // The walk stops where it found the value, which the parser takes for an error.
        if equal.is_none() {
            read?;
        }
        let equal = equal.unwrap_or(self.value.is_empty());
        Ok(equal == (self.operator == FieldOperator::Equals))
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let operator = match term.operator {
                FieldOperator::Equals => "=",
                FieldOperator::NotEquals => "!=",
            };
            write!(f, "{}{}{operator}", if i > 0 { "," } else { "" }, term.field)?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

/// Splits at commas that no backslash escapes.
fn split_terms(text: &str) -> Vec<&str> {
    let mut escaped = false;
    text.split(|c| {
        let separates = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        separates
    })
    .collect()
}

/// Splits at the first operator. A field has no escapes.
fn split_term(term: &str) -> Option<(&str, FieldOperator, &str)> {
    let not_equals = term.find("!=");
    let equals = term.find('=')?;
    if not_equals.is_some_and(|at| at < equals) {
        return Some((&term[..equals - 1], FieldOperator::NotEquals, &term[equals + 1..]));
    }
    let value = &term[equals + 1..];
    Some((
        &term[..equals],
        FieldOperator::Equals,
        value.strip_prefix('=').unwrap_or(value),
    ))
}

fn unescape(value: &str) -> Result<String, SelectorError> {
    let invalid = |sequence: String| {
        Err(SelectorError(format!(
            "invalid field selector: invalid escape sequence: {sequence}"
        )))
    };
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => out.push(escaped),
                Some(other) => return invalid(format!("\\{other}")),
                None => return invalid("\\".to_owned()),
            },
            ',' | '=' => {
                // Upstream prints the character's number.
                let number = u32::from(c);
                let cause = format!("invalid field selector: unescaped character in value: {number}");
                return Err(SelectorError(cause));
            }
            other => out.push(other),
        }
    }
    Ok(out)
}

/// `spec.color` and `spec['a.b']`, the two notations of selectableFields.
fn split_path(field: &str) -> Vec<String> {
    let mut path = Vec::new();
    let mut rest = field.strip_prefix('.').unwrap_or(field);
    while !rest.is_empty() {
        if let Some((name, after)) = rest.strip_prefix("['").and_then(|r| r.split_once("']")) {
            path.push(name.to_owned());
            rest = after.strip_prefix('.').unwrap_or(after);
            continue;
        }
        // A bracket at the very start is not one of ours: it is taken as a part of the name.
        let end = rest
            .char_indices()
            .skip(1)
            .find(|(i, c)| *c == '.' || rest[*i..].starts_with("['"));
        let end = if rest.starts_with('.') {
            0
        } else {
            end.map_or(rest.len(), |(i, _)| i)
        };
        let (name, after) = rest.split_at(end);
        path.push(name.to_owned());
        rest = after.strip_prefix('.').unwrap_or(after);
    }
    path
}

/// Walks JSON along `path` without building anything, compares the scalar there, and stops.
struct Find<'o> {
    path: &'o [String],
    want: &'o str,
    /// `None` until the value was found.
    equal: &'o mut Option<bool>,
}

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl Find<'_> {
    /// A scalar where the path ends; before its end there is nothing to be found in it.
    fn scalar<E>(self, is_wanted: impl FnOnce(&str) -> bool) -> Result<(), E> {
        if self.path.is_empty() {
            *self.equal = Some(is_wanted(self.want));
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.scalar(|want| want == if value { "true" } else { "false" })
    }
    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.scalar(|want| want == value.to_string())
    }
    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.scalar(|want| want == value.to_string())
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.scalar(|want| want == value.to_string())
    }
    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.scalar(|want| want == value)
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.scalar(str::is_empty)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((name, below)) = self.path.split_first() else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while let Some(found) = map.next_key_seed(IsKey(name))? {
            if found {
                map.next_value_seed(Find {
                    path: below,
                    want: self.want,
                    equal: &mut *self.equal,
                })?;
                if self.equal.is_some() {
                    return Ok(());
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// Compares a key without keeping it.
struct IsKey<'o>(&'o str);

impl<'de> DeserializeSeed<'de> for IsKey<'_> {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<bool, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for IsKey<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, expect: &[(&str, FieldOperator, &str)], canonical: &str) {
        let parsed = FieldSelector::parse(selector).expect(selector);
        let terms: Vec<_> = parsed
            .terms()
            .iter()
            .map(|t| (t.field(), t.operator(), t.value()))
            .collect();
        assert_eq!(terms, expect, "{selector}");
        assert_eq!(parsed.to_string(), canonical, "{selector}");
    }

    #[test]
    fn terms_are_split_and_unescaped() {
        use FieldOperator::{Equals, NotEquals};
        check("", &[], "");
        check(",", &[], "");
        check(
            "b!=2,a=1",
            &[("a", Equals, "1"), ("b", NotEquals, "2")],
            "a=1,b!=2",
        );
        check("a==1", &[("a", Equals, "1")], "a=1");
        check(r"a=x\,y\=z\\", &[("a", Equals, r"x,y=z\")], r"a=x\,y\=z\\");
        check("a=", &[("a", Equals, "")], "a=");
        check("a=b!c", &[("a", Equals, "b!c")], "a=b!c");
        check(
            "metadata.name=ü",
            &[("metadata.name", Equals, "ü")],
            "metadata.name=ü",
        );
    }

    #[test]
    fn errors_have_the_texts_of_upstream() {
        for (selector, expect) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("b=1,a", "invalid selector: 'b=1,a'; can't understand 'a'"),
            (
                "a=b=c",
                "invalid field selector: unescaped character in value: 61",
            ),
            (
                "a===c",
                "invalid field selector: unescaped character in value: 61",
            ),
            (r"a=\n", r"invalid field selector: invalid escape sequence: \n"),
            (r"a=\", r"invalid field selector: invalid escape sequence: \"),
        ] {
            let error = FieldSelector::parse(selector).expect_err(selector);
            assert_eq!(error.to_string(), expect, "{selector}");
        }
    }

    #[test]
    fn one_name_is_seen() {
        let exact = |s: &str| {
            let selector = FieldSelector::parse(s).expect(s);
            selector.requires_exact("metadata.name").map(str::to_owned)
        };
        assert_eq!(exact("metadata.name=web,spec.x=1").as_deref(), Some("web"));
        assert_eq!(exact("metadata.name!=web"), None);
        assert_eq!(exact(""), None);
        assert_eq!(
            FieldSelector::equals("metadata.name", "web"),
            FieldSelector::parse("metadata.name=web").expect("a selector")
        );
    }

    #[test]
    fn paths_have_two_notations() {
        for (field, expect) in [
            ("spec.color", &["spec", "color"][..]),
            (".spec.color", &["spec", "color"]),
            ("spec['a.b'].c", &["spec", "a.b", "c"]),
            ("spec['a.b']['c']", &["spec", "a.b", "c"]),
            ("a..b", &["a", "", "b"]),
            ("['", &["['"]),
            ("é.ü", &["é", "ü"]),
        ] {
            assert_eq!(split_path(field), expect, "{field}");
        }
    }

    #[test]
    fn unreadable_bodies_are_errors_unless_the_value_came_first() {
        let term = FieldSelector::parse("a=1").expect("a selector");
        assert!(term.matches_body(br#"{"a":1,"#).expect("found before the end"));
        assert!(term.matches_body(br#"{"b":1,"#).is_err());
    }
}
