//! A decision about the members reaches the backends.
//!
//! ```text
//! A  ── tick 8 ── members g ── tick 9 ──                 1. into every old member that can be reached: epochs 8 and 5
//! B  ── tick 5 ── members g ── tick 9 ──                 2. the newcomer is ticked above the highest of them
//! N            tick 9 ── members g ── first claim ──     3. its own `members` opens it
//! ```
//!
//! A replica that has not read `members g` in any log has released nothing at or above epoch 8; whatever is written on N
//! is above. All of it can be repeated, and any replica may do it.

use super::fleet::Fleet;
use super::joined::Joined;
use super::view::is_of;
use super::{Rule, members};
use crate::Error;
use crate::backend::{OpResponse, Range, Txn};
use crate::key::{self, prefix_end};
use crate::membership::Membership;
use crate::resource_version::{Epoch, Slot};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether a backend has not been told yet.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a member that does not answer, or is lost, is ticked.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How often a write of `members` is tried when clock or key move under it.
const TRIES_MAX: usize = 8;

impl Fleet {
    /// Carries decisions to the backends, until the store is closed.
    pub(crate) async fn run_roll_out(self: Arc<Self>) {
        let mut handed_over = self.handed_over.listen();
        loop {
            if let Some(decided) = self.handed()
                && let Err(error) = self.roll_out(&decided).await
            {
                tracing::debug!(generation = decided.generation, %error, "the membership did not reach all members");
            }
            let pause = LOOK_EVERY + self.jitter(LOOK_EVERY / 4);
            tokio::select! {
                biased;
                () = self.closed() => return,
                () = handed_over.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Ticks members that rounds leave out, or that did not answer the last one, until the store is closed: a tick and not a
    /// read tells whether they are well. (Who is not connected is ticked by every try to connect.)
    pub(crate) async fn run_probes(self: Arc<Self>) {
        loop {
            tokio::select! {
                biased;
                () = self.closed() => return,
                () = tokio::time::sleep(PROBE_EVERY) => {}
            }
            let view = self.view();
            let is_doubtful = |joined: &&Arc<Joined>| {
                let fails = joined.state.lock().failing_since.is_some();
                // Rounds leave out who is lost or offline.
                joined.is_connected() && (fails || view.is_away(joined))
            };
            let Ok(epoch) = self.next_epoch(Epoch(0)).await else {
                continue;
            };
            let doubtful = view.connections.iter().filter(is_doubtful);
            futures::future::join_all(doubtful.map(|joined| self.tick(joined, epoch))).await;
        }
    }

    async fn roll_out(&self, decided: &Membership) -> Result<(), Error> {
        let view = self.view();
        let (mut old, mut new, mut away) = (Vec::new(), Vec::new(), Vec::new());
        let mut old_members = 0;
        for record in &decided.members {
            let joined = view.connections.iter().find(|joined| is_of(joined, record));
            let joined = joined.filter(|joined| joined.is_connected());
            let is_new =
                record.state.serves() && joined.is_none_or(|joined| joined.own_generation() < record.opens);
            match (record.state, joined) {
                // Perhaps some replica reaches it, and none of the others.
                (state, joined) if state.is_away() => away.extend(joined.cloned()),
                (_, Some(joined)) if is_new => new.push((joined.clone(), record.opens)),
                (_, joined) => {
                    // A newcomer that this replica has never reached counts as an old member: then others must do it.
                    old_members += usize::from(record.state.serves());
                    old.extend(joined.cloned());
                }
            }
        }
        let up_to_date = |joined: &Arc<Joined>| joined.own_generation() >= decided.generation;
        if new.is_empty() && old.iter().chain(&away).all(up_to_date) {
            return Ok(());
        }
        let all = old.iter().chain(&away);
        let told = futures::future::join_all(all.map(|joined| self.tell(joined, decided, None))).await;
        let mut highest = None;
        let mut failed = None;
        for (i, epoch) in told.into_iter().enumerate() {
            match epoch {
                Ok(epoch) => highest = highest.max(Some(epoch)),
                Err(error) if i < old.len() => failed = Some(error),
                Err(error) => tracing::debug!(%error, "who is away was not told"),
            }
        }
        if old_members > 0 && highest.is_none() {
            let none = || Error::Internal("no old member can be reached".to_owned());
            return Err(failed.unwrap_or_else(none));
        }
        let above = highest.unwrap_or(Epoch(0));
        for (joined, opens) in new {
            let above = if self.broken(Rule::NewcomerAbove) {
                Epoch(0)
            } else {
                above
            };
            self.tell(&joined, decided, Some((above, opens))).await?;
            tracing::info!(cluster = %joined.member.name, generation = decided.generation, "a cluster is open");
        }
        failed.map_or(Ok(()), Err)
    }

    /// Before anything of a backend counts that was not connected: it is told the newest decision. Returns its generation.
    /// A newcomer, or one that returns, is told in its turn.
    pub(crate) async fn bring_up_to_date(&self, joined: &Arc<Joined>) -> Result<u64, Error> {
        let Some(decided) = self.handed() else {
            return Ok(0);
        };
        let record = decided.members.iter().find(|record| is_of(joined, record));
        if let (Some(record), Some(read)) = (record, members::read(self, joined).await?) {
            let known = read.members.membership.generation;
            let is_new = record.state.serves() && known < record.opens;
            if !is_new && known < decided.generation {
                self.tell(joined, &decided, None).await?;
            }
        }
        Ok(decided.generation)
    }

    /// Writes the decision into `members` of one backend, unless it knows it. A newcomer is ticked above `open.0` first.
    /// Returns the epoch of its clock afterwards.
    async fn tell(
        &self,
        joined: &Arc<Joined>,
        decided: &Membership,
        open: Option<(Epoch, u64)>,
    ) -> Result<Epoch, Error> {
        for _ in 0..TRIES_MAX {
            let Some(read) = members::read(self, joined).await? else {
                return Err(joined.unavailable("it has no clock"));
            };
            let known = read.members.membership.generation;
            if known >= open.map_or(decided.generation, |(_, opens)| opens) {
                let value = serde_json::to_vec(&read.members).map_err(|e| Error::Internal(e.to_string()))?;
                members::observe(self, joined, &value);
                return Ok(read.clock.epoch);
            }
            if let Some((above, _)) = open.filter(|(above, _)| read.clock.epoch <= *above) {
                let epoch = self.next_epoch(above).await?;
                self.tick(joined, epoch).await?;
                continue;
            }
            let mut members = read.members.clone();
            members.take(decided, joined.slot(), read.clock);
            if self.broken(Rule::RestoresExpire) {
                members.gaps.retain(|gap| !gap.begins_anew());
            }
            if members::write(self, joined, &read, &members).await? {
                return Ok(read.clock.epoch);
            }
        }
        Err(joined.unavailable("its clock moves faster than members can be written"))
    }

    /// Whether a leaving member owns nothing any more. Returns an epoch that none of its changes is above.
    pub(crate) async fn verify_owns_nothing(&self, slot: Slot) -> Result<Option<Epoch>, Error> {
        let view = self.view();
        let joined = view
            .connection(slot)
            .ok_or_else(|| Error::Internal(format!("no backend has slot {}", slot.0)))?;
        let reads = [MEMBERS_AND_CLOCK[0], MEMBERS_AND_CLOCK[1]].map(Range::key);
        let owners = [key::OWNER, key::OWNER_KIND].map(|prefix| Range {
            count_only: true,
            ..Range::between(Bytes::from_static(prefix), prefix_end(prefix))
        });
        // One transaction: what says that claims are refused, and that there are none.
        let answer = joined
            .call(Txn::read(reads.into_iter().chain(owners)))
            .await
            .map_err(|e| joined.error(e))?;
        let mut ranges = answer.responses.into_iter().map(OpResponse::into_range);
        let members = ranges.next().and_then(|range| range.kvs.into_iter().next());
        let clock = joined.observe_clock(&ranges.next().unwrap_or_default());
        let owned: u64 = ranges.map(|range| range.count).sum();
        let leaves = members.is_some_and(|kv| members::is_leaving(joined, &kv.value));
        Ok(clock.map(|clock| clock.epoch).filter(|_| leaves && owned == 0))
    }
}

const MEMBERS_AND_CLOCK: [&[u8]; 2] = [key::MEMBERS, key::CLOCK];
