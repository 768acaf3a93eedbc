//! Lists over TLS: how long they take, and how much memory the server has at most while they run.

use crate::say;
use anyhow::{Context, Result, bail};
use outrigger_tests::raw_client::RawClient;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// All Applications.
pub(crate) const ALL: &str = "/apis/paas.example.com/v1/applications";
/// Clients that list at once.
pub(crate) const LISTERS: usize = 8;
/// How long one list may take.
const LIST_TIMEOUT: Duration = Duration::from_secs(600);
/// How long a server is left alone before its memory is looked at.
const REST: Duration = Duration::from_secs(2);

/// The median of some lists.
pub(crate) struct Speed {
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    runs: usize,
}

impl Speed {
    /// The median of what was seen.
    pub(crate) fn median(mut seen: Vec<(u64, f64)>) -> Result<Self> {
        seen.sort_by(|a, b| a.1.total_cmp(&b.1));
        let (bytes, seconds) = *seen.get(seen.len() / 2).context("nothing was measured")?;
        Ok(Self {
            bytes,
            seconds: seconds.max(1e-9),
            runs: seen.len(),
        })
    }

    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:.2} s, {:.1} MB, {:.0} MB/s (median of {})",
            self.seconds,
            self.bytes as f64 / 1e6,
            self.megabytes_per_second(),
            self.runs,
        )
    }
}

/// One client lists everything, `runs` times after a first time that does not count.
pub(crate) async fn list(kubeconfig: &Path, runs: usize) -> Result<Speed> {
    let client = RawClient::connect(kubeconfig).await?;
    list_once(&client).await?;
    let mut seen = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        let bytes = list_once(&client).await?;
        seen.push((bytes, start.elapsed().as_secs_f64()));
    }
    Speed::median(seen)
}

async fn list_once(client: &RawClient) -> Result<u64> {
    timeout(LIST_TIMEOUT, client.drain(ALL))
        .await
        .context("a list did not end")?
}

/// Eight clients list everything at once, `runs` times.
pub(crate) async fn memory(kubeconfig: &Path, pid: u32, runs: usize, objects: usize) -> Result<()> {
    sleep(REST).await;
    let start = resident(pid)?;
    let is_reset = reset_peak(pid);
    let began = Instant::now();
    let mut bytes = 0;
    for _ in 0..runs {
        let mut lists = JoinSet::new();
        for _ in 0..LISTERS {
            let client = RawClient::connect(kubeconfig).await?;
            lists.spawn(async move { list_once(&client).await });
        }
        while let Some(done) = lists.join_next().await {
            bytes += done??;
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let end = resident(pid)?;
    sleep(REST).await;
    let rest = resident(pid)?;
    say(&format!(
        "memory: {objects} objects: before {}, {} {} (wanted: 128 MiB), peak since the start {}, at rest again {}",
        mebibytes(start.now),
        if is_reset {
            format!("peak while {LISTERS} clients list {runs} times")
        } else {
            format!("peak (not reset) after {LISTERS} clients listed {runs} times")
        },
        mebibytes(end.peak),
        mebibytes(start.peak.max(end.peak)),
        mebibytes(rest.now),
    ));
    say(&format!(
        "memory: {LISTERS} clients got {:.0} MB in {seconds:.1} s, {:.0} MB/s together",
        bytes as f64 / 1e6,
        bytes as f64 / 1e6 / seconds
    ));
    Ok(())
}

/// The most that a process had since its start, or since its peak was made that of now; this makes it so.
pub(crate) fn take_peak(pid: u32) -> Result<u64> {
    let peak = resident(pid)?.peak;
    reset_peak(pid);
    Ok(peak)
}

fn reset_peak(pid: u32) -> bool {
    // "5": the peak is that of now.
    fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok()
}

/// Resident memory in bytes.
struct Resident {
    now: u64,
    peak: u64,
}

fn resident(pid: u32) -> Result<Resident> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("outrigger has ended")?;
    let field = |name: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        match line.map(|l| l.trim().trim_end_matches(" kB").parse::<u64>()) {
            Some(Ok(kibibytes)) => Ok(kibibytes * 1024),
            _ => bail!("no {name} in /proc/{pid}/status"),
        }
    };
    Ok(Resident {
        now: field("VmRSS:")?,
        peak: field("VmHWM:")?,
    })
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}
