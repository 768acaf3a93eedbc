//! Lists as a stream: a start, items one by one, an end. Nothing of an item is kept, protobuf excepted: its list has a
//! length in front, so it is collected up to a limit.

use super::{ListMeta, MetaPlace, ObjectEncoder, Source, TableConvertor, json, parse, protobuf, yaml};
use crate::negotiation::{MediaType, Target};
use crate::status::ApiError;
use outrigger_storage::Object;
use serde_json::{Value, json};

/// The largest list that is collected for protobuf, in bytes, for a client that takes nothing else.
pub const PROTOBUF_LIST_BYTES_MAX: usize = 8 << 20;

/// The same for a client that takes JSON too, which streams: some more than a page of 500 with what it takes to manage
/// their fields. Eight such lists at once are to fit beside everything else.
pub const PROTOBUF_LIST_BYTES_PREFERRED_MAX: usize = 2 << 20;

/// What is known of the list that is being written.
#[derive(Debug, Default)]
pub(super) struct ListState {
    items: usize,
    /// The encoded items of a protobuf list.
    collected: Vec<u8>,
    meta_written: bool,
}

impl ObjectEncoder {
    /// Collects this many bytes for a list in protobuf and no more.
    #[must_use]
    pub fn collecting_at_most(self, bytes: usize) -> Self {
        Self {
            collected_bytes_max: bytes,
            ..self
        }
    }

    /// Appends what stands before the items. `meta` is written now or by [`ObjectEncoder::list_end`], as `place` says.
    ///
    /// # Errors
    /// 500.
    pub fn list_start(
        &mut self,
        out: &mut Vec<u8>,
        meta: &ListMeta,
        place: MetaPlace,
    ) -> Result<(), ApiError> {
        self.list = ListState {
            meta_written: place == MetaPlace::Before,
            ..ListState::default()
        };
        let (api_version, kind) = self.list_type();
        let mut parts = vec![("kind", json!(kind)), ("apiVersion", json!(api_version))];
        if place == MetaPlace::Before {
            parts.push(("metadata", meta.to_value()));
        }
        if let Some(table) = &self.table {
            parts.push(("columnDefinitions", TableConvertor::headers(table).clone()));
        }
        match self.representation.media_type {
            MediaType::Protobuf => {}
            MediaType::Yaml => {
                for (key, value) in parts {
                    write_yaml_entry(key, &value, out)?;
                }
            }
            MediaType::Json => {
                out.push(b'{');
                for (key, value) in &parts {
                    self.write_entry(key, value, out);
                    out.push(b',');
                }
                if self.representation.pretty {
                    json::new_line(1, out);
                    out.extend_from_slice(format!("\"{}\": [", self.items_key()).as_bytes());
                } else {
                    out.extend_from_slice(format!("\"{}\":[", self.items_key()).as_bytes());
                }
            }
        }
        Ok(())
    }

    /// Appends an item.
    ///
    /// # Errors
    /// 500 for an object that cannot be read; 406 for a protobuf list that grows beyond [`PROTOBUF_LIST_BYTES_MAX`] or
    /// what [`ObjectEncoder::collecting_at_most`] has set: nothing has been appended to any `out` then.
    pub fn list_item(&mut self, out: &mut Vec<u8>, object: &Object) -> Result<(), ApiError> {
        self.list_item_of(out, Source::Stored(object))
    }

    /// Appends an item that need not be stored.
    ///
    /// # Errors
    /// As [`ObjectEncoder::list_item`].
    pub fn list_item_of(&mut self, out: &mut Vec<u8>, source: Source<'_>) -> Result<(), ApiError> {
        let first = self.list.items == 0;
        self.list.items += 1;
        if self.representation.media_type == MediaType::Json && !self.representation.pretty {
            if !first {
                out.push(b',');
            }
            return self.write_item(source, out);
        }
        let mut item = std::mem::take(&mut self.item);
        item.clear();
        let written =
            self.write_item(source, &mut item)
                .and_then(|()| match self.representation.media_type {
                    MediaType::Json => {
                        if !first {
                            out.push(b',');
                        }
                        json::new_line(2, out);
                        json::indent(&item, 2, out);
                        Ok(())
                    }
                    MediaType::Yaml => {
                        if first {
                            out.extend_from_slice(format!("{}:\n", self.items_key()).as_bytes());
                        }
                        yaml::write(&[parse(&item)?], out).map_err(ApiError::internal)
                    }
                    MediaType::Protobuf => self.collect(&item),
                });
        self.item = item;
        written
    }

    fn collect(&mut self, item: &[u8]) -> Result<(), ApiError> {
        let (api_version, kind) = self.list_type();
        protobuf::encode_list_item(&api_version, &kind, &parse(item)?, &mut self.list.collected)?;
        let max = self.collected_bytes_max;
        if self.list.collected.len() > max {
            let message = format!(
                "the list is longer than the {max} bytes that are served as {}: ask for {}, or for pages with limit",
                MediaType::Protobuf.as_str(),
                MediaType::Json.as_str()
            );
            return Err(ApiError::new(406, "NotAcceptable", message));
        }
        Ok(())
    }

    /// Appends what stands after the items.
    ///
    /// # Errors
    /// 406 when the kind has no form in protobuf.
    pub fn list_end(&mut self, out: &mut Vec<u8>, meta: &ListMeta) -> Result<(), ApiError> {
        let empty = self.list.items == 0;
        match self.representation.media_type {
            MediaType::Json => {
                if self.representation.pretty && !empty {
                    json::new_line(1, out);
                }
                out.push(b']');
                if !self.list.meta_written {
                    out.push(b',');
                    self.write_entry("metadata", &meta.to_value(), out);
                }
                if self.representation.pretty {
                    json::new_line(0, out);
                }
                out.push(b'}');
                if !self.representation.pretty {
                    out.push(b'\n');
                }
            }
            MediaType::Yaml => {
                if empty {
                    out.extend_from_slice(format!("{}: []\n", self.items_key()).as_bytes());
                }
                if !self.list.meta_written {
                    write_yaml_entry("metadata", &meta.to_value(), out)?;
                }
            }
            MediaType::Protobuf => {
                let (api_version, kind) = self.list_type();
                let collected = std::mem::take(&mut self.list.collected);
                protobuf::encode_list(&api_version, &kind, &meta.to_value(), &collected, out)?;
            }
        }
        Ok(())
    }

    /// apiVersion and kind of the list.
    fn list_type(&self) -> (String, String) {
        match self.representation.target {
            Target::Object => (self.definition.api_version(), self.definition.list_kind.clone()),
            Target::Table(version) => (version.api_version().to_owned(), "Table".to_owned()),
            Target::PartialObjectMetadata(version) | Target::PartialObjectMetadataList(version) => (
                version.api_version().to_owned(),
                "PartialObjectMetadataList".to_owned(),
            ),
        }
    }

    fn items_key(&self) -> &'static str {
        if self.table.is_some() { "rows" } else { "items" }
    }

    fn write_entry(&self, key: &str, value: &Value, out: &mut Vec<u8>) {
        if self.representation.pretty {
            json::new_line(1, out);
            out.extend_from_slice(format!("\"{key}\": ").as_bytes());
            json::indent(value.to_string().as_bytes(), 1, out);
        } else {
            out.extend_from_slice(format!("\"{key}\":{value}").as_bytes());
        }
    }
}

fn write_yaml_entry(key: &str, value: &Value, out: &mut Vec<u8>) -> Result<(), ApiError> {
    yaml::write(&json!({key: value}), out).map_err(ApiError::internal)
}
