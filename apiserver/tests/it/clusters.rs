//! Several clusters and several replicas: who decides where a namespace lives, and what is answered while one is away.

use crate::api::{APPS, Answer, Api, Fleet, app, names};
use http::Method;
use outrigger_storage::testing::faulty_backend::Outage;
use serde_json::{Value, json};
use std::time::Duration;

const PLACEMENTS: &str = "/apis/outrigger.dev/v1alpha1/namespaceplacements";

async fn namespaces(api: &Api, names: impl IntoIterator<Item = String>) {
    for name in names {
        api.post("/api/v1/namespaces", json!({"metadata": {"name": name}}))
            .await
            .expect(201);
    }
}

/// The cluster that each namespace is placed on.
async fn placements(api: &Api) -> Vec<(String, String)> {
    let list = api.get(PLACEMENTS).await.expect(200);
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let items = list["items"].as_array().cloned().unwrap_or_default();
    items
        .iter()
        .map(|p| (text(&p["metadata"]["name"]), text(&p["spec"]["cluster"])))
        .collect()
}

#[tokio::test]
async fn two_replicas_place_a_namespace_once() {
    let fleet = Fleet::new();
    let (one, two) = (Api::replica(&fleet, 1).await, Api::replica(&fleet, 2).await);
    namespaces(&one, (0..12).map(|i| format!("ns{i}"))).await;
    let creates = (0..12).flat_map(|i| [(&one, i, "one"), (&two, i, "two")]);
    let creates = creates.map(|(api, i, name)| async move { api.app(&format!("ns{i}"), name).await });
    futures::future::join_all(creates).await;
    let placed = placements(&one).await;
    assert_eq!(placed.len(), 12);
    for api in [&one, &two] {
        assert_eq!(
            names(&api.get(&format!("{APPS}/applications")).await.expect(200)).len(),
            24
        );
        for (namespace, cluster) in &placed {
            let owner = api.workload.owner(&outrigger_storage::key::Domain::Namespace(
                namespace.as_str().into(),
            ));
            assert_eq!(owner.map(|o| o.cluster).as_ref(), Some(cluster), "{namespace}");
        }
    }
}

#[tokio::test]
async fn a_confirmed_placement_without_its_owner_key_is_never_claimed_again() {
    let api = Api::with_namespaces(&["a"]).await;
    let uid = api.get("/api/v1/namespaces/a").await.expect(200)["metadata"]["uid"].clone();
    let placement = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "NamespacePlacement", "metadata": {"name": "a"},
        "spec": {"cluster": "green", "namespaceUID": uid},
    });
    api.post(PLACEMENTS, placement).await.expect(201);
    let owner =
        json!({"status": {"owner": {"cluster": "green", "slot": 1, "generation": 5, "state": "Active"}}});
    api.patch(&format!("{PLACEMENTS}/a/status"), crate::api::MERGE, owner)
        .await
        .expect(200);
    let refused = api
        .post(&format!("{APPS}/namespaces/a/applications"), app("web"))
        .await;
    let message = refused.error(503, "ServiceUnavailable");
    assert!(
        message.contains("is placed on cluster \"green\", and that cluster does not know of it"),
        "{message}"
    );
    assert_eq!(
        names(&api.get(&format!("{APPS}/applications")).await.expect(200)),
        [""; 0]
    );
}

#[tokio::test]
async fn a_placement_that_somebody_else_decided_is_followed() {
    let api = Api::with_namespaces(&["a", "b"]).await;
    for (namespace, cluster) in [("a", "red"), ("b", "blue")] {
        let placement = json!({
            "apiVersion": "outrigger.dev/v1alpha1", "kind": "NamespacePlacement", "metadata": {"name": namespace},
            "spec": {"cluster": cluster},
        });
        api.post(PLACEMENTS, placement).await.expect(201);
        api.app(namespace, "web").await;
        let owner = api
            .workload
            .owner(&outrigger_storage::key::Domain::Namespace(namespace.into()));
        assert_eq!(owner.map(|o| o.cluster).as_deref(), Some(cluster));
        let placement = api.get(&format!("{PLACEMENTS}/{namespace}")).await.expect(200);
        assert_eq!(placement["status"]["owner"]["cluster"], cluster, "{placement}");
    }
    let unknown = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "NamespacePlacement", "metadata": {"name": "c"},
        "spec": {"cluster": "nowhere"},
    });
    api.post(PLACEMENTS, unknown).await.expect(201);
    api.post("/api/v1/namespaces", json!({"metadata": {"name": "c"}}))
        .await
        .expect(201);
    let refused = api
        .post(&format!("{APPS}/namespaces/c/applications"), app("web"))
        .await;
    assert!(refused.error(503, "ServiceUnavailable").contains("\"nowhere\""));
}

/// What a create leaves behind that was overtaken by the deletion of its namespace.
#[tokio::test]
async fn a_placement_of_a_namespace_that_went_is_given_up() {
    let api = Api::with_namespaces(&["a"]).await;
    let placement = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "NamespacePlacement", "metadata": {"name": "a"},
        "spec": {"cluster": "red", "namespaceUID": "of-an-earlier-one"},
    });
    let stale = api.post(PLACEMENTS, placement).await.expect(201);
    api.app("a", "web").await;
    let placement = api.get(&format!("{PLACEMENTS}/a")).await.expect(200);
    let namespace = api.get("/api/v1/namespaces/a").await.expect(200);
    assert_ne!(placement["metadata"]["uid"], stale["metadata"]["uid"]);
    assert_eq!(placement["spec"]["namespaceUID"], namespace["metadata"]["uid"]);
}

#[tokio::test]
async fn what_is_answered_while_a_cluster_is_away() {
    let fleet = Fleet::new();
    let api = Api::replica(&fleet, 5).await;
    namespaces(&api, (0..9).map(|i| format!("ns{i}"))).await;
    for i in 0..9 {
        api.app(&format!("ns{i}"), "web").await;
    }
    let placed = placements(&api).await;
    let of = |cluster: &str| {
        placed
            .iter()
            .filter(|(_, c)| c == cluster)
            .map(|(n, _)| n.clone())
            .collect::<Vec<_>>()
    };
    let (lost, kept) = (of("green"), of("blue"));
    assert!(!lost.is_empty() && !kept.is_empty(), "{placed:?}");
    fleet.faults[1].outage(Outage::Down);
    while api.workload.clusters().iter().all(|c| c.reachable) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let url = |namespace: &str| format!("{APPS}/namespaces/{namespace}/applications");
    // Its own namespaces are out of reach, and the answer says where they are.
    let check = |answer: Answer| {
        let message = answer.error(503, "ServiceUnavailable");
        assert!(message.contains("green"), "{message}");
        assert!(answer.headers.contains_key("retry-after"));
    };
    check(api.get(&format!("{}/web", url(&lost[0]))).await);
    check(api.get(&url(&lost[0])).await);
    check(api.post(&url(&lost[0]), app("new")).await);
    check(api.delete(&format!("{}/web", url(&lost[0])), Value::Null).await);
    // The others' are as ever.
    api.get(&format!("{}/web", url(&kept[0]))).await.expect(200);
    api.app(&kept[0], "new").await;
    // Programs would take a part for the whole; people are told.
    check(api.get(&format!("{APPS}/applications")).await);
    let accept = [("accept", "application/json;as=Table;g=meta.k8s.io;v=v1")];
    let table = api
        .call(Method::GET, &format!("{APPS}/applications"), &accept, "")
        .await;
    let rows = table.expect(200)["rows"].as_array().map(Vec::len);
    assert_eq!(rows, Some(9 - lost.len() + 1));
    assert!(
        table.warnings.iter().any(|w| w.contains("green")),
        "{:?}",
        table.warnings
    );
    // A namespace that was never placed is empty, and is placed where it can be.
    namespaces(&api, ["fresh".to_owned()]).await;
    let nothing = api.get(&url("fresh")).await.expect(200);
    assert_eq!(nothing["items"], json!([]));
    api.get(&format!("{}/web", url("fresh")))
        .await
        .error(404, "NotFound");
    // That is how a namespace with nothing of ours in it can be deleted meanwhile.
    let nothing = api.delete(&url("fresh"), Value::Null).await.expect(200);
    assert_eq!(nothing["items"], json!([]));
    api.app("fresh", "web").await;
    assert!(
        placements(&api)
            .await
            .iter()
            .any(|(n, c)| n == "fresh" && c != "green")
    );

    fleet.faults[1].heal();
    while api.workload.clusters().iter().any(|c| !c.reachable) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    api.get(&format!("{}/web", url(&lost[0]))).await.expect(200);
    assert_eq!(
        names(&api.get(&format!("{APPS}/applications")).await.expect(200)).len(),
        11
    );
}
