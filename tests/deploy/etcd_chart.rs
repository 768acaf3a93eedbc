//! The etcd of the chart for real: with its arguments, its certificates and its scripts. Outrigger's user can do what
//! the store needs, and nothing else. Images, volumes and the network of pods are not here.

use crate::control_plane::free_port;
use crate::render::{Case, array, by_name, deploy, parse, string};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use outrigger_storage::backend::etcd::{EtcdBackend, EtcdOptions};
use outrigger_storage::backend::{
    Backend, BackendError, BackendStatus, Revision, Txn, TxnResponse, WatchRequest, WatchStream,
};
use outrigger_tests::kubectl::asset;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

/// How often the etcd is asked whether it is ready, and how long is waited between.
const TRIES: usize = 300;
const POLL: Duration = Duration::from_millis(200);
/// One member, and the jobs that it may have.
const ARGS: [&str; 4] = [
    "--set",
    "snapshots.enabled=true,defragmentation.enabled=true",
    "--set",
    "snapshots.keep=2",
];

mod suite {
    use super::*;
    async fn new() -> (ChartEtcd, Arc<dyn Backend>) {
        let etcd = ChartEtcd::start();
        etcd.run_ok("auth", &[]);
        let backend = Arc::new(CompactedByRoot {
            client: etcd.backend("client"),
            root: etcd.backend("root"),
        });
        (etcd, backend)
    }
    outrigger_storage::backend_suite!(new());
}

/// Everything with Outrigger's certificate, but for compaction, which is etcd's own affair in the chart.
#[derive(Debug)]
struct CompactedByRoot {
    client: EtcdBackend,
    root: EtcdBackend,
}

impl Backend for CompactedByRoot {
    fn txn(&self, txn: Txn) -> BoxFuture<'_, Result<TxnResponse, BackendError>> {
        self.client.txn(txn)
    }

    fn watch(&self, request: WatchRequest) -> BoxFuture<'_, Result<WatchStream, BackendError>> {
        self.client.watch(request)
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), BackendError>> {
        self.root.compact(revision)
    }

    fn status(&self) -> BoxFuture<'_, Result<BackendStatus, BackendError>> {
        self.client.status()
    }
}

/// A running etcd of the chart, before its first job. Dropping it ends it.
struct ChartEtcd {
    child: Child,
    folder: TempDir,
    url: String,
    objects: &'static BTreeMap<String, Value>,
}

impl ChartEtcd {
    fn start() -> Self {
        let objects = rendered();
        let folder = tempfile::tempdir().expect("a folder");
        for what in ["server", "root", "client"] {
            let secret = &objects[&format!("Secret outrigger-etcd/east-outrigger-etcd-{what}")];
            fs::create_dir(folder.path().join(what)).expect("a folder");
            for file in ["ca.crt", "tls.crt", "tls.key"] {
                fs::write(folder.path().join(what).join(file), secret_file(secret, file)).expect("a file");
            }
        }
        let set = &objects["StatefulSet outrigger-etcd/east-outrigger-etcd"];
        let container = "/spec/template/spec/containers/0";
        let ports: BTreeMap<String, u16> = ["2379", "2380", "2381"]
            .map(|p| (p.to_owned(), free_port()))
            .into();
        let args = array(set, &format!("{container}/args")).iter().map(|arg| {
            let arg = arg
                .as_str()
                .expect("a string")
                .replace("$(POD_NAME)", "east-outrigger-etcd-0");
            on_loopback(&arg, &ports)
                .replace(
                    "/etc/etcd/server",
                    &folder.path().join("server").display().to_string(),
                )
                .replace(
                    "/var/lib/etcd/data",
                    &folder.path().join("data").display().to_string(),
                )
        });
        let child = Command::new(asset("etcd"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log")).expect("a file"))
            .spawn()
            .expect("etcd starts: set OUTRIGGER_ASSETS (tests/run does)");
        let mut this = Self {
            child,
            url: format!("https://127.0.0.1:{}", ports["2379"]),
            folder,
            objects,
        };
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let path = string(set, &format!("{container}/{probe}/httpGet/path")).to_owned();
            this.wait_until_answers(ports["2381"], &path);
        }
        this
    }

    /// As the kubelet asks: plain HTTP, without a certificate.
    fn wait_until_answers(&mut self, port: u16, path: &str) {
        for _ in 0..TRIES {
            if let Some(status) = self.child.try_wait().expect("its state") {
                panic!("etcd ended with {status}:\n{}", self.log());
            }
            let mut answer = String::new();
            if let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) {
                let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
                let _ = stream.write_all(request.as_bytes());
                let _ = stream.read_to_string(&mut answer);
            }
            if answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200") {
                return;
            }
            std::thread::sleep(POLL);
        }
        panic!("{path} does not answer 200:\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A script of the chart with the environment of its container; `env` stands in for its busybox.
    fn run(&self, script: &str, environment: &[(&str, &str)]) -> Output {
        let file = deploy()
            .join("helm/outrigger-etcd/files")
            .join(format!("{script}.sh"));
        let mut command = self.etcdctl_command(PathBuf::from("sh"));
        command.arg(file);
        for variable in self.environment(script) {
            let value = string(&variable, "/value").replace(
                "/etc/etcd/root",
                &self.folder.path().join("root").display().to_string(),
            );
            command.env(string(&variable, "/name"), value);
        }
        command
            .env("MEMBERS", &self.url)
            .env("BUSYBOX", "env")
            .env("FOLDER", self.folder.path().join("snapshots"))
            .envs(environment.iter().copied());
        command.output().expect("a shell")
    }

    /// The same, and it succeeds; what it says.
    fn run_ok(&self, script: &str, environment: &[(&str, &str)]) -> String {
        let output = self.run(script, environment);
        let said = said(&output);
        assert!(output.status.success(), "{script}: {said}\n{}", self.log());
        said
    }

    fn environment(&self, script: &str) -> Vec<Value> {
        let (name, pod) = match script {
            "auth" => ("Job", "/spec/template"),
            _ => ("CronJob", "/spec/jobTemplate/spec/template"),
        };
        let job = &self.objects[&format!("{name} outrigger-etcd/east-outrigger-etcd-{script}")];
        let environment = array(job, &format!("{pod}/spec/containers/0/env"));
        assert!(!environment.is_empty(), "{script}");
        environment.to_vec()
    }

    /// etcdctl with this certificate, or none.
    fn etcdctl(&self, certificate: Option<&str>, args: &[&str]) -> Output {
        let mut command = self.etcdctl_command(asset("etcdctl"));
        command
            .args(["--endpoints", &self.url, "--command-timeout=5s"])
            .args(args)
            .env("ETCDCTL_CACERT", self.folder.path().join("root/ca.crt"));
        if let Some(certificate) = certificate {
            let folder = self.folder.path().join(certificate);
            command
                .env("ETCDCTL_CERT", folder.join("tls.crt"))
                .env("ETCDCTL_KEY", folder.join("tls.key"));
        }
        command.output().expect("etcdctl starts")
    }

    fn etcdctl_command(&self, program: PathBuf) -> Command {
        let mut command = Command::new(program);
        let assets = asset("etcdctl").parent().map(PathBuf::from).unwrap_or_default();
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", assets.display()))
            .stdin(Stdio::null());
        command
    }

    /// The store's client with this certificate.
    fn backend(&self, certificate: &str) -> EtcdBackend {
        let file = |name: &str| fs::read(self.folder.path().join(certificate).join(name)).ok();
        EtcdBackend::new(&EtcdOptions {
            endpoints: vec![self.url.clone()],
            ca_pem: file("ca.crt"),
            cert_pem: file("tls.crt"),
            key_pem: file("tls.key"),
            prefix: "/outrigger/".to_owned(),
            ..EtcdOptions::default()
        })
        .expect("valid options")
    }
}

impl Drop for ChartEtcd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the chart renders, with the same certificates for every etcd: keys take their time.
fn rendered() -> &'static BTreeMap<String, Value> {
    static RENDERED: OnceLock<BTreeMap<String, Value>> = OnceLock::new();
    RENDERED.get_or_init(|| by_name(parse(&Case::of("outrigger-etcd", "single").text_with(&ARGS))))
}

/// Names of pods and all interfaces become loopback, and the chart's ports free ones.
fn on_loopback(arg: &str, ports: &BTreeMap<String, u16>) -> String {
    let mut out = arg.replace("0.0.0.0", "127.0.0.1");
    for (port, free) in ports {
        out = out.replace(&format!("127.0.0.1:{port}"), &format!("127.0.0.1:{free}"));
        let member = format!("east-outrigger-etcd-0.east-outrigger-etcd-peers.outrigger-etcd.svc:{port}");
        out = out.replace(&member, &format!("127.0.0.1:{free}"));
    }
    out
}

fn secret_file(secret: &Value, file: &str) -> Vec<u8> {
    let data = secret.pointer("/data").expect("data");
    STANDARD
        .decode(data[file].as_str().expect("a file"))
        .expect("base64")
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The key (PEM) of an authority that the chart made.
pub(crate) fn generated_key() -> String {
    let secret = &rendered()["Secret outrigger-etcd/east-outrigger-etcd-ca"];
    String::from_utf8(secret_file(secret, "tls.key")).expect("PEM")
}

#[test]
fn outriggers_user_has_its_prefix_and_nothing_else() {
    let etcd = ChartEtcd::start();
    etcd.run_ok("auth", &[]);
    // Upgrades run it again.
    let again = etcd.run_ok("auth", &[]);
    assert!(again.contains("Authentication Status: true"), "{again}");

    let allowed = |certificate: Option<&str>, args: &[&str]| {
        let output = etcd.etcdctl(certificate, args);
        assert!(
            output.status.success(),
            "{certificate:?} {args:?}: {}",
            said(&output)
        );
    };
    let denied = |certificate: Option<&str>, args: &[&str], because: &str| {
        let output = etcd.etcdctl(certificate, args);
        let said = said(&output);
        assert!(
            !output.status.success(),
            "{certificate:?} {args:?} is allowed: {said}"
        );
        assert!(said.contains(because), "{certificate:?} {args:?}: {said}");
    };
    let (client, root) = (Some("client"), Some("root"));
    allowed(client, &["put", "/outrigger/clock", "1"]);
    allowed(client, &["get", "/outrigger/", "--prefix"]);
    allowed(client, &["del", "/outrigger/clock"]);
    allowed(client, &["endpoint", "status"]);
    let refusal = "permission denied";
    denied(client, &["put", "/outrigger", "1"], refusal);
    denied(client, &["put", "/registry/secrets/a", "1"], refusal);
    denied(client, &["get", "/registry/", "--prefix"], refusal);
    denied(client, &["get", "", "--from-key"], refusal);
    denied(client, &["get", "/outrigger/", "--from-key"], refusal);
    denied(client, &["del", "", "--prefix"], refusal);
    denied(client, &["compaction", "1"], refusal);
    denied(client, &["user", "list"], refusal);
    denied(client, &["user", "grant-role", "outrigger", "root"], refusal);
    denied(client, &["auth", "disable"], refusal);
    denied(client, &["defrag"], refusal);
    let file = etcd.folder.path().join("stolen").display().to_string();
    denied(client, &["snapshot", "save", &file], refusal);
    denied(None, &["get", "/outrigger/clock"], "");
    allowed(root, &["user", "list"]);
}

#[test]
fn a_member_is_defragmented_where_that_frees_something() {
    let etcd = ChartEtcd::start();
    etcd.run_ok("auth", &[]);
    let said = etcd.run_ok("defragment", &[("FREE_PERCENT", "0")]);
    assert!(
        said.contains("defragmenting") && said.contains("Finished defragmenting"),
        "{said}"
    );
    let said = etcd.run_ok("defragment", &[("FREE_PERCENT", "101")]);
    assert!(
        said.contains("left alone") && !said.contains("Finished"),
        "{said}"
    );
    // Somebody is away: nobody else is stopped.
    let two = format!("{},https://127.0.0.1:1", etcd.url);
    let output = etcd.run("defragment", &[("MEMBERS", &two), ("FREE_PERCENT", "0")]);
    assert!(!output.status.success());
    assert!(self::said(&output).contains("nothing is defragmented"));
}

#[test]
fn snapshots_are_whole_and_the_oldest_go() {
    let etcd = ChartEtcd::start();
    etcd.run_ok("auth", &[]);
    let folder = etcd.folder.path().join("snapshots");
    fs::create_dir(&folder).expect("a folder");
    for old in [
        "etcd-20200101T000000Z.db",
        "etcd-20200102T000000Z.db",
        "etcd-killed.db.part",
    ] {
        fs::write(folder.join(old), "").expect("a file");
    }
    // The first member does not answer, the second does.
    let members = format!("https://127.0.0.1:1,{}", etcd.url);
    let said = etcd.run_ok("snapshot", &[("MEMBERS", &members)]);
    let mut names: Vec<_> = fs::read_dir(&folder)
        .expect("a folder")
        .map(|e| e.expect("a file").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names.len(), 2, "{names:?}\n{said}");
    assert_eq!(names[0], "etcd-20200102T000000Z.db");
    let newest = fs::metadata(folder.join(&names[1])).expect("a file");
    assert!(newest.len() > 10_000, "{newest:?}");

    let output = etcd.run("snapshot", &[("MEMBERS", "https://127.0.0.1:1")]);
    assert!(!output.status.success());
    assert!(self::said(&output).contains("no member gave a snapshot"));
}
