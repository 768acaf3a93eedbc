//! `outrigger serve` as a process: one replica behind a balancer, killed when it goes out of scope.

use crate::balancer::Balancer;
use crate::process::Process;
use crate::server::program;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long a start may take, on a busy machine.
const START: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);

/// A running replica.
pub struct Replica {
    process: Process,
    args: Vec<String>,
    kubeconfig: PathBuf,
    address: SocketAddr,
    _folder: TempDir,
}

impl Replica {
    /// A replica that is started, and not ready yet.
    #[must_use]
    pub fn start(kubeconfig: &Path, args: &[&str]) -> Self {
        // Free now; nobody else on this machine asks for it in the moment until the replica does.
        let address = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let folder = tempfile::tempdir().expect("a folder");
        let mut replica = Self {
            process: Process::new(&folder.path().join("log")),
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            kubeconfig: kubeconfig.to_owned(),
            address: address.expect("a free port"),
            _folder: folder,
        };
        replica.start_again();
        replica
    }

    /// After [`Replica::stop`] or [`Replica::kill`].
    pub fn start_again(&mut self) {
        let mut command = Command::new(program());
        command
            .args(["serve", "--listen", &self.address.to_string(), "--kubeconfig"])
            .arg(&self.kubeconfig)
            .args(&self.args)
            .stdout(Stdio::null());
        self.process.start(&mut command);
    }

    /// Waits until the balancer sends connections here.
    pub async fn ready_behind(&mut self, balancer: &Balancer, replicas: usize) {
        let start = Instant::now();
        while balancer.ready() < replicas {
            let ended = self.process.ended();
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
        self.process.pid()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop, as a kubelet does, and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        let mut child = self.process.terminate();
        loop {
            match child.try_wait().expect("it is ours") {
                Some(status) => return status,
                None => sleep(POLL).await,
            }
        }
    }

    /// Whether its log says this, its identity for example.
    #[must_use]
    pub fn says(&self, text: &str) -> bool {
        self.process.says(text)
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}
