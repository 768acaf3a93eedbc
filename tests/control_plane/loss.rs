//! Workload clusters that are lost, by the agreement of the replicas, taken offline, and come back: what clients see then.

use super::fleet::{condition, place};
use super::kubectl::application;
use super::member::{CLUSTERS, Member};
use http::Method;
use outrigger_storage::membership::report::LOSS_AFTER;
use outrigger_storage::testing::etcd_server::EtcdServer;
use outrigger_storage::testing::tcp_proxy::TcpProxy;
use outrigger_tests::raw_client::{Answer, Lines, RawClient};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// The cluster that is lost.
const WEST: &str = "west";
const APPS: &str = "/apis/paas.example.com/v1/applications";
const WESTERN: &str = "/apis/paas.example.com/v1/namespaces/team-w/applications";
const EASTERN: &str = "/apis/paas.example.com/v1/namespaces/team-e/applications";
const TABLE: &str = "application/json;as=Table;g=meta.k8s.io;v=v1";
const METADATA: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// How long anything that has to happen may take, on a busy machine.
const SOON: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
/// Writes that are under way when the answers stop.
const LATE: usize = 4;
/// A kind of its own version, of which nothing changes.
const DATABASES: &str = "/apis/paas.example.com/v1beta1/databases";
const DATABASE_CRD: &str = r#"apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: databases.paas.example.com, annotations: {outrigger.dev/distributed: "true"}}
spec:
  group: paas.example.com
  scope: Namespaced
  names: {plural: databases, singular: database, kind: Database, listKind: DatabaseList}
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, x-kubernetes-preserve-unknown-fields: true}}}}
"#;

/// Who leads.
const HOLDER: [&str; 7] = [
    "-n",
    "outrigger-system",
    "get",
    "lease",
    "outrigger",
    "-o",
    "jsonpath={.spec.holderIdentity}",
];

/// Who belongs to the fleet, as it was decided.
fn membership(member: &Member) -> Value {
    let path = "jsonpath={.data.membership\\.json}";
    let args = [
        "-n",
        "outrigger-system",
        "get",
        "configmap",
        "outrigger-fleet",
        "-o",
        path,
    ];
    serde_json::from_str(&member.kubectl.ok(&args)).expect("a membership")
}

/// The state of a cluster in it: `Active`, `Lost`, …
fn state(member: &Member, cluster: &str) -> String {
    let membership = membership(member);
    let members = membership["members"].as_array().expect("members");
    let of_cluster = members.iter().find(|m| m["name"] == cluster).expect("a member");
    match &of_cluster["state"] {
        Value::String(state) => state.clone(),
        other => {
            let state = other.as_object().and_then(|state| state.keys().next());
            state.cloned().unwrap_or_default()
        }
    }
}

pub(crate) async fn decided(member: &Member, cluster: &str, expect: &str) {
    let began = Instant::now();
    while state(member, cluster) != expect {
        assert!(
            began.elapsed() < SOON,
            "{cluster} is not {expect}: {}",
            membership(member)
        );
        sleep(POLL).await;
    }
}

fn number(cluster: &str) -> usize {
    let place = CLUSTERS.iter().position(|name| *name == cluster);
    place.expect("it is one of them")
}

fn set_state(member: &Member, state: &Value) {
    let patch = json!({"spec": state}).to_string();
    let args = ["patch", "workloadcluster", WEST, "--type=merge", "-p", &patch];
    let _ = member.kubectl.ok(&args);
}

fn apps_of_both() -> String {
    application("team-w", "western", 1) + &application("team-e", "eastern", 1)
}

/// Two replicas, and an application on two clusters.
async fn two_namespaces() -> Member {
    let member = Member::start(2).await;
    place(&member, "team-w", WEST);
    place(&member, "team-e", "east");
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &apps_of_both());
    member
}

fn object(name: &str) -> Value {
    json!({
        "apiVersion": "paas.example.com/v1", "kind": "Application", "metadata": {"name": name},
        "spec": {"image": "registry.example.com/web:1", "port": 8080, "replicas": 1, "tier": "standard", "owner": "team"},
    })
}

fn database(name: &str) -> Value {
    json!({"apiVersion": "paas.example.com/v1beta1", "kind": "Database", "metadata": {"name": name}, "spec": {"size": 1}})
}

fn version(object: &Value) -> String {
    let version = object["metadata"]["resourceVersion"].as_str();
    version.expect("a version").to_owned()
}

/// The version of a list of everything.
async fn version_of_all(client: &RawClient, path: &str) -> String {
    version(&client.get(path).await.expect("a list"))
}

async fn watch(client: &RawClient, path: &str, from: &str) -> Lines {
    let path = format!("{path}?watch=1&allowWatchBookmarks=true&resourceVersion={from}&timeoutSeconds=600");
    client.lines(&path).await.expect("a watch")
}

/// Reads a watch until it tells of this object. Nothing is deleted, and it does not end.
async fn sees(watch: &mut Lines, name: &str) -> Value {
    let read = async {
        loop {
            let event = watch.next().await.expect("it goes on").expect("it does not end");
            assert!(event["type"] != "DELETED" && event["type"] != "ERROR", "{event}");
            if event["object"]["metadata"]["name"] == name {
                return event["object"].clone();
            }
        }
    };
    timeout(SOON, read).await.expect("it is told")
}

/// Reads a watch until it ends with this code.
async fn ends_with(watch: &mut Lines, code: u16) {
    let read = async {
        while let Some(event) = watch.next().await.expect("it goes on") {
            assert_ne!(event["type"], "DELETED", "{event}");
            if event["type"] == "ERROR" {
                assert_eq!(event["object"]["code"], code, "{event}");
                return;
            }
        }
        panic!("it ended without an error");
    };
    timeout(SOON, read).await.expect("it ends");
}

async fn ask(client: &RawClient, method: Method, path: &str, accept: &str, body: Option<&Value>) -> Answer {
    let headers = [("accept", accept), ("content-type", "application/json")];
    let body = body.map(|body| serde_json::to_vec(body).expect("JSON"));
    client
        .request(method, path, &headers, body.unwrap_or_default())
        .await
        .expect("an answer")
}

/// Refused because of what was declared, and in no other way before: 503, the cluster's name, and when to come back.
async fn is_refused(
    client: &RawClient,
    method: Method,
    path: &str,
    accept: &str,
    body: Option<&Value>,
    because: &str,
) {
    let began = Instant::now();
    loop {
        let answer = ask(client, method.clone(), path, accept, body).await;
        let said = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, 503, "{method} {path}: {said}");
        assert!(answer.headers.contains_key("retry-after"), "{method} {path}");
        if said.contains(WEST) && said.contains(because) {
            return;
        }
        assert!(began.elapsed() < SOON, "{method} {path}: {said}");
        sleep(POLL).await;
    }
}

/// What lives on the cluster is refused.
async fn refuses_what_is_there(client: &RawClient, from: &str, because: &str) {
    let (one, all) = (format!("{WESTERN}/western"), WESTERN.to_owned());
    let watched = format!("{WESTERN}?watch=1&resourceVersion={from}&timeoutSeconds=5");
    for (method, path, body) in [
        (Method::GET, &one, None),
        (Method::GET, &all, None),
        (Method::GET, &watched, None),
        (Method::POST, &all, Some(object("new"))),
        (Method::DELETE, &one, None),
    ] {
        is_refused(client, method, path, "application/json", body.as_ref(), because).await;
    }
}

/// Everything works in the other namespace.
async fn works_elsewhere(client: &RawClient, name: &str) -> String {
    let created = client.create(EASTERN, &object(name)).await.expect("created");
    let path = format!("{EASTERN}/{name}");
    let patch = json!({"spec": {"replicas": 2}});
    let _ = client.merge_patch(&path, &patch).await.expect("patched");
    let _ = client.get(&path).await.expect("read");
    let list = client.get(EASTERN).await.expect("a list");
    let names = list["items"].as_array().expect("items").iter();
    assert!(names.map(|item| &item["metadata"]["name"]).any(|n| n == name));
    version(&created)
}

/// The table of what clients see, row by row; then another leader, and the return.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_see_while_a_cluster_is_lost() {
    let mut member = two_namespaces().await;
    let client = member.control_plane.client().await.expect("a client");
    let from = version_of_all(&client, APPS).await;
    let mut all = watch(&client, APPS, &from).await;
    let mut east = watch(&client, EASTERN, &from).await;
    // Connections stay open, and nobody answers.
    member.etcds[number(WEST)].pause(0, true).await;
    decided(&member, WEST, "Lost").await;

    refuses_what_is_there(&client, &from, "lost").await;
    let initial = format!(
        "{APPS}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan&timeoutSeconds=5"
    );
    let any = format!("{APPS}?resourceVersion=0");
    for (path, accept) in [
        (APPS, "application/json"),
        (APPS, METADATA),
        (&any, "application/json"),
        (&initial, "application/json"),
    ] {
        is_refused(&client, Method::GET, path, accept, None, "lost").await;
    }
    let _ = works_elsewhere(&client, "meanwhile").await;
    let _ = sees(&mut east, "meanwhile").await;
    let position = version(&sees(&mut all, "meanwhile").await);
    let mut resumed = watch(&client, APPS, &position).await;
    let _ = works_elsewhere(&client, "later").await;
    let position = version(&sees(&mut resumed, "later").await);
    // A namespace that comes now is placed on what is left.
    let _ = member.kubectl.ok(&["create", "namespace", "team-n"]);
    let app = application("team-n", "newcomer", 1);
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &app);
    let position = version(&sees(&mut resumed, "newcomer").await).max(position);
    // People see the rest, and that it is not all.
    let table = ask(&client, Method::GET, APPS, TABLE, None).await;
    let (warning, rows) = (
        table.headers.get("warning").cloned(),
        table.json().expect("a table"),
    );
    let warning = warning.expect("a warning");
    assert!(
        warning.to_str().is_ok_and(|said| said.contains(WEST)),
        "{warning:?}"
    );
    assert_eq!(rows["rows"].as_array().map(Vec::len), Some(4), "{rows}");
    let partial = version(&rows);
    for path in [
        "/apis/paas.example.com/v1",
        "/openapi/v3/apis/paas.example.com/v1",
    ] {
        let _ = client.get(path).await.expect("it needs no cluster");
    }
    condition(&member, WEST, "Lost", "True/Declared");
    condition(&member, WEST, "Ready", "False/Lost");
    let events = [
        "events",
        "-n",
        "default",
        "--for=workloadclusters.outrigger.dev/west",
        "-o",
        "jsonpath={.items[*].reason}",
    ];
    let _ = member.kubectl.eventually(&events, |said| said.contains("Lost"));

    // Another replica leads, and knows what to do.
    let leader = member.kubectl.ok(&HOLDER);
    let replica = member.replicas.iter_mut().find(|replica| replica.says(&leader));
    replica.expect("one of them leads").kill();
    let _ = member
        .kubectl
        .eventually(&HOLDER, |said| !said.is_empty() && said != leader);
    member.etcds[number(WEST)].pause(0, false).await;
    decided(&member, WEST, "Active").await;
    condition(&member, WEST, "Ready", "True/Answers");
    condition(&member, WEST, "Lost", "False/Reachable");

    // Nothing has changed there: whoever watches goes on, and hears of what comes.
    let client = member.control_plane.client().await.expect("a client");
    let mut all = watch(&client, APPS, &position).await;
    let _ = client.create(WESTERN, &object("back")).await.expect("created");
    let _ = sees(&mut all, "back").await;
    let list = client.get(APPS).await.expect("a list");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(6), "{list}");
    // Who began with rows that were not all begins anew.
    ends_with(&mut watch(&client, APPS, &partial).await, 410).await;
}

/// Nobody could lead in its place: it waits until the silent replica does not count any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_only_company_died_decides_when_it_is_gone() {
    let mut member = two_namespaces().await;
    let leader = member.kubectl.ok(&HOLDER);
    let other = member.replicas.iter_mut().find(|replica| !replica.says(&leader));
    other.expect("one of them follows").kill();
    member.etcds[number(WEST)].kill(0).await;
    decided(&member, WEST, "Lost").await;
    let leader = member.replicas.iter().find(|replica| replica.says(&leader));
    assert!(!leader.expect("it runs").says("another one shall lead"));
}

/// Writes that were under way when the answers stopped: they are there after the return, and no watch passes over them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_writes_are_told_after_the_return() {
    let mut member = Member::start_with(2, &["east"]).await;
    let west = EtcdServer::start().await;
    let proxy = TcpProxy::start(&west.client_url()).await;
    member.join_at(WEST, &proxy.http_url());
    condition(&member, WEST, "Ready", "True/Answers");
    place(&member, "team-w", WEST);
    place(&member, "team-e", "east");
    let _ = member.kubectl.ok_with(&["apply", "-f", "-"], DATABASE_CRD);
    let _ = member.kubectl.ok(&[
        "wait",
        "--for=condition=Distributed",
        "--timeout=60s",
        "crd/databases.paas.example.com",
    ]);
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &apps_of_both());
    let client = member.control_plane.client().await.expect("a client");
    let (apps, databases) = (
        version_of_all(&client, APPS).await,
        version_of_all(&client, DATABASES).await,
    );
    let mut apps = watch(&client, APPS, &apps).await;
    let mut others = watch(&client, DATABASES, &databases).await;

    let _ = client.create(WESTERN, &object("in-time")).await.expect("created");
    let _ = sees(&mut apps, "in-time").await;
    proxy.change(|b| b.stall_down = true);
    let late = (0..LATE).map(|i| {
        let (client, name) = (client.clone(), format!("late-{i}"));
        async move {
            let written = client.create(WESTERN, &object(&name)).await;
            assert!(written.is_err(), "nobody could know that it is written");
        }
    });
    futures::future::join_all(late).await;
    decided(&member, WEST, "Lost").await;
    let _ = works_elsewhere(&client, "meanwhile").await;
    let position = version(&sees(&mut apps, "meanwhile").await);
    let other = "/apis/paas.example.com/v1beta1/namespaces/team-e/databases";
    let _ = client.create(other, &database("first")).await.expect("created");
    let other = version(&sees(&mut others, "first").await);
    proxy.change(|b| b.stall_down = false);
    proxy.cut();
    decided(&member, WEST, "Active").await;
    condition(&member, WEST, "Ready", "True/Answers");

    let list = client.get(APPS).await.expect("a list");
    let items = list["items"].as_array().expect("items").iter();
    let names = items.filter_map(|item| item["metadata"]["name"].as_str());
    assert!(
        names.into_iter().any(|name| name.starts_with("late-")),
        "none of the writes was under way: {list}"
    );
    // Of this kind something was missed; of the other nothing.
    ends_with(&mut watch(&client, APPS, &position).await, 410).await;
    let mut others = watch(&client, DATABASES, &other).await;
    let western = "/apis/paas.example.com/v1beta1/namespaces/team-w/databases";
    let _ = client
        .create(western, &database("second"))
        .await
        .expect("created");
    let _ = sees(&mut others, "second").await;
    let mut anew = watch(&client, APPS, &version(&list)).await;
    let _ = client.create(WESTERN, &object("back")).await.expect("created");
    let _ = sees(&mut anew, "back").await;
    member.etcds.push(west);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_under_maintenance_is_waited_for() {
    let mut member = two_namespaces().await;
    set_state(&member, &json!({"state": "Maintenance"}));
    condition(&member, WEST, "Maintenance", "True/LossHeldBack");
    member.etcds[number(WEST)].kill(0).await;
    condition(&member, WEST, "Lost", "False/HeldBack");
    // Longer than it would take otherwise.
    sleep(LOSS_AFTER * 2).await;
    assert_eq!(state(&member, WEST), "Active");
    condition(&member, WEST, "Ready", "False/Unreachable");
    set_state(&member, &json!({"state": "Active"}));
    decided(&member, WEST, "Lost").await;
    condition(&member, WEST, "Maintenance", "/");
    member.etcds[number(WEST)].restart(0);
    decided(&member, WEST, "Active").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_taken_offline_and_comes_back() {
    let member = two_namespaces().await;
    let client = member.control_plane.client().await.expect("a client");
    let from = version_of_all(&client, APPS).await;
    let mut all = watch(&client, APPS, &from).await;
    let said = member.kubectl.fails(
        &[
            "patch",
            "workloadcluster",
            WEST,
            "--type=merge",
            "-p",
            "{\"spec\": {\"state\": \"Offline\"}}",
        ],
        "",
    );
    assert!(said.contains("confirmDataLoss"), "{said}");
    set_state(&member, &json!({"state": "Offline", "confirmDataLoss": WEST}));
    decided(&member, WEST, "Offline").await;
    condition(&member, WEST, "Offline", "True/AsWanted");
    condition(&member, WEST, "Ready", "False/Offline");
    refuses_what_is_there(&client, &from, "offline").await;
    let _ = works_elsewhere(&client, "meanwhile").await;
    let position = version(&sees(&mut all, "meanwhile").await);
    // Lists are whole without it.
    let began = Instant::now();
    loop {
        let list = client.get(APPS).await.expect("a list");
        let items = list["items"].as_array().expect("items").len();
        if items == 2 {
            break;
        }
        assert!(began.elapsed() < SOON, "{list}");
        sleep(POLL).await;
    }
    set_state(&member, &json!({"state": "Active", "confirmDataLoss": null}));
    decided(&member, WEST, "Active").await;
    condition(&member, WEST, "Ready", "True/Answers");
    condition(&member, WEST, "Offline", "/");
    let list = client.get(APPS).await.expect("a list");
    assert_eq!(list["items"].as_array().map(Vec::len), Some(3), "{list}");
    ends_with(&mut watch(&client, APPS, &position).await, 410).await;
    let _ = client.create(WESTERN, &object("back")).await.expect("created");
}

/// A cluster that was wiped is refused until somebody accepts that what it held is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_cluster_is_accepted_when_it_is_confirmed() {
    let mut member = two_namespaces().await;
    let client = member.control_plane.client().await.expect("a client");
    let from = version_of_all(&client, APPS).await;
    // What was seen of it is written down every 15 s.
    let seen = [
        "get",
        "workloadcluster",
        WEST,
        "-o",
        "jsonpath={.status.lastSeen}",
    ];
    let _ = member.kubectl.eventually(&seen, |said| said.contains("epoch"));
    // A confirmation that was there before is none.
    set_state(&member, &json!({"confirmDataLoss": WEST}));
    let etcd = &mut member.etcds[number(WEST)];
    etcd.kill(0).await;
    etcd.wipe(0);
    etcd.restart(0);
    condition(&member, WEST, "Restored", "True/ConfirmedBefore");
    condition(&member, WEST, "Ready", "False/Restored");
    decided(&member, WEST, "Lost").await;
    is_refused(&client, Method::GET, APPS, "application/json", None, WEST).await;
    set_state(&member, &json!({"confirmDataLoss": null}));
    condition(&member, WEST, "Restored", "True/AwaitsConfirmation");
    set_state(&member, &json!({"confirmDataLoss": WEST}));
    decided(&member, WEST, "Active").await;
    condition(&member, WEST, "Restored", "False/AsSeen");
    condition(&member, WEST, "Ready", "True/Answers");
    assert_eq!(membership(&member)["members"][2]["incarnation"], 1);

    let list = client.get(APPS).await.expect("a list");
    let names: Vec<&Value> = list["items"].as_array().expect("items").iter().collect();
    assert_eq!(names.len(), 1, "{list}");
    ends_with(&mut watch(&client, APPS, &from).await, 410).await;
    let mut all = watch(&client, APPS, &version(&list)).await;
    place(&member, "team-n", WEST);
    let app = application("team-n", "newcomer", 1);
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &app);
    let _ = sees(&mut all, "newcomer").await;
    let _ = works_elsewhere(&client, "later").await;
    let _ = sees(&mut all, "later").await;
    // Who owned the namespaces that were there went with the data: nobody claims them by guess.
    let app = application("team-w", "anew", 1);
    let said = member.kubectl.fails(&["create", "-f", "-"], &app);
    assert!(said.contains(WEST), "{said}");
    let _ = member
        .kubectl
        .ok(&["delete", "namespaceplacement", "team-w", "--timeout=60s"]);
    let began = Instant::now();
    while !member
        .kubectl
        .output(&["create", "-f", "-"], &app)
        .status
        .success()
    {
        assert!(began.elapsed() < SOON, "the namespace is not claimed anew");
        sleep(POLL).await;
    }
    let _ = sees(&mut all, "anew").await;
}

/// All at once: nobody is left to hear of it, and everything goes on when they are back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_clusters_are_lost_and_come_back() {
    let mut member = two_namespaces().await;
    let client = member.control_plane.client().await.expect("a client");
    let from = version_of_all(&client, APPS).await;
    for etcd in &mut member.etcds {
        etcd.kill(0).await;
    }
    let states = || CLUSTERS.map(|cluster| state(&member, cluster));
    let began = Instant::now();
    while !states().iter().any(|state| state == "Lost") {
        assert!(began.elapsed() < SOON, "{:?}", states());
        sleep(POLL).await;
    }
    let answer = ask(&client, Method::GET, APPS, "application/json", None).await;
    assert_eq!(answer.status, 503);
    for etcd in &mut member.etcds {
        etcd.restart(0);
    }
    for cluster in CLUSTERS {
        decided(&member, cluster, "Active").await;
        condition(&member, cluster, "Ready", "True/Answers");
    }
    let mut all = watch(&client, APPS, &from).await;
    let _ = works_elsewhere(&client, "later").await;
    let _ = client.create(WESTERN, &object("back")).await.expect("created");
    let _ = sees(&mut all, "back").await;
}

/// A replica that cannot reach what another one reaches is not ready; nothing is declared.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_cut_off_is_not_ready() {
    let mut member = Member::start_with(1, &["east"]).await;
    let west = EtcdServer::start().await;
    let proxy = TcpProxy::start(&west.client_url()).await;
    member.join_at(WEST, &proxy.http_url());
    condition(&member, WEST, "Ready", "True/Answers");
    place(&member, "team-w", WEST);
    let app = application("team-w", "western", 1);
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &app);
    // The first replica keeps its connections; who comes now gets none.
    proxy.change(|b| b.refuse = true);
    member.add_replica().await;
    let ready = async |count: usize| {
        let began = Instant::now();
        while member.balancer.ready() != count {
            assert!(
                began.elapsed() < SOON,
                "{} replicas are ready",
                member.balancer.ready()
            );
            sleep(POLL).await;
        }
    };
    ready(1).await;
    let health = async |path: &str| {
        let (certificate, key) = (
            member.control_plane.file("admin.crt"),
            member.control_plane.file("admin.key"),
        );
        let read = |path| std::fs::read_to_string(path).expect("a file");
        let address = member.replicas[1].address();
        let client = RawClient::connect_to(address, &read(certificate), &read(key)).await;
        let client = client.expect("it listens");
        let answer = ask(&client, Method::GET, path, "*/*", None).await;
        (
            answer.status.as_u16(),
            String::from_utf8_lossy(&answer.body).into_owned(),
        )
    };
    let (code, said) = health("/readyz?verbose").await;
    assert!(
        code == 500 && said.contains("[-]cluster-west failed") && said.contains("[+]cluster-east ok"),
        "{code}: {said}"
    );
    let (code, said) = health("/livez").await;
    assert_eq!(code, 200, "{said}");
    condition(&member, WEST, "Ready", "True/PartlyReachable");
    assert_eq!(state(&member, WEST), "Active");
    let said = member.kubectl.ok(&["get", "apps", "-A"]);
    assert!(said.contains("western"), "{said}");

    proxy.change(|b| b.refuse = false);
    ready(2).await;
    condition(&member, WEST, "Ready", "True/Answers");
    let (code, said) = health("/readyz?verbose").await;
    assert!(
        code == 200 && said.contains("[+]cluster-west ok"),
        "{code}: {said}"
    );
    member.etcds.push(west);
}
