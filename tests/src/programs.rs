//! Clients as users have them (`tests/programs`): what each says, and whether it saw every change once and in order.
//!
//! The program is taken from `OUTRIGGER_ASSETS`. It knows nothing of faults: tests say which errors are theirs.

use crate::kubectl::asset;
use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// How long a program may take until it has heard or said what is waited for. After some errors within two minutes
/// client-go and kube-rs wait up to 60 s before they try again (30 s, and as much jitter).
pub const SETTLED: Duration = Duration::from_secs(150);
/// How long a program may take to end.
const END: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// More lines than any test makes.
const LINES_MAX: usize = 4_000_000;

/// A line of a program.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Line {
    /// `synced`, `event`, `wrote`, `error`, … : the comments of `tests/programs/report.go`.
    pub kind: String,
    /// Milliseconds since 1970.
    pub time: u64,
    /// Which of several informers, watchers or writers.
    pub instance: usize,
    /// `ADDED`, `MODIFIED`, `DELETED`.
    pub r#type: String,
    /// Of the object.
    pub namespace: String,
    /// Of the object.
    pub name: String,
    /// Of the object.
    pub uid: String,
    /// Of the object.
    pub resource_version: String,
    /// Where client-go met the error.
    pub source: String,
    /// What it said.
    pub message: String,
    /// Of an answer that is no success.
    pub code: u16,
    /// The sort of the request.
    pub method: String,
    /// The path of the request.
    pub path: String,
    /// Of the summary: requests by sort.
    pub requests: BTreeMap<String, usize>,
}

/// A program that runs. Dropping it ends it.
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Arc<Mutex<Vec<Line>>>,
    reader: JoinHandle<Result<()>>,
}

/// What a program said until its end.
#[derive(Debug)]
pub struct Seen {
    /// The program.
    pub name: String,
    /// Everything, in order.
    pub lines: Vec<Line>,
}

/// Changes by version: the object's `namespace/name`.
pub type Changes = BTreeMap<u64, String>;

/// Milliseconds since 1970, as the programs say them.
#[must_use]
pub fn now_millis() -> u64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "it is compared with what other processes say"
    )]
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

impl Line {
    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// The version, which is a decimal number below 2^63.
    #[must_use]
    pub fn version(&self) -> u64 {
        let version = self.resource_version.parse::<i64>();
        let version = version.unwrap_or_else(|e| panic!("{self:?}: {e}"));
        u64::try_from(version).unwrap_or_else(|e| panic!("{self:?}: {e}"))
    }

    /// Whether client-go met an error, or a server answered with one.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self.kind.as_str(), "error" | "status" | "failed")
    }
}

impl Program {
    /// The program of this name, with these arguments.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(kubeconfig: &Path, name: &str, args: &[&str]) -> Self {
        let mut child = Command::new(asset("programs"))
            .arg(name)
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the programs start: set OUTRIGGER_ASSETS (tests/run does)");
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().expect("it is piped"));
        let lines: Arc<Mutex<Vec<Line>>> = Arc::default();
        let said = Arc::clone(&lines);
        let reader = tokio::spawn(async move {
            let mut reader = BufReader::new(stdout).lines();
            while let Some(line) = reader.next_line().await? {
                let line = serde_json::from_str(&line).with_context(|| line.clone())?;
                let mut said = said.lock();
                if said.len() == LINES_MAX {
                    bail!("more than {LINES_MAX} lines");
                }
                said.push(line);
            }
            Ok(())
        });
        Self {
            name: name.to_owned(),
            child,
            stdin,
            lines,
            reader,
        }
    }

    /// Waits until what it has said satisfies `done`.
    ///
    /// # Panics
    /// When it does not.
    pub async fn until(&self, what: &str, done: impl Fn(&[Line]) -> bool) {
        let start = Instant::now();
        while !done(&self.lines.lock()) {
            if start.elapsed() > SETTLED {
                let lines = self.lines.lock();
                let failures: Vec<_> = lines.iter().filter(|l| l.is_failure()).collect();
                let last = failures.get(failures.len().saturating_sub(20)..);
                panic!(
                    "{} at {}: no {what}; {} lines, the last failures: {last:?}, the last line: {:?}",
                    self.name,
                    now_millis(),
                    lines.len(),
                    lines.last()
                );
            }
            sleep(POLL).await;
        }
    }

    /// Waits until so many of its informers or watchers have begun.
    ///
    /// # Panics
    /// When they do not.
    pub async fn synced(&self, count: usize) {
        let done = |lines: &[Line]| lines.iter().filter(|line| line.kind == "synced").count() >= count;
        self.until("sync", done).await;
    }

    /// Waits until so many of its informers or watchers have seen an object in this version.
    ///
    /// # Panics
    /// When they do not.
    pub async fn saw(&self, count: usize, version: u64) {
        let version = version.to_string();
        let done = |lines: &[Line]| {
            let saw = |line: &&Line| line.kind == "event" && line.resource_version == version;
            lines.iter().rev().filter(saw).count() >= count
        };
        self.until(&format!("event of version {version}"), done).await;
    }

    /// Everything that it has said so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().clone()
    }

    /// Tells it to stop.
    ///
    /// # Panics
    /// When it ends with an error, or not at all.
    pub async fn stop(mut self) -> Seen {
        drop(self.stdin.take());
        let status = timeout(END, self.child.wait()).await;
        let status = status.unwrap_or_else(|_| panic!("{} does not end", self.name));
        let read = self.reader.await.expect("the reader does not panic");
        read.unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
        let lines = std::mem::take(&mut *self.lines.lock());
        assert!(
            status.is_ok_and(|status| status.success()),
            "{} failed",
            self.name
        );
        assert!(
            lines.last().is_some_and(|line| line.kind == "summary"),
            "{}: its last line is no summary",
            self.name
        );
        Seen {
            name: self.name,
            lines,
        }
    }
}

impl Seen {
    /// Lines of this kind.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.kind == kind)
    }

    /// How many requests of this sort there were.
    #[must_use]
    pub fn requests(&self, sort: &str) -> usize {
        let summary = self.lines.last().map(|line| &line.requests);
        summary.and_then(|r| r.get(sort)).copied().unwrap_or_default()
    }

    /// What the writer was told to be written.
    ///
    /// # Panics
    /// When two changes have one version.
    #[must_use]
    pub fn written(&self) -> Changes {
        let mut written = Changes::new();
        for line in self.of("wrote") {
            let before = written.insert(line.version(), line.key());
            assert_eq!(before, None, "two changes share a version: {line:?}");
        }
        written
    }

    /// What the informers and watchers hold at the end, each.
    #[must_use]
    pub fn caches(&self) -> BTreeMap<usize, BTreeMap<String, u64>> {
        let mut caches: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for line in self.of("synced") {
            caches.entry(line.instance).or_default();
        }
        for line in self.of("cached") {
            let cache = caches.entry(line.instance).or_default();
            cache.insert(line.key(), line.version());
        }
        caches
    }

    /// The changes above version `from` that each informer or watcher saw.
    ///
    /// # Panics
    /// When one came twice, or after a later one. With `lists_again` an informer may see an object again as it was,
    /// and several changes of it as one.
    #[must_use]
    pub fn changes(&self, from: u64, lists_again: bool) -> BTreeMap<usize, Changes> {
        let mut changes: BTreeMap<usize, Changes> = BTreeMap::new();
        let mut objects: BTreeMap<(usize, String), u64> = BTreeMap::new();
        let mut last: BTreeMap<usize, u64> = BTreeMap::new();
        for line in self.of("synced") {
            changes.entry(line.instance).or_default();
        }
        for line in self.of("event") {
            let (version, key, name) = (line.version(), line.key(), &self.name);
            let of_object = objects.entry((line.instance, key.clone())).or_default();
            let is_again = lists_again && version == *of_object;
            assert!(
                version > *of_object || is_again,
                "{name}: {line:?} after version {of_object} of it"
            );
            *of_object = version;
            if version <= from || is_again {
                continue;
            }
            let last = last.entry(line.instance).or_default();
            assert!(
                version > *last || lists_again,
                "{name}: {line:?} after version {last}"
            );
            *last = version.max(*last);
            changes.entry(line.instance).or_default().insert(version, key);
        }
        changes
    }
}
