//! Watch events as frames: a line of JSON each, or protobuf with its length in front. Frames that look the same for
//! several watchers are encoded once.

use super::{IncludeObject, MediaType, ObjectEncoder, Source, Target, protobuf};
use crate::status::ApiError;
use bytes::Bytes;
use outrigger_storage::{EventKind, Object, ObjectEvent, ResourceVersion};
use serde_json::{Map, json};
use std::hash::{DefaultHasher, Hash, Hasher};

/// The annotation of the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

impl ObjectEncoder {
    /// The frame of an event, shared with all watchers for whom it looks the same.
    ///
    /// # Errors
    /// 500 for an object that cannot be read.
    pub fn watch_frame(&mut self, event: &ObjectEvent) -> Result<Bytes, ApiError> {
        let Some(representation) = self.representation_id() else {
            return self.watch_event(event.kind, &event.object);
        };
        let mut hasher = DefaultHasher::new();
        (representation, event.kind).hash(&mut hasher);
        event
            .frames
            .get_or_encode(hasher.finish(), || self.watch_event(event.kind, &event.object))
    }

    /// The frame of a change.
    ///
    /// # Errors
    /// 500 for an object that cannot be read.
    pub fn watch_event(&mut self, kind: EventKind, object: &Object) -> Result<Bytes, ApiError> {
        let name = match kind {
            EventKind::Added => "ADDED",
            EventKind::Modified => "MODIFIED",
            EventKind::Deleted => "DELETED",
        };
        self.frame(name, Source::Stored(object))
    }

    /// The frame of a bookmark; `initial_events_end`: the one that ends the initial events.
    ///
    /// # Errors
    /// 500.
    pub fn watch_bookmark(
        &mut self,
        resource_version: ResourceVersion,
        initial_events_end: bool,
    ) -> Result<Bytes, ApiError> {
        let mut metadata = json!({"resourceVersion": resource_version.to_string()});
        if initial_events_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let mut bookmark = Map::new();
        bookmark.insert("apiVersion".to_owned(), self.definition.api_version().into());
        bookmark.insert("kind".to_owned(), self.definition.kind.as_str().into());
        bookmark.insert("metadata".to_owned(), metadata);
        let include = self.include;
        if initial_events_end && include == IncludeObject::None {
            // Its row would be without the annotation, and the client would wait for ever; kube-apiserver writes it too.
            self.include = IncludeObject::Metadata;
        }
        let frame = self.frame("BOOKMARK", Source::Value(&bookmark));
        self.include = include;
        frame
    }

    /// The frame of the error that ends the watch.
    #[must_use]
    pub fn watch_error(&self, error: &ApiError) -> Bytes {
        let status = error.to_status();
        let json = status.to_string();
        self.frame_of("ERROR", json.as_bytes())
            .unwrap_or_else(|_| json_frame("ERROR", json.as_bytes()))
    }

    fn frame(&mut self, kind: &str, source: Source<'_>) -> Result<Bytes, ApiError> {
        let mut item = std::mem::take(&mut self.item);
        item.clear();
        let written = match self.representation.target {
            Target::Table(_) => {
                let headers = !std::mem::replace(&mut self.headers_sent, true);
                self.write_table_of_one(source, headers, &mut item)
            }
            _ => self.write_item(source, &mut item),
        };
        let frame = written.and_then(|()| self.frame_of(kind, &item));
        self.item = item;
        frame
    }

    fn frame_of(&self, kind: &str, json: &[u8]) -> Result<Bytes, ApiError> {
        match self.representation.media_type {
            MediaType::Protobuf => protobuf::encode_watch_frame(kind, &super::parse(json)?),
            MediaType::Json | MediaType::Yaml => Ok(json_frame(kind, json)),
        }
    }
}

fn json_frame(kind: &str, json: &[u8]) -> Bytes {
    [b"{\"type\":\"", kind.as_bytes(), b"\",\"object\":", json, b"}\n"]
        .concat()
        .into()
}

/// The events of a JSON watch, for tests.
#[cfg(test)]
pub(super) fn read_json_frames(bytes: &[u8]) -> Vec<serde_json::Value> {
    serde_json::Deserializer::from_slice(bytes)
        .into_iter()
        .map(|v| v.expect("a frame"))
        .collect()
}
