//! The rights that the chart gives, and what an operator reads when they do not reach as far as an annotation.

use super::kubectl::application;
use super::member::Member;
use std::time::Duration;
use tokio::time::Instant;

const OTHER_CRD: &str = "apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: buckets.data.example.com
  annotations: {outrigger.dev/distributed: \"true\"}
spec:
  group: data.example.com
  names: {kind: Bucket, plural: buckets, singular: bucket, listKind: BucketList}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

const GRANT: &str = "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: buckets-may-move}
rules: [{apiGroups: [data.example.com], resources: ['*'], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: buckets-may-move}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: buckets-may-move}
subjects: [{kind: ServiceAccount, name: outrigger, namespace: outrigger-system}]
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_was_not_named_says_what_to_do() {
    let member = Member::start(1).await;
    let kubectl = &member.kubectl;
    let _ = kubectl.ok_with(&["apply", "-f", "-"], OTHER_CRD);
    let crd = "crd/buckets.data.example.com";
    let condition = "jsonpath={.status.conditions[?(@.type==\"Distributed\")]}";
    let said = kubectl.eventually(&["get", crd, "-o", condition], |said| {
        said.contains("RightsMissing")
    });
    assert!(
        said.contains("rbac.distributedGroups={data.example.com}") && said.contains("\"status\":\"False\""),
        "{said}"
    );
    // The kind works meanwhile, in the control plane.
    let _ = kubectl.eventually(&["get", "buckets", "-A"], |said| {
        said.contains("No resources found")
    });
    let _ = kubectl.ok_with(&["apply", "-f", "-"], GRANT);
    let _ = kubectl.ok(&["wait", "--for=condition=Distributed", "--timeout=120s", crd]);
}

/// The objects of a CRD that is deleted go first, and nobody has given us the right to delete them: they are ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crd_that_is_deleted_takes_its_objects_along() {
    let member = Member::start(1).await;
    let kubectl = &member.kubectl;
    let crd = "crd/applications.paas.example.com";
    for namespace in ["team-1", "team-2"] {
        let _ = kubectl.ok(&["create", "namespace", namespace]);
        let _ = kubectl.ok_with(&["create", "-f", "-"], &application(namespace, "web", 1));
    }
    let _ = kubectl.ok(&["delete", crd, "--timeout=90s"]);
    member.take_over();
    let _ = kubectl.eventually(&["get", "apps", "-A"], |said| said.contains("No resources found"));
    assert_eq!(member.forbidden(), []);
}

/// Whoever watches a kind while it comes to us would hear nothing any more, and would not know; who looks for a new one
/// finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_end_when_their_kind_comes() {
    let member = Member::start(1).await;
    let kubectl = &member.kubectl;
    let _ = kubectl.ok_with(&["apply", "-f", "-"], GRANT);
    let not_yet = OTHER_CRD.replace("distributed: \"true\"", "distributed: \"false\"");
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &not_yet);
    let _ = kubectl.eventually(&["get", "buckets", "-A"], |said| {
        said.contains("No resources found")
    });
    let client = member.control_plane.client().await.expect("a client");
    let watch = "/apis/data.example.com/v1/buckets?watch=1&resourceVersion=0&timeoutSeconds=600";
    let mut events = client.lines(watch).await.expect("a watch");
    let crd = "crd/buckets.data.example.com";
    let _ = kubectl.ok(&["annotate", "--overwrite", crd, "outrigger.dev/distributed=true"]);
    let _ = kubectl.ok(&["wait", "--for=condition=Distributed", "--timeout=120s", crd]);
    let end = tokio::time::timeout(Duration::from_secs(60), events.next()).await;
    assert!(matches!(end, Ok(Ok(None) | Err(_))), "{end:?}");
    // The names are those of the specification again.
    let names = ["get", crd, "-o", "jsonpath={.status.acceptedNames.categories}"];
    let _ = kubectl.eventually(&names, str::is_empty);

    // A second kind of the group: kube-apiserver asks for the kinds of a group once a minute, unless it is told.
    let second = OTHER_CRD.replace("bucket", "shelf").replace("Bucket", "Shelf");
    let _ = kubectl.ok_with(&["apply", "-f", "-"], &second);
    let of_second = "crd/shelfs.data.example.com";
    let _ = kubectl.ok(&["wait", "--for=condition=Distributed", "--timeout=120s", of_second]);
    let began = Instant::now();
    let _ = kubectl.eventually(&["get", "shelfs", "-A"], |said| {
        said.contains("No resources found")
    });
    let _ = kubectl.ok(&["delete", of_second]);
    let _ = kubectl.eventually(&["api-resources", "--api-group=data.example.com"], |said| {
        said.contains("buckets") && !said.contains("shelfs")
    });
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(member.forbidden(), []);
}
