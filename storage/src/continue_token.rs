//! `metadata.continue`: where the next page of a list starts. Opaque to clients; base64url of compact JSON.

use crate::{Error, ResourceVersion};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

/// The longest token that is read, in bytes: a namespace, a name and some numbers.
pub const CONTINUE_BYTES_MAX: usize = 2048;

/// A decoded continue token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContinueToken {
    /// Format.
    v: u8,
    /// The snapshot's resource version; 0: continue at the newest state (inconsistent continuation).
    #[serde(rename = "rv")]
    pub(crate) resource_version: u64,
    /// The namespace of the last object of the page before.
    #[serde(rename = "ns")]
    pub(crate) namespace: String,
    /// The name of the last object of the page before.
    #[serde(rename = "n")]
    pub(crate) name: String,
    /// Objects on the pages before.
    #[serde(rename = "s", default)]
    pub(crate) seen: u64,
}

const FORMAT: u8 = 1;

impl ContinueToken {
    pub(crate) fn new(resource_version: ResourceVersion, namespace: &str, name: &str, seen: u64) -> Self {
        let resource_version = resource_version.get();
        Self {
            v: FORMAT,
            resource_version,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            seen,
        }
    }

    /// The token as clients see it.
    #[must_use]
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).expect("a token is always written to memory"))
    }

    /// Reads what [`ContinueToken::encode`] wrote.
    ///
    /// # Errors
    /// [`Error::InvalidContinue`].
    pub fn decode(token: &str) -> Result<Self, Error> {
        let invalid = |cause: &str| Error::InvalidContinue(cause.to_owned());
        if token.len() > CONTINUE_BYTES_MAX {
            return Err(invalid("it is too long"));
        }
        let json = URL_SAFE_NO_PAD
            .decode(token)
            .map_err(|_| invalid("it is not base64url"))?;
        let token: Self =
            serde_json::from_slice(&json).map_err(|_| invalid("it was not made by this server"))?;
        if token.v != FORMAT
            || (token.resource_version != 0 && ResourceVersion::from_u64(token.resource_version).is_err())
        {
            return Err(invalid("it was not made by this server"));
        }
        Ok(token)
    }

    /// The token that continues at the newest state, for the Status of a 410.
    #[must_use]
    pub fn inconsistent(&self) -> Self {
        Self {
            resource_version: 0,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_others_are_refused() {
        let token = ContinueToken::new(
            ResourceVersion::from_u64(77).expect("in range"),
            "ns",
            "name",
            500,
        );
        assert_eq!(ContinueToken::decode(&token.encode()).expect("ours"), token);
        for bad in ["", "a", "!!", "bnVsbA", "eyJ2IjoyfQ", &"A".repeat(3000)] {
            assert!(ContinueToken::decode(bad).is_err(), "{bad}");
        }
    }
}
