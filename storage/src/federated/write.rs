//! Create, update, delete: one transaction guarded by the key, the clock and the owner.
//!
//! If the clock moved, the failure branch returns clock and key and the write is tried again at once. A write whose
//! outcome is unknown is settled: the backend is ticked first, so that the old base can never commit any more, and then
//! the history is searched for the write id. A read alone would settle nothing.

use super::Rule;
use super::fleet::Fleet;
use super::joined::{Joined, compares_owners};
use crate::backend::{BackendError, Compare, KeyValue, Op, Range, RangeResponse, Revision, Txn, TxnResponse};
use crate::clock::Clock;
use crate::key::{self, Domain, Key};
use crate::object::{OBJECT_BYTES_MAX, WriteId};
use crate::owners::OwnerEntry;
use crate::{Error, Object, SealedObject};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A write that was overtaken so often has met more than a tick: the backend says something else each time, or something
/// else than it should.
const TRIES_WITHOUT_PAUSE: u32 = 5;
/// The pause before each try after that.
const RETRY_PAUSE: Duration = Duration::from_millis(25);
/// The pause between two attempts to settle a write on a backend that does not answer.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);
/// How long a writer waits for a tick that another one needs as well.
const TICK_WAIT: Duration = Duration::from_secs(5);

/// What to do with a key.
enum Change<'a> {
    /// There must be no object.
    Create(&'a SealedObject),
    /// This state must be the current one.
    Update(&'a Object, &'a SealedObject),
    /// This state must be the current one.
    Delete(&'a Object),
}

/// One try: what it compares and how it can be recognised.
struct Attempt {
    clock: Clock,
    owner: Option<OwnerEntry>,
    write_id: WriteId,
}

/// How one try ended, for sure.
enum Outcome {
    /// Committed at this revision.
    Committed(Revision),
    /// The key is not what was expected: this is what it is.
    Differs(Option<Object>),
    /// Clock or owner moved: try again.
    Again,
}

impl Change<'_> {
    fn expected(&self) -> Revision {
        match self {
            Self::Create(_) => 0,
            Self::Update(object, _) | Self::Delete(object) => object.revision(),
        }
    }

    fn value(&self) -> Option<&SealedObject> {
        match self {
            Self::Create(value) | Self::Update(_, value) => Some(value),
            Self::Delete(_) => None,
        }
    }

    /// Whether it leaves more behind than was there. (Every put takes room until the state before it is compacted.)
    fn grows(&self) -> bool {
        match self {
            Self::Create(_) => true,
            Self::Update(before, value) => value.body().len() > before.stored_json().len(),
            Self::Delete(_) => false,
        }
    }

    /// The key whose history shows this change's write id.
    fn witness(&self, raw_key: &Bytes) -> Bytes {
        match self {
            Self::Delete(_) => Bytes::from_static(key::DELETION),
            Self::Create(_) | Self::Update(..) => raw_key.clone(),
        }
    }
}

impl Fleet {
    pub(crate) async fn create(&self, key: &Key, object: &SealedObject) -> Result<Object, Error> {
        self.write(key, &Change::Create(object)).await
    }

    pub(crate) async fn update(&self, expected: &Object, object: &SealedObject) -> Result<Object, Error> {
        self.write(&expected.key(), &Change::Update(expected, object))
            .await
    }

    pub(crate) async fn delete(&self, expected: &Object) -> Result<Object, Error> {
        self.write(&expected.key(), &Change::Delete(expected)).await
    }

    async fn write(&self, key: &Key, change: &Change<'_>) -> Result<Object, Error> {
        let deadline = Instant::now() + self.config.write_deadline;
        let (raw_key, domain) = (key.encode(), key.domain());
        let size = change.value().map_or(0, |value| value.body().len());
        if size > OBJECT_BYTES_MAX {
            return Err(Error::TooLarge {
                size,
                limit: OBJECT_BYTES_MAX,
            });
        }
        let mut tries = 0;
        while Instant::now() < deadline {
            tries += 1;
            let (joined, owner) = self.backend_for_write(&domain).await?;
            let joined = &joined;
            if change.grows() && joined.state.lock().status.is_full() {
                return Err(joined.error(BackendError::NoSpace));
            }
            let Some(clock) = joined.clock_for_write().await? else {
                self.await_tick(joined).await?;
                continue;
            };
            let attempt = Attempt {
                clock,
                owner,
                write_id: self.write_id(),
            };
            let outcome = match joined
                .call(self.transaction(&raw_key, &domain, change, &attempt))
                .await
            {
                Ok(answer) => self.read_answer(joined, &domain, change, &attempt, answer)?,
                Err(BackendError::Unavailable { sent: true, cause }) => {
                    tracing::debug!(cluster = %joined.member.name, cause, "settling a write whose outcome is unknown");
                    if self.broken(Rule::SettleUnknown) {
                        continue;
                    }
                    joined.metrics().unknown_outcome();
                    self.settle(joined, &raw_key, change, &attempt, deadline, cause)
                        .await?
                }
                Err(BackendError::TooLarge) => {
                    return Err(Error::TooLarge {
                        size,
                        limit: OBJECT_BYTES_MAX,
                    });
                }
                Err(error) => return Err(joined.error(error)),
            };
            match outcome {
                Outcome::Committed(revision) => {
                    return self.stored(joined, raw_key, change, &attempt, revision);
                }
                Outcome::Differs(current) => return Err(differs(change, current)),
                Outcome::Again => joined.metrics().write_retry(),
            }
            if tries >= TRIES_WITHOUT_PAUSE {
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
        Err(Error::Deadline(format!(
            "the write was overtaken by the clock {tries} times"
        )))
    }

    async fn backend_for_write(&self, domain: &Domain) -> Result<(Arc<Joined>, Option<OwnerEntry>), Error> {
        if let Some(sole) = self.sole() {
            return Ok((sole, None));
        }
        let (joined, owner) = self
            .route_settled(domain)
            .await?
            .ok_or_else(|| Error::Unplaced(domain.placement_name()))?;
        if owner.record.state != super::OwnerState::Active {
            return Err(Error::Unplaced(domain.placement_name()));
        }
        let view = self.view();
        view.check_not_away(&joined)?;
        if !view.is_open(&joined) {
            return Err(joined.unavailable("it is not open yet, or has left"));
        }
        Ok((joined, Some(owner)))
    }

    /// Waits until the backend's clock moved, which a round is asked to do.
    async fn await_tick(&self, joined: &Arc<Joined>) -> Result<(), Error> {
        let before = joined.state.lock().clock;
        let mut changes = joined.changes();
        self.rounds.request();
        let moved = async {
            while joined.state.lock().clock == before {
                changes.changed().await;
            }
        };
        tokio::time::timeout(TICK_WAIT, moved)
            .await
            .map_err(|_| joined.unavailable("its clock does not move"))
    }

    fn transaction(&self, raw_key: &Bytes, domain: &Domain, change: &Change<'_>, attempt: &Attempt) -> Txn {
        let mut compare = vec![Compare::mod_revision(raw_key.clone(), change.expected())];
        if !self.broken(Rule::ClockCompare) {
            compare.push(Compare::mod_revision(key::CLOCK, attempt.clock.base));
        }
        let read = |k: Bytes| Op::Get(Range::key(k));
        let mut failure = vec![
            read(raw_key.clone()),
            read(Bytes::from_static(key::CLOCK)),
            read(Bytes::from_static(key::DELETION)),
        ];
        if compares_owners(self.config.routing) {
            let owner_key = domain.owner_key();
            failure.push(read(owner_key.clone()));
            if !self.broken(Rule::OwnerCompare) {
                compare.push(Compare::mod_revision(
                    owner_key,
                    attempt.owner.as_ref().map_or(0, |owner| owner.revision),
                ));
            }
        }
        let success = match change.value() {
            Some(value) => {
                let value = value.stamp(attempt.clock.epoch, attempt.clock.base, attempt.write_id);
                vec![Op::Put {
                    key: raw_key.clone(),
                    value,
                }]
            }
            None => vec![
                Op::Delete { key: raw_key.clone() },
                Op::Put {
                    key: Bytes::from_static(key::DELETION),
                    value: encode_write_id(attempt.write_id),
                },
            ],
        };
        Txn {
            compare,
            success,
            failure,
        }
    }

    fn read_answer(
        &self,
        joined: &Arc<Joined>,
        domain: &Domain,
        change: &Change<'_>,
        attempt: &Attempt,
        answer: TxnResponse,
    ) -> Result<Outcome, Error> {
        if answer.succeeded {
            return Ok(Outcome::Committed(answer.revision));
        }
        let mut ranges = answer
            .responses
            .into_iter()
            .map(crate::backend::OpResponse::into_range);
        let mut next = || ranges.next().unwrap_or_default();
        let (current, clock, deletion, owner) = (first(next()), next(), first(next()), next());
        if let Some(clock) = joined.observe_clock(&clock) {
            self.saw_epoch(clock.epoch);
        }
        if compares_owners(self.config.routing) {
            joined.observe_owner(domain, &owner, answer.revision)?;
        }
        if current.as_ref().map_or(0, |kv| kv.mod_revision) == change.expected() {
            return Ok(Outcome::Again);
        }
        // The transaction may have been carried out before and the answer lost on the way: then what differs is our own.
        let deleted_by_us = deletion.filter(|kv| kv.value == encode_write_id(attempt.write_id));
        match (change, current) {
            (Change::Delete(_), None) if deleted_by_us.is_some() => {
                Ok(Outcome::Committed(deleted_by_us.map_or(0, |kv| kv.mod_revision)))
            }
            (_, None) => Ok(Outcome::Differs(None)),
            (_, Some(kv)) => {
                let object = joined.object(kv)?;
                let ours = change.value().is_some() && object.write_id() == attempt.write_id;
                Ok(if ours {
                    Outcome::Committed(object.revision())
                } else {
                    Outcome::Differs(Some(object))
                })
            }
        }
    }

    /// Finds out whether an attempt was committed. Afterwards it never will be, if it was not.
    async fn settle(
        &self,
        joined: &Arc<Joined>,
        raw_key: &Bytes,
        change: &Change<'_>,
        attempt: &Attempt,
        deadline: Instant,
        mut cause: String,
    ) -> Result<Outcome, Error> {
        let unknown = |cause: String| Error::UnknownOutcome {
            cluster: joined.member.name.clone(),
            cause,
        };
        while Instant::now() < deadline {
            match self.search_history(joined, raw_key, change, attempt).await {
                Ok(Some(revision)) => return Ok(Outcome::Committed(revision)),
                Ok(None) => return Ok(Outcome::Again),
                Err(Error::Expired { .. }) => return Err(unknown("its history is compacted".to_owned())),
                Err(error) => cause = error.to_string(),
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        }
        Err(unknown(cause))
    }

    async fn search_history(
        &self,
        joined: &Arc<Joined>,
        raw_key: &Bytes,
        change: &Change<'_>,
        attempt: &Attempt,
    ) -> Result<Option<Revision>, Error> {
        let until = if self.broken(Rule::SettleByTick) {
            joined
                .call(Txn::read([Range::key(raw_key.clone())]))
                .await
                .map_err(|e| joined.error(e))?
                .revision
        } else {
            self.fence(joined, attempt.clock).await?
        };
        // Whatever this attempt did, it did under its base: above that, and below the clock that replaced it.
        let changes = joined
            .history_of(change.witness(raw_key), attempt.clock.base + 1, until)
            .await;
        let changes = match changes {
            Ok(changes) => changes,
            Err(BackendError::Compacted { .. }) => {
                let requested = joined.resource_version(attempt.clock, attempt.clock.base)?;
                return Err(Error::Expired { requested });
            }
            Err(error) => return Err(joined.error(error)),
        };
        let ours = |kv: &KeyValue| match change.value() {
            None => kv.value == encode_write_id(attempt.write_id),
            Some(_) => joined
                .object(kv.clone())
                .is_ok_and(|object| object.write_id() == attempt.write_id),
        };
        Ok(changes.iter().find(|kv| ours(kv)).map(|kv| kv.mod_revision))
    }

    /// Makes sure that the clock is past `clock`: nothing commits under it any more. Returns a revision at which it was.
    async fn fence(&self, joined: &Arc<Joined>, clock: Clock) -> Result<Revision, Error> {
        let newest = joined.state.lock().clock;
        if let Some(newest) = newest.filter(|newest| newest.base > clock.base) {
            return Ok(newest.base);
        }
        Ok(self.tick_alone(joined).await?.clock.base)
    }

    fn stored(
        &self,
        joined: &Arc<Joined>,
        raw_key: Bytes,
        change: &Change<'_>,
        attempt: &Attempt,
        revision: Revision,
    ) -> Result<Object, Error> {
        match change {
            Change::Create(value) | Change::Update(_, value) => {
                let value = value.stamp(attempt.clock.epoch, attempt.clock.base, attempt.write_id);
                Object::from_stored(raw_key, value, revision, joined.slot())
            }
            Change::Delete(object) => {
                Ok(object.with_resource_version(joined.resource_version(attempt.clock, revision)?))
            }
        }
    }
}

fn first(range: RangeResponse) -> Option<KeyValue> {
    range.kvs.into_iter().next()
}

fn differs(change: &Change<'_>, current: Option<Object>) -> Error {
    match (change, current) {
        (Change::Create(_), Some(current)) => Error::AlreadyExists(Box::new(current)),
        (_, current) => Error::Conflict(current.map(Box::new)),
    }
}

fn encode_write_id(id: WriteId) -> Bytes {
    Bytes::copy_from_slice(&id.0.to_be_bytes())
}
