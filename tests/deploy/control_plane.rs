//! A kube-apiserver on an etcd of its own, where one token may do everything: the oracle of manifests. No aggregation,
//! no controllers.

use outrigger_storage::testing::etcd_server::EtcdServer;
use outrigger_tests::kubectl::{Kubectl, asset};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How often it is asked whether it is ready, and how long is waited between.
const TRIES: usize = 600;
const POLL: Duration = Duration::from_millis(300);

/// A running one. Dropping it ends it.
pub(crate) struct ControlPlane {
    child: Child,
    folder: TempDir,
    pub(crate) kubectl: Kubectl,
    _etcd: EtcdServer,
}

impl ControlPlane {
    /// Returns when it is ready and has its namespaces. The key (PEM) signs tokens that nobody asks for.
    pub(crate) async fn start(key: &str) -> Self {
        let etcd = EtcdServer::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let port = free_port();
        fs::write(path("sa.key"), key).expect("a file");
        fs::write(
            path("tokens.csv"),
            "administrator,admin,admin,\"system:masters\"\n",
        )
        .expect("a file");
        fs::write(path("kubeconfig"), kubeconfig(port)).expect("a file");
        let child = Command::new(asset("kube-apiserver"))
            .arg(format!("--etcd-servers={}", etcd.client_url()))
            .args(["--bind-address=127.0.0.1", "--authorization-mode=RBAC"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", path("certificates")))
            .arg(format!("--token-auth-file={}", path("tokens.csv")))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", path("sa.key")))
            .arg(format!("--service-account-signing-key-file={}", path("sa.key")))
            .args([
                "--service-cluster-ip-range=10.0.0.0/24",
                "--endpoint-reconciler-type=none",
            ])
            .arg("--disable-admission-plugins=ServiceAccount")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).expect("a file"))
            .spawn()
            .expect("kube-apiserver starts: set OUTRIGGER_ASSETS (tests/run does)");
        let kubectl = Kubectl::new(Path::new(&path("kubeconfig")));
        let mut this = Self {
            child,
            folder,
            kubectl,
            _etcd: etcd,
        };
        this.wait_until_ready();
        this
    }

    /// The administrator's.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    fn wait_until_ready(&mut self) {
        for _ in 0..TRIES {
            if let Some(status) = self.child.try_wait().expect("its state") {
                panic!("kube-apiserver ended with {status}:\n{}", self.log_tail());
            }
            let is_ready = ["--raw=/readyz", "namespace/default"]
                .iter()
                .all(|what| self.kubectl.output(&["get", what], "").status.success());
            if is_ready {
                return;
            }
            std::thread::sleep(POLL);
        }
        panic!("kube-apiserver does not get ready:\n{}", self.log_tail());
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of loopback that nobody has.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn kubeconfig(port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{port}', insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: test, user: {{token: administrator}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    )
}
