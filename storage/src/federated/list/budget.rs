//! The memory that all lists together may hold. A list takes its share when it begins, and keeps it until its last object is
//! handed out: whoever reads slowly holds it for long.
//!
//! Lists over all namespaces have most of it, lists of one namespace the rest: neither waits for the other. What a list
//! holds, two pages for each backend, this file does not check.

use crate::Error;
use crate::federated::Extent;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many lists over all namespaces the budget is cut for.
const LISTS_AT_ONCE: usize = 12;
/// This part of the budget is for lists of one namespace.
const NARROW_PART: usize = 4;
/// A page is not aimed to be larger or smaller than this, in bytes.
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
const PAGE_BYTES_MIN: usize = 64 * 1024;
/// Lists of one backend are many and mostly short: their pages are smaller.
const NARROW_PAGE_BYTES_MAX: usize = 512 * 1024;
/// Pages that a list holds of each backend.
const PAGES: usize = 2;
/// How long a list waits for its share.
const WAIT: Duration = Duration::from_secs(30);

/// The budget, in two pools.
#[derive(Debug)]
pub(crate) struct ListBudget {
    wide: Pool,
    narrow: Pool,
}

/// A part of it.
#[derive(Debug)]
struct Pool {
    kib: usize,
    free: Arc<Semaphore>,
}

/// What one list may hold.
#[derive(Debug)]
pub(crate) struct Share {
    /// How large its pages are aimed to be.
    pub(crate) page_bytes: usize,
    _permit: OwnedSemaphorePermit,
}

impl ListBudget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let narrow = bytes_max / NARROW_PART;
        Self {
            wide: Pool::new(bytes_max - narrow),
            narrow: Pool::new(narrow),
        }
    }

    /// Waits until a list that reads from so many backends may begin. `Busy`: that takes too long.
    pub(crate) async fn reserve(&self, extent: &Extent, backends: usize) -> Result<Share, Error> {
        let (pool, what) = match extent {
            Extent::AllNamespaces => (&self.wide, "lists over all namespaces"),
            Extent::Namespace(_) | Extent::Cluster => (&self.narrow, "lists of one namespace"),
        };
        let page_bytes_max = match backends {
            1 => NARROW_PAGE_BYTES_MAX,
            _ => PAGE_BYTES_MAX,
        };
        let share = self.wide.kib * 1024 / (LISTS_AT_ONCE * PAGES * backends);
        let page_bytes = share.clamp(PAGE_BYTES_MIN, page_bytes_max);
        let kib = (page_bytes * PAGES * backends / 1024).min(pool.kib);
        let acquire = pool
            .free
            .clone()
            .acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX));
        match tokio::time::timeout(WAIT, acquire).await {
            Ok(Ok(permit)) => Ok(Share {
                page_bytes,
                _permit: permit,
            }),
            Ok(Err(_)) => Err(Error::Busy("the store is closed".to_owned())),
            Err(_) => Err(Error::Busy(format!("all memory for {what} is in use"))),
        }
    }
}

impl Pool {
    fn new(bytes: usize) -> Self {
        let kib = (bytes / 1024).max(1);
        Self {
            kib,
            free: Arc::new(Semaphore::new(kib)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lists_of_one_namespace_do_not_wait_for_lists_of_all() {
        let budget = ListBudget::new(64 * 1024 * 1024);
        let namespace = Extent::Namespace("a".into());
        for (extent, backends) in [(&Extent::AllNamespaces, 3), (&namespace, 1)] {
            let mut running = Vec::new();
            let refused = loop {
                match budget.reserve(extent, backends).await {
                    Ok(share) => running.push(share),
                    Err(error) => break error,
                }
            };
            assert!((12..=16).contains(&running.len()), "{}", running.len());
            assert!(matches!(refused, Error::Busy(_)), "{refused}");
            if backends == 3 {
                // While all of these are read slowly.
                assert!(budget.reserve(&namespace, 1).await.is_ok());
            }
            drop(running);
            assert!(budget.reserve(extent, backends).await.is_ok());
        }
    }

    #[tokio::test]
    async fn a_small_budget_lets_one_list_begin() {
        let budget = ListBudget::new(64 * 1024);
        for (extent, backends) in [(Extent::AllNamespaces, 500), (Extent::Cluster, 1)] {
            let share = budget.reserve(&extent, backends).await.expect("alone");
            assert_eq!(share.page_bytes, PAGE_BYTES_MIN);
        }
    }
}
