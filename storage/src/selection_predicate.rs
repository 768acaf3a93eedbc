//! Which objects a list or a watch selects: labels, fields, and `shardSelector` (KEP-5866).
//!
//! Parsing follows Kubernetes' grammars; matching reads the metadata prefix of the stored bytes, and the body only for
//! selectable fields beyond metadata. Pure. It does not know which fields a kind allows: the caller checks
//! [`FieldSelector::terms`] before it hands the predicate down.

pub mod fields;
pub mod labels;
pub mod shard;

pub use fields::{FieldOperator, FieldSelector, FieldTerm};
pub use labels::{LabelOperator, LabelRequirement, LabelSelector};
pub use shard::{ShardField, ShardRange, ShardSelector};

use crate::{Error, Object};

/// The longest text of one selector that is parsed, in bytes. Upstream's limit is that of a request line.
pub const SELECTOR_BYTES_MAX: usize = 64 * 1024;

/// What is selected. The default selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelectionPredicate {
    /// `labelSelector`.
    pub labels: LabelSelector,
    /// `fieldSelector`.
    pub fields: FieldSelector,
    /// `shardSelector`.
    pub shard: Option<ShardSelector>,
}

/// A selector that cannot be parsed; the text is the one kube-apiserver answers with (400).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl SelectionPredicate {
    /// Whether everything is selected, so that nothing needs to be looked at.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty() && self.shard.is_none()
    }

    /// Whether objects of this namespace can be selected at all, as far as the namespace decides it.
    #[must_use]
    pub fn may_match_namespace(&self, namespace: &str) -> bool {
        let by_field = self
            .fields
            .terms()
            .iter()
            .filter(|t| t.field() == "metadata.namespace");
        by_field.into_iter().all(|t| t.matches_text(namespace))
            && self
                .shard
                .as_ref()
                .is_none_or(|s| s.may_match_namespace(namespace))
    }

    /// Whether `object` is selected. What the key decides is looked at first, then metadata, then the body.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the stored bytes cannot be read.
    pub fn matches(&self, object: &Object) -> Result<bool, Error> {
        let corrupt = |e: serde_json::Error| Error::Corrupt {
            key: String::from_utf8_lossy(object.raw_key()).into_owned(),
            cause: e.to_string(),
        };
        if !self.fields.matches_key(object.namespace(), object.name()) {
            return Ok(false);
        }
        if let Some(shard) = &self.shard
            && !shard
                .matches(object.namespace(), object.stored_metadata())
                .map_err(corrupt)?
        {
            return Ok(false);
        }
        Ok(self
            .labels
            .matches_metadata(object.stored_metadata())
            .map_err(corrupt)?
            && self.fields.matches_body(object.stored_json()).map_err(corrupt)?)
    }
}

fn check_length(what: &str, text: &str) -> Result<(), SelectorError> {
    if text.len() > SELECTOR_BYTES_MAX {
        return Err(SelectorError(format!(
            "{what} selector must be no more than {SELECTOR_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{SealedObject, WriteId};
    use crate::{Epoch, Slot};
    use serde_json::{Value, json};

    fn object() -> Object {
        let Value::Object(map) = json!({"apiVersion": "g/v1", "kind": "K", "spec": {"color": "red", "size": 3, "on": true},
            "metadata": {"uid": "u-1", "name": "web", "namespace": "team-a", "labels": {"app": "web", "tier": "7"},
                "annotations": {"labels": "no"}, "managedFields": [{"labels": {"x": "y"}}]}})
        else {
            panic!("an object")
        };
        let value = SealedObject::seal(&map, 7)
            .expect("sealed")
            .stamp(Epoch(9), 100, WriteId(5));
        Object::from_stored("objects/g/r/team-a/web".into(), value, 103, Slot(2)).expect("stored")
    }

    fn check(labels: &str, fields: &str, shard: &str, expect: bool) {
        let predicate = SelectionPredicate {
            labels: LabelSelector::parse(labels).expect("labels"),
            fields: FieldSelector::parse(fields).expect("fields"),
            shard: (!shard.is_empty()).then(|| ShardSelector::parse(shard).expect("shard")),
        };
        assert_eq!(
            predicate.matches(&object()).expect("readable"),
            expect,
            "{labels} {fields} {shard}"
        );
        assert_eq!(
            predicate.is_everything(),
            labels.is_empty() && fields.is_empty() && shard.is_empty()
        );
    }

    #[test]
    fn all_parts_must_match() {
        let all = "shardRange(object.metadata.namespace, '0x0000000000000000', '0x10000000000000000')";
        check("", "", "", true);
        check("app=web", "spec.color=red,metadata.namespace=team-a", all, true);
        check("app=other", "spec.color=red", all, false);
        check("app=web", "spec.color=blue", all, false);
        check("app=web", "spec.color=red,metadata.name!=web", all, false);
        check(
            "",
            "",
            "shardRange(object.metadata.uid, '0x0000000000000000', '0x0000000000000001')",
            false,
        );
    }

    #[test]
    fn scalars_compare_as_text_and_a_missing_value_is_empty() {
        for (fields, expect) in [
            ("spec.size=3", true),
            ("spec.on=true", true),
            ("spec.on!=true", false),
            ("spec.missing=", true),
            ("spec.missing!=x", true),
            ("spec.color.deeper=", true),
            ("spec=", true),
            ("metadata.uid=u-1", true),
        ] {
            check("", fields, "", expect);
        }
    }

    #[test]
    fn any_text_is_parsed_or_refused() {
        use rand::seq::IndexedRandom;
        use rand::{Rng, SeedableRng};
        const PIECES: [&str; 34] = [
            "a",
            "in",
            "notin",
            "=",
            "==",
            "!=",
            "!",
            "(",
            ")",
            ",",
            "<",
            ">",
            " ",
            "\n",
            "\\",
            "'",
            "\"",
            "/",
            "//",
            ".",
            "|",
            "||",
            "shardRange",
            "object.metadata.uid",
            "object.metadata.namespace",
            "0x0000000000000000",
            "0x10000000000000000",
            "['",
            "']",
            "é",
            "\u{0}",
            "metadata.name",
            "-",
            "&&",
        ];
        let mut random = rand::rngs::StdRng::seed_from_u64(5);
        for _ in 0..20_000 {
            let n = random.random_range(0..14);
            let text: String = (0..n)
                .filter_map(|_| PIECES.choose(&mut random).copied())
                .collect();
            if let Ok(labels) = LabelSelector::parse(&text) {
                assert_eq!(LabelSelector::parse(&labels.to_string()), Ok(labels), "{text:?}");
            }
            if let Ok(fields) = FieldSelector::parse(&text) {
                let again = FieldSelector::parse(&fields.to_string());
                assert_eq!(
                    again.map(|f| f.terms().len()),
                    Ok(fields.terms().len()),
                    "{text:?}"
                );
                assert!(fields.matches_body(b"{}").is_ok());
            }
            if let Ok(shard) = ShardSelector::parse(&text) {
                assert_eq!(ShardSelector::parse(&shard.to_string()), Ok(shard), "{text:?}");
            }
        }
    }

    #[test]
    fn a_namespace_that_cannot_match_need_not_be_read() {
        let fields = FieldSelector::parse("metadata.namespace=a").expect("fields");
        let predicate = SelectionPredicate {
            fields,
            ..SelectionPredicate::default()
        };
        assert!(predicate.may_match_namespace("a") && !predicate.may_match_namespace("b"));
    }
}
