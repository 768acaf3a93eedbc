//! A real etcd and kube-apiserver on free loopback ports, with the aggregation layer on. It panics where a test has to fail.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use outrigger_certs::{Authority, LeafRequest, Usage};
use serde_json::json;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};

/// How long a start may take, on a busy machine.
const START: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(300);
const LOG_TAIL_BYTES: usize = 4000;

/// Dropping it ends both.
pub(crate) struct ControlPlane {
    pub(crate) client: Client,
    _etcd: Child,
    _kube_apiserver: Child,
    _folder: TempDir,
}

/// The time of day.
pub(crate) fn now() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "certificates need the time of day")]
    let now = SystemTime::now();
    i64::try_from(now.duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("in range")
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    listeners.map(|l| l.local_addr().expect("its address").port())
}

impl ControlPlane {
    /// Returns when it is ready.
    pub(crate) async fn start(assets: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let [client_port, peer_port, port] = free_ports();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let log = |name: &str| fs::File::create(folder.path().join(name)).expect("a log file");
        let etcd_url = format!("http://127.0.0.1:{client_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let etcd = Command::new(assets.join("etcd"))
            .args(["--name=one", "--unsafe-no-fsync", "--log-level=warn"])
            .arg(format!("--data-dir={}", path("etcd")))
            .arg(format!("--listen-client-urls={etcd_url}"))
            .arg(format!("--advertise-client-urls={etcd_url}"))
            .arg(format!("--listen-peer-urls={peer_url}"))
            .arg(format!("--initial-advertise-peer-urls={peer_url}"))
            .arg(format!("--initial-cluster=one={peer_url}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log("etcd.log"))
            .kill_on_drop(true)
            .spawn()
            .expect("etcd can be started");
        let kubeconfig = certificates(folder.path(), port);
        let mut kube_apiserver = Command::new(assets.join("kube-apiserver"));
        kube_apiserver
            .arg(format!("--etcd-servers={etcd_url}"))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", folder.path().display()))
            .args([
                "--bind-address=127.0.0.1",
                "--authorization-mode=AlwaysAllow",
                "--v=1",
            ])
            .args([
                "--service-cluster-ip-range=10.0.0.0/24",
                "--endpoint-reconciler-type=none",
            ])
            .args(["--disable-admission-plugins=ServiceAccount"])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", path("server.crt")))
            .arg(format!(
                "--service-account-signing-key-file={}",
                path("server.key")
            ))
            .arg(format!("--tls-cert-file={}", path("server.crt")))
            .arg(format!("--tls-private-key-file={}", path("server.key")))
            .arg(format!("--client-ca-file={}", path("ca.crt")))
            .arg(format!("--requestheader-client-ca-file={}", path("ca.crt")))
            .args(["--requestheader-allowed-names=front-proxy"])
            .args(["--requestheader-username-headers=X-Remote-User"])
            .args(["--requestheader-group-headers=X-Remote-Group"])
            .args(["--requestheader-extra-headers-prefix=X-Remote-Extra-"])
            .arg(format!("--proxy-client-cert-file={}", path("proxy.crt")))
            .arg(format!("--proxy-client-key-file={}", path("proxy.key")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log("kube-apiserver.log"))
            .kill_on_drop(true);
        let kube_apiserver = kube_apiserver.spawn().expect("kube-apiserver can be started");
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .expect("a kubeconfig");
        let client = Client::try_from(config).expect("a client");
        let mut this = Self {
            client,
            _etcd: etcd,
            _kube_apiserver: kube_apiserver,
            _folder: folder,
        };
        this.wait_until_ready().await;
        this
    }

    async fn wait_until_ready(&mut self) {
        let start = Instant::now();
        loop {
            let request = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            let said = match self.client.request_text(request).await {
                Ok(_) => return,
                Err(error) => error.to_string(),
            };
            let exit = self._kube_apiserver.try_wait().expect("its state");
            if exit.is_some() || start.elapsed() > START {
                let log = fs::read(self._folder.path().join("kube-apiserver.log")).unwrap_or_default();
                let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
                panic!(
                    "kube-apiserver: {exit:?} {said}\n{}",
                    String::from_utf8_lossy(tail)
                );
            }
            sleep(POLL).await;
        }
    }
}

/// An authority for everything, the certificates it issues, and the administrator's kubeconfig.
fn certificates(folder: &Path, port: u16) -> Kubeconfig {
    let authority = Authority::create("test-ca", now()).expect("created");
    let issue = |name: &str, group: Option<&str>, names: &[&str], usage| {
        let request = LeafRequest {
            common_name: name.to_owned(),
            organization: group.map(str::to_owned),
            names: names.iter().map(|n| (*n).to_owned()).collect(),
            usage,
            days: 1,
        };
        authority.issue(&request, now()).expect("issued")
    };
    let server = issue("kube-apiserver", None, &["127.0.0.1"], Usage::Server);
    let proxy = issue("front-proxy", None, &[], Usage::Client);
    let admin = issue("admin", Some("system:masters"), &[], Usage::Client);
    for (name, text) in [
        ("ca.crt", authority.certificate_pem()),
        ("server.crt", &server.certificate_pem),
        ("server.key", &server.key_pem),
        ("proxy.crt", &proxy.certificate_pem),
        ("proxy.key", &proxy.key_pem),
    ] {
        fs::write(folder.join(name), text).expect("written");
    }
    serde_json::from_value(json!({
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority-data": STANDARD.encode(authority.certificate_pem()),
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate-data": STANDARD.encode(&admin.certificate_pem),
            "client-key-data": STANDARD.encode(&admin.key_pem),
        }}],
    }))
    .expect("a kubeconfig")
}
