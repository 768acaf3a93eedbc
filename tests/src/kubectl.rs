//! kubectl, as people type it.
//!
//! The program is taken from `OUTRIGGER_ASSETS`, then `KUBEBUILDER_ASSETS`, then `PATH`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;
use tempfile::TempDir;

/// kubectl with a kubeconfig and a cache of its own.
pub struct Kubectl {
    kubeconfig: PathBuf,
    cache: TempDir,
}

/// A kubectl that goes on until it is dropped, `get -w` for example.
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

/// The program `name` of the assets.
#[must_use]
pub fn asset(name: &str) -> PathBuf {
    let folders = ["OUTRIGGER_ASSETS", "KUBEBUILDER_ASSETS"]
        .into_iter()
        .filter_map(std::env::var_os);
    let found = folders
        .map(|folder| Path::new(&folder).join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}

impl Kubectl {
    /// kubectl for the server of this kubeconfig.
    #[must_use]
    pub fn new(kubeconfig: &Path) -> Self {
        Self {
            kubeconfig: kubeconfig.to_owned(),
            cache: tempfile::tempdir().expect("a folder"),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(asset("kubectl"));
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.cache.path());
        command
            .env("HOME", self.cache.path())
            .env_remove("KUBECTL_COMMAND_HEADERS");
        command
    }

    /// What it says and how it ends.
    #[must_use]
    pub fn output(&self, args: &[&str], stdin: &str) -> Output {
        self.output_with(args, stdin, &[])
    }

    fn output_with(&self, args: &[&str], stdin: &str, env: &[(&str, &str)]) -> Output {
        let mut command = self.command(args);
        command
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .expect("kubectl starts: set OUTRIGGER_ASSETS (tests/run does)");
        let mut pipe = child.stdin.take().expect("it is piped");
        // A kubectl that does not read it is no error.
        let _ = pipe.write_all(stdin.as_bytes());
        drop(pipe);
        child.wait_with_output().expect("kubectl ends")
    }

    /// It succeeds; what it says.
    #[must_use]
    pub fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "")
    }

    /// It succeeds with this on its standard input; what it says.
    #[must_use]
    pub fn ok_with(&self, args: &[&str], stdin: &str) -> String {
        self.ok_in(args, stdin, &[])
    }

    /// It succeeds in this environment; what it says.
    #[must_use]
    pub fn ok_in(&self, args: &[&str], stdin: &str, env: &[(&str, &str)]) -> String {
        let output = self.output_with(args, stdin, env);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "kubectl {args:?}\n{out}\n{err}");
        out
    }

    /// It fails; what it says about that.
    #[must_use]
    pub fn fails(&self, args: &[&str], stdin: &str) -> String {
        let output = self.output(args, stdin);
        assert!(
            !output.status.success(),
            "kubectl {args:?} succeeded: {}",
            text(&output.stdout)
        );
        text(&output.stderr)
    }

    /// It succeeds sooner or later, and what it says then satisfies `until`.
    pub fn eventually(&self, args: &[&str], until: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        for _ in 0..150 {
            let output = self.output(args, "");
            last = format!("{}{}", text(&output.stdout), text(&output.stderr));
            if until(&last) {
                return last;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        panic!("kubectl {args:?} still says:\n{last}");
    }

    /// Starts one that goes on.
    #[must_use]
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("kubectl starts");
        let stdout = child.stdout.take().expect("it is piped");
        let (sender, lines) = mpsc::sync_channel(1024);
        let reader = std::thread::Builder::new().spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        reader.expect("a thread starts");
        Running {
            child,
            lines,
            seen: Vec::new(),
        }
    }
}

impl Running {
    /// Waits for a line that satisfies `until`.
    pub fn line(&mut self, until: impl Fn(&str) -> bool) -> String {
        loop {
            match self.lines.recv_timeout(Duration::from_secs(30)) {
                Ok(line) if until(&line) => return line,
                Ok(line) => self.seen.push(line),
                Err(error) => panic!(
                    "the line did not come ({error}); before it:\n{}",
                    self.seen.join("\n")
                ),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
