//! The data folder of `outrigger up`: everything that must survive, for one process at a time.
//!
//! ```text
//! lock                  held while the server runs; names its process
//! fleet.json            the fleet's uid and its clusters: name, slot, uid
//! ca/                   the authority, the server's certificate, the administrator's
//! kubeconfig
//! system.redb           namespaces, CRDs, leases, secrets, events, placements
//! backends/<name>.redb  embedded workload clusters
//! ```
//!
//! Files are either old or new, never half written.

use crate::options::CLUSTERS_MAX;
use anyhow::{Context, Result, anyhow, bail};
use outrigger_certs::write_private;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The format of `fleet.json`.
const FORMAT: u32 = 1;

/// An open data folder; it is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    _lock: File,
}

/// What `fleet.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fleet {
    format: u32,
    /// Written into every backend's identity.
    pub(crate) uid: String,
    /// All that ever belonged to the fleet, by slot.
    pub(crate) clusters: Vec<Cluster>,
    /// The example CRD was applied once; who deletes it does not get it back.
    #[serde(default)]
    pub(crate) example_applied: bool,
}

/// One cluster of the fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    /// Its name.
    pub(crate) name: String,
    /// Its number in resource versions. It never changes.
    pub(crate) slot: u16,
    /// Written into its backend's identity.
    pub(crate) uid: String,
    /// Its backend answered once, and has its identity.
    #[serde(default)]
    pub(crate) joined: bool,
}

impl DataFolder {
    /// Opens the folder, made now if it is not there.
    ///
    /// # Errors
    /// When another process has it, or it cannot be written.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        for folder in [path.to_owned(), path.join("ca"), path.join("backends")] {
            fs::create_dir_all(&folder)
                .with_context(|| format!("data folder {shown}: cannot create {}", folder.display()))?;
        }
        restrict(path).with_context(|| format!("data folder {shown}"))?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("data folder {shown}: cannot open {}", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // For the message only.
                let _ = (&lock).take(32).read_to_string(&mut holder);
                let holder = holder.trim();
                let by = if holder.is_empty() {
                    String::new()
                } else {
                    format!(" by process {holder}")
                };
                bail!("data folder {shown} is in use{by}: stop it, or choose another one with --data-dir");
            }
            Err(TryLockError::Error(error)) => {
                return Err(anyhow!(error).context(format!(
                    "data folder {shown}: cannot lock {}",
                    lock_path.display()
                )));
            }
        }
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The folder of certificates.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path.join("ca")
    }

    /// The kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path.join("kubeconfig")
    }

    /// The system backend's file.
    pub(crate) fn system(&self) -> PathBuf {
        self.path.join("system.redb")
    }

    /// An embedded workload cluster's file.
    pub(crate) fn backend(&self, name: &str) -> PathBuf {
        self.path.join("backends").join(format!("{name}.redb"))
    }

    /// The fleet as the folder knows it; a new one, without clusters, if it knows none.
    pub(crate) fn fleet(&self) -> Result<Fleet> {
        let path = self.path.join("fleet.json");
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let uid = uuid::Uuid::new_v4().to_string();
                return Ok(Fleet {
                    format: FORMAT,
                    uid,
                    clusters: Vec::new(),
                    example_applied: false,
                });
            }
            Err(error) => return Err(anyhow!(error).context(format!("cannot read {}", path.display()))),
        };
        let fleet: Fleet = serde_json::from_slice(&text)
            .with_context(|| format!("{} cannot be understood", path.display()))?;
        if fleet.format != FORMAT {
            bail!(
                "{} was written by another release (format {})",
                path.display(),
                fleet.format
            );
        }
        Ok(fleet)
    }

    /// Writes the fleet.
    pub(crate) fn write_fleet(&self, fleet: &Fleet) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(fleet)?;
        text.push(b'\n');
        write_private(&self.path.join("fleet.json"), &text)?;
        Ok(())
    }
}

impl Fleet {
    /// The clusters with these names, in this order; new ones get the lowest free slots. Nobody who belongs to the fleet
    /// may be missing: its objects would look deleted.
    pub(crate) fn with_clusters(
        &self,
        names: &[&str],
        how: &str,
        mut new_uid: impl FnMut() -> String,
    ) -> Result<Self> {
        let missing: Vec<&str> = self
            .clusters
            .iter()
            .map(|c| c.name.as_str())
            .filter(|n| !names.contains(n))
            .collect();
        if !missing.is_empty() {
            let list = missing.join(", ");
            bail!(
                "the data folder also belongs to cluster {list}: {how}, or choose another folder with --data-dir"
            );
        }
        let mut fleet = self.clone();
        for name in names {
            if fleet.clusters.iter().any(|c| c.name == *name) {
                continue;
            }
            let free = (0..=CLUSTERS_MAX).find(|slot| fleet.clusters.iter().all(|c| c.slot != *slot));
            let slot = free.ok_or_else(|| anyhow!("a fleet has at most {CLUSTERS_MAX} clusters"))?;
            fleet.clusters.push(Cluster {
                name: (*name).to_owned(),
                slot,
                uid: new_uid(),
                joined: false,
            });
        }
        fleet.clusters.sort_by_key(|c| c.slot);
        Ok(fleet)
    }
}

/// Only its owner may look inside: there are keys.
fn restrict(path: &Path) -> std::io::Result<()> {
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_at_a_time() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("data");
        let first = DataFolder::open(&path).expect("free");
        let error = DataFolder::open(&path).expect_err("in use").to_string();
        assert!(
            error.contains("is in use by process") && error.contains("--data-dir"),
            "{error}"
        );
        drop(first);
        DataFolder::open(&path).expect("free again");
    }

    #[test]
    fn the_fleet_comes_back() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = DataFolder::open(parent.path()).expect("free");
        let fleet = folder
            .fleet()
            .expect("new")
            .with_clusters(&["a", "b"], "", || "u".to_owned())
            .expect("room");
        folder.write_fleet(&fleet).expect("written");
        assert_eq!(folder.fleet().expect("read"), fleet);
        fs::write(parent.path().join("fleet.json"), "{").expect("written");
        assert!(
            folder
                .fleet()
                .expect_err("broken")
                .to_string()
                .contains("fleet.json")
        );
    }

    #[test]
    fn slots_stay_with_their_clusters() {
        let empty = Fleet {
            format: FORMAT,
            uid: "f".to_owned(),
            clusters: vec![],
            example_applied: false,
        };
        let slots = |fleet: &Fleet| {
            fleet
                .clusters
                .iter()
                .map(|c| (c.name.clone(), c.slot))
                .collect::<Vec<_>>()
        };
        let first = empty
            .with_clusters(&["east", "west"], "", || "u".to_owned())
            .expect("room");
        assert_eq!(slots(&first), [("east".to_owned(), 0), ("west".to_owned(), 1)]);
        let grown = first
            .with_clusters(&["north", "west", "east"], "", || "u".to_owned())
            .expect("room");
        assert_eq!(
            slots(&grown),
            [
                ("east".to_owned(), 0),
                ("west".to_owned(), 1),
                ("north".to_owned(), 2)
            ]
        );
        let error = grown
            .with_clusters(&["east"], "give it with --etcd", || "u".to_owned())
            .expect_err("absence is not deletion");
        assert!(
            error.to_string().contains("west, north") && error.to_string().contains("--etcd"),
            "{error}"
        );
    }
}
