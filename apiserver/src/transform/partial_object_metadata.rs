//! PartialObjectMetadata: apiVersion, kind and metadata of an object. Stored objects are not parsed for it.

use crate::negotiation::MetaVersion;
use crate::serializer::Source;
use serde_json::Value;

/// Appends the object's PartialObjectMetadata as compact JSON.
pub(crate) fn write_json(source: Source<'_>, version: MetaVersion, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"");
    out.extend_from_slice(version.api_version().as_bytes());
    out.extend_from_slice(b"\",\"metadata\":");
    match source {
        Source::Stored(object) => object.write_metadata_json(out),
        Source::Value(map) => {
            let metadata = map
                .get("metadata")
                .filter(|m| m.is_object())
                .map_or_else(|| "{}".to_owned(), Value::to_string);
            out.extend_from_slice(metadata.as_bytes());
        }
    }
    out.push(b'}');
}
