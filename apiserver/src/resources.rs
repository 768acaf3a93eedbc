//! `ServedResources`: the groups, versions and kinds that are served now. One published value with one writer
//! (`controllers/definitions.rs`); everybody else borrows it.

pub mod definition;
pub mod field;

use definition::ResourceDefinition;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is served now.
#[derive(Debug, Clone, Default)]
pub struct ServedResources {
    /// By group, version and plural.
    by_path: BTreeMap<(String, String, String), Arc<ResourceDefinition>>,
}

impl ServedResources {
    /// What these definitions serve.
    #[must_use]
    pub fn new(definitions: impl IntoIterator<Item = Arc<ResourceDefinition>>) -> Self {
        let by_path = definitions
            .into_iter()
            .map(|d| ((d.group.clone(), d.version.clone(), d.plural.clone()), d))
            .collect();
        Self { by_path }
    }

    /// The definition behind `/apis/<group>/<version>/<plural>` (`/api/v1/<plural>` for the core group).
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<ResourceDefinition>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// All definitions, ordered by group, version and plural.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ResourceDefinition>> {
        self.by_path.values()
    }
}
