//! Placements as the store sees them: which cluster a domain was given to, decided outside of the backends.
//!
//! An owner key is the fence that writes compare, and whoever holds a backend can write one. It counts only where the
//! placement says that it may. What a placement is and how it is kept, the store does not know: it looks it up in memory,
//! and lets it be asked for in the background when what is in memory may be too old.

use crate::key::Domain;
use crate::resource_version::Slot;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// A placement: the cluster that may own the domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// Its slot, once the claim was confirmed: names are given again, slots are not while anything is retained.
    pub slot: Option<Slot>,
    /// The version of the placement that says so. A later placement has a higher one.
    pub version: u64,
    /// The generations that a claim for it may have: that of the confirmed one, or the versions that it is known to have
    /// had until one is confirmed.
    pub generations: RangeInclusive<u64>,
}

impl Placed {
    /// Whether it is this cluster.
    #[must_use]
    pub fn names(&self, cluster: &str, slot: Slot) -> bool {
        *self.cluster == *cluster && self.slot.is_none_or(|placed| placed == slot)
    }

    /// Whether an owner key of this generation on this cluster was claimed for it.
    #[must_use]
    pub fn owns(&self, cluster: &str, slot: Slot, generation: u64) -> bool {
        self.generations.contains(&generation) && self.names(cluster, slot)
    }
}

/// What is known of a domain's placement without asking anybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// There are no placements: every owner key counts.
    Anywhere,
    /// Nothing has been read yet.
    Unread,
    /// There is none, as far as it was read.
    Nowhere,
    /// This one, as far as it was read.
    Placed(Placed),
}

impl Known {
    /// Whether an owner key of this generation on this cluster was claimed for it.
    pub(crate) fn owns(&self, cluster: &str, slot: Slot, generation: u64) -> bool {
        matches!(self, Self::Placed(placed) if placed.owns(cluster, slot, generation))
    }
}

/// Where placements are known from.
pub trait Placements: Send + Sync + fmt::Debug {
    /// Rises whenever [`Placements::known`] says something else, of any domain.
    fn version(&self) -> u64;

    /// What is known of a domain. In memory: it may lag behind, and answers while nobody can be asked.
    fn known(&self, domain: &Domain) -> Known;

    /// Whether an owner key of this generation on this cluster was claimed for a placement of the domain that was known at
    /// any time within the retention of history. In memory.
    fn has_owned(&self, domain: &Domain, cluster: &str, slot: Slot, generation: u64) -> bool;

    /// The placement as it is now, not as it is known. `None`: there is none.
    ///
    /// # Errors
    /// Why nobody can tell.
    fn ask<'a>(&'a self, domain: &'a Domain) -> BoxFuture<'a, Result<Option<Placed>, String>>;
}

/// No placements: every owner key counts, wherever it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct EveryKeyCounts;

impl Placements for EveryKeyCounts {
    fn version(&self) -> u64 {
        0
    }

    fn known(&self, _: &Domain) -> Known {
        Known::Anywhere
    }

    fn has_owned(&self, _: &Domain, _: &str, _: Slot, _: u64) -> bool {
        true
    }

    fn ask<'a>(&'a self, _: &'a Domain) -> BoxFuture<'a, Result<Option<Placed>, String>> {
        std::future::ready(Ok(None)).boxed()
    }
}
