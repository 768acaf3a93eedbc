//! `labelSelector`: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, `a>1`, `a<1`, joined by commas.
//!
//! Grammar, checks of keys and values, and the texts of errors are Kubernetes'. It does not know whose labels it reads:
//! matching takes the JSON of `metadata`.

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
        let mut requirements = Parser {
            tokens: tokens(text),
            at: 0,
        }
        .selector()
        .map_err(SelectorError)?;
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

/// `tokens` ends with [`Token::End`]; `in` and `notin` are words, so that they may be keys and values too.
struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// `= == != ! ( ) , < >`
    Symbol(&'a str),
    End,
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Token::Word(text) | Token::Symbol(text) => text,
            Token::End => "",
        }
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

fn is_symbol(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '<' | '>')
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while let Some(first) = rest.chars().next() {
        let len = match first {
            _ if rest.starts_with("==") || rest.starts_with("!=") => 2,
            c if is_symbol(c) => 1,
            _ => rest.find(|c| is_symbol(c) || is_space(c)).unwrap_or(rest.len()),
        };
        let (token, after) = rest.split_at(len);
        tokens.push(if is_symbol(first) {
            Token::Symbol(token)
        } else {
            Token::Word(token)
        });
        rest = after.trim_start_matches(is_space);
    }
    tokens.push(Token::End);
    tokens
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens.get(self.at).copied().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<LabelRequirement>, String> {
        let mut requirements = Vec::new();
        match self.peek() {
            Token::End => return Ok(requirements),
            Token::Word(_) | Token::Symbol("!") => {}
            other => {
                return Err(format!(
                    "found '{}', expected: !, identifier, or 'end of string'",
                    other.text()
                ));
            }
        }
        loop {
            let requirement = self
                .requirement()
                .map_err(|e| format!("unable to parse requirement: {e}"))?;
            requirements.push(requirement);
            match self.next() {
                Token::End => return Ok(requirements),
                Token::Symbol(",") => {}
                other => {
                    return Err(format!(
                        "found '{}', expected: ',' or 'end of string'",
                        other.text()
                    ));
                }
            }
            if !matches!(self.peek(), Token::Word(_) | Token::Symbol("!")) {
                return Err(format!(
                    "found '{}', expected: identifier after ','",
                    self.peek().text()
                ));
            }
        }
    }

    fn requirement(&mut self) -> Result<LabelRequirement, String> {
        let negated = self.peek() == Token::Symbol("!");
        if negated {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return Err(format!("found '{}', expected: identifier", other.text())),
        };
        if let Err(cause) = check_key(key) {
            return Err(format!("<nil>: Invalid value: {key:?}: {cause}"));
        }
        if negated {
            return new_requirement(key, LabelOperator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return new_requirement(key, LabelOperator::Exists, Vec::new());
        }
        let operator = match self.next() {
            Token::Word("in") => LabelOperator::In,
            Token::Word("notin") => LabelOperator::NotIn,
            Token::Symbol("=") => LabelOperator::Equals,
            Token::Symbol("==") => LabelOperator::DoubleEquals,
            Token::Symbol("!=") => LabelOperator::NotEquals,
            Token::Symbol(">") => LabelOperator::GreaterThan,
            Token::Symbol("<") => LabelOperator::LessThan,
            other => {
                return Err(format!(
                    "found '{}', expected: in, notin, =, ==, !=, gt, lt",
                    other.text()
                ));
            }
        };
        let values = match operator {
            LabelOperator::In | LabelOperator::NotIn => self.value_set()?,
            _ => vec![self.exact_value()?],
        };
        new_requirement(key, operator, values)
    }

    /// One value; nothing before a comma or the end is the empty value.
    fn exact_value(&mut self) -> Result<&'a str, String> {
        match self.peek() {
            Token::End | Token::Symbol(",") => Ok(""),
            Token::Word(value) => {
                self.next();
                Ok(value)
            }
            other => Err(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// `(a,b)`: where a value is missing before or after a comma, it is the empty one.
    fn value_set(&mut self) -> Result<Vec<&'a str>, String> {
        match self.next() {
            Token::Symbol("(") => {}
            other => return Err(format!("found '{}' expected: '('", other.text())),
        }
        if !matches!(self.peek(), Token::Word(_) | Token::Symbol("," | ")")) {
            return Err(format!(
                "found '{}', expected: ',', ')' or identifier",
                self.peek().text()
            ));
        }
        let mut values = Vec::new();
        loop {
            match self.peek() {
                Token::Word(value) => {
                    values.push(value);
                    self.next();
                }
                Token::Symbol("," | ")") => values.push(""),
                other => return Err(format!("found '{}', expected: ',', or identifier", other.text())),
            }
            match self.next() {
                Token::Symbol(",") => {}
                Token::Symbol(")") => return Ok(values),
                other => return Err(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}

fn new_requirement(
    key: &str,
    operator: LabelOperator,
    values: Vec<&str>,
) -> Result<LabelRequirement, String> {
    let mut values: Vec<String> = values.into_iter().map(str::to_owned).collect();
    values.sort();
    values.dedup();
    let mut errors = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let compares = matches!(operator, LabelOperator::GreaterThan | LabelOperator::LessThan);
        if compares && value.parse::<i64>().is_err() {
            let cause = "for 'Gt', 'Lt' operators, the value must be an integer";
            errors.push(format!("values[{i}]: Invalid value: {value:?}: {cause}"));
        }
    }
    for (i, value) in values.iter().enumerate() {
        if let Err(cause) = check_value(value) {
            errors.push(format!("values[{i}][{key}]: Invalid value: {value:?}: {cause}"));
        }
    }
    match errors.len() {
        0 => Ok(LabelRequirement {
            key: key.to_owned(),
            operator,
            values,
        }),
        1 => Err(errors.swap_remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

const NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric \
    character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
    must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for \
    validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
    and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// Whether `key` may be a label's key; the error is Kubernetes' text, reasons joined by `; `.
///
/// # Errors
/// What is wrong with it.
pub fn check_key(key: &str) -> Result<(), String> {
    let mut errors = Vec::new();
    let mut parts = key.splitn(3, '/');
    let name = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => name,
        (Some(prefix), Some(name), None) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                if prefix.len() > LABEL_PREFIX_BYTES_MAX {
                    errors.push(format!(
                        "prefix part must be no more than {LABEL_PREFIX_BYTES_MAX} bytes"
                    ));
                }
                if !prefix.split('.').all(is_dns_label) {
                    errors.push(format!("prefix part {SUBDOMAIN_RULE}"));
                }
            }
            name
        }
        _ => {
            let optional = "with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
            return Err(format!("a valid label key {NAME_RULE} {optional}"));
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_BYTES_MAX {
        errors.push(format!("name part must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !is_label_text(name) {
        errors.push(format!("name part {NAME_RULE}"));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}

/// Whether `value` may be a label's value; the error is Kubernetes' text, reasons joined by `; `.
///
/// # Errors
/// What is wrong with it.
pub fn check_value(value: &str) -> Result<(), String> {
    let mut errors = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        errors.push(format!("must be no more than {LABEL_BYTES_MAX} bytes"));
    }
    if !value.is_empty() && !is_label_text(value) {
        errors.push(VALUE_RULE.to_owned());
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.join("; "))
    }
}

fn is_label_text(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let ends = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    ends(text.bytes().next()) && ends(text.bytes().last()) && text.bytes().all(inner)
}

fn is_dns_label(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    edge(text.bytes().next()) && edge(text.bytes().last()) && text.bytes().all(inner)
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
