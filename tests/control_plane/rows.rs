//! Bugs that others had, each by the number that it has in our list of them, on one control plane.
//!
//! Rows 1, 2 and 18 are in `faults.rs`, rows 7 and 19 in `programs.rs` too, row 26 in the tests of the API server. Row 29
//! is an etcd client whose RangeStream is not implemented by a proxy: we use none and read pages, so it cannot happen.

use super::kubectl::application;
use super::member::{CLUSTERS, Member};
use super::programs::{assert_no_failure, beginning, compare, entry, placements, start, truth};
use http::{Method, StatusCode};
use outrigger_tests::programs::{Program, Seen};
use outrigger_tests::raw_client::{Lines, RawClient};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

const APPS: &str = "/apis/paas.example.com/v1/applications";
/// How long an event may take.
const EVENT: Duration = Duration::from_secs(30);
/// Objects that a watcher does not read, and the bytes of each: more than all windows and buffers between.
const UNREAD_OBJECTS: usize = 120;
const UNREAD_BYTES: usize = 100_000;
/// How long a write may take beside such a watcher.
const WRITE: Duration = Duration::from_secs(5);
/// What a replica may have in memory, a debug build too.
const MEMORY_BYTES_MAX: u64 = 192 << 20;

fn collection(namespace: &str) -> String {
    format!("/apis/paas.example.com/v1/namespaces/{namespace}/applications")
}

fn object(name: &str) -> Value {
    json!({
        "apiVersion": "paas.example.com/v1", "kind": "Application", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"image": "registry.example.com/web:1", "replicas": 1, "owner": "team"},
    })
}

fn version(object: &Value) -> u64 {
    let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    version.parse().unwrap_or_else(|e| panic!("{object}: {e}"))
}

fn items(list: &Value) -> BTreeMap<String, u64> {
    list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(entry)
        .collect()
}

async fn put(client: &RawClient, path: &str, object: &Value) -> StatusCode {
    let body = serde_json::to_vec(object).expect("JSON");
    let headers = [("content-type", "application/json")];
    let answer = client.request(Method::PUT, path, &headers, body).await;
    answer.expect("an answer").status
}

/// The next event that is no bookmark.
async fn event(lines: &mut Lines) -> Value {
    loop {
        let line = timeout(EVENT, lines.next()).await.expect("an event comes");
        let line = line.expect("a whole watch").expect("it does not end");
        if line["type"] != "BOOKMARK" {
            return line;
        }
    }
}

/// A client of each replica, past the aggregator.
async fn replicas(member: &Member) -> Vec<RawClient> {
    let read = |name: &str| fs::read_to_string(member.control_plane.file(name)).expect("a file");
    let (certificate, key) = (read("admin.crt"), read("admin.key"));
    let mut clients = Vec::new();
    for replica in &member.replicas {
        let client = RawClient::connect_to(replica.address(), &certificate, &key).await;
        clients.push(client.expect("a replica"));
    }
    clients
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_the_bugs_of_others() {
    let mut member = Member::start(2).await;
    let client = member.control_plane.client().await.expect("a client");
    rows_5_and_6_an_empty_store_has_a_version_and_an_end_of_initial_events(&member, &client).await;
    row_4_a_kind_that_most_backends_do_not_know(&member, &client).await;
    for i in 1..6 {
        let namespace = format!("team-{i}");
        let _ = member.kubectl.ok(&["create", "namespace", &namespace]);
        let _ = member
            .kubectl
            .ok_with(&["create", "-f", "-"], &application(&namespace, "first", 1));
    }
    row_15_versions_that_are_none(&client).await;
    row_16_lists_gets_and_events_agree(&client).await;
    row_17_versions_are_numbers_below_2_to_63(&client).await;
    row_27_the_certificate_is_verified(&member);
    row_14_updates_between_pages(&client).await;
    row_24_tables_are_those_of_kube_apiserver(&member);
    let direct = replicas(&member).await;
    row_9_what_one_replica_wrote_another_watches(&direct).await;
    row_8_a_deletion_while_nobody_watched(&direct).await;
    row_13_a_stale_put_is_a_conflict(&direct).await;
    row_28_lists_that_may_be_old_cost_no_round(&direct).await;
    row_11_a_watcher_that_does_not_read(&member, &direct).await;
    row_3_a_backend_that_is_gone_slows_nobody_else(&mut member, &client).await;
    row_25_a_new_kind_under_load(&member).await;
    rows_7_and_10_a_replica_is_killed_after_it_committed(&mut member, &client).await;
    row_20_the_server_needs_no_controller(&member).await;
}

/// Row 5: an empty list without a version, or with the same one always. Row 6: `sendInitialEvents` ignored, or no end of
/// initial events on an empty store.
async fn rows_5_and_6_an_empty_store_has_a_version_and_an_end_of_initial_events(
    member: &Member,
    client: &RawClient,
) {
    let list = client.get(APPS).await.expect("a list");
    assert!(items(&list).is_empty() && version(&list) > 0, "{list}");
    let kubeconfig = member.control_plane.kubeconfig();
    let informer = start(&kubeconfig, "informer", 1).await;
    let watcher = start(&kubeconfig, "retry-watcher", 1).await;
    let _ = member.kubectl.ok(&["create", "namespace", "team-0"]);
    let created = client.create(&collection("team-0"), &object("first")).await;
    let created = version(&created.expect("created"));
    // The same on a store with something in it.
    let later = start(&kubeconfig, "dynamic-informer", 1).await;
    for program in [informer, watcher, later] {
        program.saw(1, created).await;
        let seen = program.stop().await;
        assert_no_failure(&seen, |_| false);
        if seen.name != "retry-watcher" {
            assert_eq!(
                (seen.requests("watch-list"), seen.requests("list")),
                (1, 0),
                "{} did not take its objects from a watch",
                seen.name
            );
        }
    }
    let next = client.get(APPS).await.expect("a list");
    assert!(version(&next) > version(&list), "{list} {next}");
}

/// Row 4: the 404 of one shard wedges informers. One backend has an Application, the others have never heard of them.
async fn row_4_a_kind_that_most_backends_do_not_know(member: &Member, client: &RawClient) {
    assert_eq!(placements(member).len(), 1);
    let list = client.get(APPS).await.expect("a list");
    assert_eq!(items(&list).len(), 1, "{list}");
}

/// Row 15: a malformed version is taken for "now". (The codes are kube-apiserver's.)
async fn row_15_versions_that_are_none(client: &RawClient) {
    for bad in ["abc", "1.5", "-1", "0x10", "18446744073709551616", "1,2"] {
        for (verb, code) in [("", 400), ("watch=1&", 422)] {
            let path = format!("{APPS}?{verb}resourceVersion={bad}");
            let answer = client.request(Method::GET, &path, &[], Vec::new()).await;
            assert_eq!(answer.expect("an answer").status.as_u16(), code, "{path}");
        }
    }
}

/// Row 16: items of lists, gets and events disagree about an object's version.
async fn row_16_lists_gets_and_events_agree(client: &RawClient) {
    let list = client.get(APPS).await.expect("a list");
    let path = format!("{APPS}?watch=1&resourceVersion={}", version(&list));
    let mut watch = client.lines(&path).await.expect("a watch");
    let created = client.create(&collection("team-1"), &object("agreed")).await;
    let created = version(&created.expect("created"));
    let watched = version(&event(&mut watch).await["object"]);
    let read = client.get(&format!("{}/agreed", collection("team-1"))).await;
    let read = version(&read.expect("read"));
    let listed = items(&client.get(APPS).await.expect("a list"))["team-1/agreed"];
    let initial = format!("{APPS}?watch=1&fieldSelector=metadata.name%3Dagreed");
    let mut initial = client.lines(&initial).await.expect("a watch");
    let initial = version(&event(&mut initial).await["object"]);
    assert_eq!([watched, read, listed, initial], [created; 4]);
}

/// Row 17: versions that are too large or no decimal number make caches of clients panic. (The programs parse every
/// version that they see in the same way.)
async fn row_17_versions_are_numbers_below_2_to_63(client: &RawClient) {
    let list = client.get(APPS).await.expect("a list");
    let mut versions: Vec<u64> = items(&list).into_values().collect();
    versions.push(version(&list));
    assert!(
        versions.iter().all(|v| (1..=i64::MAX as u64).contains(v)),
        "{versions:?}"
    );
    // Whatever a client makes of them: an answer, and never more than it may.
    for wanted in [
        u64::MAX,
        i64::MAX as u64,
        i64::MAX as u64 - 1,
        1 << 62,
        version(&list) + (1 << 27),
        1,
    ] {
        let path = format!("{APPS}?resourceVersion={wanted}&limit=1");
        let answer = client.request(Method::GET, &path, &[], Vec::new()).await;
        let status = answer.expect("an answer").status.as_u16();
        assert!(matches!(status, 200 | 400 | 410 | 504), "{wanted}: {status}");
        assert!(wanted < 1 << 62 || status != 200, "{wanted} is in the future");
    }
}

/// Row 27: the APIService skips the verification of our certificate.
fn row_27_the_certificate_is_verified(member: &Member) {
    let said = member
        .kubectl
        .ok(&["get", "apiservice", "v1.paas.example.com", "-o", "json"]);
    let service: Value = serde_json::from_str(&said).expect("JSON");
    assert!(service["spec"]["insecureSkipTLSVerify"].is_null(), "{service}");
    assert!(
        service["spec"]["caBundle"]
            .as_str()
            .is_some_and(|b| b.len() > 100),
        "{service}"
    );
}

/// Row 14: pages leave out what is updated between them, or show it twice.
async fn row_14_updates_between_pages(client: &RawClient) {
    let before = items(&client.get(APPS).await.expect("a list"));
    let (mut seen, mut token) = (Vec::new(), String::new());
    for page in 0.. {
        let path = format!("{APPS}?limit=2&continue={token}");
        let list = client.get(&path).await.expect("a page");
        seen.extend(list["items"].as_array().expect("items").iter().map(entry));
        token = list["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if token.is_empty() {
            break;
        }
        if page == 0 {
            let patch = json!({"spec": {"replicas": 9}});
            for namespace in ["team-0", "team-4", "team-5"] {
                let path = format!("{}/first", collection(namespace));
                client.merge_patch(&path, &patch).await.expect("patched");
            }
            client
                .create(&collection("team-5"), &object("between"))
                .await
                .expect("created");
            client
                .delete(&format!("{}/first", collection("team-3")))
                .await
                .expect("deleted");
        }
    }
    assert_eq!(seen.len(), before.len(), "{seen:?}");
    assert_eq!(seen.into_iter().collect::<BTreeMap<_, _>>(), before);
    client
        .create(&collection("team-3"), &object("first"))
        .await
        .expect("created");
}

/// Row 24: AGE, printer columns, tables that are not those of kube-apiserver. The same kind is in both, under two groups.
fn row_24_tables_are_those_of_kube_apiserver(member: &Member) {
    const GROUPS: [&str; 2] = ["paas.example.com", "plain.example.com"];
    let kubectl = &member.kubectl;
    let crd = include_str!("../../deploy/examples/application-crd.yaml");
    let crd = crd.replace(GROUPS[0], GROUPS[1]);
    let crd = crd.replace(
        "outrigger.dev/distributed: \"true\"",
        "example.com/plain: \"true\"",
    );
    let crd = crd.replace("[app, apps]", "[plain]");
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &crd);
    let plain = format!("crd/applications.{}", GROUPS[1]);
    let _ = kubectl.ok(&["wait", "--for=condition=Established", "--timeout=30s", &plain]);
    let _ = kubectl.ok(&["create", "namespace", "tables"]);
    let _ = kubectl.eventually(&["api-resources", "--api-group", GROUPS[1]], |said| {
        said.contains("applications")
    });
    let both = |ask: &[&str]| {
        GROUPS.map(|group| {
            let resource = format!("applications.{group}");
            let ask: Vec<&str> = ask
                .iter()
                .map(|word| if *word == "APPS" { &resource } else { *word })
                .collect();
            kubectl.ok(&ask).replace(group, "GROUP")
        })
    };
    // In the same second, so that they are of one age.
    let create = || {
        for group in GROUPS {
            let apps = [("web", 1), ("worker", 12)].map(|(name, n)| application("tables", name, n));
            let apps = apps.concat().replace(GROUPS[0], group);
            let _ = kubectl.ok_with(&["create", "-f", "-"], &apps);
        }
        let born = [
            "-n",
            "tables",
            "get",
            "APPS",
            "-o",
            "jsonpath={.items[*].metadata.creationTimestamp}",
        ];
        let [ours, theirs] = both(&born);
        let one: BTreeSet<&str> = ours.split(' ').chain(theirs.split(' ')).collect();
        one.len() == 1
    };
    for _ in 0..20 {
        if create() {
            break;
        }
        let _ = both(&["-n", "tables", "delete", "APPS", "--all"]);
    }
    let status = json!({"status": {"endpoint": "https://web", "conditions": [{
        "type": "Ready", "status": "True", "reason": "Running", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let status = status.to_string();
    let patch = [
        "-n",
        "tables",
        "patch",
        "APPS",
        "web",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ];
    let _ = both(&patch);
    for ask in [
        &["-n", "tables", "get", "APPS"][..],
        &["-n", "tables", "get", "APPS", "web"],
        &["-n", "tables", "get", "APPS", "-o", "wide"],
        &["-n", "tables", "get", "APPS", "--show-labels"],
        &[
            "-n",
            "tables",
            "get",
            "APPS",
            "-L",
            "app",
            "--sort-by=.metadata.name",
        ],
        &["-n", "tables", "get", "APPS", "-o", "name"],
        &["get", "APPS", "-A", "-l", "app=worker", "--no-headers"],
    ] {
        // A second may pass between the two.
        let mut said = both(ask);
        for _ in 0..20 {
            if said[0] == said[1] {
                break;
            }
            said = both(ask);
        }
        assert_eq!(said[0], said[1], "{ask:?}");
        assert!(
            said[0].contains("worker") || ask.contains(&"web"),
            "{ask:?}: {}",
            said[0]
        );
    }
    let _ = both(&["-n", "tables", "delete", "APPS", "--all"]);
}

/// Row 9: the writes of another replica are not seen.
async fn row_9_what_one_replica_wrote_another_watches(direct: &[RawClient]) {
    for (writer, reader) in [(0, 1), (1, 0)] {
        let list = direct[reader].get(APPS).await.expect("a list");
        let path = format!("{APPS}?watch=1&resourceVersion={}", version(&list));
        let mut watch = direct[reader].lines(&path).await.expect("a watch");
        let name = format!("by-{writer}");
        let created = direct[writer].create(&collection("team-2"), &object(&name)).await;
        let created = created.expect("created");
        let seen = event(&mut watch).await;
        assert_eq!((&seen["type"], &seen["object"]), (&json!("ADDED"), &created));
        let read = direct[reader]
            .get(&format!("{}/{name}", collection("team-2")))
            .await;
        assert_eq!(read.expect("read"), created);
    }
}

/// Row 8: who resumes gets ADDED again, and no deletion.
async fn row_8_a_deletion_while_nobody_watched(direct: &[RawClient]) {
    let path = format!("{}/by-0", collection("team-2"));
    let list = direct[0].get(APPS).await.expect("a list");
    let from = format!("{APPS}?watch=1&resourceVersion={}", version(&list));
    drop(direct[0].lines(&from).await.expect("a watch"));
    let deleted = direct[0].delete(&path).await.expect("deleted");
    for client in direct {
        let mut watch = client.lines(&from).await.expect("a watch");
        let seen = event(&mut watch).await;
        assert_eq!(
            (&seen["type"], version(&seen["object"])),
            (&json!("DELETED"), version(&deleted))
        );
        assert_eq!(seen["object"]["metadata"]["name"], "by-0");
    }
}

/// Row 13: an optimistic lock is lost.
async fn row_13_a_stale_put_is_a_conflict(direct: &[RawClient]) {
    let path = format!("{}/by-1", collection("team-2"));
    let mut first = direct[0].get(&path).await.expect("read");
    let mut second = direct[1].get(&path).await.expect("read");
    first["spec"]["replicas"] = json!(5);
    second["spec"]["replicas"] = json!(6);
    assert_eq!(put(&direct[0], &path, &first).await, StatusCode::OK);
    assert_eq!(put(&direct[1], &path, &second).await, StatusCode::CONFLICT);
    assert_eq!(put(&direct[0], &path, &second).await, StatusCode::CONFLICT);
    let now = direct[1].get(&path).await.expect("read");
    assert_eq!(now["spec"]["replicas"], 5);
}

/// Row 28: no list is answered from a cache, since modern ones name a version. We have none; what a list may cost is a
/// round of ticks, and lists that may be old cost no round.
async fn row_28_lists_that_may_be_old_cost_no_round(direct: &[RawClient]) {
    const LISTS: usize = 30;
    let ticks = async || {
        let mut ticks = 0.0;
        for client in direct {
            let answer = client.request(Method::GET, "/metrics", &[], Vec::new()).await;
            let answer = answer.expect("metrics");
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            let lines = text
                .lines()
                .filter(|line| line.starts_with("outrigger_backend_ticks_total{"));
            ticks += lines
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum::<f64>();
        }
        ticks
    };
    let list = direct[0].get(APPS).await.expect("a list");
    let known = version(&list);
    let mut spent = Vec::new();
    for query in [
        String::new(),
        "?resourceVersion=0".to_owned(),
        format!("?resourceVersion={known}&resourceVersionMatch=NotOlderThan"),
        format!("?resourceVersion={known}&resourceVersionMatch=Exact"),
    ] {
        let before = ticks().await;
        for _ in 0..LISTS {
            let _ = direct[0].get(&format!("{APPS}{query}")).await.expect("a list");
        }
        spent.push(ticks().await - before);
    }
    assert!(spent[0] >= LISTS as f64, "each new list makes a round: {spent:?}");
    assert!(spent[1..].iter().all(|old| old * 4.0 < spent[0]), "{spent:?}");
}

/// Row 11: a watcher that does not read blocks writers, fills the memory or loses events.
async fn row_11_a_watcher_that_does_not_read(member: &Member, direct: &[RawClient]) {
    let list = direct[0].get(APPS).await.expect("a list");
    let mut at = version(&list);
    let path = |at: u64| format!("{}?watch=1&resourceVersion={at}", collection("team-4"));
    let mut unread = direct[0].lines(&path(at)).await.expect("a watch");
    let writer = &replicas(member).await[0];
    let filling = "x".repeat(UNREAD_BYTES);
    let mut names = Vec::new();
    for i in 0..UNREAD_OBJECTS {
        let mut large = object(&format!("large-{i:03}"));
        large["metadata"]["annotations"] = json!({"filling": filling});
        let began = Instant::now();
        let created = writer
            .create(&collection("team-4"), &large)
            .await
            .expect("created");
        assert!(began.elapsed() < WRITE, "a write took {:?}", began.elapsed());
        names.push((created["metadata"]["name"].clone(), version(&created)));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", member.replicas[0].pid())).expect("it runs");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let peak = peak.expect("its peak") * 1024;
    assert!(peak < MEMORY_BYTES_MAX, "{} MiB", peak >> 20);
    // It reads at last: everything in order, or an end after which it goes on.
    let mut seen = Vec::new();
    while seen.len() < names.len() {
        let line = timeout(EVENT, unread.next()).await.expect("events, or the end");
        match line.ok().flatten() {
            Some(line) if line["type"] == "BOOKMARK" => {}
            Some(line) => {
                assert_eq!(line["type"], "ADDED", "{}", line["type"]);
                at = version(&line["object"]);
                seen.push((line["object"]["metadata"]["name"].clone(), at));
            }
            None => unread = direct[0].lines(&path(at)).await.expect("a watch"),
        }
    }
    assert_eq!(seen, names);
    writer
        .delete(&format!("{}?labelSelector=app!=first", collection("team-4")))
        .await
        .expect("deleted");
}

/// Row 3: one bad member fails or blocks all.
async fn row_3_a_backend_that_is_gone_slows_nobody_else(member: &mut Member, client: &RawClient) {
    const READS: usize = 20;
    let placements = placements(member);
    let gone = CLUSTERS
        .iter()
        .position(|c| Some(*c) == placements.get("team-1").map(String::as_str));
    let gone = gone.expect("team-1 has a cluster");
    let mut teams = placements.iter().filter(|(ns, _)| ns.starts_with("team-"));
    let elsewhere = teams.find(|(_, cluster)| *cluster != CLUSTERS[gone]);
    let (elsewhere, _) = elsewhere.expect("a namespace on another cluster");
    let path = collection(elsewhere);
    let measure = async || {
        let mut times = Vec::new();
        for i in 0..READS {
            let began = Instant::now();
            let _ = client.get(&path).await.expect("a list");
            let patch = json!({"metadata": {"labels": {"read": i.to_string()}}});
            let first = format!("{path}/first");
            client.merge_patch(&first, &patch).await.expect("a write");
            times.push(began.elapsed());
        }
        times.sort();
        times[READS / 2]
    };
    let before = measure().await;
    member.etcds[gone].kill(0).await;
    let meanwhile = measure().await;
    let there = client
        .request(Method::GET, &collection("team-1"), &[], Vec::new())
        .await;
    assert_eq!(there.expect("an answer").status, StatusCode::SERVICE_UNAVAILABLE);
    member.etcds[gone].restart(0);
    assert!(
        meanwhile < before * 3 + Duration::from_millis(50),
        "{before:?} before, {meanwhile:?} with a backend gone"
    );
    let _ = member
        .kubectl
        .eventually(&["get", "apps", "-A", "-o", "name"], |said| {
            said.contains("first") && !said.contains("rror")
        });
}

/// Row 25: a new kind restarts the server.
async fn row_25_a_new_kind_under_load(member: &Member) {
    let pids: Vec<u32> = member.replicas.iter().map(|replica| replica.pid()).collect();
    let kubeconfig = member.control_plane.kubeconfig();
    let watcher = start(&kubeconfig, "retry-watcher", 4).await;
    let writer = Program::start(
        &kubeconfig,
        "writer",
        &["--rate=50", "--namespaces=team-0,team-1"],
    );
    writer.synced(1).await;
    let crd = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\n\
        metadata: {name: databases.paas.example.com, annotations: {outrigger.dev/distributed: \"true\"}}\n\
        spec:\n  group: paas.example.com\n  scope: Namespaced\n  names: {plural: databases, singular: database, kind: Database}\n  \
        versions:\n  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}\n";
    let _ = member.kubectl.ok_with(&["apply", "-f", "-"], crd);
    let _ = member.kubectl.ok(&[
        "wait",
        "--for=condition=Distributed",
        "--timeout=60s",
        "crd/databases.paas.example.com",
    ]);
    let database =
        "apiVersion: paas.example.com/v1\nkind: Database\nmetadata: {name: main, namespace: team-0}\n";
    let _ = member
        .kubectl
        .eventually(&["api-resources"], |said| said.contains("databases"));
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], database);
    assert_no_failure(&writer.stop().await, |_| false);
    let seen = watcher.stop().await;
    assert_no_failure(&seen, |_| false);
    assert_eq!(seen.requests("watch"), 4, "a watch has ended");
    let now: Vec<u32> = member.replicas.iter().map(|replica| replica.pid()).collect();
    assert_eq!(now, pids);
}

/// Row 7: versions that are not in the order of the commits, lists that do not hold what their version says. Row 10: what
/// was committed is told to nobody, because who had to tell it was killed in between.
async fn rows_7_and_10_a_replica_is_killed_after_it_committed(member: &mut Member, client: &RawClient) {
    let kubeconfig = member.control_plane.kubeconfig();
    let args = ["--rate=100", "--workers=3", "--namespaces=team-0,team-1,team-2"];
    let writer = Program::start(&kubeconfig, "writer", &args);
    writer.synced(1).await;
    sleep(Duration::from_secs(1)).await;
    // They list while others write.
    let watcher = start(&kubeconfig, "retry-watcher", 6).await;
    let informer = start(&kubeconfig, "informer", 2).await;
    member.replicas[0].kill();
    sleep(Duration::from_secs(2)).await;
    member.replicas[0].start_again();
    member.replicas[0].ready_behind(&member.balancer, 2).await;
    // What was under way at the killed one may have failed.
    let written = writer.stop().await;
    let last = client.create(&collection("team-2"), &object("last")).await;
    let last = version(&last.expect("created"));
    let list = items(&client.get(APPS).await.expect("a list"));
    watcher.saw(6, last).await;
    informer.saw(2, last).await;
    let seen = [watcher.stop().await, informer.stop().await];
    let from = seen.iter().map(beginning).max().unwrap_or_default();
    let acknowledged = Seen {
        name: written.name.clone(),
        lines: written
            .lines
            .iter()
            .filter(|line| line.kind == "wrote" && line.version() > from)
            .cloned()
            .collect(),
    };
    let truth = truth(&seen, from, &acknowledged);
    for seen in &seen {
        compare(seen, from, &truth, &list);
    }
    for instance in 0..6 {
        assert_eq!(
            replayed(&seen[0], instance),
            list,
            "the list of watcher {instance} and its events"
        );
    }
}

/// What a list and the events since its version make together.
fn replayed(seen: &Seen, instance: usize) -> BTreeMap<String, u64> {
    let mut objects = BTreeMap::new();
    for line in seen.lines.iter().filter(|line| line.instance == instance) {
        match (line.kind.as_str(), line.r#type.as_str()) {
            ("event", "DELETED") => {
                let gone = objects.remove(&line.key());
                assert!(gone.is_some(), "{line:?} was not there");
            }
            ("event", "ADDED") => {
                let before = objects.insert(line.key(), line.version());
                assert_eq!(before, None, "{line:?} was there");
            }
            ("event", _) => {
                let before = objects.insert(line.key(), line.version());
                assert!(before.is_some(), "{line:?} was not there");
            }
            ("listed", _) => {
                objects.insert(line.key(), line.version());
            }
            _ => {}
        }
    }
    objects
}

/// Row 20: the API server lives and dies with a controller. Nobody leads here for a while.
async fn row_20_the_server_needs_no_controller(member: &Member) {
    let lease = ["-n", "outrigger-system", "lease", "outrigger"];
    let patch = r#"{"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 3600}}"#;
    let _ = member
        .kubectl
        .ok(&[&["patch"], &lease[..], &["--type=merge", "-p", patch]].concat());
    for (i, client) in replicas(member).await.iter().enumerate() {
        let name = format!("led-by-nobody-{i}");
        let created = client.create(&collection("team-3"), &object(&name)).await;
        let created = created.expect("created");
        let read = client.get(&format!("{}/{name}", collection("team-3"))).await;
        assert_eq!(read.expect("read"), created);
    }
    let holder = [&["get"], &lease[..], &["-o", "jsonpath={.spec.holderIdentity}"]].concat();
    assert_eq!(member.kubectl.ok(&holder), "somebody-else");
    let _ = member.kubectl.ok(&[&["delete"], &lease[..]].concat());
}
