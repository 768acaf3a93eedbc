//! Authentication and authorization by a real kube-apiserver: what it publishes, and what it answers to our reviews.
//!
//! The programs are taken from `OUTRIGGER_ASSETS` or `KUBEBUILDER_ASSETS`, as tests/run sets it; without them there is
//! nothing to ask, and the fake of `control_plane.rs` has to do.

use crate::delegation::serve;
use crate::harness::{client_certificate, now, provider};
use http::Method;
use kube::Client;
use outrigger_apiserver::authentication::Anonymous;
use outrigger_apiserver::authentication::client_ca;
use outrigger_apiserver::server::handler_chain::ChainConfig;
use outrigger_certs::{Authority, LeafRequest, Usage};
use outrigger_storage::testing::etcd_server::EtcdServer;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// How long kube-apiserver may take to start, on a busy machine.
const START: Duration = Duration::from_secs(180);
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// A running kube-apiserver with RBAC. It ends when this is dropped.
pub(crate) struct KubeApiserver {
    _child: Child,
    _etcd: EtcdServer,
    _folder: tempfile::TempDir,
    pub(crate) client: Client,
    proxies: Authority,
}

pub(crate) fn program() -> Option<PathBuf> {
    let folders = ["OUTRIGGER_ASSETS", "KUBEBUILDER_ASSETS"].into_iter();
    let mut programs = folders
        .filter_map(std::env::var_os)
        .map(|folder| Path::new(&folder).join("kube-apiserver"));
    programs.find(|program| program.is_file())
}

impl KubeApiserver {
    pub(crate) async fn start(program: &Path) -> Self {
        let etcd = EtcdServer::start().await;
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let (clients, proxies) = (authority("clients"), authority("proxies"));
        let leaf = LeafRequest {
            common_name: "kube-apiserver".to_owned(),
            organization: None,
            names: vec!["127.0.0.1".to_owned()],
            usage: Usage::Server,
            days: 1,
        };
        let serving = clients.issue(&leaf, now()).expect("a certificate");
        for (name, text) in [
            ("clients.crt", clients.certificate_pem()),
            ("proxies.crt", proxies.certificate_pem()),
            ("server.crt", &serving.certificate_pem),
            ("server.key", &serving.key_pem),
            (
                "tokens.csv",
                "admin,admin,a,\"system:masters\"\njanes,jane,u-jane,\"developers\"\n",
            ),
        ] {
            std::fs::write(path(name), text).expect("written");
        }
        let child = Command::new(program)
            .arg(format!("--etcd-servers={}", etcd.client_url()))
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", folder.path().display()))
            .arg(format!("--tls-cert-file={}", path("server.crt")))
            .arg(format!("--tls-private-key-file={}", path("server.key")))
            .arg(format!("--client-ca-file={}", path("clients.crt")))
            .arg(format!("--requestheader-client-ca-file={}", path("proxies.crt")))
            .arg(format!("--service-account-key-file={}", path("server.crt")))
            .arg(format!(
                "--service-account-signing-key-file={}",
                path("server.key")
            ))
            .arg(format!("--token-auth-file={}", path("tokens.csv")))
            .args([
                "--bind-address=127.0.0.1",
                "--authorization-mode=RBAC",
                "--requestheader-allowed-names=front-proxy-client",
                "--requestheader-username-headers=X-Remote-User",
                "--requestheader-group-headers=X-Remote-Group",
                "--requestheader-extra-headers-prefix=X-Remote-Extra-",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.0.0.0/24",
                "--endpoint-reconciler-type=none",
                "--disable-admission-plugins=ServiceAccount",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("kube-apiserver starts");
        let url = format!("https://127.0.0.1:{port}").parse().expect("a URL");
        let mut config = kube::Config::new(url);
        let der = rustls_pki_types::pem::PemObject::from_pem_slice(clients.certificate_pem().as_bytes());
        let der: rustls_pki_types::CertificateDer<'_> = der.expect("PEM");
        config.root_cert = Some(vec![der.to_vec()]);
        config.auth_info.token = Some("admin".to_owned().into());
        let this = Self {
            client: Client::try_from(config).expect("a client"),
            _child: child,
            _etcd: etcd,
            _folder: folder,
            proxies,
        };
        timeout(START, this.published())
            .await
            .expect("kube-apiserver gets ready");
        this
    }

    /// Waits until it has published whose certificates count.
    async fn published(&self) {
        loop {
            match client_ca::initial(&self.client, &provider()).await {
                Ok(cas) if cas.client.is_some() && cas.request_header.is_some() => return,
                _ => sleep(Duration::from_millis(200)).await,
            }
        }
    }

    pub(crate) async fn create(&self, collection: &str, object: &Value) {
        let created = self.try_create(collection, object).await;
        created.unwrap_or_else(|e| panic!("{collection}: {e}"));
    }

    pub(crate) async fn try_create(&self, collection: &str, object: &Value) -> kube::Result<()> {
        let request = http::Request::post(collection)
            .header("content-type", "application/json")
            .body(object.to_string().into_bytes())
            .expect("a request");
        self.client.request::<Value>(request).await.map(|_| ())
    }
}

fn authority(name: &str) -> Authority {
    Authority::create(name, now()).expect("a CA")
}

#[tokio::test]
async fn a_real_kube_apiserver_knows_users_and_decides() {
    let Some(program) = program() else {
        eprintln!("not tried: there is no kube-apiserver in OUTRIGGER_ASSETS");
        return;
    };
    // Whoever is first needs one provider for the process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let real = KubeApiserver::start(&program).await;
    let metadata = json!({"name": "users"});
    let rules = json!([{"apiGroups": [""], "resources": ["users"], "verbs": ["list"]}]);
    real.create(
        &format!("{RBAC}/clusterroles"),
        &json!({"metadata": metadata, "rules": rules}),
    )
    .await;
    let role = json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "users"});
    let jane = json!([{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane"}]);
    let binding = json!({"metadata": metadata, "roleRef": role, "subjects": jane});
    real.create(&format!("{RBAC}/clusterrolebindings"), &binding)
        .await;

    let cas = client_ca::initial(&real.client, &provider())
        .await
        .expect("published");
    let front_proxy = cas.request_header.as_ref().expect("a front proxy");
    assert_eq!(front_proxy.allowed_names, ["front-proxy-client"]);
    assert_eq!(front_proxy.headers.username, ["x-remote-user"]);
    let (publish, seen) = watch::channel(Arc::new(cas));
    tokio::spawn(client_ca::run(real.client.clone(), provider(), publish));
    let clock = Arc::new(|| u64::try_from(now()).unwrap_or_default() * 1000);
    let server = serve(
        real.client.clone(),
        seen,
        Anonymous::default(),
        clock,
        ChainConfig::default(),
    )
    .await;

    let mut direct = server.http1(None).await;
    let token = |token| [("authorization", token)];
    let selected = "/api/v1/users?labelSelector=app+in+%28a%29&fieldSelector=metadata.name%3Dx";
    let deadline = async {
        // RBAC sees a new binding after a moment, and a refusal is remembered for ten seconds.
        while direct
            .call(Method::GET, selected, &token("Bearer janes"), "")
            .await
            .code
            != 200
        {
            sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(60), deadline)
        .await
        .expect("jane may list users");
    let answer = direct
        .call(Method::GET, selected, &token("Bearer janes"), "")
        .await
        .json();
    assert_eq!(
        (&answer["name"], &answer["uid"]),
        (&json!("jane"), &json!("u-jane"))
    );
    assert_eq!(answer["groups"], json!(["developers", "system:authenticated"]));
    let refused = direct
        .call(Method::DELETE, "/api/v1/users", &token("Bearer janes"), "")
        .await;
    assert_eq!(refused.code, 403);
    let message = refused.json()["message"].as_str().unwrap_or_default().to_owned();
    assert!(
        message.starts_with("users is forbidden: User \"jane\" cannot deletecollection resource \"users\""),
        "{message}"
    );
    assert_eq!(
        direct
            .call(Method::GET, selected, &token("Bearer nobodys"), "")
            .await
            .code,
        401
    );
    let certificate = client_certificate(&real.proxies, "front-proxy-client", "x");
    let mut proxied = server.http2(Some(&certificate)).await;
    let code = async |proxied: &mut crate::harness::Client, user: &str| {
        let headers = [
            ("x-remote-user", user),
            ("x-remote-group", "system:authenticated"),
        ];
        proxied.call(Method::GET, selected, &headers, "").await.code
    };
    assert_eq!(code(&mut proxied, "jane").await, 200);
    assert_eq!(code(&mut proxied, "joe").await, 403);
}
