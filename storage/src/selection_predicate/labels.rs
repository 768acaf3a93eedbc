//! `labelSelector`: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, `a>1`, `a<1`, joined by commas.
//!
//! Grammar, checks of keys and values, and the texts of errors are Kubernetes'. It does not know whose labels it reads:
//! matching takes the JSON of `metadata`.

mod parser;
mod validation;

pub use validation::{check_key, check_value};

use super::{SelectorError, check_length};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// The longest name part of a label's key, and the longest value, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;
/// The longest prefix of a label's key, a DNS subdomain, in bytes.
pub const LABEL_PREFIX_BYTES_MAX: usize = 253;

/// A parsed `labelSelector`; empty selects everything. Its requirements are sorted by key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<LabelRequirement>,
}

/// One condition on one label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRequirement {
    key: String,
    operator: LabelOperator,
    /// Sorted, without repetition.
    values: Vec<String>,
}

/// How a label relates to the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabelOperator {
    /// `=`
    Equals,
    /// `==`, the same.
    DoubleEquals,
    /// `!=`: another value, or no such label.
    NotEquals,
    /// `in`
    In,
    /// `notin`: none of the values, or no such label.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// `>`: both are integers, and the label's is greater.
    GreaterThan,
    /// `<`
    LessThan,
}

impl LabelSelector {
    /// Parses a `labelSelector`.
    ///
    /// # Errors
    /// With kube-apiserver's text.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        check_length("label", text)?;
        let mut requirements = parser::parse(text).map_err(SelectorError)?;
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(Self { requirements })
    }

    /// The conditions, sorted by key.
    #[must_use]
    pub fn requirements(&self) -> &[LabelRequirement] {
        &self.requirements
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether it selects an object with these labels.
    pub fn matches<'a>(&self, labels: impl IntoIterator<Item = (&'a str, &'a str)> + Clone) -> bool {
        self.requirements.iter().all(|r| {
            let value = labels
                .clone()
                .into_iter()
                .find(|(key, _)| *key == r.key)
                .map(|(_, value)| value);
            r.matches(value)
        })
    }

    /// Whether it selects an object with this `metadata` (JSON). Reads no further than the labels.
    pub(super) fn matches_metadata(&self, metadata: &[u8]) -> Result<bool, serde_json::Error> {
        if self.is_empty() {
            return Ok(true);
        }
        let mut labels = Vec::new();
        let mut found = false;
        let mut json = serde_json::Deserializer::from_slice(metadata);
        let read = LabelsOfMetadata {
            labels: &mut labels,
            found: &mut found,
        }
        .deserialize(&mut json);
        // The walk stops behind the labels, which the parser takes for an error.
        if !found {
            read?;
        }
        Ok(self.matches(labels.iter().map(|(key, value)| (&**key, &**value))))
    }
}

impl LabelRequirement {
    /// The label's key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How the label relates to the values.
    #[must_use]
    pub fn operator(&self) -> LabelOperator {
        self.operator
    }

    /// The values, sorted.
    #[must_use]
    pub fn values(&self) -> &[String] {
        &self.values
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        let integers = |value: &str| {
            Some((
                value.parse::<i64>().ok()?,
                self.values.first()?.parse::<i64>().ok()?,
            ))
        };
        match self.operator {
            LabelOperator::Equals | LabelOperator::DoubleEquals | LabelOperator::In => {
                value.is_some_and(listed)
            }
            LabelOperator::NotEquals | LabelOperator::NotIn => !value.is_some_and(listed),
            LabelOperator::Exists => value.is_some(),
            LabelOperator::DoesNotExist => value.is_none(),
            LabelOperator::GreaterThan => value.and_then(integers).is_some_and(|(have, want)| have > want),
            LabelOperator::LessThan => value.and_then(integers).is_some_and(|(have, want)| have < want),
        }
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            requirement.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for LabelRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, values) = (&self.key, self.values.join(","));
        match self.operator {
            LabelOperator::Equals => write!(f, "{key}={values}"),
            LabelOperator::DoubleEquals => write!(f, "{key}=={values}"),
            LabelOperator::NotEquals => write!(f, "{key}!={values}"),
            LabelOperator::In => write!(f, "{key} in ({values})"),
            LabelOperator::NotIn => write!(f, "{key} notin ({values})"),
            LabelOperator::Exists => write!(f, "{key}"),
            LabelOperator::DoesNotExist => write!(f, "!{key}"),
            LabelOperator::GreaterThan => write!(f, "{key}>{values}"),
            LabelOperator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// Takes the labels out of the JSON of `metadata` and stops there.
struct LabelsOfMetadata<'o, 'a> {
    labels: &'o mut Vec<(Cow<'a, str>, Cow<'a, str>)>,
    found: &'o mut bool,
}

impl<'a> DeserializeSeed<'a> for LabelsOfMetadata<'_, 'a> {
    type Value = ();
    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'a> Visitor<'a> for LabelsOfMetadata<'_, 'a> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("metadata")
    }
    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Text<'a>>()? {
            if key.0 == "labels" {
                map.next_value_seed(Labels(self.labels))?;
                *self.found = true;
                return Ok(());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

struct Labels<'o, 'a>(&'o mut Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> DeserializeSeed<'a> for Labels<'_, 'a> {
    type Value = ();
    fn deserialize<D: Deserializer<'a>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'a> Visitor<'a> for Labels<'_, 'a> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("labels")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((key, value)) = map.next_entry::<Text<'a>, Text<'a>>()? {
            self.0.push((key.0, value.0));
        }
        Ok(())
    }
}

/// A text that borrows where it has no escapes (plain `Cow` never does).
#[derive(serde::Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, labels: &[(&str, &str)], expect: bool) {
        let parsed = LabelSelector::parse(selector).expect(selector);
        assert_eq!(
            parsed.matches(labels.iter().copied()),
            expect,
            "{selector} on {labels:?}"
        );
        let again = LabelSelector::parse(&parsed.to_string()).expect("the canonical text parses");
        assert_eq!(again, parsed, "{selector}");
        let json = serde_json::to_vec(&serde_json::json!({"annotations": {"a": "\u{1}"},
            "labels": labels.iter().copied().collect::<std::collections::BTreeMap<_, _>>(), "name": "x"}));
        let from_json = parsed.matches_metadata(&json.expect("json")).expect("metadata");
        assert_eq!(from_json, expect, "{selector} on the JSON of {labels:?}");
    }

    #[test]
    fn requirements_match_like_upstream() {
        let labels = [("app", "web"), ("example.com/tier", "7"), ("empty", "")];
        for (selector, expect) in [
            ("", true),
            ("  ", true),
            ("app=web", true),
            ("app == web", true),
            ("app!=web", false),
            ("nothere!=web", true),
            ("app in (web, db)", true),
            ("app notin (web,db)", false),
            ("nothere notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!nothere", true),
            ("nothere", false),
            ("example.com/tier>6,example.com/tier<8", true),
            ("example.com/tier>7", false),
            ("app>1", false),
            ("empty=", true),
            ("empty in ()", true),
            ("empty in (a,)", true),
            ("empty in (,a)", true),
            ("empty in (a,,b)", true),
            ("app=,empty=", false),
            ("app=web,empty=", true),
            ("in in (in,notin)", false),
            ("notin=in", false),
        ] {
            check(selector, &labels, expect);
        }
    }

    #[test]
    fn canonical_text_is_sorted() {
        let selector = LabelSelector::parse("b notin (z,a, z) , !a,c>1").expect("a selector");
        assert_eq!(selector.to_string(), "!a,b notin (a,z),c>1");
    }

    #[test]
    fn errors_have_the_texts_of_upstream() {
        for (selector, expect) in [
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("a,", "found '', expected: identifier after ','"),
            (
                "a b",
                "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt",
            ),
            ("!a=b", "found '=', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            (
                "a in (b",
                "unable to parse requirement: found '', expected: ',' or ')'",
            ),
            (
                "a in (b c)",
                "unable to parse requirement: found 'c', expected: ',' or ')'",
            ),
            (
                "a in (b,",
                "unable to parse requirement: found '', expected: ',', or identifier",
            ),
            (
                "a in (",
                "unable to parse requirement: found '', expected: ',', ')' or identifier",
            ),
            (
                "a=(b",
                "unable to parse requirement: found '(', expected: identifier",
            ),
            ("a=b c", "found 'c', expected: ',' or 'end of string'"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            let error = LabelSelector::parse(selector).expect_err(selector);
            assert_eq!(error.to_string(), expect, "{selector}");
        }
        for (selector, part) in [
            (
                "a/b/c=d",
                "<nil>: Invalid value: \"a/b/c\": a valid label key must consist of",
            ),
            ("/b=d", "prefix part must be non-empty"),
            (
                "A_/b",
                "prefix part a lowercase RFC 1123 subdomain must consist of",
            ),
            ("-a", "name part must consist of alphanumeric"),
            (
                "a=-b",
                "values[0][a]: Invalid value: \"-b\": a valid label must be an empty string or",
            ),
            (
                "a in (-b,-c)",
                "unable to parse requirement: [values[0][a]: Invalid value: \"-b\"",
            ),
        ] {
            let error = LabelSelector::parse(selector).expect_err(selector).to_string();
            assert!(error.contains(part), "{selector}: {error}");
        }
        assert!(LabelSelector::parse(&format!("{}=x", "a".repeat(64))).is_err());
        assert!(LabelSelector::parse(&format!("x={}", "a".repeat(64))).is_err());
        assert!(LabelSelector::parse(&"a,".repeat(super::super::SELECTOR_BYTES_MAX)).is_err());
    }
}
