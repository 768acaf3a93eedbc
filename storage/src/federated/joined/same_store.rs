//! Whether the store that answers is the one that answered before: a backend that was restored from a backup, or wiped, is
//! refused until it is accepted as it is. It decides by what was seen and recorded, and writes nothing.

use super::{CALL_DEADLINE, Joined};
use crate::Error;
use crate::backend::{BackendError, OpResponse, Range, Txn};
use crate::clock::decode_epoch;
use crate::federated::Seen;
use crate::key;
use crate::resource_version::Epoch;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;

/// Whose backend it is: the value of `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) slot: u16,
    pub(crate) uid: String,
    pub(crate) fleet: String,
    #[serde(default, skip_serializing_if = "crate::membership::is_zero")]
    pub(crate) incarnation: u64,
}

impl Joined {
    /// How far it must be, by what was recorded outside of it and what was seen since.
    pub(crate) fn must_be_at(&self) -> Option<Seen> {
        let seen = self.state.lock().seen();
        let recorded = self.member.seen;
        let recorded = recorded.filter(|seen| seen.incarnation == self.member.incarnation);
        match (recorded, seen) {
            (Some(recorded), Some(seen)) => Some(Seen {
                incarnation: seen.incarnation,
                epoch: recorded.epoch.max(seen.epoch),
                revision: recorded.revision.max(seen.revision),
            }),
            (recorded, seen) => recorded.or(seen),
        }
    }

    /// Refuses a backend that is older than it was. Before anything is written to it.
    pub(crate) async fn check_not_restored(&self) -> Result<(), Error> {
        if let Some(seen) = self.must_be_at().filter(|_| !self.is_credulous) {
            let read = [Range::key(key::IDENTITY), Range::key(key::CLOCK)];
            // Not `Joined::call`, which does not let such answers pass.
            let answer = tokio::time::timeout(CALL_DEADLINE, self.member.backend.txn(Txn::read(read))).await;
            let answer = answer
                .map_err(|_| self.unavailable("no answer in time"))?
                .map_err(|e| self.error(e))?;
            let revision = answer.revision;
            let mut values = answer.responses.into_iter().map(OpResponse::into_range);
            let mut value = || values.next().and_then(|range| range.kvs.into_iter().next());
            let (identity, clock) = (value(), value());
            let epoch = clock.and_then(|kv| decode_epoch(&kv.value));
            let (Some(identity), Some(epoch)) = (identity, epoch) else {
                return Err(self.is_restored("it holds nothing of ours".to_owned(), seen));
            };
            if epoch < seen.epoch || revision < seen.revision {
                let found = format!("it is at epoch {}, revision {revision}", epoch.0);
                return Err(self.is_restored(found, seen));
            }
            // Accepted as it is, it may be further than it ever was.
            let identity: Option<Identity> = serde_json::from_slice(&identity.value).ok();
            if identity.is_some_and(|identity| identity.incarnation > self.member.incarnation) {
                return Err(self.is_superseded());
            }
        }
        let mut state = self.state.lock();
        (state.restored, state.checked) = (false, true);
        Ok(())
    }

    /// It was found older than it was.
    pub(crate) fn is_restored(&self, found: String, seen: Seen) -> Error {
        self.state.lock().restored = true;
        Error::Restored {
            cluster: self.member.name.clone(),
            found,
            seen: format!("epoch {}, revision {}", seen.epoch.0, seen.revision),
        }
    }

    /// It is a later incarnation than this connection is for.
    pub(crate) fn is_superseded(&self) -> Error {
        self.state.lock().superseded = true;
        self.unavailable("it was restored and accepted as it is, which this replica has not heard of yet")
    }

    /// Whether anything may be asked of it.
    pub(super) fn check_in_use(&self) -> Result<(), BackendError> {
        let state = self.state.lock();
        let cause = if self.closing.load(Ordering::SeqCst) {
            "the connection to it was given up".to_owned()
        } else if state.restored || state.superseded {
            state.problem.clone().unwrap_or_default()
        } else {
            return Ok(());
        };
        Err(BackendError::Unavailable { cause, sent: false })
    }

    /// After a failure another store may answer.
    pub(super) async fn check_same_store(&self) -> Result<(), BackendError> {
        self.check_in_use()?;
        if self.state.lock().checked {
            return Ok(());
        }
        let checked = self.check_not_restored().await;
        checked.map_err(|error| BackendError::Unavailable {
            cause: error.to_string(),
            sent: false,
        })
    }

    /// Whether it began anew after this epoch, in a restore.
    pub(crate) fn began_anew_since(&self, epoch: Epoch) -> bool {
        let state = self.state.lock();
        // Who was offline before anybody had seen its clock has such a gap as well (seed 225).
        let mut gaps = state.own.gaps.iter().filter(|_| self.member.incarnation > 0);
        gaps.any(|gap| gap.begins_anew() && gap.holds(epoch))
    }
}
