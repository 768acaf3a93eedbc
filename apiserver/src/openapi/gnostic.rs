//! A Swagger document as protobuf, in the messages of gnostic's `openapi.v2` package: what client-go asks for when it
//! wants OpenAPI v2. Only what our documents hold is written. Pure.
//!
//! The field numbers are those of `openapiv2/OpenAPIv2.proto` in `github.com/google/gnostic-models`.

use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::Value;

/// The content type of the answer.
pub(super) const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What client-go asks for. It cannot read this as the content type of the answer: `@` has no place in one.
pub(super) const MEDIA_TYPE_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The document as bytes.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, &document["swagger"]);
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    message.message(2, &info);
    let mut paths = Message::default();
    for (name, item) in fields(&document["paths"]) {
        paths.named(2, name, &path_item(item));
    }
    message.message(8, &paths);
    let mut definitions = Message::default();
    for (name, definition) in fields(&document["definitions"]) {
        definitions.named(1, name, &schema(definition));
    }
    message.message(9, &definitions);
    message.bytes
}

fn path_item(item: &Value) -> Message {
    let mut message = Message::default();
    for (field, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if let Some(found) = item.get(method) {
            message.message(field, &operation(found));
        }
    }
    for found in items(&item["parameters"]) {
        message.message(9, &parameters_item(found));
    }
    message
}

fn operation(operation: &Value) -> Message {
    let mut message = Message::default();
    message.texts(1, &operation["tags"]);
    message.text(3, &operation["description"]);
    message.text(5, &operation["operationId"]);
    message.texts(6, &operation["produces"]);
    message.texts(7, &operation["consumes"]);
    for found in items(&operation["parameters"]) {
        message.message(8, &parameters_item(found));
    }
    let mut responses = Message::default();
    for (code, found) in fields(&operation["responses"]) {
        let mut response = Message::default();
        response.text(1, &found["description"]);
        if let Some(found) = found.get("schema") {
            response.message(2, &Message::wrapping(1, &schema(found)));
        }
        responses.named(1, code, &Message::wrapping(1, &response));
    }
    message.message(9, &responses);
    message.texts(10, &operation["schemes"]);
    message.extensions(13, operation);
    message
}

/// `ParametersItem` with a `Parameter` in it.
fn parameters_item(parameter: &Value) -> Message {
    let is = |place: &str| parameter["in"] == place;
    let inner = if is("body") {
        Message::wrapping(1, &body_parameter(parameter))
    } else {
        Message::wrapping(2, &non_body(parameter, is("path")))
    };
    Message::wrapping(1, &inner)
}

fn body_parameter(parameter: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, &parameter["description"]);
    message.text(2, &parameter["name"]);
    message.text(3, &parameter["in"]);
    message.flag(4, &parameter["required"]);
    message.message(5, &schema(&parameter["schema"]));
    message
}

fn non_body(parameter: &Value, in_path: bool) -> Message {
    // The two messages are numbered alike up to the name; that of the query has one more field after it.
    let (variant, type_field, unique_field) = if in_path { (4, 5, 19) } else { (3, 6, 20) };
    let mut message = Message::default();
    message.flag(1, &parameter["required"]);
    message.text(2, &parameter["in"]);
    message.text(3, &parameter["description"]);
    message.text(4, &parameter["name"]);
    message.text(type_field, &parameter["type"]);
    message.flag(unique_field, &parameter["uniqueItems"]);
    Message::wrapping(variant, &message)
}

fn schema(schema: &Value) -> Message {
    let mut message = Message::default();
    message.text(1, &schema["$ref"]);
    message.text(2, &schema["format"]);
    message.text(3, &schema["title"]);
    message.text(4, &schema["description"]);
    message.any(5, schema.get("default"));
    message.double(6, &schema["multipleOf"]);
    message.double(7, &schema["maximum"]);
    message.flag(8, &schema["exclusiveMaximum"]);
    message.double(9, &schema["minimum"]);
    message.flag(10, &schema["exclusiveMinimum"]);
    message.integer(11, &schema["maxLength"]);
    message.integer(12, &schema["minLength"]);
    message.text(13, &schema["pattern"]);
    message.integer(14, &schema["maxItems"]);
    message.integer(15, &schema["minItems"]);
    message.flag(16, &schema["uniqueItems"]);
    message.integer(17, &schema["maxProperties"]);
    message.integer(18, &schema["minProperties"]);
    message.texts(19, &schema["required"]);
    for value in items(&schema["enum"]) {
        message.any(20, Some(value));
    }
    match &schema["additionalProperties"] {
        Value::Bool(any) => {
            let mut boolean = Message::default();
            boolean.boolean(2, *any);
            message.message(21, &boolean);
        }
        values @ Value::Object(_) => message.message(21, &Message::wrapping(1, &self::schema(values))),
        _ => {}
    }
    if schema["type"].is_string() {
        let mut kind = Message::default();
        kind.text(1, &schema["type"]);
        message.message(22, &kind);
    }
    if schema["items"].is_object() {
        message.message(23, &Message::wrapping(1, &self::schema(&schema["items"])));
    }
    for branch in items(&schema["allOf"]) {
        message.message(24, &self::schema(branch));
    }
    if schema["properties"].is_object() {
        let mut properties = Message::default();
        for (name, property) in fields(&schema["properties"]) {
            properties.named(1, name, &self::schema(property));
        }
        message.message(25, &properties);
    }
    message.any(30, schema.get("example"));
    message.extensions(31, schema);
    message
}

/// A message that is being written.
#[derive(Default)]
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message with nothing but this one in it.
    fn wrapping(field: u32, inner: &Self) -> Self {
        let mut message = Self::default();
        message.message(field, inner);
        message
    }

    fn delimited(&mut self, field: u32, bytes: &[u8]) {
        encode_key(field, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(bytes.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u32, inner: &Self) {
        self.delimited(field, &inner.bytes);
    }

    /// An entry of a map: name and value.
    fn named(&mut self, field: u32, name: &str, value: &Self) {
        let mut entry = Self::default();
        entry.delimited(1, name.as_bytes());
        entry.message(2, value);
        self.message(field, &entry);
    }

    fn text(&mut self, field: u32, value: &Value) {
        if let Some(text) = value.as_str().filter(|text| !text.is_empty()) {
            self.delimited(field, text.as_bytes());
        }
    }

    fn texts(&mut self, field: u32, list: &Value) {
        for text in items(list).iter().filter_map(Value::as_str) {
            self.delimited(field, text.as_bytes());
        }
    }

    fn boolean(&mut self, field: u32, value: bool) {
        encode_key(field, WireType::Varint, &mut self.bytes);
        encode_varint(u64::from(value), &mut self.bytes);
    }

    fn flag(&mut self, field: u32, value: &Value) {
        if *value == Value::Bool(true) {
            self.boolean(field, true);
        }
    }

    fn integer(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_i64() {
            encode_key(field, WireType::Varint, &mut self.bytes);
            encode_varint(number.cast_unsigned(), &mut self.bytes);
        }
    }

    fn double(&mut self, field: u32, value: &Value) {
        if let Some(number) = value.as_f64() {
            encode_key(field, WireType::SixtyFourBit, &mut self.bytes);
            self.bytes.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Any value, as YAML; JSON is YAML.
    fn any(&mut self, field: u32, value: Option<&Value>) {
        if let Some(value) = value {
            self.message(field, &yaml(value));
        }
    }

    fn extensions(&mut self, field: u32, object: &Value) {
        for (name, value) in fields(object).filter(|(name, _)| name.starts_with("x-")) {
            self.named(field, name, &yaml(value));
        }
    }
}

fn yaml(value: &Value) -> Message {
    let mut any = Message::default();
    any.delimited(2, format!("{value}\n").as_bytes());
    any
}

fn fields(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}
