//! `outrigger serve` as a process: one replica behind a balancer, killed when it goes out of scope.

use crate::balancer::Balancer;
use crate::server::program;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long a start may take, on a busy machine.
const START: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// How much of the log is shown when something goes wrong.
const LOG_TAIL_BYTES: usize = 6000;

/// A running replica.
pub struct Replica {
    child: Option<Child>,
    args: Vec<String>,
    kubeconfig: PathBuf,
    address: SocketAddr,
    folder: TempDir,
}

impl Replica {
    /// A replica that is started, and not ready yet.
    #[must_use]
    pub fn start(kubeconfig: &Path, args: &[&str]) -> Self {
        // Free now; nobody else on this machine asks for it in the moment until the replica does.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let mut replica = Self {
            child: None,
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            kubeconfig: kubeconfig.to_owned(),
            address: address.expect("a free port"),
            folder: tempfile::tempdir().expect("a folder"),
        };
        replica.start_again();
        replica
    }

    /// After [`Replica::stop`] or [`Replica::kill`].
    pub fn start_again(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let child = Command::new(program())
            .args(["serve", "--listen", &self.address.to_string(), "--kubeconfig"])
            .arg(&self.kubeconfig)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        self.child = Some(child);
    }

    /// Waits until the balancer sends connections here.
    pub async fn ready_behind(&mut self, balancer: &Balancer, replicas: usize) {
        let start = Instant::now();
        while balancer.ready() < replicas {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            let late = start.elapsed() > START;
            assert!(
                ended.is_none() && !late,
                "outrigger serve did not get ready ({ended:?}):\n{}",
                self.log_tail()
            );
            sleep(POLL).await;
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop, as a kubelet does, and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let asked = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .expect("kill is there");
        assert!(asked.success());
        loop {
            match child.try_wait().expect("it is ours") {
                Some(status) => return status,
                None => sleep(POLL).await,
            }
        }
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let tail = log
            .get(log.len().saturating_sub(LOG_TAIL_BYTES)..)
            .unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of a replica's log\n{}", self.log_tail());
        }
        self.kill();
    }
}
