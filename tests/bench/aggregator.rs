//! Outrigger behind kube-apiserver: what lists of everything cost both.
//!
//! kube-apiserver's heap is read while every list is under way: each reader has got a part of its body and waits. Lists
//! that nobody has begun, or that have ended, would cost nothing.

use crate::load;
use crate::measure::{self, ALL, LISTERS, mebibytes};
use crate::say;
use anyhow::{Context, Result, ensure};
use http::Method;
use outrigger_tests::dataset::Dataset;
use outrigger_tests::member::Member;
use outrigger_tests::raw_client::{RawClient, Stream};
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// How much of each list is read before the heap is looked at: one part of so many. Those that have it wait for the
/// others, and Outrigger lets nobody wait for longer than 20 s.
const PART: u64 = 16;
/// How long readers wait before the heap is looked at, so that all buffers between are full.
const FULL: Duration = Duration::from_secs(1);
/// How long kube-apiserver is left alone before its heap is looked at.
const REST: Duration = Duration::from_secs(5);
/// Collections before each look: what has a finalizer goes with the second.
const COLLECTIONS: usize = 3;

/// One replica, so that all lists are its.
pub(crate) async fn run(data: &Dataset, runs: usize) -> Result<()> {
    let member = Member::start(1).await;
    let kubeconfig = member.control_plane.kubeconfig();
    let replica = member.replicas.first().context("a replica")?;
    say(&format!(
        "{} Applications in {} namespaces, behind kube-apiserver",
        data.len(),
        data.namespaces.len()
    ));
    let loaded = load::load(&kubeconfig, data).await?;
    say(&format!(
        "create: {} clients through the aggregator: {loaded}",
        load::CLIENTS
    ));
    say_peak(replica.pid(), "during the creates")?;
    let speed = measure::list(&kubeconfig, runs).await?;
    say(&format!("list: through the aggregator: {speed}"));
    say_peak(replica.pid(), "during single lists")?;
    heap(&kubeconfig, runs, speed.bytes).await?;
    say_peak(replica.pid(), "with readers that wait")?;
    measure::memory(&kubeconfig, replica.pid(), runs, data.len()).await
}

fn say_peak(pid: u32, when: &str) -> Result<()> {
    let peak = mebibytes(measure::take_peak(pid)?);
    say(&format!("memory: outrigger's peak {when}: {peak}"));
    Ok(())
}

/// The heap of kube-apiserver with eight lists under way, minus that without any.
async fn heap(kubeconfig: &Path, runs: usize, bytes: u64) -> Result<()> {
    let client = RawClient::connect(kubeconfig).await?;
    let mut grown = Vec::new();
    for run in 0..runs {
        sleep(REST).await;
        let idle = in_use(&client).await?;
        let mut lists = begin(kubeconfig, bytes / PART).await?;
        sleep(FULL).await;
        let began = Instant::now();
        let busy = in_use(&client).await?;
        let took = began.elapsed();
        // All of them were under way: the rest is still to come, and comes whole.
        let mut rest = JoinSet::new();
        for (mut list, read) in lists.drain(..) {
            rest.spawn(async move { Ok::<_, anyhow::Error>((read, list.read(u64::MAX).await?)) });
        }
        while let Some(done) = rest.join_next().await {
            let (read, after) = done??;
            ensure!(
                read + after == bytes,
                "a list had {} bytes of {bytes}",
                read + after
            );
            ensure!(
                after > bytes / 2,
                "a list was nearly read when the heap was looked at"
            );
        }
        say(&format!(
            "heap: run {run}: kube-apiserver idle {}, with {LISTERS} lists {}, looked at in {:.1} s",
            mebibytes(idle),
            mebibytes(busy),
            took.as_secs_f64()
        ));
        grown.push(busy.saturating_sub(idle));
    }
    grown.sort_unstable();
    let median = grown.get(grown.len() / 2).context("nothing was measured")?;
    say(&format!(
        "heap: {LISTERS} lists cost kube-apiserver {} (median of {runs}; wanted: 64 MiB)",
        mebibytes(*median)
    ));
    Ok(())
}

/// Lists that have begun: each has been read so far, by a connection of its own.
async fn begin(kubeconfig: &Path, part: u64) -> Result<Vec<(Stream, u64)>> {
    let mut readers = JoinSet::new();
    for _ in 0..LISTERS {
        let client = RawClient::connect(kubeconfig).await?;
        readers.spawn(async move {
            let mut list = client.stream(ALL).await?;
            let read = list.read(part).await?;
            Ok::<_, anyhow::Error>((list, read))
        });
    }
    let mut lists = Vec::new();
    while let Some(list) = readers.join_next().await {
        lists.push(list??);
    }
    Ok(lists)
}

/// Bytes in spans of kube-apiserver's heap that are in use, after collections.
async fn in_use(client: &RawClient) -> Result<u64> {
    const METRIC: &str = "go_memstats_heap_inuse_bytes ";
    for _ in 0..COLLECTIONS {
        let path = "/debug/pprof/heap?gc=1";
        let answer = client.request(Method::GET, path, &[], Vec::new()).await?;
        ensure!(answer.status.is_success(), "{path}: {}", answer.status);
    }
    let answer = client.request(Method::GET, "/metrics", &[], Vec::new()).await?;
    let text = String::from_utf8_lossy(&answer.body);
    let value = text.lines().find_map(|line| line.strip_prefix(METRIC));
    let value: f64 = value.with_context(|| format!("no {METRIC}"))?.parse()?;
    Ok(value as u64)
}
