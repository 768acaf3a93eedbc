//! What goes with what: namespaces, kinds, owners and their dependents.

use outrigger_tests::kubectl::Kubectl;
use outrigger_tests::server::Outrigger;

fn app(namespace: &str, name: &str, metadata: &str) -> String {
    format!(
        "apiVersion: paas.example.com/v1\nkind: Application\nmetadata: {{name: {name}, namespace: {namespace}{metadata}}}\nspec: {{image: i}}\n---\n"
    )
}

fn server() -> (Outrigger, Kubectl) {
    let server = Outrigger::up(&[]);
    let kubectl = Kubectl::new(&server.kubeconfig());
    let _ = kubectl.ok(&["create", "namespace", "team"]);
    (server, kubectl)
}

#[test]
fn a_namespace_takes_its_content_with_it_and_can_be_made_again() {
    let (_server, kubectl) = server();
    let many: String = (0..30).map(|i| app("team", &format!("a{i}"), "")).collect();
    let _ = kubectl.ok_with(&["create", "-f", "-"], &many);
    let _ = kubectl.ok(&["create", "secret", "generic", "s", "-n", "team"]);
    let placed = kubectl.ok(&[
        "get",
        "namespaceplacements",
        "team",
        "-o",
        "jsonpath={.spec.cluster}",
    ]);
    assert!(placed.starts_with("cluster-"), "{placed}");
    let _ = kubectl.ok(&["delete", "namespace", "team", "--timeout=60s"]);
    assert!(
        kubectl
            .fails(&["get", "namespace", "team"], "")
            .contains("NotFound")
    );
    assert!(
        kubectl
            .fails(&["get", "namespaceplacements", "team"], "")
            .contains("NotFound")
    );
    let _ = kubectl.ok(&["create", "namespace", "team"]);
    assert_eq!(kubectl.ok(&["get", "apps", "-n", "team", "-o", "name"]), "");
    let _ = kubectl.ok_with(&["create", "-f", "-"], &app("team", "again", ""));
    assert_eq!(
        kubectl.ok(&["get", "apps", "-A", "-o", "name"]).lines().count(),
        1
    );
}

#[test]
fn a_namespace_that_was_finalized_by_force_can_be_made_and_deleted_again() {
    let (_server, kubectl) = server();
    let _ = kubectl.ok_with(
        &["create", "-f", "-"],
        &app("team", "held", ", finalizers: [example.com/hold]"),
    );
    let _ = kubectl.ok(&["delete", "namespace", "team", "--wait=false"]);
    let forced =
        r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"team"},"spec":{"finalizers":[]}}"#;
    let finalize = "/api/v1/namespaces/team/finalize";
    let _ = kubectl.ok_with(&["replace", "--raw", finalize, "-f", "-"], forced);
    let _ = kubectl.ok(&["create", "namespace", "team"]);
    // What was left behind is still there, as in every cluster; it no longer keeps its namesake from going.
    assert!(
        kubectl
            .ok(&["get", "apps", "-n", "team", "-o", "name"])
            .contains("held")
    );
    let unhold = r#"{"metadata":{"finalizers":null}}"#;
    let _ = kubectl.ok(&[
        "patch",
        "apps",
        "held",
        "-n",
        "team",
        "--type=merge",
        "-p",
        unhold,
    ]);
    let _ = kubectl.ok(&["delete", "namespace", "team", "--timeout=30s"]);
    let _ = kubectl.ok(&["create", "namespace", "team"]);
    let _ = kubectl.ok_with(&["create", "-f", "-"], &app("team", "again", ""));
}

#[test]
fn a_namespace_waits_for_finalizers_and_says_so() {
    let (_server, kubectl) = server();
    let _ = kubectl.ok_with(
        &["create", "-f", "-"],
        &app("team", "held", ", finalizers: [example.com/hold]"),
    );
    let _ = kubectl.ok(&["delete", "namespace", "team", "--wait=false"]);
    let condition = "jsonpath={.status.conditions[?(@.type==\"NamespaceFinalizersRemaining\")].message}";
    let says = kubectl.eventually(&["get", "namespace", "team", "-o", condition], |out| {
        out.contains("example.com/hold")
    });
    assert!(says.contains("in 1 resource instances"), "{says}");
    let refused = kubectl.fails(&["create", "-f", "-"], &app("team", "late", ""));
    assert!(refused.contains("because it is being terminated"), "{refused}");
    let _ = kubectl.ok(&[
        "patch",
        "apps",
        "held",
        "-n",
        "team",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    let _ = kubectl.eventually(&["get", "namespace", "team"], |out| out.contains("NotFound"));
}

#[test]
fn a_deleted_crd_takes_its_objects_and_comes_back_empty() {
    let (_server, kubectl) = server();
    let many: String = (0..20).map(|i| app("team", &format!("a{i}"), "")).collect();
    let _ = kubectl.ok_with(&["create", "-f", "-"], &many);
    let crd = kubectl.ok(&["get", "crd", "applications.paas.example.com", "-o", "json"]);
    let _ = kubectl.ok(&["delete", "crd", "applications.paas.example.com", "--timeout=60s"]);
    let _ = kubectl.eventually(&["get", "applications.paas.example.com", "-A"], |out| {
        out.contains("the server doesn't have a resource type")
    });
    let mut crd: serde_json::Value = serde_json::from_str(&crd).expect("JSON");
    crd["metadata"] = serde_json::json!({"name": "applications.paas.example.com"});
    let _ = kubectl.ok_with(&["create", "-f", "-"], &crd.to_string());
    let _ = kubectl.ok(&[
        "wait",
        "--for=condition=Established",
        "crd/applications.paas.example.com",
        "--timeout=10s",
    ]);
    let _ = kubectl.eventually(&["get", "apps", "-A"], |out| out.contains("No resources found"));
}

const REGIONS: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: regions.geo.example.com}
spec:
  group: geo.example.com
  scope: Cluster
  names: {plural: regions, singular: region, kind: Region, listKind: RegionList}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
"#;

#[test]
fn a_kind_without_namespaces_has_a_home_and_gives_it_up() {
    let (_server, kubectl) = server();
    let region = "{apiVersion: geo.example.com/v1, kind: Region, metadata: {name: north}}";
    let established = [
        "wait",
        "--for=condition=Established",
        "crd/regions.geo.example.com",
        "--timeout=10s",
    ];
    for _ in 0..2 {
        let _ = kubectl.ok_with(&["create", "-f", "-"], REGIONS);
        let _ = kubectl.ok(&established);
        let _ = kubectl.eventually(&["get", "regions"], |out| out.contains("No resources found"));
        let _ = kubectl.ok_with(&["create", "-f", "-"], region);
        let placements = kubectl.ok(&["get", "namespaceplacements", "-o", "name"]);
        assert!(placements.contains("regions.geo.example.com"), "{placements}");
        let _ = kubectl.ok(&["delete", "crd", "regions.geo.example.com", "--timeout=60s"]);
        let placements = kubectl.ok(&["get", "namespaceplacements", "-o", "name"]);
        assert!(!placements.contains("regions.geo.example.com"), "{placements}");
    }
}

#[test]
fn what_the_server_needs_itself_stays() {
    let (_server, kubectl) = server();
    let refused = kubectl.fails(&["delete", "namespace", "default"], "");
    assert!(
        refused.contains(r#"namespaces "default" is forbidden: this namespace may not be deleted"#),
        "{refused}"
    );
    // The description of a kind of ours comes back, and its objects never left.
    let _ = kubectl.ok(&["delete", "crd", "workloadclusters.outrigger.dev", "--timeout=60s"]);
    let clusters = kubectl.eventually(&["get", "workloadclusters"], |out| {
        out.matches("True").count() == 3
    });
    assert!(clusters.contains("cluster-3"), "{clusters}");
    let _ = kubectl.eventually(&["get", "crd", "workloadclusters.outrigger.dev"], |out| {
        !out.contains("NotFound")
    });
}

/// An owner with two dependents in a namespace.
fn family(kubectl: &Kubectl) {
    let _ = kubectl.ok_with(&["create", "-f", "-"], &app("team", "owner", ""));
    let uid = kubectl.ok(&[
        "get",
        "apps",
        "owner",
        "-n",
        "team",
        "-o",
        "jsonpath={.metadata.uid}",
    ]);
    let reference = format!(
        ", ownerReferences: [{{apiVersion: paas.example.com/v1, kind: Application, name: owner, uid: {uid}, blockOwnerDeletion: true}}]"
    );
    let children = app("team", "child-1", &reference) + &app("team", "child-2", &reference);
    let _ = kubectl.ok_with(&["create", "-f", "-"], &children);
}

fn names(kubectl: &Kubectl) -> String {
    kubectl.ok(&["get", "apps", "-n", "team", "-o", "name"])
}

#[test]
fn dependents_go_after_their_owner_in_the_background() {
    let (_server, kubectl) = server();
    family(&kubectl);
    let _ = kubectl.ok(&["delete", "apps", "owner", "-n", "team"]);
    let _ = kubectl.eventually(&["get", "apps", "-n", "team", "-o", "name"], |out| {
        out.trim().is_empty()
    });
}

#[test]
fn dependents_go_before_their_owner_in_the_foreground() {
    let (_server, kubectl) = server();
    family(&kubectl);
    let hold = r#"{"metadata":{"finalizers":["example.com/hold"]}}"#;
    let _ = kubectl.ok(&[
        "patch",
        "apps",
        "child-1",
        "-n",
        "team",
        "--type=merge",
        "-p",
        hold,
    ]);
    let _ = kubectl.ok(&[
        "delete",
        "apps",
        "owner",
        "-n",
        "team",
        "--cascade=foreground",
        "--wait=false",
    ]);
    let _ = kubectl.eventually(&["get", "apps", "-n", "team", "-o", "name"], |out| {
        !out.contains("child-2")
    });
    assert!(
        names(&kubectl).contains("owner"),
        "it waits for the dependent that is held"
    );
    let _ = kubectl.ok(&[
        "patch",
        "apps",
        "child-1",
        "-n",
        "team",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    let _ = kubectl.eventually(&["get", "apps", "-n", "team", "-o", "name"], |out| {
        out.trim().is_empty()
    });
}

#[test]
fn orphans_stay_and_forget_their_owner() {
    let (_server, kubectl) = server();
    family(&kubectl);
    let _ = kubectl.ok(&["delete", "apps", "owner", "-n", "team", "--cascade=orphan"]);
    let _ = kubectl.eventually(&["get", "apps", "-n", "team", "-o", "name"], |out| {
        !out.contains("/owner")
    });
    let references = kubectl.ok(&[
        "get",
        "apps",
        "-n",
        "team",
        "-o",
        "jsonpath={.items[*].metadata.ownerReferences}",
    ]);
    assert_eq!((references.trim(), names(&kubectl).lines().count()), ("", 2));
}

#[test]
fn a_dependent_of_nobody_is_collected_and_one_of_somebody_is_kept() {
    let (_server, kubectl) = server();
    family(&kubectl);
    let nobody = ", ownerReferences: [{apiVersion: paas.example.com/v1, kind: Application, name: owner, uid: 00000000-0000-4000-8000-000000000000}]";
    let _ = kubectl.ok_with(&["create", "-f", "-"], &app("team", "lost", nobody));
    let _ = kubectl.eventually(&["get", "apps", "-n", "team", "-o", "name"], |out| {
        !out.contains("lost")
    });
    assert_eq!(names(&kubectl).lines().count(), 3);
}
