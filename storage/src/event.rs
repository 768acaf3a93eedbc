//! What a watch delivers. One type from the backend's log to the encoder.

use crate::{Object, ResourceVersion};
use bytes::Bytes;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::sync::Arc;

/// What happened to an object, as the watcher's selectors see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// It was created, or it started to match.
    Added,
    /// It changed and still matches.
    Modified,
    /// It was deleted, or it stopped to match. The object is the last state that matched, with the RV of this change.
    Deleted,
}

/// One item of a watch.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    /// A change of an object.
    Object(ObjectEvent),
    /// The end of the initial events (`sendInitialEvents`): the RV is that of the snapshot they were.
    InitialEventsEnd(ResourceVersion),
}

/// A change of one object.
#[derive(Debug, Clone)]
pub struct ObjectEvent {
    /// What happened.
    pub kind: EventKind,
    /// The object; its resource version is that of the change.
    pub object: Object,
    /// Encoded forms of the event, shared by all who watch it.
    pub frames: FrameCache,
}

/// The encoded forms of one event, by a number that the encoder chooses for representation and kind.
/// At most [`FRAMES_MAX`] forms are kept; more are encoded each time.
#[derive(Debug, Clone, Default)]
pub struct FrameCache(Arc<Mutex<Frames>>);

/// Mostly one: all watchers ask for the same form.
type Frames = SmallVec<[(u64, Bytes); 1]>;

/// How many encoded forms of one event are kept.
pub const FRAMES_MAX: usize = 4;

impl FrameCache {
    /// The form `representation`, encoded now unless somebody did so before.
    pub fn get_or_encode<E>(
        &self,
        representation: u64,
        encode: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        if let Some((_, frame)) = self.0.lock().iter().find(|(r, _)| *r == representation) {
            return Ok(frame.clone());
        }
        // Encoded outside the lock: two watchers may do the same work once, none waits for another's.
        let frame = encode()?;
        let mut frames = self.0.lock();
        if frames.len() < FRAMES_MAX && !frames.iter().any(|(r, _)| *r == representation) {
            frames.push((representation, frame.clone()));
        }
        Ok(frame)
    }
}
