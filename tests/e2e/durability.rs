//! Nothing that was acknowledged is lost, whenever the process dies; and it stops in order when it is asked to.

use outrigger_tests::kubectl::Kubectl;
use outrigger_tests::raw_client::RawClient;
use outrigger_tests::server::Outrigger;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

fn app(namespace: &str, name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "paas.example.com/v1", "kind": "Application",
        "metadata": {"name": name, "namespace": namespace}, "spec": {"image": "i"},
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_loses_nothing_that_was_acknowledged() {
    let mut server = Outrigger::up(&[]);
    let mut acknowledged = BTreeSet::new();
    for round in 0..5 {
        let client = RawClient::connect(&server.kubeconfig())
            .await
            .expect("it answers");
        let mut writers = Vec::new();
        for writer in 0..4 {
            let client = client.clone();
            writers.push(tokio::spawn(async move {
                let mut done = Vec::new();
                let namespace = format!("ns-{round}-{writer}");
                let object =
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
                if client.create("/api/v1/namespaces", &object).await.is_err() {
                    return done;
                }
                for i in 0.. {
                    let name = format!("app-{i}");
                    let path = format!("/apis/paas.example.com/v1/namespaces/{namespace}/applications");
                    match client.create(&path, &app(&namespace, &name)).await {
                        Ok(_) => done.push(format!("{namespace}/{name}")),
                        Err(_) => return done,
                    }
                }
                done
            }));
        }
        tokio::time::sleep(Duration::from_millis(300 + 170 * round)).await;
        server.kill();
        for writer in writers {
            acknowledged.extend(writer.await.expect("it ends with its connection"));
        }
        server.start();
    }
    assert!(
        acknowledged.len() > 20,
        "only {} writes were acknowledged",
        acknowledged.len()
    );
    let client = RawClient::connect(&server.kubeconfig())
        .await
        .expect("it answers");
    let list = client
        .get("/apis/paas.example.com/v1/applications")
        .await
        .expect("a list");
    let text = |item: &serde_json::Value, field: &str| {
        item["metadata"][field].as_str().unwrap_or_default().to_owned()
    };
    let items = list["items"].as_array().expect("items");
    let found: BTreeSet<String> = items
        .iter()
        .map(|i| format!("{}/{}", text(i, "namespace"), text(i, "name")))
        .collect();
    let lost: Vec<_> = acknowledged.difference(&found).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[test]
fn it_stops_in_order_and_starts_again_with_everything() {
    let mut server = Outrigger::up(&["--backends", "2"]);
    let kubectl = Kubectl::new(&server.kubeconfig());
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/examples/application.yaml");
    let _ = kubectl.ok(&["apply", "-f", example]);
    let uid = [
        "get",
        "apps",
        "storefront",
        "-o",
        "jsonpath={.metadata.uid} {.metadata.resourceVersion}",
    ];
    let before = kubectl.ok(&uid);
    let status = server.stop();
    assert!(status.success(), "{status}");
    server.start();
    assert_eq!(
        kubectl.ok(&uid),
        before,
        "the same object with the same resource version"
    );
}

#[test]
fn a_watch_ends_cleanly_when_the_server_stops() {
    let mut server = Outrigger::up(&[]);
    let kubectl = Kubectl::new(&server.kubeconfig());
    let mut watch = kubectl.start(&["get", "ns", "-w", "-o", "name"]);
    watch.line(|line| line.contains("default"));
    assert!(server.stop().success(), "watches do not hold the server");
}
