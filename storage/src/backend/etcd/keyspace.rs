//! Our keys under the prefix of an etcd, there and back, and etcd's numbers as ours. Pure.

use super::super::{BackendEvent, KeyValue, RangeResponse, Revision};
use super::proto;
use crate::key::prefix_end;
use bytes::Bytes;

/// etcd's notation for "no end".
const NO_END: &[u8] = &[0];

/// A prefix that is put before every key and taken off again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Keyspace {
    prefix: Bytes,
    end: Bytes,
}

impl Keyspace {
    pub(super) fn new(prefix: impl AsRef<[u8]>) -> Self {
        let prefix = Bytes::copy_from_slice(prefix.as_ref());
        Self {
            end: prefix_end(&prefix),
            prefix,
        }
    }

    /// The key in etcd.
    pub(super) fn key(&self, key: &[u8]) -> Bytes {
        [&self.prefix[..], key].concat().into()
    }

    /// Key and range end in etcd; an empty end: this key alone.
    pub(super) fn range(&self, start: &[u8], end: Option<&[u8]>) -> (Bytes, Bytes) {
        let key = self.key(start);
        // etcd takes no empty key; nothing is below "\0".
        let key = if key.is_empty() {
            Bytes::from_static(&[0])
        } else {
            key
        };
        (key, end.map_or_else(Bytes::new, |end| self.end_of(end)))
    }

    fn end_of(&self, end: &[u8]) -> Bytes {
        match end {
            NO_END => self.end.clone(),
            // Without a prefix an empty end would mean "this key alone"; the smallest key stands for "nothing".
            [] if self.prefix.is_empty() => Bytes::from_static(&[0, 0]),
            end => self.key(end),
        }
    }

    fn relative(&self, key: &Bytes) -> Result<Bytes, String> {
        if !key.starts_with(&self.prefix) {
            let (prefix, key) = (
                String::from_utf8_lossy(&self.prefix),
                String::from_utf8_lossy(key),
            );
            return Err(format!("a key without the prefix {prefix:?}: {key:?}"));
        }
        Ok(key.slice(self.prefix.len()..))
    }

    pub(super) fn key_value(&self, kv: proto::KeyValue) -> Result<KeyValue, String> {
        Ok(KeyValue {
            key: self.relative(&kv.key)?,
            value: kv.value,
            create_revision: number(kv.create_revision)?,
            mod_revision: number(kv.mod_revision)?,
            version: number(kv.version)?,
        })
    }

    pub(super) fn range_response(&self, answer: proto::RangeResponse) -> Result<RangeResponse, String> {
        Ok(RangeResponse {
            kvs: answer
                .kvs
                .into_iter()
                .map(|kv| self.key_value(kv))
                .collect::<Result<_, _>>()?,
            more: answer.more,
            count: number(answer.count)?,
        })
    }

    pub(super) fn event(&self, event: proto::Event) -> Result<BackendEvent, String> {
        let kv = event.kv.ok_or("an event without a key")?;
        let deleted = event.r#type == i32::from(proto::EventType::Delete);
        let prev = event.prev_kv.map(|prev| self.key_value(prev)).transpose()?;
        Ok(BackendEvent {
            kv: self.key_value(kv)?,
            deleted,
            prev,
        })
    }
}

/// The revision of an answer.
pub(super) fn revision(header: Option<proto::ResponseHeader>) -> Result<Revision, String> {
    number(header.ok_or("an answer without a header")?.revision)
}

/// etcd's numbers are signed and never negative.
pub(super) fn number(number: i64) -> Result<u64, String> {
    u64::try_from(number).map_err(|_| format!("a negative number: {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_below_the_prefix() {
        let check = |prefix: &str, start: &str, end: Option<&str>, expect: (&str, &str)| {
            let (key, range_end) = Keyspace::new(prefix).range(start.as_bytes(), end.map(str::as_bytes));
            let expect = (
                Bytes::copy_from_slice(expect.0.as_bytes()),
                Bytes::copy_from_slice(expect.1.as_bytes()),
            );
            assert_eq!((key, range_end), expect, "{prefix:?} {start:?} {end:?}");
        };
        check("/o/", "a", None, ("/o/a", ""));
        check("/o/", "a", Some("b"), ("/o/a", "/o/b"));
        check("/o/", "", Some("\0"), ("/o/", "/o0"));
        check("/o/", "a", Some("\0"), ("/o/a", "/o0"));
        check("/o/", "a", Some(""), ("/o/a", "/o/"));
        check("", "", Some("\0"), ("\0", "\0"));
        check("", "a", Some("b"), ("a", "b"));
    }

    #[test]
    fn keys_come_back_without_a_copy() {
        let keyspace = Keyspace::new("/o/");
        let key = keyspace.key(b"objects/a");
        let back = keyspace.relative(&key).expect("has the prefix");
        assert_eq!(&back[..], b"objects/a");
        assert!(key.as_ptr_range().contains(&back.as_ptr()));
        assert!(keyspace.relative(&Bytes::from_static(b"/p/a")).is_err());
    }

    #[test]
    fn deletes_are_told_from_puts() {
        let event = |r#type: proto::EventType| {
            let kv = Some(proto::KeyValue {
                key: Bytes::from_static(b"a"),
                mod_revision: 3,
                ..Default::default()
            });
            Keyspace::new("")
                .event(proto::Event {
                    r#type: r#type.into(),
                    kv,
                    prev_kv: None,
                })
                .map(|e| e.deleted)
        };
        assert_eq!(event(proto::EventType::Put), Ok(false));
        assert_eq!(event(proto::EventType::Delete), Ok(true));
        assert!(Keyspace::new("").event(proto::Event::default()).is_err());
    }
}
