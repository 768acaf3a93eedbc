//! A member that was lost and is back: watches over all namespaces went on without it.
//!
//! ```text
//! x    tick 7 ─ x1 ─ tick 8 ┆ x2 ┆ tick 30 ─ x3         lost from J = 8, back at M = 30: the gap is 8..30
//! ```
//!
//! A version below 8 goes on with x1, x2, x3. A version of the gap may stand for having seen x2 or not: if the gap holds
//! anything of the kind, nobody can tell, and it is expired. Otherwise nothing was missed, and it goes on at 30. If lists
//! left the member out meanwhile, versions of the gap are expired whatever it holds.

use super::Rule;
use super::fleet::Fleet;
use super::joined::Joined;
use crate::backend::{BackendError, Revision, WatchRequest};
use crate::clock::ClockHistory;
use crate::membership::Gap;
use crate::{Error, ResourceVersion};
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;

impl Fleet {
    /// Like [`Fleet::position`], for a watch of all namespaces of one kind, whose keys begin with `prefix`.
    pub(crate) async fn position_beyond_gap(
        &self,
        joined: &Arc<Joined>,
        rv: ResourceVersion,
        prefix: &Bytes,
    ) -> Result<Revision, Error> {
        let position = self.position(joined, rv).await?;
        let gap = {
            let state = joined.state.lock();
            let gaps = state.own.gaps.iter().filter(|gap| gap.holds(rv.epoch()));
            // Gaps may overlap: a member that is lost again before all have read what it held.
            gaps.copied().reduce(|a, b| Gap {
                from: a.from.min(b.from),
                to: a.to.max(b.to),
                objects: a.objects || b.objects,
            })
        };
        let Some(gap) = gap.filter(|_| !self.broken(Rule::GapsAreRemembered)) else {
            return Ok(position);
        };
        // Its log shows the tick that brought it back.
        self.cut_from_log(joined, gap.to).await?;
        let ends = ends_of(&joined.state.lock().log.ticks, gap);
        let Some((first, end)) = ends else {
            return Err(Error::Expired { requested: rv });
        };
        if gap.objects || first < end && self.holds_changes(joined, prefix, first, end - 1).await? {
            return Err(Error::Expired { requested: rv });
        }
        Ok(position.max(end - 1))
    }

    /// Whether anything with this prefix changed in these revisions, or nobody knows any more.
    async fn holds_changes(
        &self,
        joined: &Arc<Joined>,
        prefix: &Bytes,
        from: Revision,
        until: Revision,
    ) -> Result<bool, Error> {
        let _permit = joined
            .history_reads
            .acquire()
            .await
            .map_err(|_| joined.unavailable("the store is closed"))?;
        let request = WatchRequest {
            start: prefix.clone(),
            end: Some(crate::key::prefix_end(prefix)),
            start_revision: from,
            prev_kv: false,
            until: Some(until),
        };
        let read = async {
            let mut stream = joined.history(request).await?;
            while let Some(batch) = stream.next().await {
                if !batch?.events.is_empty() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        match tokio::time::timeout(super::joined::CALL_DEADLINE, read).await {
            Ok(Ok(holds)) => Ok(holds),
            Ok(Err(BackendError::Compacted { .. })) => Ok(true),
            Ok(Err(error)) => Err(joined.error(error)),
            Err(_) => Err(joined.unavailable("its history was not read in time")),
        }
    }
}

/// The revisions of a gap: its first, and the first after it. `None`: the history does not reach back so far.
fn ends_of(ticks: &ClockHistory, gap: Gap) -> Option<(Revision, Revision)> {
    let first = ticks.cut(gap.from).ok()??;
    let end = ticks.cut(gap.to).ok()??;
    Some((first, end))
}
