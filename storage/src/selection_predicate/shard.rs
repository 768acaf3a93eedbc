//! `shardSelector` (KEP-5866): ranges of the hash of an object's uid or namespace.
//!
//! ```text
//! selector = range *( "||" range )                     parentheses, white space and comments as in CEL
//! range    = shardRange( field, start, end )
//! field    = object.metadata.uid | object.metadata.namespace      one for all ranges
//! start    = a string of 0x and 16 lower-case hexadecimal digits; end may also be 0x10000000000000000
//! ```
//!
//! The hash is FNV-1a with 64 bits, start is inclusive, end is not. Not to be confused with a backend of ours.

use super::{SelectorError, check_length};
use serde::Deserialize;
use std::borrow::Cow;
use std::fmt;

/// How deep parentheses may be nested.
pub const SHARD_NESTING_MAX: usize = 32;

/// A parsed `shardSelector`. Its text is the canonical one, which `shardInfo` echoes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSelector {
    field: ShardField,
    /// At least one.
    ranges: Vec<ShardRange>,
}

/// What is hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardField {
    /// `object.metadata.uid`
    Uid,
    /// `object.metadata.namespace`
    Namespace,
}

/// A range of hashes, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardRange {
    /// The first hash.
    pub first: u64,
    /// The last hash.
    pub last: u64,
}

impl ShardSelector {
    /// Parses a `shardSelector`. (An empty parameter is no selector; the caller leaves it out.)
    ///
    /// # Errors
    /// What is wrong with it, for a 400.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        check_length("shard", text)?;
        if text.trim().is_empty() {
            let cause = "empty shard selector is not allowed; omit the parameter for unfiltered lists";
            return Err(SelectorError(cause.to_owned()));
        }
        let mut parser = Parser {
            rest: text,
            ranges: Vec::new(),
        };
        parser.alternatives(0).map_err(SelectorError)?;
        parser.end().map_err(SelectorError)?;
        let field = parser.ranges[0].0;
        if let Some((other, _)) = parser.ranges.iter().find(|(f, _)| *f != field) {
            let cause = format!(
                "all shard ranges must use the same field, got {:?} and {:?}",
                field.as_str(),
                other.as_str()
            );
            return Err(SelectorError(cause));
        }
        Ok(Self {
            field,
            ranges: parser.ranges.into_iter().map(|(_, range)| range).collect(),
        })
    }

    /// What is hashed.
    #[must_use]
    pub fn field(&self) -> ShardField {
        self.field
    }

    /// The ranges, as they were written. They may overlap.
    #[must_use]
    pub fn ranges(&self) -> &[ShardRange] {
        &self.ranges
    }

    /// Whether objects of this namespace can be selected, as far as the namespace decides it.
    #[must_use]
    pub fn may_match_namespace(&self, namespace: &str) -> bool {
        self.field != ShardField::Namespace || self.selects(namespace)
    }

    /// Whether the object with this namespace and this JSON of `metadata` is selected.
    pub(super) fn matches(&self, namespace: &str, metadata: &[u8]) -> Result<bool, serde_json::Error> {
        match self.field {
            ShardField::Namespace => Ok(self.selects(namespace)),
            ShardField::Uid => Ok(self.selects(&serde_json::from_slice::<WithUid<'_>>(metadata)?.uid)),
        }
    }

    fn selects(&self, value: &str) -> bool {
        let hash = fnv1a(value.as_bytes());
        self.ranges.iter().any(|r| r.first <= hash && hash <= r.last)
    }
}

impl ShardField {
    /// The path as it is written in a selector.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uid => "object.metadata.uid",
            Self::Namespace => "object.metadata.namespace",
        }
    }
}

impl fmt::Display for ShardSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.ranges.iter().enumerate() {
            let (or, field) = (if i > 0 { " || " } else { "" }, self.field.as_str());
            let end = u128::from(range.last) + 1;
            write!(
                f,
                "{or}shardRange({field}, '0x{:016x}', '0x{end:016x}')",
                range.first
            )?;
        }
        Ok(())
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WithUid<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

/// FNV-1a, 64 bits: the hash that KEP-5866 names.
#[must_use]
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

struct Parser<'a> {
    rest: &'a str,
    ranges: Vec<(ShardField, ShardRange)>,
}

/// One argument of a call.
enum Argument<'a> {
    Path(String),
    Text(&'a str),
    Other,
}

impl<'a> Parser<'a> {
    fn skip_space(&mut self) {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r', '\u{c}']);
            let Some(comment) = self.rest.strip_prefix("//") else {
                return;
            };
            self.rest = comment.find('\n').map_or("", |end| &comment[end..]);
        }
    }

    fn eat(&mut self, symbol: &str) -> bool {
        self.skip_space();
        match self.rest.strip_prefix(symbol) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self) -> Option<&'a str> {
        self.skip_space();
        let end = self
            .rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() || word.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        self.rest = rest;
        Some(word)
    }

    /// The text of an error at this place: names the operator if CEL has one here that is not allowed.
    fn unexpected(&mut self) -> String {
        self.skip_space();
        const OPERATORS: [&str; 13] = [
            "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "?",
        ];
        match OPERATORS.iter().find(|op| self.rest.starts_with(**op)) {
            Some(&"?") => "unsupported function \"_?_:_\"; only shardRange() and || are allowed".to_owned(),
            Some(op) => format!("unsupported function \"_{op}_\"; only shardRange() and || are allowed"),
            None => match self.rest.chars().next() {
                Some(c) => format!("CEL parse error: Syntax error: unexpected {:?}", c.to_string()),
                None => "CEL parse error: Syntax error: unexpected end of the expression".to_owned(),
            },
        }
    }

    fn end(&mut self) -> Result<(), String> {
        self.skip_space();
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn alternatives(&mut self, depth: usize) -> Result<(), String> {
        if depth > SHARD_NESTING_MAX {
            return Err(format!(
                "CEL parse error: parentheses are nested more than {SHARD_NESTING_MAX} deep"
            ));
        }
        loop {
            if self.eat("(") {
                self.alternatives(depth + 1)?;
                self.close()?;
            } else {
                let range = self.range()?;
                self.ranges.push(range);
            }
            if !self.eat("||") {
                return Ok(());
            }
        }
    }

    fn close(&mut self) -> Result<(), String> {
        if self.eat(")") {
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    fn range(&mut self) -> Result<(ShardField, ShardRange), String> {
        if self.eat("!") {
            return Err("unsupported function \"!_\"; only shardRange() and || are allowed".to_owned());
        }
        let Some(function) = self.word() else {
            return Err(match self.rest.chars().next() {
                Some('\'' | '"' | '0'..='9') => {
                    "unexpected literal; expected shardRange() call or || operator".to_owned()
                }
                _ => self.unexpected(),
            });
        };
        if !self.eat("(") {
            return Err(format!(
                "unexpected expression {function:?}; expected shardRange() call or || operator"
            ));
        }
        if function != "shardRange" {
            return Err(format!(
                "unsupported function {function:?}; only shardRange() and || are allowed"
            ));
        }
        let arguments = self.arguments()?;
        let [field, start, end] = &arguments[..] else {
            return Err(format!(
                "shardRange() requires exactly 3 arguments, got {}",
                arguments.len()
            ));
        };
        let field = read_field(field)?;
        let (start, end) = (read_bound(start, "hexStart")?, read_bound(end, "hexEnd")?);
        if start >= end {
            return Err(format!(
                "shard range start 0x{start:016x} must be less than end 0x{end:016x}"
            ));
        }
        match (u64::try_from(start), u64::try_from(end - 1)) {
            (Ok(first), Ok(last)) => Ok((field, ShardRange { first, last })),
            _ => Err("hexStart: must be less than 2^64".to_owned()),
        }
    }

    fn arguments(&mut self) -> Result<Vec<Argument<'a>>, String> {
        let mut arguments = Vec::new();
        if self.eat(")") {
            return Ok(arguments);
        }
        loop {
            arguments.push(self.argument()?);
            if self.eat(",") {
                continue;
            }
            self.close()?;
            return Ok(arguments);
        }
    }

    /// A path or a literal, perhaps in parentheses.
    fn argument(&mut self) -> Result<Argument<'a>, String> {
        let mut open = 0;
        while self.eat("(") {
            open += 1;
        }
        self.skip_space();
        let argument = match self.rest.chars().next() {
            Some(quote @ ('\'' | '"')) => Argument::Text(self.literal(quote)?),
            Some('0'..='9') => {
                let end = self
                    .rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && c != '.')
                    .unwrap_or(self.rest.len());
                self.rest = &self.rest[end..];
                Argument::Other
            }
            _ => self.path()?,
        };
        for _ in 0..open {
            self.close()?;
        }
        Ok(argument)
    }

    fn literal(&mut self, quote: char) -> Result<&'a str, String> {
        let body = &self.rest[1..];
        let Some(end) = body.find([quote, '\\', '\n']) else {
            return Err("CEL parse error: Syntax error: a string does not end".to_owned());
        };
        let (text, rest) = body.split_at(end);
        if !rest.starts_with(quote) {
            return Err("CEL parse error: escapes and line breaks are not allowed in a string".to_owned());
        }
        self.rest = &rest[1..];
        Ok(text)
    }

    fn path(&mut self) -> Result<Argument<'a>, String> {
        let Some(first) = self.word() else {
            return Err(self.unexpected());
        };
        let mut path = first.to_owned();
        while self.eat(".") {
            let Some(name) = self.word() else {
                return Err(self.unexpected());
            };
            path.push('.');
            path.push_str(name);
        }
        Ok(Argument::Path(path))
    }
}

fn read_field(argument: &Argument<'_>) -> Result<ShardField, String> {
    match argument {
        Argument::Path(path) if path == ShardField::Uid.as_str() => Ok(ShardField::Uid),
        Argument::Path(path) if path == ShardField::Namespace.as_str() => Ok(ShardField::Namespace),
        Argument::Path(path) => Err(format!(
            "unsupported field path {path:?}; supported: object.metadata.uid, object.metadata.namespace"
        )),
        _ => Err(
            "shardRange() first argument: expected field path (e.g. object.metadata.uid), got a literal"
                .to_owned(),
        ),
    }
}

fn read_bound(argument: &Argument<'_>, name: &str) -> Result<u128, String> {
    let Argument::Text(text) = argument else {
        return Err(format!("{name} must be a string literal (e.g. '0xff')"));
    };
    let Some(hex) = text.strip_prefix("0x") else {
        return Err(format!("{name} must have '0x' prefix, got {text:?}"));
    };
    if hex.is_empty() {
        return Err(format!("{name}: hex value is required after '0x'"));
    }
    if hex.len() > 17 {
        return Err(format!(
            "{name}: hex value too long ({} chars, max 17): {hex:?}",
            hex.len()
        ));
    }
    if let Some(c) = hex.chars().find(|c| !matches!(c, '0'..='9' | 'a'..='f')) {
        return Err(format!(
            "{name}: invalid hex character {:?} in {text:?}",
            c.to_string()
        ));
    }
    if hex.len() == 17 && *text != "0x10000000000000000" {
        return Err(format!(
            "{name}: 17-digit hex value must be '0x10000000000000000' (2^64), got {text:?}"
        ));
    }
    if hex.len() < 16 {
        let padded = format!("0x{hex:0>16}");
        return Err(format!(
            "{name} must be a 0x-prefixed 16-digit hex value, got {text:?} (did you mean {padded:?}?)"
        ));
    }
    u128::from_str_radix(hex, 16).map_err(|e| format!("{name}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, canonical: &str) {
        let parsed = ShardSelector::parse(selector).expect(selector);
        assert_eq!(parsed.to_string(), canonical, "{selector}");
        assert_eq!(
            ShardSelector::parse(canonical).expect("the canonical text parses"),
            parsed
        );
    }

    #[test]
    fn notations_become_the_canonical_one() {
        let low = "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')";
        let high = "shardRange(object.metadata.uid, '0x8000000000000000', '0x10000000000000000')";
        check(low, low);
        check(high, high);
        check(&format!(" ( {low} )|| (({high})) "), &format!("{low} || {high}"));
        check(&low.replace('\'', "\""), low);
        check(&low.replace('.', " . ").replace(',', " // a comment\n ,"), low);
        check(&low.replace("object.metadata.uid", "(object.metadata.uid)"), low);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let range = |field: &str, start: &str, end: &str| format!("shardRange({field}, '{start}', '{end}')");
        let (zero, top) = ("0x0000000000000000", "0x10000000000000000");
        let good = range("object.metadata.uid", zero, top);
        for (selector, part) in [
            (" ".to_owned(), "empty shard selector"),
            (
                range("object.metadata.uid", "0x0", top),
                "did you mean \"0x0000000000000000\"?",
            ),
            (
                range("object.metadata.uid", zero, "0x20000000000000000"),
                "17-digit hex value must be",
            ),
            (
                range("object.metadata.uid", zero, "0xFFFFFFFFFFFFFFFF"),
                "invalid hex character \"F\"",
            ),
            (
                range("object.metadata.uid", zero, "0x100000000000000000"),
                "too long (18 chars",
            ),
            (range("object.metadata.uid", "00", top), "must have '0x' prefix"),
            (range("object.metadata.uid", "0x", top), "hex value is required"),
            (range("object.metadata.uid", zero, zero), "must be less than end"),
            (range("object.metadata.uid", top, top), "must be less than end"),
            (
                range("object.metadata.name", zero, top),
                "unsupported field path \"object.metadata.name\"",
            ),
            (range("'x'", zero, top), "first argument: expected field path"),
            (format!("{good} && {good}"), "unsupported function \"_&&_\""),
            (format!("!{good}"), "unsupported function \"!_\""),
            (format!("{good} ||"), "unexpected end"),
            (format!("({good}"), "unexpected end"),
            (format!("{good})"), "unexpected \")\""),
            (
                format!("{good} || {}", range("object.metadata.namespace", zero, top)),
                "must use the same field",
            ),
            ("other(1)".to_owned(), "unsupported function \"other\""),
            ("object".to_owned(), "expected shardRange() call"),
            (
                "shardRange(object.metadata.uid, 1, 2)".to_owned(),
                "hexStart must be a string literal",
            ),
            (
                "shardRange(object.metadata.uid)".to_owned(),
                "requires exactly 3 arguments, got 1",
            ),
            ("shardRange()".to_owned(), "requires exactly 3 arguments, got 0"),
            (
                "shardRange(object.metadata.uid, '0x".to_owned(),
                "a string does not end",
            ),
            ("(".repeat(1000), "nested more than"),
            ("x".repeat(super::super::SELECTOR_BYTES_MAX + 1), "no more than"),
        ] {
            let error = ShardSelector::parse(&selector).expect_err(&selector).to_string();
            assert!(error.contains(part), "{selector}: {error}");
        }
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        // The published test vectors.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn every_object_is_in_one_half() {
        let zero = "0x0000000000000000";
        let low = format!("shardRange(object.metadata.uid, '{zero}', '0x8000000000000000')");
        let high = "shardRange(object.metadata.uid, '0x8000000000000000', '0x10000000000000000')";
        let (low, high) = (
            ShardSelector::parse(&low).expect("low"),
            ShardSelector::parse(high).expect("high"),
        );
        for i in 0..200 {
            let metadata = format!(r#"{{"name":"x","uid":"u-{i}"}}"#);
            let (a, b) = (
                low.matches("ns", metadata.as_bytes()),
                high.matches("ns", metadata.as_bytes()),
            );
            assert_ne!(a.expect("readable"), b.expect("readable"), "{i}");
        }
        assert!(
            low.may_match_namespace("any"),
            "the namespace does not decide a uid's hash"
        );
    }
}
