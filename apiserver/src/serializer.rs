//! Decode and encode: JSON, YAML, protobuf for what Kubernetes itself defines, streams of lists and watches.
//!
//! Bytes or values in, bytes or values out: nothing here reads a request, asks the store or knows the time. Stored
//! objects that leave as JSON are never parsed.

mod json;
mod yaml;

pub mod gzip;

mod list_stream;
pub use list_stream::{PROTOBUF_LIST_BYTES_MAX, PROTOBUF_LIST_BYTES_PREFERRED_MAX};

mod watch_stream;

pub mod protobuf;

pub mod strategic_merge;

mod typed;
pub use typed::conform;

pub use crate::transform::table::IncludeObject;
pub(crate) use json::Wanted;

use crate::conversion::Conversion;
use crate::negotiation::{MediaType, Representation, Target};
use crate::resources::definition::ResourceDefinition;
use crate::status::ApiError;
use crate::transform::partial_object_metadata;
use crate::transform::table::TableConvertor;
use bytes::Bytes;
use jiff::Timestamp;
use outrigger_storage::Object;
use serde_json::{Map, Value};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// How much of a body that cannot be read is repeated in the error, in bytes.
const SUMMARY_BYTES_MAX: usize = 30;

/// What upstream reads first of every body, as its errors name it.
const TYPE_META: &str =
    r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;

/// A body that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object.
    pub object: Map<String, Value>,
    /// `duplicate field "spec.foo"`, once per field, for the fieldValidation of the request; for the built-in kinds
    /// also `unknown field "spec.bar"`.
    pub duplicates: Vec<String>,
}

/// What the endpoint takes: the fallback for a body that does not say what it is, and a name for messages.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// `group/version`.
    pub api_version: &'a str,
    /// The kind.
    pub kind: &'a str,
}

/// Reads a body that must hold one object. Whether it is of the right kind is for the registry to say.
///
/// # Errors
/// 400.
pub fn decode(media_type: MediaType, body: &[u8], expected: Expected<'_>) -> Result<Decoded, ApiError> {
    let mut duplicates = Vec::new();
    let refuse = |cause: String| {
        unrecognized(
            expected.kind,
            &format!("couldn't get version/kind; json parse error: {cause}"),
            body,
        )
    };
    let value = match media_type {
        MediaType::Json => json::read(body, &mut duplicates).map_err(|e| refuse(json::describe(&e, body)))?,
        MediaType::Yaml => {
            let text = std::str::from_utf8(body)
                .map_err(|_| unrecognized(expected.kind, "yaml: invalid UTF-8", body))?;
            yaml::read(text, &mut duplicates)
                .map_err(|e| unrecognized(expected.kind, &format!("yaml: {e}"), body))?
        }
        MediaType::Protobuf => Value::Object(
            protobuf::decode(body, expected)
                .map_err(|e| unrecognized(expected.kind, &e.to_string(), body))?,
        ),
    };
    match value {
        Value::Object(mut object) => {
            let is_expected = object.get("kind").is_none_or(|k| k == expected.kind)
                && object.get("apiVersion").is_none_or(|v| v == expected.api_version);
            if is_expected && media_type != MediaType::Protobuf {
                let unknown = typed::conform(expected, &mut object).map_err(|cause| {
                    let version = expected.api_version.rsplit('/').next().unwrap_or_default();
                    cannot_be_handled(version, expected.kind, &cause)
                })?;
                duplicates.extend(unknown);
            }
            Ok(Decoded { object, duplicates })
        }
        other => Err(refuse(format!(
            "json: cannot unmarshal {} into Go value of type {TYPE_META}",
            type_name(&other)
        ))),
    }
}

/// Reads a body that is no object: a JSON patch is a list, a merge patch may be anything.
///
/// # Errors
/// 400.
pub fn decode_patch(body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let mut duplicates = Vec::new();
    let value = json::read(body, &mut duplicates)
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {}", json::describe(&e, body))))?;
    Ok((value, duplicates))
}

/// 400 for a body that is no object of the kind: it cannot be read, or says nothing of its kind.
#[must_use]
pub fn unrecognized(kind: &str, cause: &str, body: &[u8]) -> ApiError {
    let cut = &body[..body.len().min(SUMMARY_BYTES_MAX)];
    let more = if body.len() > SUMMARY_BYTES_MAX {
        " ..."
    } else {
        ""
    };
    let summary = match cut.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(cut)),
        Some(_) => format!(
            "{}{more}",
            cut.iter().map(|b| format!("{b:02x}")).collect::<String>()
        ),
    };
    ApiError::bad_request(format!(
        "the object provided is unrecognized (must be of type {kind}): {cause} ({summary})"
    ))
}

/// 400 for `fieldValidation=Strict` and a body with duplicate (or unknown) fields.
#[must_use]
pub fn strict_decoding_error(version: &str, kind: &str, problems: &[String]) -> ApiError {
    cannot_be_handled(
        version,
        kind,
        &format!("strict decoding error: {}", problems.join(", ")),
    )
}

fn cannot_be_handled(version: &str, kind: &str, cause: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {cause}"
    ))
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// The index after the JSON string that starts at `start`.
pub(crate) fn json_string_end(json: &[u8], start: usize) -> usize {
    json::string_end(json, start)
}

/// What is encoded.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// An object of the store; it is converted to the served version.
    Stored(&'a Object),
    /// An object in the served version, or a Status.
    Value(&'a Map<String, Value>),
}

/// `metadata` of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListMeta {
    /// The snapshot's resource version; empty if there is none.
    pub resource_version: String,
    /// Where the next page starts.
    pub continue_token: Option<String>,
    /// How many objects there are after this page.
    pub remaining: Option<u64>,
    /// The request's `shardSelector`, echoed.
    pub shard_selector: Option<String>,
}

impl ListMeta {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        if let Some(token) = &self.continue_token {
            map.insert("continue".to_owned(), token.as_str().into());
        }
        if let Some(remaining) = self.remaining {
            map.insert("remainingItemCount".to_owned(), remaining.into());
        }
        map.insert(
            "resourceVersion".to_owned(),
            self.resource_version.as_str().into(),
        );
        if let Some(selector) = &self.shard_selector {
            map.insert("shardInfo".to_owned(), serde_json::json!({"selector": selector}));
        }
        Value::Object(map)
    }
}

/// Where a list has its metadata. A page learns its continue token only after its items.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaPlace {
    /// Before the items.
    Before,
    /// After the items.
    After,
}

/// Encodes what one request answers with: objects, a list, or watch events. It belongs to one response, because a list
/// and a Table watch remember what has been written.
#[derive(Debug)]
pub struct ObjectEncoder {
    representation: Representation,
    definition: Arc<ResourceDefinition>,
    conversion: Conversion,
    table: Option<TableConvertor>,
    include: IncludeObject,
    now: Timestamp,
    list: list_stream::ListState,
    collected_bytes_max: usize,
    /// The column definitions of a Table watch were sent.
    headers_sent: bool,
    /// Reused between items.
    item: Vec<u8>,
    read: Vec<u8>,
}

impl ObjectEncoder {
    /// An encoder for objects of `definition`. `now`: what ages in Tables are counted from.
    #[must_use]
    pub fn new(
        representation: &Representation,
        definition: &Arc<ResourceDefinition>,
        include: IncludeObject,
        now: Timestamp,
    ) -> Self {
        let is_table = matches!(representation.target, Target::Table(_));
        Self {
            representation: *representation,
            definition: definition.clone(),
            conversion: Conversion::new(definition),
            table: is_table.then(|| TableConvertor::new(definition)),
            include,
            now,
            list: list_stream::ListState::default(),
            collected_bytes_max: PROTOBUF_LIST_BYTES_MAX,
            headers_sent: false,
            item: Vec::new(),
            read: Vec::new(),
        }
    }

    /// The Content-Type header.
    #[must_use]
    pub fn content_type(&self) -> &'static str {
        self.representation.content_type()
    }

    /// The time that ages in Tables are counted from, for a watch that lives longer than a moment.
    pub fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// One object as a whole body.
    ///
    /// # Errors
    /// 500 for an object that cannot be read, 406 for one that has no form in the encoding.
    pub fn encode_object(&mut self, source: Source<'_>) -> Result<Bytes, ApiError> {
        let mut out = Vec::new();
        if let Source::Value(map) = source
            && is_status(map)
        {
            let mut json = Vec::new();
            write_value(map, &mut json);
            self.write_document(&json, &mut out)?;
            return Ok(out.into());
        }
        let mut json = std::mem::take(&mut self.item);
        json.clear();
        let written = match self.representation.target {
            Target::Table(_) => self.write_table_of_one(source, true, &mut json),
            _ => self.write_item(source, &mut json),
        };
        let written = written.and_then(|()| self.write_document(&json, &mut out));
        self.item = json;
        written.map(|()| out.into())
    }

    /// The object as it stands in a list or an event: compact JSON of the target (a row, for Tables).
    fn write_item(&mut self, source: Source<'_>, out: &mut Vec<u8>) -> Result<(), ApiError> {
        match self.representation.target {
            Target::Object => self.write_whole(source, out),
            Target::PartialObjectMetadata(version) | Target::PartialObjectMetadataList(version) => {
                partial_object_metadata::write_json(source, version, out);
                Ok(())
            }
            Target::Table(_) => self.write_row(source, out),
        }
    }

    fn write_whole(&self, source: Source<'_>, out: &mut Vec<u8>) -> Result<(), ApiError> {
        match source {
            Source::Stored(object) => {
                let failed = |e| ApiError::from_storage(e, self.definition.group_resource(), object.name());
                self.conversion.write_json(object, out).map_err(failed)
            }
            Source::Value(map) => {
                write_value(map, out);
                Ok(())
            }
        }
    }

    fn write_row(&mut self, source: Source<'_>, out: &mut Vec<u8>) -> Result<(), ApiError> {
        let (Some(table), Target::Table(version)) = (&self.table, self.representation.target) else {
            return Err(ApiError::internal("a row was asked for where there is no table"));
        };
        let cells = table.cells(source, self.now, &mut self.read)?;
        out.extend_from_slice(b"{\"cells\":");
        out.extend_from_slice(Value::Array(cells).to_string().as_bytes());
        out.extend_from_slice(b",\"object\":");
        match self.include {
            IncludeObject::None => out.extend_from_slice(b"null"),
            IncludeObject::Metadata => partial_object_metadata::write_json(source, version, out),
            IncludeObject::Object => self.write_whole(source, out)?,
        }
        out.push(b'}');
        Ok(())
    }

    /// A Table with the row of one object.
    fn write_table_of_one(
        &mut self,
        source: Source<'_>,
        headers: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), ApiError> {
        let Target::Table(version) = self.representation.target else {
            return Err(ApiError::internal("a table was asked for where there is none"));
        };
        let resource_version = match source {
            Source::Stored(object) => object.resource_version().to_string(),
            Source::Value(map) => map
                .get("metadata")
                .and_then(|m| m.get("resourceVersion")?.as_str())
                .unwrap_or_default()
                .to_owned(),
        };
        let metadata = serde_json::json!({"resourceVersion": resource_version});
        let columns = self
            .table
            .as_ref()
            .filter(|_| headers)
            .map_or(&Value::Null, TableConvertor::headers);
        let start = format!(
            "{{\"kind\":\"Table\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"columnDefinitions\":{columns},\"rows\":[",
            version.api_version()
        );
        out.extend_from_slice(start.as_bytes());
        self.write_row(source, out)?;
        out.extend_from_slice(b"]}");
        Ok(())
    }

    /// Compact JSON of a whole document → a body.
    fn write_document(&self, json: &[u8], out: &mut Vec<u8>) -> Result<(), ApiError> {
        write_document(
            json,
            self.representation.media_type,
            self.representation.pretty,
            out,
        )
    }

    /// A number for what decides how an event looks, apart from the event itself: equal numbers, equal bytes. `None` for
    /// forms that differ from second to second.
    #[must_use]
    pub fn representation_id(&self) -> Option<u64> {
        if self.table.is_some() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        self.representation.hash(&mut hasher);
        (
            &self.definition.group,
            &self.definition.version,
            &self.definition.plural,
        )
            .hash(&mut hasher);
        self.definition.fingerprint.hash(&mut hasher);
        Some(hasher.finish())
    }
}

/// An error as the body of its response. The transform of `representation` does not apply to it.
#[must_use]
pub fn encode_status(error: &ApiError, representation: &Representation) -> Bytes {
    let status = error.to_status();
    // JSON is what every client reads: an error must never be lost over its encoding.
    encode_document(&status, representation).unwrap_or_else(|_| status.to_string().into())
}

/// A document as a body. The transform of `representation` does not apply to it.
///
/// # Errors
/// 406 when it has no form in the encoding.
pub fn encode_document(document: &Value, representation: &Representation) -> Result<Bytes, ApiError> {
    let json = document.to_string();
    let mut out = Vec::new();
    write_document(
        json.as_bytes(),
        representation.media_type,
        representation.pretty,
        &mut out,
    )?;
    Ok(out.into())
}

fn write_document(
    json: &[u8],
    media_type: MediaType,
    pretty: bool,
    out: &mut Vec<u8>,
) -> Result<(), ApiError> {
    match media_type {
        MediaType::Json if pretty => json::indent(json, 0, out),
        MediaType::Json => {
            out.extend_from_slice(json);
            out.push(b'\n');
        }
        MediaType::Yaml => yaml::write(&parse(json)?, out).map_err(ApiError::internal)?,
        MediaType::Protobuf => protobuf::encode(&parse(json)?, out)?,
    }
    Ok(())
}

/// Reads JSON that this server has written.
fn parse(json: &[u8]) -> Result<Map<String, Value>, ApiError> {
    serde_json::from_slice(json).map_err(ApiError::internal)
}

fn write_value(map: &Map<String, Value>, out: &mut Vec<u8>) {
    // Writing a map of JSON values to memory cannot fail.
    let _ = serde_json::to_writer(out, map);
}

fn is_status(map: &Map<String, Value>) -> bool {
    map.get("kind").is_some_and(|k| k == "Status") && map.get("apiVersion").is_some_and(|v| v == "v1")
}

/// Makes objects and definitions for the tests of everything that encodes.
#[cfg(test)]
pub(crate) mod testing {
    use crate::resources::definition::{Backing, PrinterColumn, ResourceDefinition};
    use outrigger_storage::{Epoch, Key, Object, Resource, ResourceVersion, SealedObject, Slot};
    use serde_json::Value;
    use std::sync::Arc;

    pub(crate) fn stored(value: Value) -> Object {
        let Value::Object(map) = value else {
            panic!("an object")
        };
        let name = map["metadata"]["name"].as_str().expect("a name").to_owned();
        let sealed = SealedObject::seal(&map, 7).expect("sealed");
        let rv = ResourceVersion::new(Epoch(9), 3, Slot(2)).expect("in range");
        Object::for_test(&Key::new(Resource::new("g", "ks"), "ns", &name), &sealed, rv)
    }

    pub(crate) fn definition(
        group: &str,
        version: &str,
        kind: &str,
        columns: Vec<PrinterColumn>,
    ) -> Arc<ResourceDefinition> {
        Arc::new(ResourceDefinition {
            group: group.into(),
            version: version.into(),
            storage_version: version.into(),
            plural: format!("{}s", kind.to_lowercase()),
            singular: kind.to_lowercase(),
            kind: kind.into(),
            list_kind: format!("{kind}List"),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            backing: Backing::Distributed,
            builtin: None,
            status: false,
            scale: None,
            columns,
            selectable_fields: Vec::new(),
            schema: None,
            fingerprint: 1,
            deprecation_warning: None,
            crd_uid: String::new(),
            terminating: false,
            closed: false,
        })
    }
}

#[cfg(test)]
mod tests;
