//! A real control plane: kube-apiserver on an etcd of its own, its aggregator, and kube-controller-manager if it is wanted.

use crate::kubectl::asset;
use crate::raw_client::RawClient;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use outrigger_certs::{Authority, LeafRequest, Usage};
use outrigger_storage::testing::etcd_server::EtcdServer;
use serde_json::Value;
use std::collections::BTreeSet;
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
/// How much of a log is shown when something does not start.
const LOG_TAIL_BYTES: usize = 4000;
/// The name that the aggregator's certificate has.
const FRONT_PROXY: &str = "front-proxy-client";
const CRD: &str = include_str!("../../deploy/examples/application-crd.yaml");
/// Who carries the chart's rights. What it asks is written down.
pub const ACCOUNT: &str = "system:serviceaccount:outrigger-system:outrigger";
/// Controllers that matter to us.
const CONTROLLERS: &str = "namespace-controller,garbage-collector-controller,serviceaccount-controller,clusterrole-aggregation-controller";

/// What is wanted of a control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Everybody may do everything.
    All,
    /// RBAC, beside the administrator.
    Rbac,
}

/// A request of [`ACCOUNT`], as kube-apiserver saw it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Audited {
    /// `get`, `list`, …
    pub verb: String,
    /// `apiservices.apiregistration.k8s.io`, `customresourcedefinitions.apiextensions.k8s.io/status`.
    pub resource: String,
    /// Its namespace, or nothing.
    pub namespace: String,
    /// RBAC refused it. (Policies answer 403 as well.)
    pub is_forbidden: bool,
}

/// A running control plane. Dropping it ends it.
pub struct ControlPlane {
    child: Child,
    controllers: Option<Child>,
    folder: TempDir,
    port: u16,
    rights: Rights,
    etcd: EtcdServer,
}

impl ControlPlane {
    /// kube-apiserver. Returns when it is ready.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(rights: Rights) -> Result<Self> {
        let etcd = EtcdServer::start().await;
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        write_certificates(folder.path(), port)?;
        let policy = format!(
            "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules:\n\
             - {{level: Metadata, users: [\"{ACCOUNT}\"]}}\n- {{level: None}}\n"
        );
        fs::write(folder.path().join("audit.yaml"), policy)?;
        let child = spawn_apiserver(folder.path(), port, rights, &etcd.client_url())?;
        let mut this = Self {
            child,
            controllers: None,
            folder,
            port,
            rights,
            etcd,
        };
        this.wait_until_ready().await?;
        Ok(this)
    }

    /// kube-apiserver ends and starts again, on its port and its etcd.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn restart(&mut self) -> Result<()> {
        end(&mut self.child);
        self.child = spawn_apiserver(
            self.folder.path(),
            self.port,
            self.rights,
            &self.etcd.client_url(),
        )?;
        self.wait_until_ready().await
    }

    /// kube-controller-manager, beside it.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_controllers(&mut self) -> Result<()> {
        let path = |name: &str| self.folder.path().join(name);
        let child = Command::new(asset("kube-controller-manager"))
            .arg(format!("--kubeconfig={}", path("kubeconfig").display()))
            .arg(format!("--controllers={CONTROLLERS}"))
            .args(["--leader-elect=false", "--use-service-account-credentials=false"])
            .args(["--secure-port=0", "--v=0", "--concurrent-gc-syncs=4"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("controllers.log"))?)
            .spawn()
            .context("kube-controller-manager does not start")?;
        self.controllers = Some(child);
        Ok(())
    }

    /// A client of it.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn client(&self) -> Result<RawClient> {
        RawClient::connect(&self.kubeconfig()).await
    }

    /// `https://127.0.0.1:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// A file of its: `ca.crt`, `front-proxy.crt`, `front-proxy.key`, `front-proxy-ca.crt`, `admin.crt`, `admin.key`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The administrator's.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.file("kubeconfig")
    }

    /// What [`ACCOUNT`] has asked so far, each question once.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn audited(&self) -> Result<BTreeSet<Audited>> {
        let log = fs::read_to_string(self.file("audit.log"))?;
        let events = log.lines().map(serde_json::from_str::<Value>);
        // The last line may be half written.
        Ok(events.map_while(Result::ok).map(|e| audited(&e)).collect())
    }

    /// That of somebody with this token.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig_of(&self, user: &str, token: &str) -> Result<PathBuf> {
        let ca = STANDARD.encode(fs::read(self.file("ca.crt"))?);
        let user_of_it = format!("token: {token}");
        let path = self.file(&format!("{user}.kubeconfig"));
        fs::write(&path, kubeconfig(self.port, &ca, &user_of_it))?;
        Ok(path)
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
        let client = self.client().await?;
        let answer = client.request(Method::GET, "/readyz", &[], Vec::new()).await?;
        Ok(answer.status.is_success())
    }

    /// One more authority of front proxies, trusted beside those before. Nothing is signed by it yet.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn trust_next_front_proxy(&self) -> Result<Authority> {
        let next = Authority::create("front-proxy-ca-next", now()?)?;
        let file = self.file("front-proxy-ca.crt");
        let before = fs::read_to_string(&file)?;
        replace(&file, &format!("{before}{}", next.certificate_pem()))?;
        Ok(next)
    }

    /// kube-apiserver shows a certificate of this authority to those behind it from now on.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn rotate_front_proxy(&self, authority: &Authority) -> Result<()> {
        let leaf = authority.issue(&leaf(FRONT_PROXY, None, &[], Usage::Client), now()?)?;
        // Between the two they do not belong together: then it goes on with what it has.
        replace(&self.file("front-proxy.key"), &leaf.key_pem)?;
        replace(&self.file("front-proxy.crt"), &leaf.certificate_pem)
    }

    /// No other authority of front proxies is trusted by kube-apiserver.
    ///
    /// # Errors
    /// When its file cannot be written.
    pub fn trust_only_front_proxy(&self, authority: &Authority) -> Result<()> {
        replace(&self.file("front-proxy-ca.crt"), authority.certificate_pem())
    }

    /// The kind of the examples.
    ///
    /// # Errors
    /// When it is not served.
    pub async fn create_example_crd(&self) -> Result<()> {
        let client = self.client().await?;
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

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of kube-apiserver's log\n{}", self.log_tail());
        }
        end(&mut self.child);
        self.controllers.iter_mut().for_each(end);
    }
}

fn audited(event: &Value) -> Audited {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (object, uri) = (&event["objectRef"], text(&event["requestURI"]));
    let (resource, group, sub) = (
        text(&object["resource"]),
        text(&object["apiGroup"]),
        text(&object["subresource"]),
    );
    let resource = match (resource.as_str(), group.as_str(), sub.as_str()) {
        ("", _, _) => uri.split('?').next().unwrap_or_default().to_owned(),
        (resource, "", "") => resource.to_owned(),
        (resource, group, "") => format!("{resource}.{group}"),
        (resource, group, sub) => format!("{resource}.{group}/{sub}"),
    };
    Audited {
        verb: text(&event["verb"]),
        resource,
        namespace: text(&object["namespace"]),
        is_forbidden: event["annotations"]["authorization.k8s.io/decision"] == "forbid",
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn spawn_apiserver(folder: &Path, port: u16, rights: Rights, etcd: &str) -> Result<Child> {
    let path = |name: &str| folder.join(name).display().to_string();
    let file = |flag: &str, name: &str| format!("--{flag}={}", path(name));
    let log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path("log"))?;
    let authorization = match rights {
        Rights::All => "--authorization-mode=AlwaysAllow",
        Rights::Rbac => "--authorization-mode=RBAC",
    };
    Command::new(asset("kube-apiserver"))
        .arg(format!("--etcd-servers={etcd}"))
        .args(["--bind-address=127.0.0.1", authorization])
        .arg(file("audit-policy-file", "audit.yaml"))
        .arg(file("audit-log-path", "audit.log"))
        .arg(format!("--secure-port={port}"))
        .arg(format!("--cert-dir={}", folder.display()))
        .args([
            file("tls-cert-file", "server.crt"),
            file("tls-private-key-file", "server.key"),
        ])
        .arg(file("client-ca-file", "ca.crt"))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(file("service-account-key-file", "server.crt"))
        .arg(file("service-account-signing-key-file", "server.key"))
        .arg(file("requestheader-client-ca-file", "front-proxy-ca.crt"))
        .arg(format!("--requestheader-allowed-names={FRONT_PROXY}"))
        .args([
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-uid-headers=X-Remote-Uid",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        ])
        .args([
            file("proxy-client-cert-file", "front-proxy.crt"),
            file("proxy-client-key-file", "front-proxy.key"),
        ])
        .args([
            "--service-cluster-ip-range=10.0.0.0/24",
            "--endpoint-reconciler-type=none",
            "--disable-admission-plugins=ServiceAccount",
            "--v=0",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context(
            "kube-apiserver does not start: set OUTRIGGER_ASSETS to the folder that tests/assets/get prints",
        )
}

fn now() -> Result<i64> {
    #[expect(clippy::disallowed_methods, reason = "certificates need the time of day")]
    let now = SystemTime::now();
    Ok(i64::try_from(now.duration_since(UNIX_EPOCH)?.as_secs())?)
}

fn leaf(name: &str, organization: Option<&str>, names: &[&str], usage: Usage) -> LeafRequest {
    LeafRequest {
        common_name: name.to_owned(),
        organization: organization.map(str::to_owned),
        names: names.iter().map(|n| (*n).to_owned()).collect(),
        usage,
        days: 1,
    }
}

/// Who reads the file sees what was there or what is there.
fn replace(file: &Path, text: &str) -> Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, text)?;
    fs::rename(next, file)?;
    Ok(())
}

/// An authority, the server's certificate, and a kubeconfig with the administrator's.
fn write_certificates(folder: &Path, port: u16) -> Result<()> {
    let now = now()?;
    let authority = Authority::create("control-plane-ca", now)?;
    let front_proxy_ca = Authority::create("front-proxy-ca", now)?;
    let front_proxy = front_proxy_ca.issue(&leaf(FRONT_PROXY, None, &[], Usage::Client), now)?;
    let names = ["127.0.0.1", "localhost", "kubernetes.default.svc"];
    let server = authority.issue(&leaf("kube-apiserver", None, &names, Usage::Server), now)?;
    let admin = leaf("kubernetes-admin", Some("system:masters"), &[], Usage::Client);
    let admin = authority.issue(&admin, now)?;
    for (name, text) in [
        ("ca.crt", authority.certificate_pem()),
        ("server.crt", &server.certificate_pem),
        ("server.key", &server.key_pem),
        ("front-proxy-ca.crt", front_proxy_ca.certificate_pem()),
        ("front-proxy.crt", &front_proxy.certificate_pem),
        ("front-proxy.key", &front_proxy.key_pem),
        ("admin.crt", &admin.certificate_pem),
        ("admin.key", &admin.key_pem),
    ] {
        fs::write(folder.join(name), text)?;
    }
    let [ca, certificate, key] = [
        authority.certificate_pem(),
        &admin.certificate_pem,
        &admin.key_pem,
    ]
    .map(|pem| STANDARD.encode(pem));
    let admin = format!("client-certificate-data: {certificate}\n    client-key-data: {key}");
    fs::write(folder.join("kubeconfig"), kubeconfig(port, &ca, &admin))?;
    Ok(())
}

fn kubeconfig(port: u16, ca: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: kube\n  cluster:\n    server: https://127.0.0.1:{port}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: user\n  user:\n    {user}\ncontexts:\n- name: kube\n  \
         context: {{cluster: kube, user: user}}\ncurrent-context: kube\n"
    )
}
