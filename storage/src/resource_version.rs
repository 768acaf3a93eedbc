//! `ResourceVersion`: one decimal integer, comparable across every object, list, bookmark and event.
//!
//! `epoch << 27 | offset << 9 | slot`: 36 + 18 + 9 bits, so 63 in all, never zero (KEP-5504 asks for a decimal integer
//! that starts with 1 to 9). The epoch is a backend's clock at commit, the offset is the commit's revision minus the
//! revision of that clock (1 or more for every object), the slot is the backend's number. `(e, 0, 0)` is a cut.
//! This file does not know where epochs come from.

use std::fmt;
use std::str::FromStr;

/// Bits of the slot.
pub const SLOT_BITS: u32 = 9;
/// Bits of the offset.
pub const OFFSET_BITS: u32 = 18;
/// Bits of the epoch.
pub const EPOCH_BITS: u32 = 36;
/// The greatest offset that a resource version can carry, in revisions since the clock.
pub const OFFSET_MAX: u64 = (1 << OFFSET_BITS) - 1;
/// The greatest slot.
pub const SLOT_MAX: u16 = (1 << SLOT_BITS) - 1;
/// The greatest epoch.
pub const EPOCH_MAX: u64 = (1 << EPOCH_BITS) - 1;

/// A value of the fleet's clock, in units of 25 ms since 2026-01-01T00:00:00Z.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// A backend's number in the fleet, 0 to 511.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Slot(pub u16);

/// A position in the one order of all backends. Ordered like its decimal text is by KEP-5504.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceVersion(u64);

/// Why a text is not a resource version, or why parts do not make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceVersionError {
    /// The text is empty, has a character that is not a digit, or starts with 0. The caller must act.
    #[error("invalid resource version {0:?}: it must be a decimal integer that starts with 1 to 9")]
    Malformed(String),
    /// The text is a decimal integer of more than 63 bits. The caller must act.
    #[error("invalid resource version {0:?}: it is larger than any resource version of this server")]
    OutOfRange(String),
    /// A computed offset does not fit. We must act: a base was used for too long.
    #[error("offset {0} does not fit into {OFFSET_BITS} bits: the backend's clock was not ticked in time")]
    Offset(u64),
}

impl ResourceVersion {
    /// The resource version of the commit `offset` revisions after the clock of `epoch` on backend `slot`.
    ///
    /// # Errors
    /// [`ResourceVersionError::Offset`] when the offset is out of range; it is never shifted into another field.
    pub fn new(epoch: Epoch, offset: u64, slot: Slot) -> Result<Self, ResourceVersionError> {
        if offset > OFFSET_MAX || epoch.0 > EPOCH_MAX || slot.0 > SLOT_MAX {
            return Err(ResourceVersionError::Offset(offset));
        }
        Ok(Self(
            epoch.0 << (OFFSET_BITS + SLOT_BITS) | offset << SLOT_BITS | u64::from(slot.0),
        ))
    }

    /// The resource version of the cut at `epoch`: above everything of earlier epochs, below everything of this one.
    #[must_use]
    pub const fn cut(epoch: Epoch) -> Self {
        Self((epoch.0 & EPOCH_MAX) << (OFFSET_BITS + SLOT_BITS))
    }

    /// The epoch.
    #[must_use]
    pub const fn epoch(self) -> Epoch {
        Epoch(self.0 >> (OFFSET_BITS + SLOT_BITS))
    }

    /// Revisions since the clock of the epoch, on the backend `slot`. 0 for a cut.
    #[must_use]
    pub const fn offset(self) -> u64 {
        (self.0 >> SLOT_BITS) & OFFSET_MAX
    }

    /// The backend's slot. 0 for a cut.
    #[must_use]
    pub const fn slot(self) -> Slot {
        Slot((self.0 & SLOT_MAX as u64) as u16)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The resource version with this number.
    ///
    /// # Errors
    /// When the number is 0 or has more than 63 bits.
    pub fn from_u64(n: u64) -> Result<Self, ResourceVersionError> {
        if n == 0 {
            return Err(ResourceVersionError::Malformed(n.to_string()));
        }
        if n > i64::MAX as u64 {
            return Err(ResourceVersionError::OutOfRange(n.to_string()));
        }
        Ok(Self(n))
    }
}

impl FromStr for ResourceVersion {
    type Err = ResourceVersionError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let malformed = || ResourceVersionError::Malformed(s.chars().take(64).collect());
        let well_formed =
            s.bytes().all(|b| b.is_ascii_digit()) && s.bytes().next().is_some_and(|b| b != b'0');
        if !well_formed {
            return Err(malformed());
        }
        let n = s
            .parse::<u64>()
            .map_err(|_| ResourceVersionError::OutOfRange(s.chars().take(64).collect()))?;
        Self::from_u64(n)
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {}, {})", self.epoch().0, self.offset(), self.slot().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back() {
        let rv =
            ResourceVersion::new(Epoch(EPOCH_MAX), OFFSET_MAX, Slot(SLOT_MAX)).expect("the greatest fits");
        assert_eq!(
            (rv.epoch().0, rv.offset(), rv.slot().0),
            (EPOCH_MAX, OFFSET_MAX, SLOT_MAX)
        );
        assert_eq!(rv.get(), i64::MAX as u64);
        assert!(ResourceVersion::new(Epoch(1), OFFSET_MAX + 1, Slot(0)).is_err());
    }

    #[test]
    fn order_is_epoch_then_offset_then_slot() {
        let rv = |e, o, s| ResourceVersion::new(Epoch(e), o, Slot(s)).expect("in range");
        assert!(ResourceVersion::cut(Epoch(5)) < rv(5, 1, 0));
        assert!(rv(5, 1, 3) < rv(5, 2, 0));
        assert!(rv(5, OFFSET_MAX, SLOT_MAX) < ResourceVersion::cut(Epoch(6)));
    }

    #[test]
    fn texts() {
        for bad in [
            "",
            "0",
            "007",
            "+1",
            "1/2",
            "1.0",
            "abc",
            " 1",
            "-1",
            "9223372036854775808",
            "99999999999999999999999",
        ] {
            assert!(bad.parse::<ResourceVersion>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "9223372036854775807"
                .parse::<ResourceVersion>()
                .expect("63 bits")
                .to_string(),
            "9223372036854775807"
        );
    }
}
