//! JSON in, with numbers as Go keeps them and duplicate keys reported; JSON out, indented without being parsed.
//!
//! Integers of 64 bits stay integers, all others become floats, and a float that has no fraction is written as Go writes
//! it: `1.0` comes back as `1`. The reader of YAML shares the visitor.

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// How many duplicate keys are reported, as upstream.
pub(super) const DUPLICATES_MAX: usize = 100;
/// How deep a value may be nested (serde_json's own limit, stated for the message).
pub(super) const NESTING_MAX: usize = 128;

/// Why bytes are no JSON value, in the words of Go's decoder.
pub(super) fn describe(error: &serde_json::Error, bytes: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let text = error.to_string();
    let line = bytes
        .split(|b| *b == b'\n')
        .nth(error.line().saturating_sub(1))
        .unwrap_or_default();
    let rest = line.get(error.column().saturating_sub(1)..).unwrap_or_default();
    let Some(found) = String::from_utf8_lossy(rest).chars().next() else {
        return text;
    };
    // What was found where, by the beginning of what serde_json says of it.
    let place = [
        ("expected value", "looking for beginning of value"),
        ("trailing characters", "after top-level value"),
        ("expected `:`", "after object key"),
        ("expected `,` or `}`", "after object key:value pair"),
        ("expected `,` or `]`", "after array element"),
        (
            "key must be a string",
            "looking for beginning of object key string",
        ),
        (
            "trailing comma",
            if found == ']' {
                "looking for beginning of value"
            } else {
                "looking for beginning of object key string"
            },
        ),
        ("recursion limit exceeded", "exceeded max depth"),
        ("invalid escape", "in string escape code"),
        ("control character", "in string literal"),
        ("invalid number", "in numeric literal"),
    ]
    .into_iter()
    .find_map(|(start, place)| text.starts_with(start).then_some(place));
    match place {
        Some(place) => format!("invalid character {found:?} {place}"),
        None => text,
    }
}

/// Reads one JSON value and nothing after it.
pub(super) fn read(bytes: &[u8], duplicates: &mut Vec<String>) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut path = Path::default();
    let value = Reader {
        path: &mut path,
        duplicates,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// A number as Go's decoder keeps it and its encoder writes it again.
pub(super) fn normalize(f: f64) -> Option<Number> {
    /// 2^63: the first float that is no i64.
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    // Only -0.0 and what lies between two integers must stay a float.
    if f.fract() == 0.0 && f.abs() < LIMIT && !(f == 0.0 && f.is_sign_negative()) {
        return Some(Number::from(f as i64));
    }
    Number::from_f64(f)
}

/// Where the reader is, for the messages: `spec.list[0].key`.
#[derive(Debug, Default)]
pub(super) struct Path {
    text: String,
}

impl Path {
    fn push_key(&mut self, key: &str) -> usize {
        let before = self.text.len();
        if before > 0 {
            self.text.push('.');
        }
        self.text.push_str(key);
        before
    }

    fn push_index(&mut self, index: usize) -> usize {
        let before = self.text.len();
        self.text.push_str(&format!("[{index}]"));
        before
    }
}

/// Builds a value from any self-describing format.
pub(super) struct Reader<'a> {
    pub(super) path: &'a mut Path,
    pub(super) duplicates: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        match i64::try_from(value) {
            Ok(value) => Ok(Value::Number(value.into())),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        normalize(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let before = self.path.push_index(list.len());
            let next = seq.next_element_seed(Reader {
                path: self.path,
                duplicates: self.duplicates,
            })?;
            self.path.text.truncate(before);
            match next {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key_seed(Key)? {
            let before = self.path.push_key(&key);
            if map.contains_key(&key) {
                let message = format!("duplicate field {:?}", self.path.text);
                if self.duplicates.len() < DUPLICATES_MAX && !self.duplicates.contains(&message) {
                    self.duplicates.push(message);
                }
            }
            let value = access.next_value_seed(Reader {
                path: self.path,
                duplicates: self.duplicates,
            })?;
            self.path.text.truncate(before);
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// A key: text, or what YAML reads as a number or boolean, which becomes text as upstream does it.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }

    fn visit_string<E>(self, key: String) -> Result<String, E> {
        Ok(key)
    }

    fn visit_bool<E>(self, key: bool) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_i64<E>(self, key: i64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_u64<E>(self, key: u64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, key: f64) -> Result<String, E> {
        normalize(key)
            .map(|n| n.to_string())
            .ok_or_else(|| E::custom("a key is not finite"))
    }
}

/// Appends compact JSON indented by two spaces, as Go's MarshalIndent does it. `depth`: how deep the value stands in what
/// surrounds it. The bytes must be valid compact JSON: nothing is checked.
pub(super) fn indent(json: &[u8], depth: usize, out: &mut Vec<u8>) {
    let mut depth = depth;
    let mut at = 0;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'"' => {
                let end = string_end(json, at);
                out.extend_from_slice(json.get(at..end).unwrap_or_default());
                at = end;
                continue;
            }
            b'{' | b'[' => {
                out.push(byte);
                if let Some(&close @ (b'}' | b']')) = json.get(at + 1) {
                    out.push(close);
                    at += 2;
                    continue;
                }
                depth += 1;
                new_line(depth, out);
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                new_line(depth, out);
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                new_line(depth, out);
            }
            b':' => out.extend_from_slice(b": "),
            other => out.push(other),
        }
        at += 1;
    }
}

pub(super) fn new_line(depth: usize, out: &mut Vec<u8>) {
    out.push(b'\n');
    out.resize(out.len() + 2 * depth, b' ');
}

/// The index after the string that starts at `start`.
pub(super) fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(&byte) = json.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    json.len()
}

/// Keeps of an object only what lies on some paths. Everything else is skipped without being built.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    all: bool,
    fields: Vec<(String, Self)>,
}

impl Wanted {
    /// Everything below this path is wanted.
    pub(crate) fn add(&mut self, path: &[&str]) {
        match path {
            [] => self.all = true,
            [first, rest @ ..] => match self.fields.iter_mut().find(|(name, _)| name == first) {
                Some((_, below)) => below.add(rest),
                None => {
                    let mut below = Self::default();
                    below.add(rest);
                    self.fields.push(((*first).to_owned(), below));
                }
            },
        }
    }

    /// Reads what is wanted of a JSON object that this server wrote.
    pub(crate) fn read(&self, json: &[u8]) -> Result<Map<String, Value>, serde_json::Error> {
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        match WantedReader(self).deserialize(&mut deserializer)? {
            Value::Object(map) => Ok(map),
            _ => Err(serde_json::Error::custom("not an object")),
        }
    }
}

struct WantedReader<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for WantedReader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.0.all {
            return serde::Deserialize::deserialize(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for WantedReader<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<std::borrow::Cow<'_, str>>()? {
            match self.0.fields.iter().find(|(name, _)| *name == key) {
                Some((name, below)) => {
                    map.insert(name.clone(), access.next_value_seed(WantedReader(below))?);
                }
                None => {
                    access.next_value::<serde::de::IgnoredAny>()?;
                }
            }
        }
        Ok(Value::Object(map))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = seq.next_element()? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_kept_as_go_keeps_them() {
        let check = |text: &str, expect: &str| {
            let value = read(text.as_bytes(), &mut Vec::new()).expect("JSON");
            assert_eq!(value.to_string(), expect, "{text}");
        };
        check("1", "1");
        check("-7", "-7");
        check("9223372036854775807", "9223372036854775807");
        check("-9223372036854775808", "-9223372036854775808");
        check("1.0", "1");
        check("1e2", "100");
        check("1.5", "1.5");
        check("-0.0", "-0.0");
        assert!(
            read(b"9223372036854775808", &mut Vec::new())
                .expect("JSON")
                .is_f64()
        );
        assert!(
            read(b"18446744073709551615", &mut Vec::new())
                .expect("JSON")
                .is_f64()
        );
        assert!(read(b"1e999", &mut Vec::new()).is_err());
    }

    #[test]
    fn duplicates_have_their_path() {
        let mut duplicates = Vec::new();
        let text = br#"{"spec":{"foo":1,"foo":2,"foo":3,"list":[{"a":1},{"b":1,"b":2}],"x":{"y.z":1,"y.z":2}},"spec2":1,"spec2":2}"#;
        let value = read(text, &mut duplicates).expect("JSON");
        let expect = [
            r#"duplicate field "spec.foo""#,
            r#"duplicate field "spec.list[1].b""#,
            r#"duplicate field "spec.x.y.z""#,
            r#"duplicate field "spec2""#,
        ];
        assert_eq!(duplicates, expect);
        assert_eq!(value["spec"]["foo"], json!(3), "the last one wins");
        let many: String = (0..500).map(|i| format!(r#""k{i}":1,"k{i}":2,"#)).collect();
        let mut duplicates = Vec::new();
        read(format!("{{{many}\"z\":1}}").as_bytes(), &mut duplicates).expect("JSON");
        assert_eq!(duplicates.len(), DUPLICATES_MAX);
    }

    #[test]
    fn what_is_no_json_is_described() {
        let check = |text: &str, expect: &str| {
            let error = read(text.as_bytes(), &mut Vec::new()).expect_err("not JSON");
            let described = describe(&error, text.as_bytes());
            assert!(described.contains(expect), "{text}: {described}");
        };
        check("", "unexpected end of JSON input");
        check("{\"a\":", "unexpected end of JSON input");
        check("{} x", "invalid character 'x' after top-level value");
        check("xyz", "invalid character 'x' looking for beginning of value");
        check("{\"a\":1,\n \"b\" 2}", "invalid character '2' after object key");
        check("{\"a\":1 2}", "invalid character '2' after object key:value pair");
        check(
            "{\"a\":1,}",
            "invalid character '}' looking for beginning of object key string",
        );
        check("[1,]", "invalid character ']' looking for beginning of value");
        check("[1 2]", "invalid character '2' after array element");
        check(
            "{a:1}",
            "invalid character 'a' looking for beginning of object key string",
        );
        check(&"[".repeat(200_000), "invalid character '[' exceeded max depth");
    }

    #[test]
    fn keys_are_sorted() {
        assert_eq!(
            read(br#"{"b":1,"a":2}"#, &mut Vec::new())
                .expect("JSON")
                .to_string(),
            r#"{"a":2,"b":1}"#
        );
    }

    #[test]
    fn indented_as_go_does_it() {
        let value = json!({"a": [], "b": {}, "c": [1, {"d": "x\"y{[,:"}], "e": {"f": null, "g": true}});
        let mut out = Vec::new();
        indent(value.to_string().as_bytes(), 0, &mut out);
        let expect = serde_json::to_string_pretty(&value).expect("text");
        assert_eq!(String::from_utf8(out).expect("text"), expect);
    }

    #[test]
    fn only_wanted_paths_are_built() {
        let mut wanted = Wanted::default();
        wanted.add(&["status", "phase"]);
        wanted.add(&["spec"]);
        wanted.add(&["metadata", "labels", "a"]);
        let json = br#"{"metadata":{"name":"x","labels":{"a":"1","b":"2"}},"spec":{"x":{"y":1}},"status":{"phase":"P","big":[1,2]}}"#;
        let got = Value::Object(wanted.read(json).expect("an object"));
        assert_eq!(
            got,
            json!({"metadata": {"labels": {"a": "1"}}, "spec": {"x": {"y": 1}}, "status": {"phase": "P"}})
        );
    }
}
