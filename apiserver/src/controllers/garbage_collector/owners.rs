//! What ownerReferences mean: which owners hold an object, which have gone, and what follows. Pure.

use crate::resources::definition::ResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::HashSet;
use std::fmt;
use xxhash_rust::xxh3::xxh3_64;

/// The finalizer of an owner that waits for its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner whose dependents stay.
pub(super) const ORPHAN: &str = "orphan";
/// Hashes of owners' uids that are kept; with more, every object may own something.
const OWNERS_MAX: usize = 256 * 1024;

/// One object, to be examined.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemRef {
    pub(super) group: String,
    pub(super) plural: String,
    /// `None` for kinds without namespaces.
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) uid: String,
}

impl ItemRef {
    pub(super) fn new(definition: &ResourceDefinition, metadata: &ObjectMeta) -> Option<Self> {
        Some(Self {
            group: definition.group.clone(),
            plural: definition.plural.clone(),
            namespace: metadata.namespace.clone().filter(|_| definition.namespaced),
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
        })
    }
}

impl fmt::Display for ItemRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{} {}/{}",
            self.plural,
            self.group,
            self.namespace.as_deref().unwrap_or_default(),
            self.name
        )
    }
}

/// Which uids were named as owners, as far as is known: never "no" for one that was.
#[derive(Debug, Default)]
pub(super) struct OwnersSeen {
    hashes: HashSet<u64>,
    overflowed: bool,
}

impl OwnersSeen {
    pub(super) fn insert(&mut self, uid: &str) {
        if self.hashes.len() < OWNERS_MAX {
            self.hashes.insert(xxh3_64(uid.as_bytes()));
        } else if !self.hashes.contains(&xxh3_64(uid.as_bytes())) {
            self.overflowed = true;
        }
    }

    pub(super) fn may_contain(&self, uid: &str) -> bool {
        self.overflowed || self.hashes.contains(&xxh3_64(uid.as_bytes()))
    }
}

/// What is known of one owner, read live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It exists, or it cannot be told: the dependent stays.
    Solid,
    /// It is being deleted in the foreground.
    WaitsForDependent,
    /// There is no such object any more.
    Absent,
}

/// What to do with a dependent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Keep,
    /// Take these owners (by uid) from it: others still hold it.
    DropOwners(Vec<String>),
    /// Delete it in the foreground: its last owner waits, and it may have dependents itself.
    DeleteForeground,
    /// Delete it, as its own finalizers ask.
    Delete,
}

/// Decides about a dependent by the states of its owners, one a reference.
pub(super) fn verdict(references: &[OwnerReference], states: &[OwnerState], may_own: bool) -> Verdict {
    let with = |wanted: &[OwnerState]| -> Vec<String> {
        references
            .iter()
            .zip(states)
            .filter(|(_, s)| wanted.contains(s))
            .map(|(r, _)| r.uid.clone())
            .collect()
    };
    let solid = with(&[OwnerState::Solid]);
    let waiting = with(&[OwnerState::WaitsForDependent]);
    let gone = with(&[OwnerState::Absent, OwnerState::WaitsForDependent]);
    match () {
        () if gone.is_empty() => Verdict::Keep,
        () if !solid.is_empty() => Verdict::DropOwners(gone),
        () if !waiting.is_empty() && may_own => Verdict::DeleteForeground,
        () => Verdict::Delete,
    }
}

/// Whether an owner with this metadata waits for, or wants to leave, its dependents.
pub(super) fn is_waiting(metadata: &ObjectMeta) -> bool {
    metadata.deletion_timestamp.is_some()
        && (has_finalizer(metadata, FOREGROUND) || has_finalizer(metadata, ORPHAN))
}

pub(super) fn has_finalizer(metadata: &ObjectMeta, finalizer: &str) -> bool {
    metadata.finalizers.iter().flatten().any(|f| f == finalizer)
}

/// The state of an owner that exists. In the foreground it takes all its dependents with it, whether they block it or not.
pub(super) fn state_of_existing(owner: &ObjectMeta) -> OwnerState {
    match owner.deletion_timestamp.is_some() && has_finalizer(owner, FOREGROUND) {
        true => OwnerState::WaitsForDependent,
        false => OwnerState::Solid,
    }
}

/// Group and version of an apiVersion.
pub(super) fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

#[cfg(test)]
mod tests {
    use super::*;
    use OwnerState::{Absent, Solid, WaitsForDependent};

    fn reference(uid: &str) -> OwnerReference {
        OwnerReference {
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }
    }

    #[test]
    fn a_dependent_goes_when_no_owner_holds_it() {
        let check = |states: &[OwnerState], may_own, expect: Verdict| {
            let references: Vec<_> = (0..states.len()).map(|i| reference(&i.to_string())).collect();
            assert_eq!(verdict(&references, states, may_own), expect, "{states:?}");
        };
        let drop = |uids: &[&str]| Verdict::DropOwners(uids.iter().map(|u| (*u).to_owned()).collect());
        check(&[], true, Verdict::Keep);
        check(&[Solid], true, Verdict::Keep);
        check(&[Solid, Solid], true, Verdict::Keep);
        check(&[Absent], true, Verdict::Delete);
        check(&[Absent, Absent], false, Verdict::Delete);
        check(&[Solid, Absent], true, drop(&["1"]));
        check(&[WaitsForDependent, Solid, Absent], true, drop(&["0", "2"]));
        check(&[WaitsForDependent], true, Verdict::DeleteForeground);
        check(&[WaitsForDependent], false, Verdict::Delete);
        check(&[WaitsForDependent, Absent], true, Verdict::DeleteForeground);
    }

    #[test]
    fn owners_that_were_seen_are_never_denied() {
        let mut seen = OwnersSeen::default();
        seen.insert("a");
        assert!(seen.may_contain("a") && !seen.may_contain("b"));
        (0..OWNERS_MAX + 1).for_each(|i| seen.insert(&i.to_string()));
        assert!(
            seen.may_contain("b"),
            "after too many, everything may be an owner"
        );
        assert!(seen.hashes.len() <= OWNERS_MAX);
    }

    #[test]
    fn api_versions() {
        assert_eq!(group_version("v1"), ("", "v1"));
        assert_eq!(group_version("paas.example.com/v1"), ("paas.example.com", "v1"));
    }
}
