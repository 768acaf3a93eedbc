//! Backends and kube-apiserver that go and come back.

use super::kubectl::application;
use super::member::Member;
use outrigger_storage::testing::etcd_server::EtcdServer;
use std::time::Duration;
use tokio::time::Instant;

/// What has to be answered without a backend may take so long, on a busy machine.
const PROMPT: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_all_backends_down_others_go_on() {
    let mut member = Member::start(1).await;
    for namespace in ["team-a", "team-b", "empty"] {
        let _ = member.kubectl.ok(&["create", "namespace", namespace]);
    }
    let apps = ["team-a", "team-b"].map(|ns| application(ns, "web", 1)).concat();
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &apps);
    for etcd in &mut member.etcds {
        etcd.kill(0).await;
    }
    // Row 1 of the bugs of others: an error of the storage is no 404.
    let said = member.kubectl.fails(&["-n", "team-a", "get", "app", "web"], "");
    assert!(
        !said.contains("NotFound") && said.contains("ServiceUnavailable"),
        "{said}"
    );
    // Row 2: nothing is left out in silence.
    let said = member.kubectl.fails(&["get", "apps", "-A", "-o", "json"], "");
    assert!(said.contains("ServiceUnavailable"), "{said}");
    // Row 18: discovery stays up, and namespaces that have nothing of ours go.
    for path in [
        "/apis/paas.example.com/v1",
        "/apis/paas.example.com",
        "/openapi/v3/apis/paas.example.com/v1",
    ] {
        let began = Instant::now();
        let said = member.kubectl.ok(&["get", "--raw", path]);
        assert!(
            said.contains("paas.example.com") && began.elapsed() < PROMPT,
            "{path}: {:?}",
            began.elapsed()
        );
    }
    let available = [
        "get",
        "apiservice",
        "v1.paas.example.com",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Available\")].status}",
    ];
    assert_eq!(member.kubectl.ok(&available), "True");
    let _ = member
        .kubectl
        .ok(&["delete", "namespace", "empty", "--timeout=60s"]);
    // One that has something of ours waits, and goes when the backends are back.
    let _ = member
        .kubectl
        .ok(&["delete", "namespace", "team-b", "--wait=false"]);
    for etcd in &mut member.etcds {
        etcd.restart(0);
    }
    let _ = member
        .kubectl
        .eventually(&["get", "namespaces", "-o", "name"], |said| {
            !said.contains("team-b")
        });
    let _ = member
        .kubectl
        .eventually(&["-n", "team-a", "get", "app", "web", "-o", "name"], |said| {
            said.contains("web")
        });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_joins_and_kube_apiserver_restarts() {
    let mut member = Member::start(2).await;
    let _ = member.kubectl.ok(&["create", "namespace", "team-a"]);
    let _ = member
        .kubectl
        .ok_with(&["create", "-f", "-"], &application("team-a", "web", 1));
    let mut watch = member.kubectl.start(&["get", "apps", "-A", "-w", "-o", "name"]);
    let _ = watch.line(|line| line.contains("web"));

    let south = EtcdServer::start().await;
    member.join("south", &south);
    let _ = member.kubectl.eventually(
        &[
            "get",
            "workloadcluster",
            "south",
            "-o",
            "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}",
        ],
        |said| said == "True",
    );
    // The watch that was there sees what is written to the newcomer.
    let placement = "apiVersion: outrigger.dev/v1alpha1\nkind: NamespacePlacement\nmetadata: {name: team-s}\nspec: {cluster: south}\n";
    let _ = member.kubectl.ok_with(&["apply", "-f", "-"], placement);
    let _ = member.kubectl.ok(&["create", "namespace", "team-s"]);
    let _ = member.kubectl.eventually(
        &["get", "workloadcluster", "south", "-o", "jsonpath={.status.slot}"],
        |said| said == "3",
    );
    let _ = member
        .kubectl
        .ok_with(&["create", "-f", "-"], &application("team-s", "southern", 1));
    let _ = watch.line(|line| line.contains("southern"));

    member.control_plane.restart().await.expect("kube-apiserver");
    let _ = member
        .kubectl
        .eventually(&["get", "apps", "-A", "-o", "name"], |said| {
            said.lines().count() == 2
        });
    let _ = member
        .kubectl
        .ok_with(&["create", "-f", "-"], &application("team-s", "later", 1));
    member.etcds.push(south);
}
