//! A serving certificate that somebody else renews: in files (a mounted Secret included, whose files are swapped by a
//! symlink) or in a Secret as cert-manager writes it.
//!
//! A new certificate is shown only when everybody who connects can verify it. If it comes with a new authority, the bundle
//! with both goes out first and the old certificate stays until all carry the new one, or until it has expired. It decides
//! in [`External::take`], which is pure; where the texts come from is above.

use crate::bundle::CaBundle;
use crate::certificates::CarriedBundles;
use crate::issue::Issued;
use crate::rotation::{Decision, decide};
use crate::shared::within;
use crate::{Error, UnixSeconds, files};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use std::path::PathBuf;

/// So many authorities are remembered at most; the oldest goes first.
const REMEMBERED_MAX: usize = 8;

/// Where the certificate comes from.
#[derive(Clone)]
pub(crate) enum Place {
    Files {
        certificate: PathBuf,
        key: PathBuf,
        ca: PathBuf,
    },
    Secret {
        secrets: Box<Api<Secret>>,
        what: String,
        name: String,
    },
}

/// What was read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) leaf: Issued,
    pub(crate) ca: CaBundle,
}

/// What is shown, and whom one has to trust for it.
#[derive(Debug, Default)]
pub(crate) struct External {
    shown: Option<Seen>,
    remembered: Vec<CaBundle>,
}

/// What is to be published.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) bundle: CaBundle,
    pub(crate) leaf: Option<Issued>,
    /// A certificate waits until everybody trusts its authority.
    pub(crate) is_waiting: bool,
}

impl Place {
    pub(crate) fn secret(client: Client, namespace: &str, name: &str) -> Self {
        Self::Secret {
            secrets: Box::new(Api::namespaced(client, namespace)),
            what: format!("{namespace}/{name}"),
            name: name.to_owned(),
        }
    }

    /// Reads all three, and refuses what does not belong together: while files are swapped one by one, that is so for a
    /// moment.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Secret`], [`Error::Malformed`].
    pub(crate) async fn read(&self) -> Result<Seen, Error> {
        let (what, certificate_pem, key_pem, ca) = match self {
            Self::Files { certificate, key, ca } => {
                let read = |path: &PathBuf| {
                    files::read(path)?
                        .ok_or_else(|| Error::malformed(path.display(), "there is no such file"))
                };
                let what = certificate.display().to_string();
                (what, read(certificate)?, read(key)?, read(ca)?)
            }
            Self::Secret { secrets, what, name } => {
                let secret = within(secrets.get(name)).await.map_err(|e| Error::Secret {
                    secret: what.clone(),
                    source: Box::new(e),
                })?;
                let data = secret.data.unwrap_or_default();
                let text = |key: &str| {
                    let bytes = data
                        .get(key)
                        .ok_or_else(|| Error::malformed(what, format!("it has no {key}")))?;
                    String::from_utf8(bytes.0.clone()).map_err(|e| Error::malformed(what, e))
                };
                (what.clone(), text("tls.crt")?, text("tls.key")?, text("ca.crt")?)
            }
        };
        let leaf = Issued {
            certificate_pem,
            key_pem,
        };
        if !leaf.keys_match() {
            return Err(Error::malformed(
                what,
                "certificate and key do not belong together",
            ));
        }
        let ca = CaBundle::from_pem(&ca, &what)?;
        Ok(Seen { leaf, ca })
    }
}

impl External {
    /// Takes what was read.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub(crate) fn take(
        &mut self,
        seen: Seen,
        carried: &CarriedBundles,
        now: UnixSeconds,
    ) -> Result<Taken, Error> {
        let may_show = match &self.shown {
            None => true,
            Some(shown) if shown.leaf == seen.leaf => true,
            Some(shown) => {
                let has_expired = shown
                    .leaf
                    .validity()
                    .is_ok_and(|v| decide(now, v) == Decision::Replace);
                // Who carries what we trusted before can verify it, if no authority is new.
                shown.ca.holds(&seen.ca) || carried.all_hold(&seen.ca) || has_expired
            }
        };
        self.remember(&seen.ca);
        let leaf = match &self.shown {
            Some(shown) if shown.leaf == seen.leaf => None,
            _ => may_show.then(|| seen.leaf.clone()),
        };
        if may_show {
            self.shown = Some(seen);
        }
        let mut bundle = CaBundle::default();
        // The newest first; the old ones stay, for replicas that still show a certificate of theirs.
        for ca in self.remembered.iter().rev() {
            bundle.add(ca.pem(), "remembered authorities")?;
        }
        Ok(Taken {
            bundle,
            leaf,
            is_waiting: !may_show,
        })
    }

    fn remember(&mut self, ca: &CaBundle) {
        self.remembered.retain(|known| known != ca);
        self.remembered.push(ca.clone());
        let too_many = self.remembered.len().saturating_sub(REMEMBERED_MAX);
        self.remembered.drain(..too_many);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, LeafRequest, Usage, write_private};
    use std::sync::Arc;

    const NOW: UnixSeconds = 1_800_000_000;
    const DAY: i64 = 86400;

    fn seen(ca: &Authority) -> Seen {
        let request = LeafRequest {
            common_name: "outrigger".to_owned(),
            organization: None,
            names: vec!["localhost".to_owned()],
            usage: Usage::Server,
            days: 30,
        };
        Seen {
            leaf: ca.issue(&request, NOW).expect("issued"),
            ca: CaBundle::from_pem(ca.certificate_pem(), "ca").expect("ours"),
        }
    }

    #[test]
    fn a_new_authority_is_trusted_before_it_is_used() {
        let [a, b] = ["a", "b"].map(|name| Authority::create(name, NOW).expect("created"));
        let carried = |bundles: &[&CaBundle]| {
            CarriedBundles::new(&Some(Arc::new(
                bundles.iter().map(|b| b.pem().to_owned()).collect(),
            )))
        };
        let (first, renewed, second) = (seen(&a), seen(&a), seen(&b));
        let mut external = External::default();
        let taken = external.take(first.clone(), &carried(&[]), NOW).expect("taken");
        assert_eq!(taken.leaf, Some(first.leaf.clone()));

        let taken = external
            .take(renewed.clone(), &carried(&[&first.ca]), NOW)
            .expect("taken");
        assert_eq!(taken.leaf, Some(renewed.leaf), "no authority is new");

        let taken = external
            .take(second.clone(), &carried(&[&first.ca]), NOW)
            .expect("taken");
        assert!(taken.leaf.is_none() && taken.is_waiting, "not trusted yet");
        assert!(taken.bundle.holds(&first.ca) && taken.bundle.holds(&second.ca));

        let taken = external
            .take(second.clone(), &carried(&[&taken.bundle]), NOW)
            .expect("taken");
        assert_eq!(taken.leaf, Some(second.leaf.clone()));
        assert!(taken.bundle.holds(&first.ca), "others may still show the old one");
        let taken = external
            .take(second, &carried(&[&taken.bundle]), NOW)
            .expect("taken");
        assert!(taken.leaf.is_none() && !taken.is_waiting, "nothing new");
    }

    #[test]
    fn an_expired_certificate_is_not_held_on_to() {
        let [a, b] = ["a", "b"].map(|name| Authority::create(name, NOW).expect("created"));
        let carried = CarriedBundles::new(&Some(Arc::new(vec![seen(&a).ca.pem().to_owned()])));
        let mut external = External::default();
        external.take(seen(&a), &carried, NOW).expect("taken");
        let taken = external.take(seen(&b), &carried, NOW + 40 * DAY).expect("taken");
        assert!(taken.leaf.is_some());
    }

    #[tokio::test]
    async fn files_are_taken_when_they_belong_together() {
        let folder = tempfile::tempdir().expect("a folder");
        let ca = Authority::create("a", NOW).expect("created");
        // As kubelet mounts a Secret: the names are links into a folder that is a link itself.
        let write = |version: &str, seen: &Seen, key: &str| {
            let data = folder.path().join(version);
            std::fs::create_dir(&data).expect("a folder");
            for (name, text) in [
                ("tls.crt", seen.leaf.certificate_pem.as_str()),
                ("tls.key", key),
                ("ca.crt", seen.ca.pem()),
            ] {
                write_private(&data.join(name), text.as_bytes()).expect("written");
            }
            let link = folder.path().join("..data.new");
            std::os::unix::fs::symlink(version, &link).expect("a link");
            std::fs::rename(&link, folder.path().join("..data")).expect("swapped");
        };
        let path = |name: &str| folder.path().join("..data").join(name);
        let place = Place::Files {
            certificate: path("tls.crt"),
            key: path("tls.key"),
            ca: path("ca.crt"),
        };
        let error = place.read().await.expect_err("nothing is there");
        assert!(error.to_string().contains("there is no such file"), "{error}");
        let (first, second) = (seen(&ca), seen(&ca));
        write("1", &first, &first.leaf.key_pem);
        assert_eq!(place.read().await.expect("read"), first);
        write("2", &second, &first.leaf.key_pem);
        let error = place.read().await.expect_err("mixed");
        assert!(error.to_string().contains("do not belong together"), "{error}");
        write("3", &second, &second.leaf.key_pem);
        assert_eq!(place.read().await.expect("read"), second);
    }
}
