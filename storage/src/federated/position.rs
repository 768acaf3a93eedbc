//! Where a resource version lies in the log of one backend, and whether anybody can still say.

use super::Rule;
use super::fleet::Fleet;
use super::get::ROUTE_TRIES_MAX;
use super::joined::Joined;
use crate::backend::{Range, Revision, Txn};
use crate::clock::Position;
use crate::key;
use crate::{Error, ResourceVersion};
use std::sync::Arc;

impl Fleet {
    /// Where a domain lived since `rv` is known only as far back as every log is retained.
    pub(crate) fn check_not_forgotten(&self, rv: ResourceVersion) -> Result<(), Error> {
        let view = self.view();
        let forgotten = view.connections.iter().any(|joined| joined.is_forgotten(rv));
        if forgotten || view.is_expired(rv.epoch()) {
            Err(Error::Expired { requested: rv })
        } else {
            Ok(())
        }
    }

    /// A resource version above everything known is no version of ours, unless the clocks have moved meanwhile.
    pub(crate) async fn check_not_above_everything(&self, rv: ResourceVersion) -> Result<(), Error> {
        if rv.epoch() <= self.highest_epoch() {
            return Ok(());
        }
        for joined in &self.view().serving {
            let Ok(answer) = joined.call(Txn::read([Range::key(key::CLOCK)])).await else {
                continue;
            };
            let range = answer.into_range();
            if let Some(clock) = joined.observe_clock(&range) {
                self.saw_epoch(clock.epoch);
            }
        }
        if rv.epoch() <= self.highest_epoch() {
            return Ok(());
        }
        Err(Error::ResourceVersionTooLarge {
            requested: rv,
            current: ResourceVersion::cut(self.highest_epoch()),
        })
    }

    /// The revision of `joined` up to which everything is at or below `rv`, and above which everything is above it.
    pub(crate) async fn position(
        &self,
        joined: &Arc<Joined>,
        rv: ResourceVersion,
    ) -> Result<Revision, Error> {
        let expired = || Error::Expired { requested: rv };
        for _ in 0..ROUTE_TRIES_MAX {
            let (position, connected, revision, compacted) = {
                let state = joined.state.lock();
                let position = if self.broken(Rule::ResumeAtTheLimit) {
                    state.log.ticks.position_without_limit(rv)
                } else {
                    state.log.ticks.position(rv, joined.slot())
                };
                (position, state.connected, state.revision, state.log.compacted)
            };
            if !connected {
                let problem = joined.state.lock().problem.clone();
                return Err(joined.unavailable(problem.unwrap_or_default()));
            }
            match position {
                Position::Expired => return Err(expired()),
                Position::After(at) if at < compacted => return Err(expired()),
                Position::After(at) if at <= revision || rv.offset() == 0 => return Ok(at),
                // Either our knowledge is old, or it is a version that nobody has given out.
                Position::After(at) => {
                    let answer = joined
                        .call(Txn::read([Range::key(key::CLOCK)]))
                        .await
                        .map_err(|e| joined.error(e))?;
                    return if at <= answer.revision {
                        Ok(at)
                    } else {
                        Err(expired())
                    };
                }
                Position::NeedsTick => {
                    let snapshot = self.rounds.snapshot().await?;
                    snapshot.cut(joined)?;
                    self.cut_from_log(joined, snapshot.epoch).await?;
                }
            }
        }
        Err(joined.unavailable("its clock does not pass the resource version"))
    }
}
