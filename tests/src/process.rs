//! A child process with a log, killed when it goes out of scope. It knows nothing of what runs in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

/// How much of the log is shown when something goes wrong.
const LOG_TAIL_BYTES: usize = 6000;

/// A process that can be started again.
pub(crate) struct Process {
    child: Option<Child>,
    log: PathBuf,
}

impl Process {
    /// One that does not run yet.
    pub(crate) fn new(log: &Path) -> Self {
        Self {
            child: None,
            log: log.to_owned(),
        }
    }

    /// Starts it; what it says on stderr goes to the end of the log. Gives its stdout, if that is piped.
    pub(crate) fn start(&mut self, command: &mut Command) -> Option<ChildStdout> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let mut child = command
            .stdin(Stdio::null())
            .stderr(log.expect("a log"))
            .spawn()
            .expect("the program starts");
        let stdout = child.stdout.take();
        self.child = Some(child);
        stdout
    }

    /// Its id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut().and_then(|c| c.try_wait().ok().flatten())
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to stop, as a kubelet or a service manager does. Whoever waits for its end has it.
    pub(crate) fn terminate(&mut self) -> Child {
        let child = self.child.take().expect("it runs");
        let asked = Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .expect("kill is there");
        assert!(asked.success());
        child
    }

    /// Whether its log says this somewhere.
    pub(crate) fn says(&self, text: &str) -> bool {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).contains(text)
    }

    /// The end of its log.
    pub(crate) fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let tail = log.get(log.len().saturating_sub(LOG_TAIL_BYTES)..);
        String::from_utf8_lossy(tail.unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of {}\n{}", self.log.display(), self.log_tail());
        }
        self.kill();
    }
}
