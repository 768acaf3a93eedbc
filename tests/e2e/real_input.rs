//! The real input: three real etcds, 690 namespaces, 29,000 Applications of 2 to 4 KB, unevenly spread, and everything
//! that people and programs do with them.
//!
//! `OUTRIGGER_E2E_OBJECTS` asks for fewer objects, for a quick look.

use futures::StreamExt;
use futures::stream;
use outrigger_storage::backend::{Backend, Range, Txn};
use outrigger_storage::key::{OBJECTS, prefix_end};
use outrigger_storage::testing::etcd_server::EtcdServer;
use outrigger_tests::dataset::Dataset;
use outrigger_tests::kubectl::Kubectl;
use outrigger_tests::raw_client::RawClient;
use outrigger_tests::server::Outrigger;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

const SEED: u64 = 20_261_122;
const NAMESPACES: usize = 690;
const OBJECTS_COUNT: usize = 29_000;
const CLIENTS: usize = 32;
const WRITERS: usize = 8;
const CUTS: usize = 100;
const APPS: &str = "/apis/paas.example.com/v1";

/// Three etcds, a server on them, and the data in it.
struct Platform {
    etcds: Vec<EtcdServer>,
    server: Outrigger,
    kubectl: Kubectl,
    data: Dataset,
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_serves_a_kind_out_of_three_etcds() {
    let platform = Platform::start().await;
    platform.fill().await;
    platform.everything_is_there().await;
    platform.every_etcd_holds_some().await;
    platform.kubectl_behaves().await;
    platform.a_list_is_a_snapshot_while_writers_run().await;
    platform.a_watch_that_is_cut_loses_and_repeats_nothing().await;
    platform.memory_stays_flat_while_all_list().await;
    platform.deletes_by_label().await;
}

impl Platform {
    async fn start() -> Self {
        let mut etcds = Vec::new();
        for _ in 0..3 {
            etcds.push(EtcdServer::start().await);
        }
        let flags: Vec<String> = ["east", "north", "west"]
            .iter()
            .zip(&etcds)
            .map(|(name, etcd)| format!("--etcd={name}={}", etcd.client_url()))
            .collect();
        let mut args: Vec<&str> = flags.iter().map(String::as_str).collect();
        args.extend(["--etcd-exclusive", "--log-level=warn"]);
        let server = Outrigger::up(&args);
        let kubectl = Kubectl::new(&server.kubeconfig());
        let objects = std::env::var("OUTRIGGER_E2E_OBJECTS")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(OBJECTS_COUNT);
        let data = Dataset::new(SEED, NAMESPACES.min(objects / 4), objects);
        Self {
            etcds,
            server,
            kubectl,
            data,
        }
    }

    async fn client(&self) -> RawClient {
        RawClient::connect(&self.server.kubeconfig())
            .await
            .expect("the server answers")
    }

    async fn fill(&self) {
        let started = Instant::now();
        let clients = self.clients(CLIENTS).await;
        let namespaces = self.data.namespaces.iter().enumerate().map(|(i, (name, _))| {
            let client = &clients[i % CLIENTS];
            async move {
                let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
                client
                    .create("/api/v1/namespaces", &namespace)
                    .await
                    .expect("a namespace");
            }
        });
        stream::iter(namespaces)
            .buffer_unordered(CLIENTS)
            .collect::<()>()
            .await;
        let namespaces_took = started.elapsed();
        let started = Instant::now();
        // Interleaved, so that the large namespaces are not all filled at the end.
        let mut order: Vec<(&str, usize)> = self.data.applications().collect();
        order.sort_by_key(|(_, number)| *number);
        let creates = order.into_iter().enumerate().map(|(i, (namespace, number))| {
            let client = &clients[i % CLIENTS];
            async move {
                let path = format!("{APPS}/namespaces/{namespace}/applications");
                client
                    .create(&path, &self.data.application(namespace, number))
                    .await
                    .expect("an Application");
            }
        });
        stream::iter(creates)
            .buffer_unordered(CLIENTS)
            .collect::<()>()
            .await;
        let seconds = started.elapsed().as_secs_f64();
        eprintln!(
            "{} namespaces in {:.1} s, {} Applications in {seconds:.1} s: {:.0} creates a second with {CLIENTS} clients",
            self.data.namespaces.len(),
            namespaces_took.as_secs_f64(),
            self.data.len(),
            self.data.len() as f64 / seconds
        );
    }

    async fn clients(&self, count: usize) -> Vec<RawClient> {
        let mut clients = Vec::new();
        for _ in 0..count {
            clients.push(self.client().await);
        }
        clients
    }

    async fn everything_is_there(&self) {
        let client = self.client().await;
        let started = Instant::now();
        let list = client.get(&format!("{APPS}/applications")).await.expect("a list");
        let items = list["items"].as_array().expect("items");
        let bytes = serde_json::to_vec(&list).map(|b| b.len()).unwrap_or_default();
        eprintln!(
            "a list of {} objects, {:.1} MB, in {:.2} s",
            items.len(),
            bytes as f64 / 1e6,
            started.elapsed().as_secs_f64()
        );
        let found: Vec<(&str, &str)> = items.iter().map(key).collect();
        let names: BTreeMap<(&str, String), usize> = self
            .data
            .applications()
            .map(|(ns, i)| ((ns, outrigger_tests::dataset::name(i)), i))
            .collect();
        let expected: Vec<(&str, &str)> = names.keys().map(|(ns, name)| (*ns, name.as_str())).collect();
        assert_eq!(found.len(), expected.len());
        assert!(found == expected, "all are there, ordered by namespace and name");
        let snapshot = version(&list);
        for item in items.iter().step_by(83) {
            let number = names[&(key(item).0, key(item).1.to_owned())];
            let expected = self.data.application(key(item).0, number);
            assert_eq!(
                (&item["spec"], &item["metadata"]["labels"]),
                (&expected["spec"], &expected["metadata"]["labels"])
            );
        }
        assert!(
            items.iter().all(|item| version(item) < snapshot),
            "all objects are older than the snapshot"
        );
        // Page by page the same.
        let (mut paged, mut token) = (Vec::new(), String::new());
        loop {
            let page = client
                .get(&format!("{APPS}/applications?limit=1700&continue={token}"))
                .await
                .expect("a page");
            paged.extend(
                page["items"]
                    .as_array()
                    .expect("items")
                    .iter()
                    .map(|item| key(item).1.to_owned()),
            );
            match page["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() => token = next.to_owned(),
                _ => break,
            }
        }
        assert!(
            paged
                .iter()
                .map(String::as_str)
                .eq(expected.iter().map(|(_, name)| *name)),
            "the pages are the list"
        );
    }

    async fn every_etcd_holds_some(&self) {
        let mut total = 0;
        for etcd in &self.etcds {
            let range = Range {
                count_only: true,
                ..Range::between(OBJECTS, prefix_end(OBJECTS))
            };
            let answer = etcd
                .backend()
                .txn(Txn::read([range]))
                .await
                .expect("the etcd answers");
            let count = answer
                .responses
                .into_iter()
                .next()
                .map(|r| r.into_range().count)
                .unwrap_or_default();
            assert!(
                count as usize > self.data.len() / 10,
                "an etcd holds only {count} objects"
            );
            total += count;
        }
        assert_eq!(total as usize, self.data.len());
    }

    async fn kubectl_behaves(&self) {
        let (big, _) = &self.data.namespaces[0];
        let kubectl = &self.kubectl;
        tokio::task::block_in_place(|| {
            let table = kubectl.ok(&["get", "apps", "-A", "--no-headers"]);
            assert_eq!(table.lines().count(), self.data.len());
            let mut watch =
                kubectl.start(&["get", "apps", "-A", "-w", "--watch-only", "--output-watch-events"]);
            std::thread::sleep(Duration::from_millis(1500));
            let _ = kubectl.ok(&["scale", "app/app-00000", "-n", big, "--replicas=11"]);
            watch.line(|line| {
                line.starts_with("MODIFIED") && line.contains(big.as_str()) && line.contains("app-00000")
            });
            assert_eq!(
                kubectl.ok(&[
                    "get",
                    "app",
                    "app-00000",
                    "-n",
                    big,
                    "-o",
                    "jsonpath={.spec.replicas}"
                ]),
                "11"
            );
            let ready = r#"{"status":{"endpoint":"https://e.example.com","conditions":[{"type":"Ready","status":"True","reason":"Serving","message":"","lastTransitionTime":"2026-11-22T00:00:00Z"}]}}"#;
            let _ = kubectl.ok(&[
                "patch",
                "app",
                "app-00000",
                "-n",
                big,
                "--subresource=status",
                "--type=merge",
                "-p",
                ready,
            ]);
            let _ = kubectl.ok(&[
                "wait",
                "app/app-00000",
                "-n",
                big,
                "--for=condition=Ready",
                "--timeout=20s",
            ]);
            let row = kubectl.ok(&["get", "app", "app-00000", "-n", big]);
            assert!(
                row.contains("https://e.example.com") && row.contains("Serving"),
                "{row}"
            );
            let _ = kubectl.ok(&["label", "app", "app-00001", "-n", big, "blue=green"]);
            assert_eq!(
                kubectl
                    .ok(&["get", "apps", "-A", "-l", "blue=green", "-o", "name"])
                    .lines()
                    .count(),
                1
            );
            let patch = r#"{"spec":{"tier":"batch"}}"#;
            let _ = kubectl.ok(&[
                "patch",
                "app",
                "app-00001",
                "-n",
                big,
                "--type=merge",
                "-p",
                patch,
            ]);
            let batch = kubectl.ok(&[
                "get",
                "apps",
                "-n",
                big,
                "--field-selector=spec.tier=batch",
                "-o",
                "name",
            ]);
            assert!(batch.contains("app-00001"));
            assert!(
                kubectl
                    .ok(&["explain", "applications.spec.image"])
                    .contains("<string>")
            );
            let described = kubectl.ok(&["describe", "app", "app-00001", "-n", big]);
            assert!(
                described.contains("blue=green") && described.contains("Kind:         Application"),
                "{described}"
            );
            let manifest = |image: &str| {
                format!(
                    "apiVersion: paas.example.com/v1\nkind: Application\nmetadata: {{name: applied, namespace: {big}}}\nspec: {{image: {image}}}\n"
                )
            };
            let _ = kubectl.ok_with(&["apply", "-f", "-"], &manifest("one"));
            let diff = kubectl.output(&["diff", "-f", "-"], &manifest("two"));
            assert_eq!(
                diff.status.code(),
                Some(1),
                "{}",
                String::from_utf8_lossy(&diff.stderr)
            );
            assert!(
                kubectl
                    .ok_with(&["apply", "-f", "-"], &manifest("two"))
                    .contains("configured")
            );
            let _ = kubectl.ok(&["delete", "app", "applied", "-n", big]);
        });
    }

    /// One namespace in each cluster.
    async fn namespace_of_each_cluster(&self) -> Vec<String> {
        let placements = self
            .client()
            .await
            .get("/apis/outrigger.dev/v1alpha1/namespaceplacements")
            .await
            .expect("placements");
        let mut by_cluster: BTreeMap<&str, String> = BTreeMap::new();
        for placement in placements["items"].as_array().expect("items") {
            let cluster = placement["spec"]["cluster"].as_str().expect("a cluster");
            by_cluster
                .entry(cluster)
                .or_insert_with(|| key(placement).1.to_owned());
        }
        assert_eq!(by_cluster.len(), 3, "all clusters have namespaces");
        by_cluster.into_values().collect()
    }

    /// A writer writes the same number to one object in each cluster, one after the other. In a snapshot no object is
    /// ahead of the one that was written before it, and none is more than one number behind.
    async fn a_list_is_a_snapshot_while_writers_run(&self) {
        let namespaces = self.namespace_of_each_cluster().await;
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let (client, namespaces, stop) = (self.client().await, namespaces.clone(), Arc::clone(&stop));
            writers.push(tokio::spawn(async move {
                let name = format!("snapshot-{writer}");
                for namespace in &namespaces {
                    let path = format!("{APPS}/namespaces/{namespace}/applications");
                    client
                        .create(&path, &application(namespace, &name, "snapshot", 0))
                        .await
                        .expect("a create");
                }
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    for namespace in &namespaces {
                        let path = format!("{APPS}/namespaces/{namespace}/applications/{name}");
                        client
                            .merge_patch(&path, &json!({"spec": {"port": number}}))
                            .await
                            .expect("a patch");
                    }
                }
                number
            }));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let client = self.client().await;
        let mut compared = 0;
        for i in 0..20 {
            // Every fourth is a list of everything; the others see the same clusters through a selector.
            let selector = if i % 4 == 0 {
                ""
            } else {
                "?labelSelector=purpose%3Dsnapshot"
            };
            let list = client
                .get(&format!("{APPS}/applications{selector}"))
                .await
                .expect("a list");
            let mut numbers: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
            for item in list["items"].as_array().expect("items") {
                if item["metadata"]["labels"]["purpose"] == "snapshot" {
                    let (namespace, name) = key(item);
                    numbers
                        .entry(name)
                        .or_default()
                        .insert(namespace, item["spec"]["port"].as_u64().expect("a number"));
                }
            }
            for (name, by_namespace) in &numbers {
                let in_order: Vec<u64> = namespaces
                    .iter()
                    .filter_map(|ns| by_namespace.get(ns.as_str()).copied())
                    .collect();
                if in_order.len() < 3 {
                    continue;
                }
                compared += 1;
                assert!(
                    in_order.is_sorted_by(|a, b| a >= b),
                    "{name}: a later write is seen without an earlier one: {in_order:?}"
                );
                assert!(
                    in_order[0] - in_order[2] <= 1,
                    "{name}: an acknowledged write is missing: {in_order:?}"
                );
            }
        }
        stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        for writer in writers {
            written += writer.await.expect("a writer");
        }
        assert!(
            compared >= WRITERS * 15 && written > 50,
            "{compared} compared, {written} rounds written"
        );
        eprintln!("20 lists during {written} rounds of writes over three etcds: each a snapshot");
    }

    async fn a_watch_that_is_cut_loses_and_repeats_nothing(&self) {
        let namespaces: Vec<String> = self
            .data
            .namespaces
            .iter()
            .take(40)
            .map(|(name, _)| name.clone())
            .collect();
        let start = self
            .client()
            .await
            .get(&format!("{APPS}/applications?limit=1"))
            .await
            .expect("a list");
        let stop = Arc::new(AtomicBool::new(false));
        let mut writers = Vec::new();
        for writer in 0..WRITERS {
            let (client, namespaces, stop) = (self.client().await, namespaces.clone(), Arc::clone(&stop));
            writers.push(tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                let mut round = 0_usize;
                while !stop.load(Ordering::Relaxed) {
                    let namespace = &namespaces[(writer * 7 + round) % namespaces.len()];
                    let name = format!("watched-{writer}-{round}");
                    let path = format!("{APPS}/namespaces/{namespace}/applications");
                    let created = client
                        .create(&path, &application(namespace, &name, "watched", 1))
                        .await
                        .expect("a create");
                    let path = format!("{path}/{name}");
                    let patched = client
                        .merge_patch(&path, &json!({"spec": {"port": 2}}))
                        .await
                        .expect("a patch");
                    let deleted = client.delete(&path).await.expect("a delete");
                    acknowledged.extend([version(&created), version(&patched), version(&deleted)]);
                    round += 1;
                }
                acknowledged
            }));
        }
        let mut seen: Vec<u64> = Vec::new();
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        let mut from = version(&start);
        for cut in 0..CUTS {
            let client = self.client().await;
            from = self
                .watch(&client, from, &mut seen, &mut kinds, |events, _| events > cut % 7)
                .await;
        }
        stop.store(true, Ordering::Relaxed);
        let mut acknowledged = BTreeSet::new();
        for writer in writers {
            acknowledged.extend(writer.await.expect("a writer"));
        }
        let last = *acknowledged.last().expect("something was written");
        self.watch(&self.client().await, from, &mut seen, &mut kinds, |_, version| {
            version >= last
        })
        .await;
        assert!(
            seen.is_sorted_by(|a, b| a < b),
            "events come in the order of their versions, none twice"
        );
        let seen: BTreeSet<u64> = seen.into_iter().collect();
        let lost: Vec<_> = acknowledged.difference(&seen).collect();
        let unknown: Vec<_> = seen.difference(&acknowledged).collect();
        assert!(
            lost.is_empty() && unknown.is_empty(),
            "lost {lost:?}, nobody wrote {unknown:?}"
        );
        eprintln!("{} events over {CUTS} cuts: {kinds:?}", seen.len());
    }

    /// Watches the objects of the writers until `enough`; the version to resume from.
    async fn watch(
        &self,
        client: &RawClient,
        from: u64,
        seen: &mut Vec<u64>,
        kinds: &mut BTreeMap<String, usize>,
        enough: impl Fn(usize, u64) -> bool,
    ) -> u64 {
        let selector = "labelSelector=purpose%3Dwatched";
        let path =
            format!("{APPS}/applications?watch=1&allowWatchBookmarks=true&{selector}&resourceVersion={from}");
        let mut lines = client.lines(&path).await.expect("a watch");
        let mut events = 0;
        loop {
            let event = tokio::time::timeout(Duration::from_secs(30), lines.next())
                .await
                .expect("an event");
            let event = event.expect("a whole line").expect("no end");
            let kind = event["type"].as_str().unwrap_or_default();
            assert_ne!(kind, "ERROR", "{event}");
            let version = version(&event["object"]);
            if kind != "BOOKMARK" {
                seen.push(version);
                events += 1;
                *kinds.entry(kind.to_owned()).or_default() += 1;
            }
            if enough(events, version) {
                return version;
            }
        }
    }

    async fn memory_stays_flat_while_all_list(&self) {
        let clients = self.clients(8).await;
        let started = Instant::now();
        let path = format!("{APPS}/applications");
        let lists = clients.iter().map(|client| client.drain(&path));
        let bytes: u64 = futures::future::try_join_all(lists)
            .await
            .expect("eight whole lists")
            .iter()
            .sum();
        let seconds = started.elapsed().as_secs_f64();
        let (now, peak) = self.server.memory();
        eprintln!(
            "8 lists at once: {:.0} MB in {seconds:.1} s, {:.0} MB/s; resident memory {} MiB, at its peak {} MiB",
            bytes as f64 / 1e6,
            bytes as f64 / 1e6 / seconds,
            now >> 20,
            peak >> 20
        );
        // A debug build is not what the budget is for.
        if outrigger_tests::server::program()
            .components()
            .any(|c| c.as_os_str() == "release")
        {
            assert!(peak <= 128 << 20, "the budget is 128 MiB");
        }
    }

    async fn deletes_by_label(&self) {
        let (name, count) = self
            .data
            .namespaces
            .iter()
            .find(|(_, count)| (20..400).contains(count))
            .expect("one of middle size");
        tokio::task::block_in_place(|| {
            let before = self
                .kubectl
                .ok(&["get", "apps", "-n", name, "-o", "name"])
                .lines()
                .count();
            assert!(before >= *count);
            let deleted = self.kubectl.ok(&["delete", "apps", "-n", name, "-l", "wave=3"]);
            let after = self
                .kubectl
                .ok(&["get", "apps", "-n", name, "-o", "name"])
                .lines()
                .count();
            assert_eq!(before - after, deleted.lines().count());
            assert!(deleted.lines().count() >= count / 10, "{deleted}");
            assert_eq!(
                self.kubectl
                    .ok(&["get", "apps", "-n", name, "-l", "wave=3", "-o", "name"]),
                ""
            );
        });
    }
}

fn application(namespace: &str, name: &str, purpose: &str, number: u64) -> Value {
    json!({
        "apiVersion": "paas.example.com/v1", "kind": "Application",
        "metadata": {"name": name, "namespace": namespace, "labels": {"purpose": purpose}},
        "spec": {"image": "i", "port": number},
    })
}

fn key(item: &Value) -> (&str, &str) {
    let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default();
    (text("namespace"), text("name"))
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    text.parse()
        .unwrap_or_else(|_| panic!("no resource version in {object}"))
}
