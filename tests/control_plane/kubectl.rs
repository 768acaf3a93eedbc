//! kubectl through the aggregator.

use super::member::{CLUSTERS, Member};

pub(crate) fn application(namespace: &str, name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: paas.example.com/v1\nkind: Application\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{app: {name}}}}}\n\
         spec: {{image: registry.example.com/{name}:1, port: 8080, replicas: {replicas}, tier: standard, owner: {namespace}}}\n---\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_type() {
    let member = Member::start(2).await;
    let kubectl = &member.kubectl;
    let namespaces: Vec<String> = (0..9).map(|i| format!("team-{i}")).collect();
    for namespace in &namespaces {
        let _ = kubectl.ok(&["create", "namespace", namespace]);
    }
    let all: String = namespaces.iter().map(|ns| application(ns, "web", 2)).collect();
    let _ = kubectl.ok_with(&["create", "-f", "-"], &all);

    let table = kubectl.ok(&["get", "apps", "-A"]);
    assert_eq!(table.lines().count(), 10, "{table}");
    assert!(table.starts_with("NAMESPACE"), "{table}");
    // They live in the workload clusters, and nothing of them in the control plane.
    let placed = kubectl.ok(&[
        "get",
        "namespaceplacements",
        "-o",
        "jsonpath={.items[*].spec.cluster}",
    ]);
    for cluster in CLUSTERS {
        assert!(placed.contains(cluster), "nothing on {cluster}: {placed}");
    }
    let clusters = kubectl.ok(&["get", "workloadclusters"]);
    assert_eq!(clusters.matches("True").count(), 3, "{clusters}");

    let _ = kubectl.ok(&["-n", "team-1", "scale", "app/web", "--replicas=5"]);
    let _ = kubectl.ok(&["-n", "team-1", "label", "app/web", "color=blue"]);
    let _ = kubectl.ok(&[
        "-n",
        "team-1",
        "patch",
        "app/web",
        "--type=merge",
        "-p",
        "{\"spec\":{\"port\":9090}}",
    ]);
    let said = kubectl.ok(&[
        "get",
        "apps",
        "-A",
        "-l",
        "color=blue",
        "-o",
        "jsonpath={.items[*].spec.replicas} {.items[*].spec.port}",
    ]);
    assert_eq!(said, "5 9090");
    let said = kubectl.ok(&["api-resources", "--api-group=paas.example.com"]);
    assert!(said.contains("applications"), "{said}");
    let said = kubectl.ok(&["explain", "application.spec.image"]);
    assert!(said.contains("FIELD: image"), "{said}");
    let said = kubectl.ok(&[
        "get",
        "--raw",
        "/apis/paas.example.com/v1/namespaces/team-2/applications/web",
    ]);
    assert!(said.contains("\"name\":\"web\""), "{said}");

    // Who may what is the control plane's to say.
    let _ = kubectl.ok(&[
        "create",
        "role",
        "reader",
        "-n",
        "team-3",
        "--verb=get",
        "--resource=applications.paas.example.com",
        "--resource-name=web",
    ]);
    let _ = kubectl.ok(&[
        "create",
        "rolebinding",
        "reader",
        "-n",
        "team-3",
        "--role=reader",
        "--user=jane",
    ]);
    let _ = kubectl.eventually(
        &["-n", "team-3", "get", "app", "web", "--as=jane", "-o", "name"],
        |said| said.contains("web"),
    );
    let said = kubectl.fails(&["-n", "team-4", "get", "app", "web", "--as=jane"], "");
    assert!(
        said.contains("User \"jane\" cannot get resource \"applications\""),
        "{said}"
    );
    assert_eq!(
        kubectl
            .ok(&["auth", "can-i", "get", "app/web", "-n", "team-3", "--as=jane"])
            .trim(),
        "yes"
    );
    let said = kubectl.fails(
        &["create", "-f", "-", "--as=jane"],
        &application("team-3", "other", 1),
    );
    assert!(
        said.contains("User \"jane\" cannot create resource \"applications\""),
        "{said}"
    );

    // Namespaces are the control plane's: no create in one that is missing, and one that goes takes its objects along.
    let said = kubectl.fails(&["create", "-f", "-"], &application("nowhere", "web", 1));
    assert!(said.contains("namespaces \"nowhere\" not found"), "{said}");
    let _ = kubectl.ok(&["delete", "namespace", "team-5", "--timeout=60s"]);
    let table = kubectl.ok(&["get", "apps", "-A"]);
    assert!(!table.contains("team-5") && table.lines().count() == 9, "{table}");
    let _ = kubectl.eventually(&["get", "namespaceplacements", "-o", "name"], |said| {
        !said.contains("/team-5")
    });
    let _ = kubectl.ok(&["create", "namespace", "team-5"]);
    assert_eq!(member.forbidden(), [], "the chart's rights are enough");
}
