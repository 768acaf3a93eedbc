//! What the store does by itself from time to time: compaction of exclusive backends, sizes, round trips in `members`.

use super::fleet::Fleet;
use super::joined::Joined;
use super::members;
use crate::backend::Revision;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often sizes and round trips are refreshed.
const REFRESH_EVERY: Duration = Duration::from_secs(30);
/// Revisions that are remembered with their time, per backend.
const SAMPLES_MAX: usize = 4096;

impl Fleet {
    /// Looks after one backend until the store is closed.
    pub(crate) async fn maintain(self: Arc<Self>, joined: Arc<Joined>) {
        let mut samples: VecDeque<(Instant, Revision)> = VecDeque::new();
        let mut compact_at = Instant::now() + self.config.compact_every;
        loop {
            let pause = REFRESH_EVERY.min(self.config.compact_every);
            tokio::select! {
                biased;
                () = self.closed() => return,
                () = joined.closed() => return,
                () = tokio::time::sleep(pause) => {}
            }
            if !joined.is_connected() {
                continue;
            }
            if let Ok(status) = joined.member.backend.status().await {
                joined
                    .metrics()
                    .set_database(status.db_size, status.db_size_in_use, status.quota);
                joined.state.lock().status = status;
            }
            if let Err(error) = members::publish(&self, &joined).await {
                tracing::debug!(cluster = %joined.member.name, %error, "the round trip was not published");
            }
            samples.push_back((Instant::now(), joined.state.lock().log.revision));
            if samples.len() > SAMPLES_MAX {
                samples.pop_front();
            }
            if joined.member.exclusive && Instant::now() >= compact_at {
                compact_at = Instant::now() + self.config.compact_every;
                self.compact(&joined, &mut samples).await;
            }
        }
    }

    /// Compacts to the newest revision that is older than the retention.
    async fn compact(&self, joined: &Arc<Joined>, samples: &mut VecDeque<(Instant, Revision)>) {
        let mut revision = None;
        while let Some((_, oldest)) =
            samples.pop_front_if(|(seen, _)| seen.elapsed() >= self.config.retention)
        {
            revision = Some(oldest);
        }
        let Some(revision) = revision else { return };
        match joined.member.backend.compact(revision).await {
            Ok(()) => joined.update(|state| {
                state.log.compacted = state.log.compacted.max(revision);
                state.log.ticks.trim(revision);
                state.log.owners.trim(revision);
            }),
            Err(error) => {
                tracing::warn!(cluster = %joined.member.name, %error, "compaction failed; it is tried again")
            }
        }
    }
}
