//! The workload clusters of `outrigger up`: which there are, their slots, and the backend of each.

use super::super::backends;
use super::data_folder::{Cluster, DataFolder, Fleet};
use crate::options::{Clusters, EtcdTls};
use anyhow::{Context, Result, anyhow, bail};
use outrigger_apiserver::controllers::backends::ClusterDescription;
use outrigger_storage::Slot;
use outrigger_storage::backend::Backend;
use outrigger_storage::backend::embedded::{EmbeddedBackend, EmbeddedOptions};
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions};
use outrigger_storage::federated::Member;
use outrigger_storage::metrics::StoreMetrics;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Pages of all embedded workload clusters together that are kept in memory, in bytes.
const EMBEDDED_CACHE_BYTES: usize = 24 << 20;
/// How long an etcd has at the start to show that it is there.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// The names of the clusters, and how to give those that are missing.
pub(crate) fn names(clusters: &Clusters) -> (Vec<String>, &'static str) {
    match clusters {
        Clusters::Embedded(count) => {
            let names = (1..=*count).map(|n| format!("cluster-{n}")).collect();
            (names, "start it with the same clusters (--backends, or --etcd)")
        }
        Clusters::Etcd { members, .. } => (
            members.iter().map(|m| m.name.clone()).collect(),
            "give its etcd with --etcd as before",
        ),
    }
}

/// Opens every cluster's backend. An etcd that never belonged to the fleet has to answer; one that did may be away.
pub(crate) async fn open(
    clusters: &Clusters,
    fleet: &Fleet,
    folder: &DataFolder,
    metrics: &StoreMetrics,
) -> Result<Vec<Member>> {
    let mut members = Vec::new();
    for cluster in &fleet.clusters {
        let (backend, exclusive) = match clusters {
            Clusters::Embedded(count) => (embedded(cluster, folder, *count).await?, true),
            Clusters::Etcd {
                members,
                prefix,
                tls,
                exclusive,
            } => {
                let urls = members
                    .iter()
                    .find(|m| m.name == cluster.name)
                    .map(|m| m.urls.clone())
                    .unwrap_or_default();
                (etcd(cluster, urls, prefix, tls).await?, *exclusive)
            }
        };
        let backend = backends::guarded(backend, metrics, &cluster.name);
        members.push(Member {
            slot: Slot(cluster.slot),
            name: cluster.name.clone(),
            uid: cluster.uid.clone(),
            backend,
            exclusive,
            seen: None,
            incarnation: 0,
        });
    }
    Ok(members)
}

async fn embedded(cluster: &Cluster, folder: &DataFolder, count: u16) -> Result<Arc<dyn Backend>> {
    let path = folder.backend(&cluster.name);
    let options = EmbeddedOptions {
        cache_bytes: EMBEDDED_CACHE_BYTES / usize::from(count.max(1)),
        ..EmbeddedOptions::default()
    };
    let backend = EmbeddedBackend::open_file(&path, options)
        .await
        .with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Arc::new(backend))
}

async fn etcd(cluster: &Cluster, urls: Vec<String>, prefix: &str, tls: &EtcdTls) -> Result<Arc<dyn Backend>> {
    let shown = urls.join(",");
    let (cert_pem, key_pem) = match &tls.client {
        Some((certificate, key)) => (
            Some(read("--etcd-cert", certificate)?),
            Some(read("--etcd-key", key)?),
        ),
        None => (None, None),
    };
    let ca_pem = tls
        .ca_certificate
        .as_deref()
        .map(|path| read("--etcd-cacert", path))
        .transpose()?;
    let options = EtcdOptions {
        endpoints: urls,
        ca_pem,
        cert_pem,
        key_pem,
        prefix: prefix.to_owned(),
        ..EtcdOptions::default()
    };
    let backend = EtcdBackend::new(&options).with_context(|| format!("etcd {:?} ({shown})", cluster.name))?;
    let answer = tokio::time::timeout(FIRST_ANSWER, backend.status()).await;
    let problem = match answer {
        Ok(Ok(_)) => return Ok(Arc::new(backend)),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", FIRST_ANSWER.as_secs()),
    };
    if !cluster.joined {
        bail!("etcd {:?} ({shown}) cannot be reached: {problem}", cluster.name);
    }
    tracing::warn!(
        cluster = cluster.name,
        endpoints = shown,
        problem,
        "its etcd cannot be reached; going on without it until it is back"
    );
    Ok(Arc::new(backend))
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| anyhow!("{flag}: cannot read {}: {e}", path.display()))
}

/// The clusters as WorkloadCluster objects describe them.
pub(crate) fn describe(clusters: &Clusters, fleet: &Fleet) -> Vec<ClusterDescription> {
    let of = |cluster: &Cluster| {
        let (endpoints, prefix, exclusive) = match clusters {
            Clusters::Embedded(_) => (
                vec![format!("http://embedded/{}", cluster.name)],
                "/outrigger/".to_owned(),
                true,
            ),
            Clusters::Etcd {
                members,
                prefix,
                exclusive,
                ..
            } => {
                let urls = members
                    .iter()
                    .find(|m| m.name == cluster.name)
                    .map(|m| m.urls.clone());
                (urls.unwrap_or_default(), prefix.clone(), *exclusive)
            }
        };
        ClusterDescription {
            name: cluster.name.clone(),
            uid: cluster.uid.clone(),
            endpoints,
            prefix,
            exclusive,
        }
    };
    fleet.clusters.iter().map(of).collect()
}
