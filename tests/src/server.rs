//! `outrigger up` as a process: started on a free port, killed when it goes out of scope.
//!
//! The program is `OUTRIGGER_BIN`, or the one that cargo put beside the tests.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a start may take, on a busy machine.
const START: Duration = Duration::from_secs(60);
/// How much of the log is shown when something goes wrong.
const LOG_TAIL_BYTES: usize = 6000;

/// A running server.
pub struct Outrigger {
    child: Option<Child>,
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
            child: None,
            data,
            args,
            listen: "127.0.0.1:0".to_owned(),
            _folder: None,
        }
    }

    /// Starts it (again): on the port that it had.
    pub fn start(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        let mut child = Command::new(program())
            .args(["up", "--listen", &self.listen, "--data-dir"])
            .arg(&self.data)
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take().expect("it is piped");
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
        self.child = Some(child);
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
        self.child.as_ref().expect("it runs").id()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop, as a service manager does, and waits for the end.
    pub fn stop(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let asked = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .expect("kill is there");
        assert!(asked.success());
        child.wait().expect("it ends")
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
        let log = fs::read_to_string(self.log_path()).unwrap_or_default();
        let mut start = log.len().saturating_sub(LOG_TAIL_BYTES);
        while !log.is_char_boundary(start) {
            start += 1;
        }
        log.get(start..).unwrap_or_default().to_owned()
    }

    fn log_path(&self) -> PathBuf {
        // Beside the data folder: that one is the server's.
        self.data.with_extension("log")
    }
}

impl Drop for Outrigger {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the server's log\n{}", self.log_tail());
        }
        self.kill();
    }
}

/// A field of the kubeconfig that `outrigger up` writes.
pub(crate) fn kubeconfig_field(path: &Path, field: &str) -> String {
    let text = fs::read_to_string(path).expect("a kubeconfig");
    let prefix = format!("{field}: ");
    let found = text.lines().find_map(|line| line.trim().strip_prefix(&prefix));
    found.unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
}
