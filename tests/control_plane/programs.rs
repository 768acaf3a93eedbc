//! Programs as users have them, on the current client-go, controller-runtime and kube-rs, through faults: no request
//! fails that need not, no change is lost or comes twice, and every cache ends equal to a list.

use super::kube_rs::{self, KubeRs};
use super::kubectl::application;
use super::loss;
use super::member::{CLUSTERS, Member};
use super::rotation;
use outrigger_tests::programs::{Changes, Line, Program, SETTLED, Seen, now_millis};
use outrigger_tests::raw_client::RawClient;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const APPS: &str = "/apis/paas.example.com/v1/applications";
const NAMESPACES: usize = 6;
const FINALIZER: &str = "programs.example.com/controller";
/// The APIService; its uid says that it is still the one that was there first.
const APISERVICE_UID: [&str; 5] = [
    "get",
    "apiservice",
    "v1.paas.example.com",
    "-o",
    "jsonpath={.metadata.uid}",
];
/// How long the programs work between two faults.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a backend is gone: less than what a loss takes to be declared.
const OUTAGE: Duration = Duration::from_secs(4);
/// How long clients may still meet errors after kube-apiserver is ready again: it looks at its APIServices first, and
/// client-go waits before it tries again.
const AFTER_KUBE_APISERVER: Duration = Duration::from_secs(10);
/// Requests a second in the test of the rolling restart, and who watches.
const RATE: &str = "--rate=200";
const WATCHES: [(&str, usize); 4] = [
    ("informer", 15),
    ("dynamic-informer", 10),
    ("metadata-informer", 5),
    ("retry-watcher", 20),
];

/// A time in which some failures are no wonder.
struct Window {
    from: u64,
    to: u64,
    /// Only requests to these namespaces, or to all at once, may fail; `None`: every request.
    namespaces: Option<Vec<String>>,
}

impl Window {
    fn excuses(&self, line: &Line) -> bool {
        let is_then = (self.from..=self.to).contains(&line.time);
        let Some(namespaces) = &self.namespaces else {
            return is_then;
        };
        let of = |namespace: &String| {
            line.path.contains(&format!("/namespaces/{namespace}/")) || line.namespace == *namespace
        };
        is_then && (line.path == APPS || namespaces.iter().any(of))
    }
}

/// Two who write one object meet, and one of them is told: so it has to be.
fn is_conflict(line: &Line) -> bool {
    let is_change = matches!(line.method.as_str(), "PUT" | "PATCH" | "DELETE");
    let is_said = ["object has been modified", "\" not found"]
        .iter()
        .any(|said| line.message.contains(said));
    (line.kind == "status" && matches!(line.code, 404 | 409) && is_change) || is_said
}

/// Waits until nothing changes any more: every object has its finalizers and its status; returns name → version.
async fn settled(client: &RawClient) -> BTreeMap<String, u64> {
    let start = Instant::now();
    loop {
        let list = client.get(APPS).await.expect("a list");
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let open: Vec<&Value> = items.iter().filter(|item| !is_settled(item)).collect();
        if open.is_empty() {
            return items.iter().map(entry).collect();
        }
        assert!(
            start.elapsed() < SETTLED,
            "{} objects are not settled: {}",
            open.len(),
            open[0]
        );
        sleep(Duration::from_millis(300)).await;
    }
}

fn is_settled(item: &Value) -> bool {
    let (metadata, status) = (&item["metadata"], &item["status"]);
    let has = |name: &str| {
        metadata["finalizers"]
            .as_array()
            .is_some_and(|f| f.iter().any(|f| f == name))
    };
    metadata["deletionTimestamp"].is_null()
        && status["observedGeneration"] == metadata["generation"]
        && status["cluster"] == kube_rs::CLUSTER
        && has(FINALIZER)
        && has(kube_rs::FINALIZER)
}

pub(crate) fn entry(item: &Value) -> (String, u64) {
    let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default();
    let version = text("resourceVersion").parse().expect("a decimal version");
    (format!("{}/{}", text("namespace"), text("name")), version)
}

/// The cluster of each namespace.
pub(crate) fn placements(member: &Member) -> BTreeMap<String, String> {
    let said = member.kubectl.ok(&[
        "get",
        "namespaceplacements",
        "-o",
        "jsonpath={range .items[*]}{.metadata.name} {.spec.cluster}{\"\\n\"}{end}",
    ]);
    let pair = |line: &str| {
        line.split_once(' ')
            .map(|(ns, cluster)| (ns.to_owned(), cluster.to_owned()))
    };
    said.lines().filter_map(pair).collect()
}

pub(crate) fn prepare(member: &Member) -> Vec<String> {
    let namespaces: Vec<String> = (0..NAMESPACES).map(|i| format!("team-{i}")).collect();
    for namespace in &namespaces {
        let _ = member.kubectl.ok(&["create", "namespace", namespace]);
        let _ = member
            .kubectl
            .ok_with(&["create", "-f", "-"], &application(namespace, "first", 1));
    }
    namespaces
}

pub(crate) async fn start(kubeconfig: &Path, name: &str, count: usize) -> Program {
    let program = Program::start(kubeconfig, name, &[&format!("--count={count}")]);
    program.synced(count).await;
    program
}

/// The highest version that a program began with.
pub(crate) fn beginning(seen: &Seen) -> u64 {
    let versions = seen.of("synced").filter(|line| !line.resource_version.is_empty());
    versions.map(Line::version).max().unwrap_or_default()
}

/// Row 7 of the bugs of others: versions that are not in the order of the commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn go_through_all_faults() {
    let mut member = Member::start(2).await;
    let namespaces = prepare(&member);
    let kubeconfig = member.control_plane.kubeconfig();
    let mut watchers = Vec::new();
    for (name, count) in [
        ("informer", 1),
        ("dynamic-informer", 1),
        ("metadata-informer", 1),
        ("retry-watcher", 2),
        ("controller", 1),
    ] {
        watchers.push((start(&kubeconfig, name, count).await, count));
    }
    let kube_rs = KubeRs::start(&kubeconfig).await.expect("a controller on kube-rs");
    let in_namespaces = format!("--namespaces={}", namespaces.join(","));
    let writer = Program::start(&kubeconfig, "writer", &["--rate=30", &in_namespaces]);
    sleep(PAUSE).await;

    member.restart_replicas(PAUSE).await;
    rotation::rotate_serving(&member).await;
    sleep(PAUSE).await;
    rotation::rotate_front_proxy(&member).await;
    sleep(PAUSE).await;

    // A backend goes and comes back; who has nothing there does not notice.
    let placements = placements(&member);
    let lost = CLUSTERS
        .iter()
        .position(|c| Some(*c) == placements.get("team-0").map(String::as_str));
    let lost = lost.expect("team-0 has a cluster");
    let (there, elsewhere): (Vec<String>, Vec<String>) = namespaces
        .iter()
        .cloned()
        .partition(|ns| placements.get(ns).map(String::as_str) == Some(CLUSTERS[lost]));
    assert!(!elsewhere.is_empty(), "all namespaces are on one cluster");
    let from = now_millis();
    member.etcds[lost].kill(0).await;
    sleep(OUTAGE).await;
    let to = now_millis();
    member.etcds[lost].restart(0);
    sleep(PAUSE * 3).await;
    let outage = Window {
        from,
        to: now_millis(),
        namespaces: Some(there),
    };
    let written = writer.lines();
    for namespace in &elsewhere {
        let in_outage = |line: &&Line| {
            line.kind == "wrote" && line.namespace == *namespace && (from..to).contains(&line.time)
        };
        assert!(
            written.iter().any(|line| in_outage(&line)),
            "{namespace} was not written while another cluster was gone"
        );
    }

    let from = now_millis();
    member.control_plane.restart().await.expect("kube-apiserver");
    sleep(AFTER_KUBE_APISERVER).await;
    let restart = Window {
        from,
        to: now_millis(),
        namespaces: None,
    };
    sleep(PAUSE).await;

    // The end: nobody writes, controllers finish, and everybody has heard of the last change.
    let windows = [outage, restart];
    let written = writer.stop().await;
    judge(&written, &windows);
    let client = member.control_plane.client().await.expect("a client");
    let _ = settled(&client).await;
    let _ = member
        .kubectl
        .ok_with(&["create", "-f", "-"], &application(&elsewhere[0], "last", 1));
    let list = settled(&client).await;
    let last = *list.values().max().expect("there are objects");
    for (watcher, count) in &watchers {
        watcher.saw(*count, last).await;
    }
    kube_rs.holds(&list).await;
    let is_excused = |time: u64| windows.iter().any(|w| (w.from..=w.to).contains(&time));
    let conflicts = [
        "object has been modified",
        "not found",
        "422",
        "409",
        "NotFound",
        "Conflict",
    ];
    for (time, error) in kube_rs.stop().await {
        let is_conflict = conflicts.iter().any(|said| error.contains(said));
        assert!(is_excused(time) || is_conflict, "kube-rs at {time}: {error}");
    }
    let mut seen = Vec::new();
    for (watcher, _) in watchers {
        seen.push(watcher.stop().await);
    }
    let from = seen.iter().map(beginning).max().unwrap_or_default();
    let truth = truth(&seen, from, &written);
    for seen in &seen {
        judge(seen, &windows);
        compare(seen, from, &truth, &list);
    }
}

/// A cluster is gone for so long that it is declared lost: caches show on what they had of it, and are right when it is back.
/// (RetryWatchers never list again, so they cannot go on beyond a gap.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn converge_after_a_cluster_was_lost() {
    let mut member = Member::start(2).await;
    let namespaces = prepare(&member);
    let kubeconfig = member.control_plane.kubeconfig();
    let mut watchers = Vec::new();
    for name in ["informer", "dynamic-informer", "metadata-informer", "controller"] {
        watchers.push(start(&kubeconfig, name, 1).await);
    }
    let kube_rs = KubeRs::start(&kubeconfig).await.expect("a controller on kube-rs");
    let in_namespaces = format!("--namespaces={}", namespaces.join(","));
    let writer = Program::start(&kubeconfig, "writer", &["--rate=20", &in_namespaces]);
    sleep(PAUSE).await;
    let placements = placements(&member);
    let lost = placements.get("team-0").expect("team-0 has a cluster").clone();
    let place = CLUSTERS.iter().position(|cluster| *cluster == lost);
    let place = place.expect("it is one of them");
    let elsewhere = namespaces.iter().find(|ns| placements.get(*ns) != Some(&lost));
    let elsewhere = elsewhere.expect("not all namespaces are on one cluster");
    member.etcds[place].kill(0).await;
    loss::decided(&member, &lost, "Lost").await;
    let from = now_millis();
    sleep(PAUSE).await;
    let to = now_millis();
    member.etcds[place].restart(0);
    loss::decided(&member, &lost, "Active").await;
    let written = writer.lines();
    let is_meanwhile =
        |line: &Line| line.kind == "wrote" && line.namespace == *elsewhere && (from..to).contains(&line.time);
    assert!(
        written.iter().any(is_meanwhile),
        "{elsewhere} was not written while another cluster was lost"
    );
    sleep(PAUSE).await;
    let _ = writer.stop().await;
    let client = member.control_plane.client().await.expect("a client");
    let _ = settled(&client).await;
    let last = application(elsewhere, "last", 1);
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &last);
    let list = settled(&client).await;
    let last = *list.values().max().expect("there are objects");
    for watcher in &watchers {
        watcher.saw(1, last).await;
    }
    kube_rs.holds(&list).await;
    let _ = kube_rs.stop().await;
    for watcher in watchers {
        let seen = watcher.stop().await;
        for (instance, cache) in seen.caches() {
            assert_eq!(cache, list, "the cache of {} {instance}", seen.name);
        }
        let deleted = seen
            .of("event")
            .filter(|line| line.namespace == "team-0" && line.name == "first");
        let sorts: Vec<_> = deleted.map(|line| line.r#type.as_str()).collect();
        assert!(!sorts.contains(&"DELETED"), "{}: {sorts:?}", seen.name);
    }
}

/// Row 19 of the bugs of others: the APIService goes with a pod that ends, and requests fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_19_fifty_watches_and_200_requests_a_second_see_nothing_of_a_rolling_restart() {
    let mut member = Member::start(2).await;
    let namespaces = prepare(&member);
    let kubeconfig = member.control_plane.kubeconfig();
    let mut watchers = Vec::new();
    for (name, count) in WATCHES {
        watchers.push((start(&kubeconfig, name, count).await, count));
    }
    let in_namespaces = format!("--namespaces={}", namespaces.join(","));
    let writer = Program::start(&kubeconfig, "writer", &[RATE, "--workers=4", &in_namespaces]);
    let apiservice = member.kubectl.ok(&APISERVICE_UID);
    let began = Instant::now();
    sleep(PAUSE).await;
    member.restart_replicas(PAUSE).await;
    let written = writer.stop().await;
    let seconds = began.elapsed().as_secs_f64();
    let requests: usize = ["POST", "PUT", "PATCH", "DELETE", "GET"]
        .iter()
        .map(|sort| written.requests(sort))
        .sum();
    eprintln!("{:.0} requests a second", requests as f64 / seconds);
    assert!(requests > 500, "only {requests} requests");

    let client = member.control_plane.client().await.expect("a client");
    let _ = member
        .kubectl
        .ok_with(&["create", "-f", "-"], &application(&namespaces[0], "last", 1));
    let list = client.get(APPS).await.expect("a list");
    let list: BTreeMap<String, u64> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(entry)
        .collect();
    let last = list[&format!("{}/last", namespaces[0])];
    let mut seen = Vec::new();
    for (watcher, count) in watchers {
        watcher.saw(count, last).await;
        seen.push(watcher.stop().await);
    }
    assert_eq!(member.kubectl.ok(&APISERVICE_UID), apiservice);
    let overtaken: Vec<_> = written.lines.iter().filter(|line| is_overtaken(line)).collect();
    eprintln!("{} were overtaken", overtaken.len());
    assert!(
        overtaken.len() <= requests / OVERTAKEN_SHARE,
        "{} of {requests} requests were overtaken by the end of their connection",
        overtaken.len()
    );
    assert_no_failure(&written, |line| {
        let fails_with = |status: &&Line| {
            status
                .path
                .rsplit('/')
                .next()
                .is_some_and(|name| line.message.contains(name))
        };
        is_overtaken(line) || line.kind == "failed" && overtaken.iter().any(fails_with)
    });
    let from = seen.iter().map(beginning).max().unwrap_or_default();
    let truth = truth(&seen, from, &written);
    for seen in &seen {
        assert_no_failure(seen, |_| false);
        compare(seen, from, &truth, &list);
        let lists = seen.requests("list") + seen.requests("watch-list");
        assert_eq!(
            lists,
            seen.changes(from, false).len(),
            "{} listed again",
            seen.name
        );
    }
}

/// One in so many requests, at most, may be overtaken.
const OVERTAKEN_SHARE: usize = 500;

/// A request with a body that kube-apiserver's HTTP/2 client had meant for a connection when its GOAWAY arrived, before it
/// had opened a stream: Go closes the body and cannot send it again. It never left kube-apiserver. GOAWAY comes in a silent
/// moment for that reason (`server/quiescence.rs`); on a busy machine kube-apiserver may take longer than that.
fn is_overtaken(line: &Line) -> bool {
    let said = [
        "cannot rewind body after connection loss",
        "invalid Read on closed Body",
    ];
    line.kind == "status" && line.code == 503 && said.iter().any(|said| line.message.contains(said))
}

pub(crate) fn assert_no_failure(seen: &Seen, is_excused: impl Fn(&Line) -> bool) {
    let failures: Vec<_> = seen
        .lines
        .iter()
        .filter(|line| line.is_failure() && !is_excused(line))
        .collect();
    assert!(
        failures.is_empty(),
        "{}: {} failures: {:#?}",
        seen.name,
        failures.len(),
        failures.get(..failures.len().min(5))
    );
}

fn judge(seen: &Seen, windows: &[Window]) {
    assert_no_failure(seen, |line| {
        is_conflict(line) || windows.iter().any(|window| window.excuses(line))
    });
}

/// What happened: what the RetryWatchers saw, who never list again. All of them saw the same, and every acknowledged
/// change.
pub(crate) fn truth(seen: &[Seen], from: u64, written: &Seen) -> Changes {
    let watcher = seen.iter().find(|seen| seen.name == "retry-watcher");
    let all = watcher.expect("it runs").changes(from, false);
    let truth = all[&0].clone();
    for (instance, changes) in &all {
        assert_same(&format!("retry-watcher {instance}"), changes, &truth);
    }
    let acknowledged = written.written();
    assert!(acknowledged.len() > 50, "only {} writes", acknowledged.len());
    for (version, key) in acknowledged {
        assert_eq!(
            truth.get(&version),
            Some(&key),
            "no event of an acknowledged change"
        );
    }
    truth
}

/// Each of a program's informers saw what happened, and holds what a list shows.
pub(crate) fn compare(seen: &Seen, from: u64, truth: &Changes, list: &BTreeMap<String, u64>) {
    let instances = seen.of("synced").count();
    let lists = seen.requests("list") + seen.requests("watch-list");
    let is_again = lists > instances;
    for (instance, changes) in seen.changes(from, is_again) {
        if !is_again {
            assert_same(&format!("{} {instance}", seen.name), &changes, truth);
        }
    }
    if seen.name == "retry-watcher" {
        return;
    }
    for (instance, cache) in seen.caches() {
        assert_eq!(cache, *list, "the cache of {} {instance}", seen.name);
    }
}

fn assert_same(who: &str, changes: &Changes, truth: &Changes) {
    let missing: Vec<_> = truth.iter().filter(|(v, _)| !changes.contains_key(v)).collect();
    let strange: Vec<_> = changes.iter().filter(|(v, _)| !truth.contains_key(v)).collect();
    assert!(
        missing.is_empty() && strange.is_empty(),
        "{who}: {} of {} changes, missing {:?}, not seen by others {:?}",
        changes.len(),
        truth.len(),
        missing.get(..missing.len().min(5)),
        strange.get(..strange.len().min(5)),
    );
}
