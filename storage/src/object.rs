//! `Object`: the stored bytes of one object, and the metadata that storage needs.
//!
//! A stored value is a header and a body. Layout, big-endian:
//!
//! ```text
//! 0  version u8 = 1   1  codec u8      2  flags u8       3  reserved
//! 4  epoch u64        12 base u64 (or the pinned resource version)
//! 20 write id u128    36 schema fingerprint u64
//! 44 offset of the value of `metadata`   48 its length   52 place of `resourceVersion`, u32 each, in the body
//! 56 body: compact JSON with apiVersion, kind and metadata first, and no resourceVersion in it
//! ```
//!
//! The resource version is a function of what is stored: `(epoch, mod_revision - base, slot)`. It is spliced into the
//! body on the way out; nothing here parses a body unless it is asked for a value. This file knows no schema.

use crate::key::{Key, split_object_key};
use crate::resource_version::{Epoch, ResourceVersion, Slot};
use crate::{Error, Resource};
use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 56;
/// The largest stored value, in bytes: etcd's default request limit is 1.5 MiB, the rest is for keys and compares.
pub const OBJECT_BYTES_MAX: usize = 1536 * 1024 - 16 * 1024;

const VERSION: u8 = 1;
const CODEC_PLAIN: u8 = 0;
const FLAG_PINNED: u8 = 1;
const FLAG_MOVED: u8 = 2;
/// `metadata` has no key that sorts after `resourceVersion`.
const FLAG_RV_LAST: u8 = 4;

/// Names one attempt to write, so that its outcome can be found in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(pub u128);

/// An object that is ready to be stored: its body, and where metadata stands in it. Only [`SealedObject::seal`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedObject {
    /// Header with the clock and the write id still zero, then the body.
    bytes: BytesMut,
}

/// Why a value cannot be sealed. A broken promise of the caller: the registry has checked all of this before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// apiVersion, kind, metadata or metadata.uid is missing or is no string (no object, for metadata).
    #[error("the object has no {0}")]
    Missing(&'static str),
    /// The object is larger than [`OBJECT_BYTES_MAX`].
    #[error("the object is {0} bytes long")]
    TooLarge(usize),
}

impl SealedObject {
    /// Encodes `value` for storage. `resourceVersion` is left out of it, wherever it comes from.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn seal(
        value: &serde_json::Map<String, serde_json::Value>,
        schema_fingerprint: u64,
    ) -> Result<Self, SealError> {
        use serde_json::Value;
        let text = |name: &'static str| match value.get(name) {
            Some(Value::String(_)) => Ok(&value[name]),
            _ => Err(SealError::Missing(name)),
        };
        let (api_version, kind) = (text("apiVersion")?, text("kind")?);
        let Some(Value::Object(metadata)) = value.get("metadata") else {
            return Err(SealError::Missing("metadata"));
        };
        if !metadata.get("uid").is_some_and(Value::is_string) {
            return Err(SealError::Missing("metadata.uid"));
        }

        let mut out = Vec::with_capacity(1024);
        out.resize(HEADER_LEN, 0);
        out.extend_from_slice(b"{\"apiVersion\":");
        write_json(&mut out, api_version);
        out.extend_from_slice(b",\"kind\":");
        write_json(&mut out, kind);
        out.extend_from_slice(b",\"metadata\":");
        let metadata_at = out.len();
        let mut place = None;
        for (i, (key, value)) in metadata
            .iter()
            .filter(|(k, _)| *k != "resourceVersion")
            .enumerate()
        {
            out.push(if i == 0 { b'{' } else { b',' });
            if place.is_none() && key.as_str() > "resourceVersion" {
                place = Some(out.len());
            }
            write_json(&mut out, &Value::String(key.clone()));
            out.push(b':');
            write_json(&mut out, value);
        }
        let rv_last = place.is_none();
        let place = place.unwrap_or(out.len());
        out.push(b'}');
        let metadata_len = out.len() - metadata_at;
        for (key, value) in value
            .iter()
            .filter(|(k, _)| !matches!(k.as_str(), "apiVersion" | "kind" | "metadata"))
        {
            out.push(b',');
            write_json(&mut out, &Value::String(key.clone()));
            out.push(b':');
            write_json(&mut out, value);
        }
        out.push(b'}');
        if out.len() > OBJECT_BYTES_MAX {
            return Err(SealError::TooLarge(out.len()));
        }

        out[0] = VERSION;
        out[1] = CODEC_PLAIN;
        out[2] = if rv_last { FLAG_RV_LAST } else { 0 };
        out[36..44].copy_from_slice(&schema_fingerprint.to_be_bytes());
        let in_body = |at: usize| u32::try_from(at - HEADER_LEN).unwrap_or(u32::MAX).to_be_bytes();
        out[44..48].copy_from_slice(&in_body(metadata_at));
        out[48..52].copy_from_slice(&u32::try_from(metadata_len).unwrap_or(u32::MAX).to_be_bytes());
        out[52..56].copy_from_slice(&in_body(place));
        Ok(Self {
            bytes: BytesMut::from(&out[..]),
        })
    }

    /// The body that will be stored.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[HEADER_LEN..]
    }

    /// The value as whoever writes to a backend past the store would put it.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn stamped(&self, epoch: Epoch, base: u64) -> Bytes {
        self.stamp(epoch, base, WriteId(0))
    }

    /// The value to put under the clock `(epoch, base)`.
    pub(crate) fn stamp(&self, epoch: Epoch, base: u64, write_id: WriteId) -> Bytes {
        let mut bytes = self.bytes.clone();
        bytes[4..12].copy_from_slice(&epoch.0.to_be_bytes());
        bytes[12..20].copy_from_slice(&base.to_be_bytes());
        bytes[20..36].copy_from_slice(&write_id.0.to_be_bytes());
        bytes.freeze()
    }
}

fn write_json(out: &mut Vec<u8>, value: &serde_json::Value) {
    serde_json::to_writer(out, value).expect("a JSON value is always written to memory");
}

/// One stored object at one revision. Cheap to clone: it borrows from the backend's answer.
#[derive(Clone)]
pub struct Object {
    key: Bytes,
    value: Bytes,
    resource_version: ResourceVersion,
    revision: u64,
    slot: Slot,
}

/// What metadata says, borrowed from the stored bytes. Fields that nobody in the store or the registry reads stay text.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata<'a> {
    /// Labels.
    #[serde(borrow)]
    pub labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    /// The uid.
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    /// When deletion was asked for.
    #[serde(borrow)]
    pub deletion_timestamp: Option<Cow<'a, str>>,
    /// Who must finish before the object goes.
    #[serde(borrow)]
    pub finalizers: Vec<Cow<'a, str>>,
}

impl Object {
    /// Reads a stored value.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when header and body do not fit together or the format is newer than this release.
    pub(crate) fn from_stored(key: Bytes, value: Bytes, revision: u64, slot: Slot) -> Result<Self, Error> {
        let corrupt = |cause: &str| Error::Corrupt {
            key: String::from_utf8_lossy(&key).into_owned(),
            cause: cause.to_owned(),
        };
        if value.len() < HEADER_LEN {
            return Err(corrupt("the header is cut off"));
        }
        if value[0] != VERSION || value[1] != CODEC_PLAIN {
            return Err(corrupt("the format is of a newer release"));
        }
        if split_object_key(&key).is_none() {
            return Err(corrupt("the key is not an object's"));
        }
        let body = value.len() - HEADER_LEN;
        let (at, len, place) = (be32(&value, 44), be32(&value, 48), be32(&value, 52));
        if at.saturating_add(len) > body || place > body {
            return Err(corrupt("an offset points outside"));
        }
        let stored = be64(&value, 12);
        let resource_version = if value[2] & FLAG_PINNED != 0 {
            ResourceVersion::from_u64(stored).map_err(|e| corrupt(&e.to_string()))?
        } else {
            let offset = revision
                .checked_sub(stored)
                .ok_or_else(|| corrupt("the base is above the revision"))?;
            ResourceVersion::new(Epoch(be64(&value, 4)), offset, slot).map_err(|e| corrupt(&e.to_string()))?
        };
        Ok(Self {
            key,
            value,
            resource_version,
            revision,
            slot,
        })
    }

    /// An object as a backend would return it, for the tests of those who encode objects.
    #[cfg(feature = "testing")]
    #[must_use]
    pub fn for_test(key: &Key, sealed: &SealedObject, resource_version: ResourceVersion) -> Self {
        const BASE: u64 = 100;
        let value = sealed.stamp(resource_version.epoch(), BASE, WriteId(1));
        let revision = BASE + resource_version.offset();
        Self {
            key: key.encode(),
            value,
            resource_version,
            revision,
            slot: resource_version.slot(),
        }
    }

    /// The same state with another resource version: that of its deletion.
    pub(crate) fn with_resource_version(&self, resource_version: ResourceVersion) -> Self {
        Self {
            resource_version,
            ..self.clone()
        }
    }

    /// Whether this copy was left behind by a move.
    pub(crate) fn is_moved(&self) -> bool {
        self.value[2] & FLAG_MOVED != 0
    }

    /// Whether a move has put it here with the resource version that it had before.
    pub(crate) fn is_pinned(&self) -> bool {
        self.value[2] & FLAG_PINNED != 0
    }

    pub(crate) fn write_id(&self) -> WriteId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.value[20..36]);
        WriteId(u128::from_be_bytes(id))
    }

    /// The backend's mod_revision of this state.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The backend that holds it.
    #[must_use]
    pub fn slot(&self) -> Slot {
        self.slot
    }

    fn parts(&self) -> (&str, &str, &str, &str) {
        split_object_key(&self.key).expect("checked in from_stored")
    }

    /// The namespace; empty for kinds without namespaces.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.parts().2
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.parts().3
    }

    /// Group and plural.
    #[must_use]
    pub fn resource(&self) -> Resource {
        let (group, resource, _, _) = self.parts();
        Resource::new(group, resource)
    }

    /// Where it lives.
    #[must_use]
    pub fn key(&self) -> Key {
        let (group, resource, namespace, name) = self.parts();
        Key::new(Resource::new(group, resource), namespace, name)
    }

    /// The stored key, below the prefix.
    #[must_use]
    pub fn raw_key(&self) -> &Bytes {
        &self.key
    }

    /// The resource version of this state (for a deleted object: of its deletion).
    #[must_use]
    pub fn resource_version(&self) -> ResourceVersion {
        self.resource_version
    }

    /// The schema under which it was written.
    #[must_use]
    pub fn schema_fingerprint(&self) -> u64 {
        be64(&self.value, 36)
    }

    /// Bytes that this object keeps in memory.
    #[must_use]
    pub fn size(&self) -> usize {
        self.key.len() + self.value.len()
    }

    /// The body as it is stored: JSON without resourceVersion.
    #[must_use]
    pub fn stored_json(&self) -> &[u8] {
        &self.value[HEADER_LEN..]
    }

    /// The value of `metadata` as it is stored: JSON without resourceVersion.
    #[must_use]
    pub fn stored_metadata(&self) -> &[u8] {
        let at = HEADER_LEN + be32(&self.value, 44);
        &self.value[at..at + be32(&self.value, 48)]
    }

    /// Appends the object as JSON, resourceVersion included. Nothing is parsed.
    pub fn write_json(&self, out: &mut impl BufMut) {
        let place = be32(&self.value, 52);
        self.splice(self.stored_json(), place, out);
    }

    /// Appends the value of `metadata` as JSON, resourceVersion included. Nothing is parsed.
    pub fn write_metadata_json(&self, out: &mut impl BufMut) {
        let place = be32(&self.value, 52) - be32(&self.value, 44);
        self.splice(self.stored_metadata(), place, out);
    }

    /// The length of what [`Object::write_json`] appends is at most this, in bytes.
    #[must_use]
    pub fn json_len_max(&self) -> usize {
        self.value.len() - HEADER_LEN + r#""resourceVersion":"9223372036854775807","#.len()
    }

    fn splice(&self, json: &[u8], place: usize, out: &mut impl BufMut) {
        let rv_last = self.value[2] & FLAG_RV_LAST != 0;
        let mut digits = [0; 20];
        out.put_slice(&json[..place]);
        out.put_slice(if rv_last {
            b",\"resourceVersion\":\""
        } else {
            b"\"resourceVersion\":\""
        });
        out.put_slice(decimal(self.resource_version.get(), &mut digits));
        out.put_slice(if rv_last { b"\"" } else { b"\"," });
        out.put_slice(&json[place..]);
    }

    /// The object parsed, resourceVersion included.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the body is not JSON.
    pub fn to_value(&self) -> Result<serde_json::Map<String, serde_json::Value>, Error> {
        let mut json = Vec::with_capacity(self.json_len_max());
        self.write_json(&mut json);
        serde_json::from_slice(&json).map_err(|e| self.corrupt(&e))
    }

    /// The parts of metadata that selection and deletion need.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when metadata is not JSON.
    pub fn metadata(&self) -> Result<Metadata<'_>, Error> {
        serde_json::from_slice(self.stored_metadata()).map_err(|e| self.corrupt(&e))
    }

    fn corrupt(&self, cause: &serde_json::Error) -> Error {
        Error::Corrupt {
            key: String::from_utf8_lossy(&self.key).into_owned(),
            cause: cause.to_string(),
        }
    }
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Object({}@{:?})",
            String::from_utf8_lossy(&self.key),
            self.resource_version
        )
    }
}

fn be32(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

/// `n` in decimal, without an allocation: this runs once per object of a list.
fn decimal(mut n: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (n % 10) as u8;
        n /= 10;
        if n == 0 {
            return &digits[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn stored(value: Value) -> Object {
        let Value::Object(map) = value else {
            panic!("an object")
        };
        let sealed = SealedObject::seal(&map, 7).expect("sealed");
        let value = sealed.stamp(Epoch(9), 100, WriteId(5));
        Object::from_stored("objects/g/r/ns/n".into(), value, 103, Slot(2)).expect("stored")
    }

    #[test]
    fn resource_version_is_spliced_in_key_order() {
        let object = stored(json!({"spec": {"a": 1}, "kind": "K", "apiVersion": "g/v1",
            "metadata": {"uid": "u", "name": "n", "resourceVersion": "17", "labels": {"a": "b"}}}));
        let mut out = Vec::new();
        object.write_json(&mut out);
        let rv = ResourceVersion::new(Epoch(9), 3, Slot(2)).expect("in range");
        assert_eq!(
            String::from_utf8(out).expect("text"),
            format!(
                r#"{{"apiVersion":"g/v1","kind":"K","metadata":{{"labels":{{"a":"b"}},"name":"n","resourceVersion":"{rv}","uid":"u"}},"spec":{{"a":1}}}}"#
            )
        );
        let mut out = Vec::new();
        object.write_metadata_json(&mut out);
        assert_eq!(
            String::from_utf8(out).expect("text"),
            format!(r#"{{"labels":{{"a":"b"}},"name":"n","resourceVersion":"{rv}","uid":"u"}}"#)
        );
        assert_eq!(
            (object.namespace(), object.name(), object.schema_fingerprint()),
            ("ns", "n", 7)
        );
        assert_eq!(object.write_id(), WriteId(5));
        assert_eq!(object.metadata().expect("metadata").uid, "u");
    }

    #[test]
    fn damaged_values_are_refused() {
        let good = stored(json!({"kind": "K", "apiVersion": "g/v1", "metadata": {"uid": "u"}})).value;
        let check = |value: Vec<u8>| {
            assert!(Object::from_stored("objects/g/r/ns/n".into(), value.into(), 103, Slot(2)).is_err());
        };
        check(good[..40].to_vec());
        for at in [0, 1, 44, 48, 52] {
            let mut bad = good.to_vec();
            bad[at] = 0xff;
            check(bad);
        }
        assert!(
            Object::from_stored("objects/g/r/ns/n".into(), good, 99, Slot(2)).is_err(),
            "base above revision"
        );
    }
}
