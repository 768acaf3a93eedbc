//! Replicas that go and come while clients work through the aggregator: no request fails, no event is lost or repeated.

use super::kubectl::application;
use super::member::Member;
use outrigger_tests::raw_client::RawClient;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::{sleep, timeout};

const APPS: &str = "/apis/paas.example.com/v1";
/// Namespaces, and a writer for each.
const WRITERS: usize = 4;
const WATCHES: usize = 8;
/// How long writers work before, between and after the restarts.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a watch may be quiet before it counts as broken.
const QUIET_MAX: Duration = Duration::from_secs(60);

fn object(name: &str) -> Value {
    json!({
        "apiVersion": "paas.example.com/v1", "kind": "Application", "metadata": {"name": name},
        "spec": {"image": "registry.example.com/web:1", "port": 8080, "replicas": 1, "tier": "standard", "owner": "team"},
    })
}

/// Creates, updates and deletes until told to stop; returns every acknowledged state: name → versions, the last one of a
/// deletion included.
async fn write(client: RawClient, namespace: String, stop: Arc<AtomicBool>) -> Vec<(String, u64)> {
    let mut acknowledged = Vec::new();
    let version = |object: &Value| {
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        version.parse::<u64>().expect("a version")
    };
    let collection = format!("{APPS}/namespaces/{namespace}/applications");
    for i in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("web-{i}");
        let path = format!("{collection}/{name}");
        let created = client.create(&collection, &object(&name)).await.expect("created");
        acknowledged.push((format!("{namespace}/{name}"), version(&created)));
        let patch = json!({"spec": {"replicas": 2}});
        let patched = client.merge_patch(&path, &patch).await.expect("patched");
        acknowledged.push((format!("{namespace}/{name}"), version(&patched)));
        let read = client.get(&path).await.expect("read");
        assert_eq!(
            version(&read),
            version(&patched),
            "another replica has not seen it"
        );
        if i % 2 == 0 {
            let deleted = client.delete(&path).await.expect("deleted");
            acknowledged.push((format!("{namespace}/{name}"), version(&deleted)));
        }
        sleep(Duration::from_millis(20)).await;
    }
    acknowledged
}

/// Watches all namespaces as a RetryWatcher does, until it has seen version `end`; returns name and version of each event.
async fn watch(client: RawClient, from: u64, end: tokio::sync::watch::Receiver<u64>) -> Vec<(String, u64)> {
    let (mut at, mut seen) = (from, Vec::new());
    let passed = |at: u64| *end.borrow() > 0 && at >= *end.borrow();
    while !passed(at) {
        let path = format!(
            "{APPS}/applications?watch=1&allowWatchBookmarks=true&resourceVersion={at}&timeoutSeconds=300"
        );
        let mut lines = client.lines(&path).await.expect("a watch");
        // Its server may go: then it goes on elsewhere.
        while let Ok(Some(event)) = timeout(QUIET_MAX, lines.next())
            .await
            .expect("it is not quiet so long")
        {
            let object = &event["object"];
            assert_ne!(event["type"], "ERROR", "{event}");
            let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let version: u64 = version.parse().expect("a version");
            assert!(version >= at, "{version} after {at}");
            at = version;
            if event["type"] != "BOOKMARK" {
                let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
                seen.push((format!("{}/{}", text("namespace"), text("name")), version));
            }
            if passed(at) {
                break;
            }
        }
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_restart_one_by_one_and_nobody_notices() {
    let mut member = Member::start(2).await;
    let namespaces: Vec<String> = (0..WRITERS).map(|i| format!("team-{i}")).collect();
    for namespace in &namespaces {
        let _ = member.kubectl.ok(&["create", "namespace", namespace]);
        let _ = member
            .kubectl
            .ok_with(&["create", "-f", "-"], &application(namespace, "first", 1));
    }
    let client = member.control_plane.client().await.expect("a client");
    let list = client
        .get(&format!("{APPS}/applications?limit=1"))
        .await
        .expect("a list");
    let from: u64 = list["metadata"]["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .parse()
        .expect("a version");

    let (end_sender, end) = tokio::sync::watch::channel(0);
    let stop = Arc::new(AtomicBool::new(false));
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        watches.push(tokio::spawn(watch(client.clone(), from, end.clone())));
    }
    let mut writers = Vec::new();
    for namespace in namespaces {
        let client = member.control_plane.client().await.expect("a client");
        writers.push(tokio::spawn(write(client, namespace, Arc::clone(&stop))));
    }
    sleep(PAUSE).await;
    member.restart_replicas(PAUSE).await;
    stop.store(true, Ordering::Relaxed);

    let mut acknowledged: BTreeMap<u64, String> = BTreeMap::new();
    for writer in writers {
        for (name, version) in writer.await.expect("a writer does not fail") {
            assert_eq!(
                acknowledged.insert(version, name),
                None,
                "two changes share {version}"
            );
        }
    }
    let (last, _) = acknowledged.last_key_value().expect("they wrote");
    end_sender.send_replace(*last);
    assert!(acknowledged.len() > 100, "only {} writes", acknowledged.len());
    for watch in watches {
        let seen = watch.await.expect("a watch does not fail");
        let unique: BTreeMap<u64, String> = seen
            .iter()
            .map(|(name, version)| (*version, name.clone()))
            .collect();
        assert_eq!(unique.len(), seen.len(), "an event came twice");
        assert_eq!(unique, acknowledged, "what was watched and what was acknowledged");
    }
}
