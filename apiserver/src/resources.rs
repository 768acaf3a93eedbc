//! `ServedResources`: the groups, versions and kinds that are served now. One published value with one writer
//! (`controllers/definitions.rs`); everybody else borrows it.

pub mod builtin;
pub mod crd_status;
pub mod definition;
pub mod field;
pub mod strategy;
pub mod structural;
pub mod version;

use definition::ResourceDefinition;
use std::collections::BTreeMap;
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

/// What is served now.
#[derive(Debug, Clone, Default)]
pub struct ServedResources {
    /// By group, version and plural.
    by_path: BTreeMap<(String, String, String), Arc<ResourceDefinition>>,
    groups: Vec<ServedGroup>,
    hash: u64,
}

/// A group with its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedGroup {
    /// Empty for the core group.
    pub name: String,
    /// The preferred version first; never empty.
    pub versions: Vec<ServedVersion>,
}

/// One version of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedVersion {
    /// `v1`.
    pub name: String,
    /// A number that changes with anything that clients can see of the kinds in this version.
    pub hash: u64,
}

impl ServedResources {
    /// What these definitions serve. Of two definitions for one path the later counts, except that no CRD replaces one
    /// of the server's own kinds.
    #[must_use]
    pub fn new(definitions: impl IntoIterator<Item = Arc<ResourceDefinition>>) -> Self {
        let mut by_path: BTreeMap<(String, String, String), Arc<ResourceDefinition>> = BTreeMap::new();
        for definition in definitions {
            let path = (
                definition.group.clone(),
                definition.version.clone(),
                definition.plural.clone(),
            );
            let is_own = by_path.get(&path).is_some_and(|known| known.builtin.is_some());
            if !is_own || definition.builtin.is_some() {
                by_path.insert(path, definition);
            }
        }
        let groups = groups_of(&by_path);
        let mut hasher = Xxh3::new();
        for version in groups.iter().flat_map(|group| &group.versions) {
            hasher.update(&version.hash.to_be_bytes());
        }
        Self {
            by_path,
            groups,
            hash: hasher.digest(),
        }
    }

    /// The definition behind `/apis/<group>/<version>/<plural>` (`/api/v1/<plural>` for the core group).
    #[must_use]
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<ResourceDefinition>> {
        self.by_path
            .get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// The definition of a kind.
    #[must_use]
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<ResourceDefinition>> {
        self.in_version(group, version)
            .find(|definition| definition.kind == kind)
    }

    /// All definitions, ordered by group, version and plural.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ResourceDefinition>> {
        self.by_path.values()
    }

    /// The definitions of one group and version, ordered by plural.
    pub fn in_version(&self, group: &str, version: &str) -> impl Iterator<Item = &Arc<ResourceDefinition>> {
        let start = (group.to_owned(), version.to_owned(), String::new());
        let found = self.by_path.range(start..).map(|(_, definition)| definition);
        found.take_while(move |definition| definition.group == group && definition.version == version)
    }

    /// All groups in the order of discovery: the server's own by kube-apiserver's priorities, then the others by name.
    /// The core group is the first, if it is served.
    #[must_use]
    pub fn groups(&self) -> &[ServedGroup] {
        &self.groups
    }

    /// The group of this name.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<&ServedGroup> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// A number that changes with anything that clients can see in discovery and OpenAPI. The same on every replica.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl ServedGroup {
    /// The version that clients should use.
    #[must_use]
    pub fn preferred(&self) -> Option<&ServedVersion> {
        self.versions.first()
    }
}

fn groups_of(by_path: &BTreeMap<(String, String, String), Arc<ResourceDefinition>>) -> Vec<ServedGroup> {
    let mut hashers: BTreeMap<&str, BTreeMap<&str, Xxh3>> = BTreeMap::new();
    for ((group, version, _), definition) in by_path {
        let hasher = hashers.entry(group).or_default().entry(version).or_default();
        hasher.update(&definition.published_hash().to_be_bytes());
    }
    let version = |(name, hasher): (&str, Xxh3)| ServedVersion {
        name: name.to_owned(),
        hash: hasher.digest(),
    };
    let group = |(name, versions): (&str, BTreeMap<&str, Xxh3>)| ServedGroup {
        name: name.to_owned(),
        versions: versions.into_iter().map(version).collect(),
    };
    let mut groups: Vec<ServedGroup> = hashers.into_iter().map(group).collect();
    for group in &mut groups {
        group
            .versions
            .sort_by(|a, b| version::by_preference(&a.name, &b.name));
    }
    // Stable: groups of one priority stay ordered by name.
    groups.sort_by_key(|group| std::cmp::Reverse(group_priority(&group.name)));
    groups
}

/// `groupPriorityMinimum` of the APIService that kube-apiserver has for the group.
fn group_priority(group: &str) -> u32 {
    match group {
        "" => 18_000,
        "events.k8s.io" => 17_750,
        "apiextensions.k8s.io" => 16_700,
        "coordination.k8s.io" => 16_500,
        _ => 1_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(versions: &[(&str, &str)]) -> ServedResources {
        let template = builtin::definitions().remove(0);
        let definition = |(group, version): &(&str, &str)| {
            let mut definition = (*template).clone();
            (definition.group, definition.version) = ((*group).to_owned(), (*version).to_owned());
            Arc::new(definition)
        };
        ServedResources::new(versions.iter().map(definition))
    }

    #[test]
    fn groups_and_versions_stand_in_the_order_of_discovery() {
        let served = served(&[
            ("b.io", "v1"),
            ("a.io", "v1beta1"),
            ("a.io", "v1"),
            ("a.io", "v2"),
            ("coordination.k8s.io", "v1"),
            ("", "v1"),
        ]);
        let groups: Vec<_> = served
            .groups()
            .iter()
            .map(|g| {
                (
                    g.name.as_str(),
                    g.versions.iter().map(|v| v.name.as_str()).collect::<Vec<_>>(),
                )
            })
            .collect();
        assert_eq!(
            groups,
            [
                ("", vec!["v1"]),
                ("coordination.k8s.io", vec!["v1"]),
                ("a.io", vec!["v2", "v1", "v1beta1"]),
                ("b.io", vec!["v1"])
            ]
        );
        assert_eq!(served.in_version("a.io", "v1").count(), 1);
        assert_eq!(served.in_version("a.io", "v3").count(), 0);
    }

    #[test]
    fn the_hash_follows_what_is_served() {
        let one = served(&[("a.io", "v1")]);
        assert_eq!(one.hash(), served(&[("a.io", "v1")]).hash());
        assert_ne!(one.hash(), served(&[("a.io", "v1"), ("a.io", "v2")]).hash());
    }

    #[test]
    fn no_crd_replaces_a_kind_of_the_server() {
        let own = builtin::definitions().remove(0);
        let mut other = (*own).clone();
        other.builtin = None;
        let served = ServedResources::new([own.clone(), Arc::new(other)]);
        let found = served.find(&own.group, &own.version, &own.plural).unwrap();
        assert_eq!(found.builtin, own.builtin);
    }
}
