//! A real kube-apiserver on an etcd of its own, with our example CRD: what we compare with. Everybody may do everything.

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use outrigger_certs::{Authority, LeafRequest, Usage};
use outrigger_storage::testing::etcd_server::EtcdServer;
use outrigger_tests::raw_client::RawClient;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long a start may take, on a busy machine.
const START: Duration = Duration::from_secs(180);
/// How long a new kind may take until it is served.
const SERVED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// How much of the log is shown when it does not start.
const LOG_TAIL_BYTES: usize = 4000;
const CRD: &str = include_str!("../../deploy/examples/application-crd.yaml");

/// A running kube-apiserver. Dropping it ends it.
pub(crate) struct KubeApiserver {
    child: Child,
    folder: TempDir,
    kubeconfig: PathBuf,
    _etcd: EtcdServer,
}

impl KubeApiserver {
    /// Returns when it is ready.
    pub(crate) async fn start() -> Result<Self> {
        let etcd = EtcdServer::start().await;
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let path = |name: &str| folder.path().join(name);
        let kubeconfig = path("kubeconfig");
        write_certificates(folder.path(), port)?;
        let mut command = Command::new(program()?);
        command
            .arg(format!("--etcd-servers={}", etcd.client_url()))
            .args(["--bind-address=127.0.0.1", "--authorization-mode=AlwaysAllow"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", folder.path().display()))
            .arg(format!("--tls-cert-file={}", path("server.crt").display()))
            .arg(format!("--tls-private-key-file={}", path("server.key").display()))
            .arg(format!("--client-ca-file={}", path("ca.crt").display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!(
                "--service-account-key-file={}",
                path("server.crt").display()
            ))
            .arg(format!(
                "--service-account-signing-key-file={}",
                path("server.key").display()
            ))
            .args([
                "--service-cluster-ip-range=10.0.0.0/24",
                "--disable-admission-plugins=ServiceAccount",
                "--v=0",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log"))?);
        let child = command.spawn().context("kube-apiserver does not start")?;
        let mut this = Self {
            child,
            folder,
            kubeconfig,
            _etcd: etcd,
        };
        this.wait_until_ready().await?;
        Ok(this)
    }

    /// The administrator's.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        let mut said = String::new();
        while start.elapsed() < START {
            if let Some(status) = self.child.try_wait()? {
                bail!("kube-apiserver ended with {status}: {}", self.log_tail());
            }
            match self.is_ready().await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => said = format!("{error:#}"),
            }
            sleep(POLL).await;
        }
        bail!("kube-apiserver did not get ready ({said}): {}", self.log_tail())
    }

    async fn is_ready(&self) -> Result<bool> {
        let client = RawClient::connect(&self.kubeconfig).await?;
        let answer = client.request(Method::GET, "/readyz", &[], Vec::new()).await?;
        Ok(answer.status.is_success())
    }

    /// The kind that both servers serve.
    pub(crate) async fn create_example_crd(&self) -> Result<()> {
        let client = RawClient::connect(&self.kubeconfig).await?;
        let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let headers = [("content-type", "application/yaml")];
        let answer = client
            .request(Method::POST, path, &headers, CRD.as_bytes().to_vec())
            .await?;
        if !answer.status.is_success() {
            bail!("the example CRD: {}", String::from_utf8_lossy(&answer.body));
        }
        let start = Instant::now();
        while start.elapsed() < SERVED {
            let path = "/apis/paas.example.com/v1/applications?limit=1";
            if client
                .request(Method::GET, path, &[], Vec::new())
                .await?
                .status
                .is_success()
            {
                return Ok(());
            }
            sleep(POLL).await;
        }
        bail!("the example CRD is not served")
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.folder.path().join("log")).unwrap_or_default();
        let tail = log
            .get(log.len().saturating_sub(LOG_TAIL_BYTES)..)
            .unwrap_or_default();
        String::from_utf8_lossy(tail).into_owned()
    }
}

impl Drop for KubeApiserver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KUBE_APISERVER") {
        return Ok(path.into());
    }
    let folder = ["OUTRIGGER_ASSETS", "KUBEBUILDER_ASSETS"]
        .into_iter()
        .find_map(std::env::var_os)
        .context("set OUTRIGGER_ASSETS to the folder that tests/assets/get prints")?;
    Ok(Path::new(&folder).join("kube-apiserver"))
}

/// An authority, the server's certificate, and a kubeconfig with the administrator's.
fn write_certificates(folder: &Path, port: u16) -> Result<()> {
    #[expect(clippy::disallowed_methods, reason = "certificates need the time of day")]
    let now = SystemTime::now();
    let now = i64::try_from(now.duration_since(UNIX_EPOCH)?.as_secs())?;
    let leaf = |name: &str, organization: Option<&str>, names: &[&str], usage| LeafRequest {
        common_name: name.to_owned(),
        organization: organization.map(str::to_owned),
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        usage,
        days: 1,
    };
    let authority = Authority::create("bench-ca", now)?;
    let server = authority.issue(&leaf("kube-apiserver", None, &["127.0.0.1"], Usage::Server), now)?;
    let admin = leaf("kubernetes-admin", Some("system:masters"), &[], Usage::Client);
    let admin = authority.issue(&admin, now)?;
    for (name, text) in [
        ("ca.crt", authority.certificate_pem()),
        ("server.crt", &server.certificate_pem),
        ("server.key", &server.key_pem),
    ] {
        fs::write(folder.join(name), text)?;
    }
    let [ca, certificate, key] = [
        authority.certificate_pem(),
        &admin.certificate_pem,
        &admin.key_pem,
    ]
    .map(|pem| STANDARD.encode(pem));
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: kube\n  cluster:\n    server: https://127.0.0.1:{port}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: admin\n  user:\n    client-certificate-data: {certificate}\n    \
         client-key-data: {key}\n"
    );
    fs::write(folder.join("kubeconfig"), kubeconfig)?;
    Ok(())
}
