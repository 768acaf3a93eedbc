//! A real etcd for tests: one member or several, on free loopback ports, in a folder that goes with it.
//!
//! The program is taken from `OUTRIGGER_ASSETS`, then `KUBEBUILDER_ASSETS` (folders), then `PATH`. Without one the test
//! fails and says so; it is never skipped. It panics where a test has to fail.

use crate::backend::etcd::{EtcdBackend, EtcdOptions};
use crate::backend::{Backend, BackendError, BackendStatus};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// How long a cluster may take until it answers, on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A port may be taken between the moment it was found free and the moment etcd listens.
const START_TRIES: usize = 5;
/// How much of a log is shown when etcd does not start.
const LOG_TAIL_BYTES: usize = 4096;

/// What the etcd is like.
#[derive(Debug, Clone)]
pub struct EtcdServerOptions {
    /// The number of members.
    pub members: usize,
    /// TLS with client certificates.
    pub tls: Option<EtcdTls>,
    /// The space quota in bytes.
    pub quota_bytes: Option<u64>,
    /// More flags.
    pub flags: Vec<String>,
}

/// Certificates in PEM.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// The CA of both sides.
    pub ca: String,
    /// The servers' certificate, for 127.0.0.1.
    pub server_cert: String,
    /// Its key.
    pub server_key: String,
    /// The client's certificate.
    pub client_cert: String,
    /// Its key.
    pub client_key: String,
}

/// A running etcd. Dropping it kills the members and removes their folder.
#[derive(Debug)]
pub struct EtcdServer {
    options: EtcdServerOptions,
    folder: Folder,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    name: String,
    client_url: String,
    peer_url: String,
    child: Option<Child>,
}

/// A folder that is removed with its content.
#[derive(Debug)]
struct Folder(PathBuf);

impl Default for EtcdServerOptions {
    fn default() -> Self {
        Self {
            members: 1,
            tls: None,
            quota_bytes: None,
            flags: Vec::new(),
        }
    }
}

impl EtcdServer {
    /// One member, without TLS.
    pub async fn start() -> Self {
        Self::start_with(EtcdServerOptions::default()).await
    }

    /// So many members.
    pub async fn start_members(members: usize) -> Self {
        Self::start_with(EtcdServerOptions {
            members,
            ..EtcdServerOptions::default()
        })
        .await
    }

    /// An etcd like this; returns when it answers.
    ///
    /// # Panics
    /// When there is no etcd program, or it does not start.
    pub async fn start_with(options: EtcdServerOptions) -> Self {
        let mut said = String::new();
        for _ in 0..START_TRIES {
            let mut server = Self::prepare(options.clone());
            for index in 0..server.members.len() {
                server.spawn(index);
            }
            match server.wait_until_ready().await {
                Ok(_) => return server,
                Err(cause) => said = format!("{cause}\n{}", server.log_tail()),
            }
        }
        panic!("etcd does not start: {said}");
    }

    fn prepare(options: EtcdServerOptions) -> Self {
        let folder = Folder(std::env::temp_dir().join(format!("outrigger-etcd-{}", uuid::Uuid::new_v4())));
        std::fs::create_dir_all(&folder.0).expect("a folder for etcd");
        if let Some(tls) = &options.tls {
            folder.write(tls);
        }
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        // All at once, so that no port is found twice.
        let listeners: Vec<_> = (0..2 * options.members)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let ports: Vec<_> = listeners
            .iter()
            .map(|l| l.local_addr().expect("its address").port())
            .collect();
        let members = ports
            .chunks(2)
            .enumerate()
            .map(|(i, ports)| Member {
                name: format!("member-{i}"),
                client_url: format!("{scheme}://127.0.0.1:{}", ports[0]),
                peer_url: format!("http://127.0.0.1:{}", ports[1]),
                child: None,
            })
            .collect();
        Self {
            options,
            folder,
            members,
        }
    }

    fn spawn(&mut self, index: usize) {
        let cluster: Vec<_> = self
            .members
            .iter()
            .map(|m| format!("{}={}", m.name, m.peer_url))
            .collect();
        let member = &self.members[index];
        let path = |name: &str| self.folder.0.join(name);
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(path(&format!("{}.log", member.name)))
            .expect("a log file for etcd");
        let mut command = Command::new(etcd_program());
        command
            .args(["--name", &member.name])
            .arg("--data-dir")
            .arg(path(&member.name))
            .args([
                "--listen-client-urls",
                &member.client_url,
                "--advertise-client-urls",
                &member.client_url,
            ])
            .args([
                "--listen-peer-urls",
                &member.peer_url,
                "--initial-advertise-peer-urls",
                &member.peer_url,
            ])
            .args([
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-token",
                "test",
            ])
            // Failover within a second; tests survive the machine or are not worth keeping.
            .args([
                "--heartbeat-interval",
                "50",
                "--election-timeout",
                "500",
                "--unsafe-no-fsync",
            ])
            .args(["--log-level", "warn"]);
        if self.options.tls.is_some() {
            command
                .args(["--client-cert-auth", "--trusted-ca-file"])
                .arg(path("ca.pem"));
            command
                .arg("--cert-file")
                .arg(path("cert.pem"))
                .arg("--key-file")
                .arg(path("key.pem"));
        }
        if let Some(quota) = self.options.quota_bytes {
            command.args(["--quota-backend-bytes", &quota.to_string()]);
        }
        command.args(&self.options.flags).stdin(Stdio::null());
        command
            .stdout(log.try_clone().expect("its log file"))
            .stderr(log)
            .kill_on_drop(true);
        let child = command.spawn().expect("etcd can be started");
        self.members[index].child = Some(child);
    }

    /// Waits until the cluster has a leader and answers.
    ///
    /// # Errors
    /// The last answer, when a member has ended or the time is over.
    pub async fn wait_until_ready(&mut self) -> Result<BackendStatus, String> {
        let backend = EtcdBackend::new(&self.client_options()).map_err(|error| error.to_string())?;
        let start = Instant::now();
        loop {
            let cause = match backend.status().await {
                Ok(status) => return Ok(status),
                Err(BackendError::Refused(cause)) => return Err(cause),
                Err(error) => error.to_string(),
            };
            for member in &mut self.members {
                let exit = member
                    .child
                    .as_mut()
                    .and_then(|child| child.try_wait().ok().flatten());
                if let Some(exit) = exit {
                    return Err(format!("{} ended: {exit}", member.name));
                }
            }
            if start.elapsed() > READY_WITHIN {
                return Err(cause);
            }
            sleep(Duration::from_millis(30)).await;
        }
    }

    /// The URL of the first member.
    #[must_use]
    pub fn client_url(&self) -> String {
        self.client_urls().remove(0)
    }

    /// The URLs of all members.
    #[must_use]
    pub fn client_urls(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.client_url.clone())
            .collect()
    }

    /// The settings of a client of all members, with the certificates it needs.
    #[must_use]
    pub fn client_options(&self) -> EtcdOptions {
        let pem = |choose: fn(&EtcdTls) -> &String| {
            self.options
                .tls
                .as_ref()
                .map(|tls| choose(tls).clone().into_bytes())
        };
        EtcdOptions {
            endpoints: self.client_urls(),
            ca_pem: pem(|tls| &tls.ca),
            cert_pem: pem(|tls| &tls.client_cert),
            key_pem: pem(|tls| &tls.client_key),
            ..EtcdOptions::default()
        }
    }

    /// A client of all members.
    ///
    /// # Panics
    /// When the certificates cannot be used.
    #[must_use]
    pub fn backend(&self) -> EtcdBackend {
        EtcdBackend::new(&self.client_options()).expect("valid options")
    }

    /// Kills a member, as `kill -9` does, and waits until it is gone.
    pub async fn kill(&mut self, index: usize) {
        if let Some(mut child) = self.members[index].child.take() {
            // It may have ended by itself.
            let _ = child.kill().await;
        }
    }

    /// Starts a killed member again, with its data. Does not wait.
    pub fn restart(&mut self, index: usize) {
        self.spawn(index);
    }

    /// Removes the data of a killed member.
    ///
    /// # Panics
    /// When it has none.
    pub fn wipe(&mut self, index: usize) {
        let data = self.folder.0.join(&self.members[index].name);
        std::fs::remove_dir_all(data).expect("the data of an etcd");
    }

    /// Other certificates: members have them after their next restart, clients that are made from now on at once.
    pub fn set_tls(&mut self, tls: EtcdTls) {
        self.folder.write(&tls);
        self.options.tls = Some(tls);
    }

    /// Stops a member in its tracks (`SIGSTOP`), or lets it go on (`SIGCONT`): connections stay open and silent.
    pub async fn pause(&self, index: usize, paused: bool) {
        let pid = self.members[index]
            .child
            .as_ref()
            .and_then(Child::id)
            .expect("the member runs");
        let signal = if paused { "-STOP" } else { "-CONT" };
        let status = Command::new("kill")
            .args([signal, &pid.to_string()])
            .status()
            .await
            .expect("kill can be started");
        assert!(status.success(), "kill {signal} {pid}");
    }

    fn log_tail(&self) -> String {
        let tail = |member: &Member| {
            let log = std::fs::read(self.folder.0.join(format!("{}.log", member.name))).unwrap_or_default();
            let from = log.len().saturating_sub(LOG_TAIL_BYTES);
            format!("--- {}\n{}", member.name, String::from_utf8_lossy(&log[from..]))
        };
        self.members.iter().map(tail).collect()
    }
}

impl Folder {
    fn write(&self, tls: &EtcdTls) {
        for (name, pem) in [
            ("ca.pem", &tls.ca),
            ("cert.pem", &tls.server_cert),
            ("key.pem", &tls.server_key),
        ] {
            std::fs::write(self.0.join(name), pem).expect("a file for etcd");
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A dying etcd may still write; what stays is in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The etcd program.
///
/// # Panics
/// When there is none.
#[must_use]
pub fn etcd_program() -> PathBuf {
    let folders = ["OUTRIGGER_ASSETS", "KUBEBUILDER_ASSETS"]
        .iter()
        .filter_map(std::env::var_os)
        .map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = folders
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join("etcd"))
        .find(|p| is_file(p));
    program.expect(
        "these tests need a real etcd: run tests/run, which gets one, or set OUTRIGGER_ASSETS to a folder with the program etcd",
    )
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}
