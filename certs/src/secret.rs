//! The Secret in which replicas share an authority: what stands in it, read and written. Pure; the API calls are in
//! `shared.rs`.
//!
//! ```text
//! ca.crt          the bundle, for people and for others who want to trust us
//! tls.crt/.key    the authority that signs
//! next.crt/.key   the one that will sign
//! rotation.json   since when, and those that signed before, without their keys
//! ```
//!
//! Leaves are not in it: every replica issues its own and keeps the key in memory. So a renewal is nobody else's matter, no
//! write is contended, and a leaf's key never leaves its process. The price, that each replica can sign, would be paid
//! anyway: who may write a shared leaf here may read the authority's key beside it.

use crate::authority::Authority;
use crate::bundle::CaBundle;
use crate::issue;
use crate::rotation::{
    NextAuthority, PreviousAuthority, RotationAction, RotationPolicy, RotationState, is_forgotten,
};
use crate::{Error, UnixSeconds};
use k8s_openapi::ByteString;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The Secret's `data`.
pub(crate) type SecretData = BTreeMap<String, ByteString>;

const BUNDLE: &str = "ca.crt";
const CURRENT: [&str; 2] = ["tls.crt", "tls.key"];
const NEXT: [&str; 2] = ["next.crt", "next.key"];
const ROTATION: &str = "rotation.json";
const COMMON_NAME: &str = "outrigger-ca";

/// What the Secret holds.
#[derive(Debug, Default)]
pub(crate) struct SharedState {
    pub(crate) current: Option<Authority>,
    next: Option<(Authority, UnixSeconds)>,
    previous: Vec<Previous>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Previous {
    certificate: String,
    replaced_at: UnixSeconds,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RotationJson {
    next_since: UnixSeconds,
    previous: Vec<Previous>,
}

impl SharedState {
    /// What the data say. An empty Secret is the state before the first authority; half an authority is an error, never
    /// a reason to make a new one: clients trust what was there.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn decode(data: &SecretData, what: &str) -> Result<Self, Error> {
        let text = |key: &str| match data.get(key).map(|b| b.0.as_slice()) {
            None | Some([]) => Ok(None),
            Some(bytes) => std::str::from_utf8(bytes)
                .map(Some)
                .map_err(|e| Error::malformed(format!("{what}, {key}"), e)),
        };
        let authority = |[certificate, key]: [&str; 2]| match (text(certificate)?, text(key)?) {
            (None, None) => Ok(None),
            (Some(certificate_pem), Some(key_pem)) => {
                Authority::from_pem(certificate_pem, key_pem, &format!("{what}, {certificate}")).map(Some)
            }
            _ => Err(Error::malformed(
                what,
                format!("of {certificate} and {key} one is missing"),
            )),
        };
        let rotation: RotationJson = match text(ROTATION)? {
            None => RotationJson::default(),
            Some(json) => {
                serde_json::from_str(json).map_err(|e| Error::malformed(format!("{what}, {ROTATION}"), e))?
            }
        };
        Ok(Self {
            current: authority(CURRENT)?,
            next: authority(NEXT)?.map(|next| (next, rotation.next_since)),
            previous: rotation.previous,
        })
    }

    /// The data that say it.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn encode(&self) -> Result<SecretData, Error> {
        let rotation = RotationJson {
            next_since: self.next.as_ref().map_or(0, |(_, since)| *since),
            previous: self.previous.clone(),
        };
        let rotation = serde_json::to_string(&rotation).map_err(|e| Error::malformed(ROTATION, e))?;
        let bundle = self.bundle()?;
        let mut data = SecretData::new();
        let mut put =
            |key: &str, text: &str| data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        put(BUNDLE, bundle.pem());
        put(ROTATION, &rotation);
        let next = self.next.as_ref().map(|(next, _)| next);
        for (authority, [certificate, key]) in [(self.current.as_ref(), CURRENT), (next, NEXT)] {
            // An empty value, not a missing key: a merge would keep what was there.
            put(certificate, authority.map_or("", Authority::certificate_pem));
            put(key, authority.map_or("", Authority::key_pem));
        }
        Ok(data)
    }

    /// Everybody to trust.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn bundle(&self) -> Result<CaBundle, Error> {
        let mut bundle = CaBundle::default();
        let next = self.next.as_ref().map(|(next, _)| next);
        for authority in self.current.iter().chain(next) {
            bundle.add(authority.certificate_pem(), BUNDLE)?;
        }
        for previous in &self.previous {
            bundle.add(&previous.certificate, ROTATION)?;
        }
        Ok(bundle)
    }

    /// The next authority alone, as a bundle.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn next_bundle(&self) -> Result<CaBundle, Error> {
        match &self.next {
            None => Ok(CaBundle::default()),
            Some((next, _)) => CaBundle::from_pem(next.certificate_pem(), NEXT[0]),
        }
    }

    /// What the decision needs.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn rotation(&self) -> Result<RotationState, Error> {
        let previous = self
            .previous
            .iter()
            .map(Previous::parse)
            .collect::<Result<_, _>>()?;
        Ok(RotationState {
            current: self.current.as_ref().map(Authority::validity),
            next: self.next.as_ref().map(|(next, since)| NextAuthority {
                validity: next.validity(),
                since: *since,
            }),
            previous,
        })
    }

    /// The state after a step.
    ///
    /// # Errors
    /// [`Error::Issue`], [`Error::Malformed`].
    pub(crate) fn after(
        mut self,
        action: RotationAction,
        now: UnixSeconds,
        policy: RotationPolicy,
    ) -> Result<Self, Error> {
        let create = || Authority::create_for(COMMON_NAME, i64::from(policy.authority_days), now);
        match action {
            RotationAction::Keep { .. } => {}
            RotationAction::Create => self.current = Some(create()?),
            RotationAction::AddNext => self.next = Some((create()?, now)),
            RotationAction::Switch => {
                if let Some((next, _)) = self.next.take()
                    && let Some(old) = self.current.replace(next)
                {
                    self.previous.push(Previous {
                        certificate: old.certificate_pem().to_owned(),
                        replaced_at: now,
                    });
                }
            }
            RotationAction::DropPrevious => {
                let mut kept = Vec::new();
                for previous in std::mem::take(&mut self.previous) {
                    if !is_forgotten(now, previous.parse()?, policy) {
                        kept.push(previous);
                    }
                }
                self.previous = kept;
            }
        }
        Ok(self)
    }
}

impl Previous {
    fn parse(&self) -> Result<PreviousAuthority, Error> {
        let der = issue::first_certificate(&self.certificate, ROTATION)?;
        let (_, certificate) = X509Certificate::from_der(&der).map_err(|e| Error::malformed(ROTATION, e))?;
        Ok(PreviousAuthority {
            validity: issue::validity(&certificate),
            replaced_at: self.replaced_at,
        })
    }
}

#[cfg(test)]
mod tests;
