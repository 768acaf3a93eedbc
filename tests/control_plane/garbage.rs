//! Owners and dependents across our kinds and built-in ones: kube-controller-manager's garbage collector works on both, in
//! the background, in the foreground, and leaves orphans where it is told to.

use super::member::Member;
use outrigger_tests::kubectl::Kubectl;

const NAMESPACE: &str = "team-1";
/// The collector looks for new kinds every 30 seconds.
const PATIENCE: &str = "--timeout=150s";

/// An object of `kind` that another one owns.
fn dependent(kind: &str, name: &str, owner: Option<(&str, &str, &str)>, finalizer: bool) -> String {
    let owners = owner.map_or(String::new(), |(kind, name, uid)| {
        let api_version = api_version(kind);
        format!(
            "  ownerReferences: [{{apiVersion: {api_version}, kind: {kind}, name: {name}, uid: {uid}, blockOwnerDeletion: true}}]\n"
        )
    });
    let finalizers = match finalizer {
        true => "  finalizers: [example.com/wait]\n",
        false => "",
    };
    let rest = match kind {
        "ConfigMap" => "data: {}",
        _ => {
            "spec: {image: registry.example.com/web:1, port: 8080, tier: standard, owner: team, replicas: 1}"
        }
    };
    format!(
        "apiVersion: {}\nkind: {kind}\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n{owners}{finalizers}{rest}\n",
        api_version(kind)
    )
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "ConfigMap" => "v1",
        _ => "paas.example.com/v1",
    }
}

/// Creates it; its uid.
fn create(kubectl: &Kubectl, manifest: &str) -> String {
    kubectl.ok_with(&["create", "-f", "-", "-o", "jsonpath={.metadata.uid}"], manifest)
}

fn is_gone(kubectl: &Kubectl, object: &str) {
    let _ = kubectl.ok(&["-n", NAMESPACE, "wait", "--for=delete", PATIENCE, object]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_take_their_dependents_along() {
    let member = Member::start(1).await;
    let kubectl = &member.kubectl;
    let _ = kubectl.ok(&["create", "namespace", NAMESPACE]);

    // In the background, in both directions.
    let of_config = create(kubectl, &dependent("ConfigMap", "settings", None, false));
    let settings = Some(("ConfigMap", "settings", of_config.as_str()));
    let of_web = create(kubectl, &dependent("Application", "web", settings, false));
    let web = Some(("Application", "web", of_web.as_str()));
    let _ = create(kubectl, &dependent("ConfigMap", "routes", web, false));
    let _ = kubectl.ok(&["-n", NAMESPACE, "delete", "configmap/settings", "--wait=false"]);
    is_gone(kubectl, "app/web");
    is_gone(kubectl, "configmap/routes");

    // In the foreground: an owner stays until what it owns is gone.
    let of_front = create(kubectl, &dependent("Application", "front", None, false));
    let front = Some(("Application", "front", of_front.as_str()));
    let _ = create(kubectl, &dependent("Application", "back", front, false));
    let _ = create(kubectl, &dependent("ConfigMap", "held", front, true));
    let delete = [
        "-n",
        NAMESPACE,
        "delete",
        "app/front",
        "--cascade=foreground",
        "--wait=false",
    ];
    let _ = kubectl.ok(&delete);
    is_gone(kubectl, "app/back");
    let finalizers = [
        "-n",
        NAMESPACE,
        "get",
        "app/front",
        "-o",
        "jsonpath={.metadata.finalizers}",
    ];
    assert_eq!(kubectl.ok(&finalizers), "[\"foregroundDeletion\"]");
    let release = "{\"metadata\":{\"finalizers\":null}}";
    let _ = kubectl.ok(&[
        "-n",
        NAMESPACE,
        "patch",
        "configmap/held",
        "--type=merge",
        "-p",
        release,
    ]);
    is_gone(kubectl, "app/front");

    // Orphans stay, and nobody owns them any more.
    let of_old = create(kubectl, &dependent("Application", "old", None, false));
    let old = Some(("Application", "old", of_old.as_str()));
    let _ = create(kubectl, &dependent("Application", "young", old, false));
    let _ = create(kubectl, &dependent("ConfigMap", "young", old, false));
    let _ = kubectl.ok(&[
        "-n",
        NAMESPACE,
        "delete",
        "app/old",
        "--cascade=orphan",
        "--wait=false",
    ]);
    is_gone(kubectl, "app/old");
    for object in ["app/young", "configmap/young"] {
        let owners = [
            "-n",
            NAMESPACE,
            "get",
            object,
            "-o",
            "jsonpath={.metadata.ownerReferences}",
        ];
        assert_eq!(kubectl.ok(&owners), "", "{object}");
    }
}
