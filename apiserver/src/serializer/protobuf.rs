//! JSON ↔ protobuf for the built-in kinds, discovery and the types of meta/v1, driven by the tables in `descriptors.rs`.
//!
//! A body is `k8s\0`, then a `runtime.Unknown` that names the type and holds the message. Fields that the tables do not
//! know are skipped on the way in and left out on the way out. Nothing here knows what the fields mean.

pub(super) mod descriptors;

use super::{Expected, json};
use crate::status::ApiError;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use descriptors::{Field, Kind, Message, SCHEMA, Shape, message_of};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What every body begins with.
pub const MAGIC: &[u8] = b"k8s\0";
/// How deep messages may be nested: as deep as JSON.
const NESTING_MAX: usize = json::NESTING_MAX;

/// Why bytes are no message. The client must act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The body is something else.
    #[error("provided data does not appear to be a protobuf message")]
    NotProtobuf,
    /// The type has no form in protobuf.
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    UnknownType {
        /// `group/version`.
        api_version: String,
        /// The kind.
        kind: String,
    },
    /// A length or tag does not fit.
    #[error("proto: malformed message: {0}")]
    Malformed(&'static str),
}

use ProtobufError::Malformed;

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const LENGTH: u32 = 2;
const FIXED32: u32 = 5;

/// Reads a body. apiVersion and kind are those of the envelope, or what is expected if it names none.
pub(super) fn decode(body: &[u8], expected: Expected<'_>) -> Result<Map<String, Value>, ProtobufError> {
    let mut envelope = Wire(body.strip_prefix(MAGIC).ok_or(ProtobufError::NotProtobuf)?);
    let (mut api_version, mut kind, mut raw) = ("", "", &[][..]);
    while let Some((number, value)) = envelope.next()? {
        match (number, value) {
            (1, Item::Length(bytes)) => {
                let mut meta = Wire(bytes);
                while let Some((number, value)) = meta.next()? {
                    match (number, value) {
                        (1, Item::Length(bytes)) => api_version = text(bytes)?,
                        (2, Item::Length(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Item::Length(bytes)) => raw = bytes,
            _ => {}
        }
    }
    if api_version.is_empty() {
        api_version = expected.api_version;
    }
    if kind.is_empty() {
        kind = expected.kind;
    }
    let unknown = || ProtobufError::UnknownType {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
    };
    let message = message_of(api_version, kind).ok_or_else(unknown)?;
    let mut object = Map::new();
    read_message(message, raw, &mut object, NESTING_MAX)?;
    object.insert("apiVersion".to_owned(), api_version.into());
    object.insert("kind".to_owned(), kind.into());
    Ok(object)
}

/// Appends an object as a body.
pub(super) fn encode(object: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), ApiError> {
    let (api_version, kind) = type_of(object);
    let mut raw = Vec::new();
    write_message(message(api_version, kind)?, object, &mut raw)?;
    write_envelope(api_version, kind, &[&raw], out);
    Ok(())
}

/// Appends an item as the list of `list_kind` has it.
pub(super) fn encode_list_item(
    api_version: &str,
    list_kind: &str,
    item: &Map<String, Value>,
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    let list = message(api_version, list_kind)?;
    let items = list
        .fields
        .iter()
        .find(|f| f.name == "items")
        .ok_or_else(|| no_form(api_version, list_kind))?;
    let Kind::Message(message) = items.kind else {
        return Err(no_form(api_version, list_kind));
    };
    let mut raw = Vec::new();
    write_message(message, item, &mut raw)?;
    put_bytes(items.number, &raw, out);
    Ok(())
}

/// Appends a list as a body. `items`: what [`encode_list_item`] has written.
pub(super) fn encode_list(
    api_version: &str,
    list_kind: &str,
    meta: &Value,
    items: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    let mut head = Vec::new();
    let without_items = Map::from_iter([("metadata".to_owned(), meta.clone())]);
    write_message(message(api_version, list_kind)?, &without_items, &mut head)?;
    write_envelope(api_version, list_kind, &[&head, items], out);
    Ok(())
}

/// A watch event with its length in front. The event itself has no envelope, its object has.
pub(super) fn encode_watch_frame(kind: &str, object: &Map<String, Value>) -> Result<Bytes, ApiError> {
    let mut body = Vec::new();
    encode(object, &mut body)?;
    let mut extension = Vec::with_capacity(body.len() + 8);
    put_bytes(1, &body, &mut extension);
    let mut frame = vec![0; 4];
    put_bytes(1, kind.as_bytes(), &mut frame);
    put_bytes(2, &extension, &mut frame);
    let len = u32::try_from(frame.len() - 4).map_err(ApiError::internal)?;
    frame[..4].copy_from_slice(&len.to_be_bytes());
    Ok(frame.into())
}

fn type_of(object: &Map<String, Value>) -> (&str, &str) {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    (text("apiVersion"), text("kind"))
}

fn message(api_version: &str, kind: &str) -> Result<&'static Message, ApiError> {
    message_of(api_version, kind).ok_or_else(|| no_form(api_version, kind))
}

fn no_form(api_version: &str, kind: &str) -> ApiError {
    ApiError::new(
        406,
        "NotAcceptable",
        format!(
            "{kind} of {api_version} has no form in protobuf: only the following media types are accepted: application/json, application/yaml"
        ),
    )
}

fn write_envelope(api_version: &str, kind: &str, raw: &[&[u8]], out: &mut Vec<u8>) {
    let mut meta = Vec::new();
    put_bytes(1, api_version.as_bytes(), &mut meta);
    put_bytes(2, kind.as_bytes(), &mut meta);
    let len: usize = raw.iter().map(|part| part.len()).sum();
    out.reserve(MAGIC.len() + meta.len() + len + 24);
    out.extend_from_slice(MAGIC);
    put_bytes(1, &meta, out);
    put_tag(2, LENGTH, out);
    put_varint(len as u64, out);
    raw.iter().for_each(|part| out.extend_from_slice(part));
    // Upstream writes the empty contentEncoding and contentType as well.
    put_bytes(3, b"", out);
    put_bytes(4, b"", out);
}

/// One message's fields, one after the other.
struct Wire<'a>(&'a [u8]);

/// A field's value on the wire.
#[derive(Debug, Clone, Copy)]
enum Item<'a> {
    Varint(u64),
    Fixed64(u64),
    Length(&'a [u8]),
    Fixed32,
}

impl<'a> Wire<'a> {
    fn next(&mut self) -> Result<Option<(u32, Item<'a>)>, ProtobufError> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| Malformed("a tag is out of range"))?;
        let item = match (tag & 7) as u32 {
            VARINT => Item::Varint(self.varint()?),
            FIXED64 => {
                let mut word = [0; 8];
                word.copy_from_slice(self.take(8)?);
                Item::Fixed64(u64::from_le_bytes(word))
            }
            LENGTH => {
                let len =
                    usize::try_from(self.varint()?).map_err(|_| Malformed("a length is out of range"))?;
                Item::Length(self.take(len)?)
            }
            FIXED32 => {
                self.take(4)?;
                Item::Fixed32
            }
            _ => return Err(Malformed("a wire type is not known")),
        };
        Ok(Some((number, item)))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], ProtobufError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed("unexpected end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(Malformed("unexpected end"))?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }
}

fn text(bytes: &[u8]) -> Result<&str, ProtobufError> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("text is not UTF-8"))
}

fn read_message(
    message: &Message,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    let depth = depth.checked_sub(1).ok_or(Malformed("it is nested too deeply"))?;
    let mut wire = Wire(bytes);
    while let Some((number, item)) = wire.next()? {
        let Some(field) = message.fields.iter().find(|f| f.number == number) else {
            continue;
        };
        match field.shape {
            Shape::Many => {
                let value = read_value(field.kind, item, None, depth)?.unwrap_or_default();
                if let Value::Array(list) = object.entry(field.name).or_insert_with(|| json!([])) {
                    list.push(value);
                }
            }
            Shape::Map => {
                let (key, value) = read_entry(field.kind, item, depth)?;
                if let Value::Object(map) = object.entry(field.name).or_insert_with(|| json!({})) {
                    map.insert(key, value);
                }
            }
            Shape::One | Shape::Kept => {
                let before = object.remove(field.name);
                let value = read_value(field.kind, item, before, depth)?;
                if let Some(value) = value.filter(|v| field.shape == Shape::Kept || !is_zero(v)) {
                    object.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(())
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_i64() == Some(0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn read_entry(kind: Kind, item: Item<'_>, depth: usize) -> Result<(String, Value), ProtobufError> {
    let Item::Length(bytes) = item else {
        return Err(Malformed("a map has a number for an entry"));
    };
    let (mut key, mut value) = ("", None);
    let mut wire = Wire(bytes);
    while let Some((number, item)) = wire.next()? {
        match (number, item) {
            (1, Item::Length(bytes)) => key = text(bytes)?,
            (2, item) => value = read_value(kind, item, None, depth)?,
            _ => {}
        }
    }
    let none = || {
        if matches!(kind, Kind::String | Kind::Bytes) {
            json!("")
        } else {
            json!({})
        }
    };
    Ok((key.to_owned(), value.unwrap_or_else(none)))
}

/// A value; `None` for the zero time. A message that occurs again is merged with what was there `before`.
fn read_value(
    kind: Kind,
    item: Item<'_>,
    before: Option<Value>,
    depth: usize,
) -> Result<Option<Value>, ProtobufError> {
    const WRONG_TYPE: ProtobufError = Malformed("a field has another type");
    Ok(Some(match (kind, item) {
        (Kind::Bool, Item::Varint(n)) => Value::Bool(n != 0),
        (Kind::Int, Item::Varint(n)) => Value::from(n as i64),
        (Kind::Double, Item::Fixed64(bits)) => json::normalize(f64::from_bits(bits))
            .map(Value::Number)
            .ok_or(Malformed("a number is not finite"))?,
        (Kind::String, Item::Length(bytes)) => text(bytes)?.into(),
        (Kind::Bytes, Item::Length(bytes)) => STANDARD.encode(bytes).into(),
        (Kind::Message(message), Item::Length(bytes)) => {
            let mut object = match before {
                Some(Value::Object(object)) => object,
                _ => Map::new(),
            };
            read_message(message, bytes, &mut object, depth)?;
            Value::Object(object)
        }
        (Kind::Time | Kind::MicroTime, Item::Length(&[])) => return Ok(None),
        (Kind::Time | Kind::MicroTime, Item::Length(bytes)) => {
            read_time(bytes, matches!(kind, Kind::MicroTime))?.into()
        }
        (Kind::RawJson, Item::Length(bytes)) => read_raw_json(bytes)?,
        (Kind::Strings, Item::Length(bytes)) => read_strings(bytes)?,
        (Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStringArray, Item::Length(bytes)) => {
            read_schema_or(kind, bytes, depth)?
        }
        _ => return Err(WRONG_TYPE),
    }))
}

fn read_time(bytes: &[u8], micro: bool) -> Result<String, ProtobufError> {
    let (mut seconds, mut nanos) = (0, 0);
    let mut wire = Wire(bytes);
    while let Some((number, item)) = wire.next()? {
        match (number, item) {
            (1, Item::Varint(n)) => seconds = n as i64,
            (2, Item::Varint(n)) => nanos = n as i64,
            _ => {}
        }
    }
    let out_of_range = |_| Malformed("a time is out of range");
    let micros = i32::try_from(nanos / 1000).map_err(out_of_range)?;
    let time = Timestamp::new(seconds, if micro { micros * 1000 } else { 0 })
        .map_err(|_| Malformed("a time is out of range"))?;
    Ok(if micro {
        format!("{time:.6}")
    } else {
        format!("{time:.0}")
    })
}

fn read_strings(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut wire = Wire(bytes);
    let mut list = Vec::new();
    while let Some((number, item)) = wire.next()? {
        if let (1, Item::Length(bytes)) = (number, item) {
            list.push(Value::from(text(bytes)?));
        }
    }
    Ok(list.into())
}

fn read_raw_json(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut wire = Wire(bytes);
    let mut value = Value::Null;
    while let Some((number, item)) = wire.next()? {
        if let (1, Item::Length(raw)) = (number, item) {
            value = json::read(raw, &mut Vec::new()).map_err(|_| Malformed("embedded JSON is not JSON"))?;
        }
    }
    Ok(value)
}

/// The three types of a CRD's schema that are one thing or another in JSON.
fn read_schema_or(kind: Kind, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    let (mut schema, mut list, mut allows) = (None, Vec::new(), false);
    let read_schema = |bytes: &[u8]| {
        let mut object = Map::new();
        read_message(SCHEMA, bytes, &mut object, depth).map(|()| Value::Object(object))
    };
    let mut wire = Wire(bytes);
    while let Some((number, item)) = wire.next()? {
        match (kind, number, item) {
            (Kind::SchemaOrBool, 1, Item::Varint(n)) => allows = n != 0,
            (Kind::SchemaOrBool, 2, Item::Length(bytes))
            | (Kind::SchemaOrArray | Kind::SchemaOrStringArray, 1, Item::Length(bytes)) => {
                schema = Some(read_schema(bytes)?);
            }
            (Kind::SchemaOrArray, 2, Item::Length(bytes)) => list.push(read_schema(bytes)?),
            (Kind::SchemaOrStringArray, 2, Item::Length(bytes)) => list.push(text(bytes)?.into()),
            _ => {}
        }
    }
    Ok(match (schema, kind) {
        (Some(schema), _) if list.is_empty() => schema,
        (_, Kind::SchemaOrBool) => allows.into(),
        _ => Value::Array(list),
    })
}

fn put_varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_tag(number: u32, wire: u32, out: &mut Vec<u8>) {
    put_varint(u64::from(number << 3 | wire), out);
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_tag(number, LENGTH, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn write_message(message: &Message, object: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), ApiError> {
    for field in message.fields {
        let Some(value) = object.get(field.name).filter(|v| !v.is_null()) else {
            if field.shape == Shape::One {
                write_zero(field, out)?;
            }
            continue;
        };
        match (field.shape, value) {
            (Shape::One | Shape::Kept, value) => {
                write_value(field.number, field.kind, value, field.name, out)?
            }
            (Shape::Many, Value::Array(list)) => {
                for value in list {
                    write_value(field.number, field.kind, value, field.name, out)?;
                }
            }
            (Shape::Map, Value::Object(map)) => {
                for (key, value) in map {
                    let mut entry = Vec::new();
                    put_bytes(1, key.as_bytes(), &mut entry);
                    write_value(2, field.kind, value, field.name, &mut entry)?;
                    put_bytes(field.number, &entry, out);
                }
            }
            (Shape::Many | Shape::Map, _) => return Err(unlike(field)),
        }
    }
    Ok(())
}

/// Upstream writes what is no pointer in Go even when it is empty: so the bytes are the same, and can be compared.
fn write_zero(field: &Field, out: &mut Vec<u8>) -> Result<(), ApiError> {
    match field.kind {
        Kind::String | Kind::Time | Kind::MicroTime => put_bytes(field.number, b"", out),
        Kind::Bool | Kind::Int => {
            put_tag(field.number, VARINT, out);
            out.push(0);
        }
        Kind::Message(message) => {
            let mut inner = Vec::new();
            write_message(message, &Map::new(), &mut inner)?;
            put_bytes(field.number, &inner, out);
        }
        // None of these is a zero value in Go but nil.
        Kind::Bytes
        | Kind::Double
        | Kind::RawJson
        | Kind::Strings
        | Kind::SchemaOrArray
        | Kind::SchemaOrBool
        | Kind::SchemaOrStringArray => {}
    }
    Ok(())
}

fn unlike(field: &Field) -> ApiError {
    ApiError::internal(format!("{} has a value that its type does not allow", field.name))
}

fn write_value(
    number: u32,
    kind: Kind,
    value: &Value,
    name: &str,
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    let wrong = || ApiError::internal(format!("{name} has a value that its type does not allow"));
    match (kind, value) {
        (Kind::String, Value::String(text)) => put_bytes(number, text.as_bytes(), out),
        (Kind::String | Kind::Bytes, Value::Null) => put_bytes(number, b"", out),
        (Kind::Bytes, Value::String(text)) => {
            put_bytes(number, &STANDARD.decode(text).map_err(|_| wrong())?, out)
        }
        (Kind::Bool, Value::Bool(b)) => {
            put_tag(number, VARINT, out);
            out.push(u8::from(*b));
        }
        (Kind::Int, Value::Number(n)) => {
            put_tag(number, VARINT, out);
            put_varint(n.as_i64().ok_or_else(wrong)? as u64, out);
        }
        (Kind::Double, Value::Number(n)) => {
            put_tag(number, FIXED64, out);
            out.extend_from_slice(&n.as_f64().ok_or_else(wrong)?.to_le_bytes());
        }
        (Kind::Message(message), Value::Object(object)) => {
            let mut inner = Vec::new();
            write_message(message, object, &mut inner)?;
            put_bytes(number, &inner, out);
        }
        (Kind::Time | Kind::MicroTime, Value::String(text)) => {
            let time: Timestamp = text.parse().map_err(|_| wrong())?;
            let mut inner = Vec::new();
            put_tag(1, VARINT, &mut inner);
            // Seconds are rounded down, so that nanoseconds are never negative.
            put_varint(
                time.as_nanosecond().div_euclid(1_000_000_000) as i64 as u64,
                &mut inner,
            );
            put_tag(2, VARINT, &mut inner);
            let nanos = if matches!(kind, Kind::MicroTime) {
                time.as_nanosecond().rem_euclid(1_000_000_000) / 1000 * 1000
            } else {
                0
            };
            put_varint(nanos as u64, &mut inner);
            put_bytes(number, &inner, out);
        }
        (Kind::RawJson, value) => {
            let mut inner = Vec::new();
            put_bytes(1, value.to_string().as_bytes(), &mut inner);
            put_bytes(number, &inner, out);
        }
        (Kind::Strings, Value::Array(list)) => {
            let mut inner = Vec::new();
            list.iter()
                .try_for_each(|v| write_value(1, Kind::String, v, name, &mut inner))?;
            put_bytes(number, &inner, out);
        }
        (Kind::SchemaOrArray | Kind::SchemaOrBool | Kind::SchemaOrStringArray, value) => {
            let mut inner = Vec::new();
            write_schema_or(kind, value, name, &mut inner)?;
            put_bytes(number, &inner, out);
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

fn write_schema_or(kind: Kind, value: &Value, name: &str, out: &mut Vec<u8>) -> Result<(), ApiError> {
    let schema = Kind::Message(SCHEMA);
    match (kind, value) {
        (Kind::SchemaOrBool, Value::Bool(_)) => write_value(1, Kind::Bool, value, name, out),
        (Kind::SchemaOrBool, Value::Object(_)) => {
            write_value(1, Kind::Bool, &Value::Bool(true), name, out)?;
            write_value(2, schema, value, name, out)
        }
        (Kind::SchemaOrArray, Value::Array(list)) => {
            list.iter().try_for_each(|v| write_value(2, schema, v, name, out))
        }
        (Kind::SchemaOrStringArray, Value::Array(list)) => list
            .iter()
            .try_for_each(|v| write_value(2, Kind::String, v, name, out)),
        _ => write_value(1, schema, value, name, out),
    }
}

#[cfg(test)]
mod tests;
