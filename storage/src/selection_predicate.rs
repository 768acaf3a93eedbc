//! Which objects a list or a watch selects: labels, fields, and `shardSelector` (KEP-5866).
//!
//! Parsing follows Kubernetes' grammars; matching reads the metadata prefix of the stored bytes, and the body only for
//! selectable fields beyond metadata. Pure. It does not know which fields a kind allows: the caller has checked that.

use crate::{Error, Object};

/// What is selected. The default selects everything.
#[derive(Debug, Clone, Default)]
pub struct SelectionPredicate {
    /// `labelSelector`.
    pub labels: LabelSelector,
    /// `fieldSelector`.
    pub fields: FieldSelector,
    /// `shardSelector`.
    pub shard: Option<ShardSelector>,
}

/// A parsed `labelSelector`; empty selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector {}

/// A parsed `fieldSelector`; empty selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector {}

/// A parsed `shardSelector`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSelector {}

/// A selector that cannot be parsed; the text is the one kube-apiserver answers with (400).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SelectorError(pub String);

impl SelectionPredicate {
    /// Whether everything is selected, so that nothing needs to be looked at.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        true
    }

    /// Whether `object` is selected.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when the stored bytes cannot be read.
    pub fn matches(&self, _object: &Object) -> Result<bool, Error> {
        Ok(true)
    }
}
