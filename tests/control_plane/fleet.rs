//! Workload clusters that join an empty fleet, change their certificates, and leave.

use super::kubectl::application;
use super::loss;
use super::member::Member;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_certs::{Authority, LeafRequest, Usage};
use outrigger_storage::testing::etcd_server::{EtcdServer, EtcdServerOptions, EtcdTls};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NO_CLUSTER: &str = "no WorkloadCluster has joined yet";

/// `status/reason` of a condition.
pub(crate) fn condition(member: &Member, cluster: &str, kind: &str, until: &str) {
    let path = format!(
        "jsonpath={{.status.conditions[?(@.type==\"{kind}\")].status}}/{{.status.conditions[?(@.type==\"{kind}\")].reason}}"
    );
    let args = ["get", "workloadcluster", cluster, "-o", &path];
    let _ = member.kubectl.eventually(&args, |said| said == until);
}

pub(crate) fn place(member: &Member, namespace: &str, cluster: &str) {
    let placement = format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: NamespacePlacement\nmetadata: {{name: {namespace}}}\nspec: {{cluster: {cluster}}}\n"
    );
    let _ = member.kubectl.ok_with(&["apply", "-f", "-"], &placement);
    let _ = member.kubectl.ok(&["create", "namespace", namespace]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_clusters_is_ready_and_says_what_to_do() {
    let mut member = Member::start_with(1, &[]).await;
    for namespace in ["team-a", "empty"] {
        let _ = member.kubectl.ok(&["create", "namespace", namespace]);
    }
    let app = application("team-a", "web", 1);
    let said = member.kubectl.fails(&["create", "-f", "-"], &app);
    assert!(said.contains(NO_CLUSTER), "{said}");
    for args in [&["get", "apps", "-A"][..], &["get", "apps", "-A", "-o", "json"]] {
        let said = member.kubectl.fails(args, "");
        assert!(
            said.contains(NO_CLUSTER) && !said.contains("No resources"),
            "{args:?}: {said}"
        );
    }
    // What is certain is answered: nothing was ever placed there.
    let said = member.kubectl.ok(&["-n", "team-a", "get", "apps", "-o", "json"]);
    assert!(said.contains("\"items\": []"), "{said}");
    let said = member.kubectl.fails(&["-n", "team-a", "get", "app", "web"], "");
    assert!(said.contains("NotFound"), "{said}");
    let said = member.kubectl.ok(&["get", "--raw", "/apis/paas.example.com/v1"]);
    assert!(said.contains("applications"), "{said}");
    let _ = member
        .kubectl
        .ok(&["delete", "namespace", "empty", "--timeout=60s"]);

    let south = EtcdServer::start().await;
    member.join("south", &south);
    condition(&member, "south", "Ready", "True/Answers");
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &app);
    let said = member.kubectl.ok(&["get", "apps", "-A"]);
    assert!(said.contains("web"), "{said}");
    // Another replica finds a fleet.
    member.add_replica().await;
    let said = member.kubectl.ok(&["get", "apps", "-A"]);
    assert!(said.contains("web"), "{said}");
    member.etcds.push(south);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_gets_another_authority_under_a_watch() {
    let mut member = Member::start(2).await;
    let (old, new, stranger) = (certificates(), certificates(), certificates());
    let both = old.ca.clone() + &new.ca;
    let options = EtcdServerOptions {
        tls: Some(EtcdTls {
            ca: both.clone(),
            ..old.clone()
        }),
        ..EtcdServerOptions::default()
    };
    let mut south = EtcdServer::start_with(options).await;
    secret(&member, &old.ca, &old);
    let cluster = format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: WorkloadCluster\nmetadata: {{name: south}}\n\
         spec: {{endpoints: [\"{}\"], exclusive: true, secretRef: {{name: south}}}}\n",
        south.client_url()
    );
    let _ = member.kubectl.ok_with(&["apply", "-f", "-"], &cluster);
    condition(&member, "south", "Ready", "True/Answers");
    place(&member, "team-s", "south");
    let create = |name: &str| {
        let app = application("team-s", name, 1);
        let _ = member.kubectl.ok_with(&["create", "-f", "-"], &app);
    };
    create("first");
    let watch = ["-n", "team-s", "get", "apps", "-w", "-o", "name"];
    let mut watch = member.kubectl.start(&watch);
    let _ = watch.line(|line| line.contains("first"));

    // A certificate that the etcd refuses is told, and what is connected works on.
    secret(&member, &both, &stranger);
    condition(&member, "south", "Configured", "False/NotUsed");
    condition(&member, "south", "Ready", "True/SettingsNotUsed");
    create("meanwhile");
    let _ = watch.line(|line| line.contains("meanwhile"));
    secret(&member, &both, &new);
    condition(&member, "south", "Configured", "True/Used");
    condition(&member, "south", "Ready", "True/Answers");
    create("rotated");
    let _ = watch.line(|line| line.contains("rotated"));

    // The old authority is no longer trusted: whoever still had only the old key would be out.
    south.kill(0).await;
    south.set_tls(new.clone());
    south.restart(0);
    south.wait_until_ready().await.expect("it answers");
    let get = ["-n", "team-s", "get", "apps", "-o", "name"];
    let _ = member
        .kubectl
        .eventually(&get, |said| said.matches("application").count() == 3);
    create("afterwards");
    let _ = watch.line(|line| line.contains("afterwards"));
    condition(&member, "south", "Ready", "True/Answers");
    drop(watch);

    // Without its Secret no replica that starts can connect: that is a loss like every other.
    let _ = member
        .kubectl
        .ok(&["-n", "outrigger-system", "delete", "secret", "south"]);
    member.restart_replicas(Duration::from_secs(1)).await;
    loss::decided(&member, "south", "Lost").await;
    let said = member.kubectl.fails(&get, "");
    assert!(
        said.contains("ServiceUnavailable") && said.contains("south"),
        "{said}"
    );
    secret(&member, &both, &new);
    loss::decided(&member, "south", "Active").await;
    let _ = member
        .kubectl
        .eventually(&get, |said| said.contains("afterwards"));
    condition(&member, "south", "Ready", "True/Answers");
    member.etcds.push(south);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_leaves_when_nothing_lives_there() {
    let mut member = Member::start(2).await;
    place(&member, "team-w", "west");
    place(&member, "team-e", "east");
    let apps = application("team-w", "western", 1) + &application("team-e", "eastern", 1);
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &apps);
    let mut watch = member.kubectl.start(&["get", "apps", "-A", "-w", "-o", "name"]);
    let _ = watch.line(|line| line.contains("western"));

    // Draining: it serves, and gets nothing new.
    let state = |state: &str| {
        let patch = format!("{{\"spec\": {{\"state\": \"{state}\"}}}}");
        let args = ["patch", "workloadcluster", "west", "--type=merge", "-p", &patch];
        let _ = member.kubectl.ok(&args);
    };
    state("Draining");
    condition(&member, "west", "Drained", "False/OwnsNamespaces");
    condition(&member, "west", "Ready", "True/Draining");
    let mut apps = String::new();
    for i in 0..8 {
        let _ = member.kubectl.ok(&["create", "namespace", &format!("new-{i}")]);
        apps += &application(&format!("new-{i}"), "web", 1);
    }
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &apps);
    let west = [
        "get",
        "namespaceplacements",
        "-o",
        "jsonpath={.items[?(@.spec.cluster==\"west\")].metadata.name}",
    ];
    assert_eq!(member.kubectl.ok(&west), "team-w");
    state("Active");
    condition(&member, "west", "Ready", "True/Answers");
    condition(&member, "west", "Drained", "/");

    // Deleted: it stays for as long as it owns something.
    let _ = member
        .kubectl
        .ok(&["delete", "workloadcluster", "west", "--wait=false"]);
    condition(&member, "west", "Drained", "False/OwnsNamespaces");
    let app = ["-n", "team-w", "get", "app", "western", "-o", "name"];
    assert!(member.kubectl.ok(&app).contains("western"));
    let _ = member
        .kubectl
        .ok(&["delete", "namespace", "team-w", "--timeout=60s"]);
    let _ = member
        .kubectl
        .ok(&["wait", "--for=delete", "workloadcluster/west", "--timeout=120s"]);

    // Nobody needs it any more, not even the watch that knew it.
    let place_of_west = member.etcds.len() - 1;
    member.etcds[place_of_west].kill(0).await;
    let later = application("team-e", "later", 1);
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &later);
    let _ = watch.line(|line| line.contains("later"));
    let said = member.kubectl.ok(&["get", "apps", "-A", "-o", "name"]);
    assert_eq!(said.lines().count(), 10, "{said}");
    let said = member.kubectl.ok(&["get", "workloadclusters"]);
    assert_eq!(
        (said.matches("True").count(), said.contains("west")),
        (2, false),
        "{said}"
    );
}

/// The Secret of cluster `south`.
fn secret(member: &Member, ca: &str, of: &EtcdTls) {
    let [ca, certificate, key] = [ca, &of.client_cert, &of.client_key].map(|pem| STANDARD.encode(pem));
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: south, namespace: outrigger-system}}\ntype: kubernetes.io/tls\n\
         data: {{ca.crt: {ca}, tls.crt: {certificate}, tls.key: {key}}}\n"
    );
    let _ = member.kubectl.ok_with(&["apply", "-f", "-"], &secret);
}

/// An authority of an etcd, the etcd's certificate, and a client's.
fn certificates() -> EtcdTls {
    #[expect(clippy::disallowed_methods, reason = "certificates need the time of day")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let now = i64::try_from(now.as_secs()).expect("before the end of time");
    let authority = Authority::create("etcd-ca", now).expect("an authority");
    let issue = |common_name: &str, names: &[&str], usage| {
        let request = LeafRequest {
            common_name: common_name.to_owned(),
            organization: None,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            usage,
            days: 1,
        };
        authority.issue(&request, now).expect("a certificate")
    };
    let server = issue("etcd", &["127.0.0.1"], Usage::Server);
    let client = issue("outrigger", &[], Usage::Client);
    EtcdTls {
        ca: authority.certificate_pem().to_owned(),
        server_cert: server.certificate_pem,
        server_key: server.key_pem,
        client_cert: client.certificate_pem,
        client_key: client.key_pem,
    }
}
