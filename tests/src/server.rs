//! `outrigger up` as a process: started on a free port, killed when it goes out of scope.
//!
//! The program is `OUTRIGGER_BIN`, or the one that cargo put beside the tests.

use crate::process::Process;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a start may take, on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A running server.
pub struct Outrigger {
    process: Process,
    data: PathBuf,
    args: Vec<String>,
    listen: String,
    _folder: Option<TempDir>,
}

/// The program.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("OUTRIGGER_BIN") {
        return path.into();
    }
    let tests = std::env::current_exe().expect("the test has a path");
    let beside = tests
        .parent()
        .and_then(Path::parent)
        .map(|folder| folder.join("outrigger"));
    let found = beside.filter(|path| path.exists());
    found.expect("set OUTRIGGER_BIN, or build it first: cargo build -p outrigger-apiserver")
}

/// `outrigger` with these arguments, until it ends by itself.
#[must_use]
pub fn run_to_end(args: &[&str]) -> Output {
    let mut command = Command::new(program());
    command.args(args).stdin(Stdio::null());
    command.output().expect("the program starts")
}

impl Outrigger {
    /// `outrigger up` in a new data folder, with these arguments besides.
    #[must_use]
    pub fn up(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut server = Self::new(folder.path().join("data"), args);
        server._folder = Some(folder);
        server.start();
        server
    }

    /// A server that does not run yet.
    fn new(data: PathBuf, args: &[&str]) -> Self {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        Self {
            // Beside the data folder: that one is the server's.
            process: Process::new(&data.with_extension("log")),
            data,
            args,
            listen: "127.0.0.1:0".to_owned(),
            _folder: None,
        }
    }

    /// Starts it (again): on the port that it had.
    pub fn start(&mut self) {
        let mut command = Command::new(program());
        command
            .args(["up", "--listen", &self.listen, "--data-dir"])
            .arg(&self.data)
            .args(&self.args)
            .stdout(Stdio::piped());
        let stdout = self.process.start(&mut command).expect("it is piped");
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let reader = std::thread::Builder::new().spawn(move || {
            // The text ends with the line about Ctrl-C; reading on keeps the pipe open.
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("Ctrl-C") {
                    let _ = sender.send(());
                }
            }
        });
        reader.expect("a thread starts");
        if receiver.recv_timeout(START).is_err() {
            panic!("outrigger up did not get ready:\n{}", self.log_tail());
        }
        let url = kubeconfig_field(&self.kubeconfig(), "server");
        self.listen = url.strip_prefix("https://").expect("an https URL").to_owned();
    }

    /// The kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// `https://address:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.listen)
    }

    /// The address and port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.listen
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

    /// Asks it to stop, as a service manager does, and waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        self.process.terminate().wait().expect("it ends")
    }

    /// Resident memory now and at its peak, in bytes.
    #[must_use]
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs, on Linux");
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix(name))
                .unwrap_or_default();
            line.trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .unwrap_or_default()
                * 1024
        };
        (field("VmRSS:"), field("VmHWM:"))
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }
}

/// A field of the kubeconfig that `outrigger up` writes.
pub(crate) fn kubeconfig_field(path: &Path, field: &str) -> String {
    let text = fs::read_to_string(path).expect("a kubeconfig");
    let prefix = format!("{field}: ");
    let found = text.lines().find_map(|line| line.trim().strip_prefix(&prefix));
    found.unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
}
