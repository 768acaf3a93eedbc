//! Kinds that come to us and go back, in a real control plane.

use crate::control_plane::{ControlPlane, now};
use crate::fake_server::{ANSWER, FakeServer};
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use outrigger_apiservice::{
    Controller, Kind, KindState, Kinds, Objects, ObjectsError, ServiceReference, Timing, run,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

const NAMESPACE: &str = "outrigger-system";
const WITHIN: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(100);

/// What our store holds: the CRDs of kinds that have objects, and those whose objects were deleted.
#[derive(Default)]
struct FakeObjects {
    exist: Mutex<BTreeSet<String>>,
    deleted: Mutex<BTreeSet<String>>,
}

impl Objects for FakeObjects {
    fn exist<'a>(&'a self, kind: &'a Kind) -> BoxFuture<'a, Result<bool, ObjectsError>> {
        let exist = locked(&self.exist).contains(&kind.crd);
        async move { Ok(exist) }.boxed()
    }

    fn delete_all<'a>(&'a self, kind: &'a Kind) -> BoxFuture<'a, Result<bool, ObjectsError>> {
        // The first time only a part.
        let is_first = locked(&self.deleted).insert(kind.crd.clone());
        async move { Ok(!is_first) }.boxed()
    }
}

fn locked<T>(value: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Story {
    client: Client,
    objects: Arc<FakeObjects>,
    kinds: watch::Receiver<Option<Arc<Kinds>>>,
    is_leader: watch::Sender<bool>,
    bundle: Arc<Vec<u8>>,
}

fn resource(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

impl Story {
    fn api(&self, api_version: &str, kind: &str, plural: &str) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &resource(api_version, kind, plural))
    }

    fn crds(&self) -> Api<DynamicObject> {
        self.api(
            "apiextensions.k8s.io/v1",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        )
    }

    fn api_services(&self) -> Api<DynamicObject> {
        self.api("apiregistration.k8s.io/v1", "APIService", "apiservices")
    }

    fn apps(&self, group: &str) -> Api<DynamicObject> {
        let api_version = format!("{group}/v1");
        Api::namespaced_with(
            self.client.clone(),
            "default",
            &resource(&api_version, "App", "apps"),
        )
    }

    async fn create(&self, api: &Api<DynamicObject>, object: Value) -> kube::Result<DynamicObject> {
        let object = serde_json::from_value(object).expect("an object");
        api.create(&PostParams::default(), &object).await
    }

    /// A CRD `apps` of this group, once kube-apiserver serves it.
    async fn create_crd(&self, group: &str, versions: &[&str]) {
        let version = |(i, name): (usize, &&str)| {
            json!({
                "name": name, "served": true, "storage": i == 0,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            })
        };
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("apps.{group}")},
            "spec": {
                "group": group, "scope": "Namespaced",
                "names": {"plural": "apps", "singular": "app", "kind": "App", "listKind": "AppList"},
                "versions": versions.iter().enumerate().map(version).collect::<Vec<_>>(),
            },
        });
        self.create(&self.crds(), crd).await.expect("created");
        self.until("the kind is served", async || {
            self.apps(group).list(&ListParams::default()).await.is_ok()
        })
        .await;
    }

    async fn create_app(&self, group: &str, name: &str) -> kube::Result<DynamicObject> {
        let app = json!({"apiVersion": format!("{group}/v1"), "kind": "App", "metadata": {"name": name}});
        self.create(&self.apps(group), app).await
    }

    /// A create that leaves nothing behind.
    async fn try_app(&self, group: &str) -> kube::Result<DynamicObject> {
        let app = json!({"apiVersion": format!("{group}/v1"), "kind": "App", "metadata": {"name": "tried"}});
        let app = serde_json::from_value(app).expect("an object");
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        self.apps(group).create(&params, &app).await
    }

    async fn annotate(&self, group: &str, key: &str, value: Option<&str>) {
        let patch = json!({"metadata": {"annotations": {format!("outrigger.dev/{key}"): value}}});
        let (name, params) = (format!("apps.{group}"), PatchParams::default());
        self.crds()
            .patch(&name, &params, &Patch::Merge(&patch))
            .await
            .expect("annotated");
    }

    /// The status and reason of a condition of the CRD.
    async fn condition(&self, group: &str, type_: &str) -> Option<(String, String)> {
        let crd = self
            .crds()
            .get_opt(&format!("apps.{group}"))
            .await
            .expect("an answer")?;
        let conditions = crd.data["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let found = conditions.into_iter().find(|c| c["type"] == type_)?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason")))
    }

    async fn api_service(&self, group: &str) -> Option<DynamicObject> {
        let name = format!("v1.{group}");
        self.api_services().get_opt(&name).await.expect("an answer")
    }

    /// Whether the APIService points at us, as it should.
    async fn is_ours(&self, group: &str) -> bool {
        let Some(found) = self.api_service(group).await else {
            return false;
        };
        let labels = found.metadata.labels.unwrap_or_default();
        let spec = &found.data["spec"];
        let bundle: k8s_openapi::ByteString =
            serde_json::from_value(spec["caBundle"].clone()).unwrap_or_default();
        spec["service"]["name"] == "outrigger"
            && bundle.0 == *self.bundle
            && !labels.contains_key("kube-aggregator.kubernetes.io/automanaged")
    }

    /// Whether the APIService is kube-apiserver's own.
    async fn is_local(&self, group: &str) -> bool {
        let Some(found) = self.api_service(group).await else {
            return false;
        };
        let labels = found.metadata.labels.unwrap_or_default();
        found.data["spec"].get("service").is_none_or(Value::is_null)
            && labels
                .get("kube-aggregator.kubernetes.io/automanaged")
                .is_some_and(|v| v == "true")
    }

    fn state(&self, group: &str) -> Option<KindState> {
        let kinds = self.kinds.borrow().clone()?;
        kinds.get(&format!("apps.{group}")).copied()
    }

    async fn is_distributed(&self, group: &str) -> bool {
        let condition = self.condition(group, "Distributed").await;
        condition.is_some_and(|(status, _)| status == "True") && self.state(group) == Some(KindState::Open)
    }

    async fn answers(&self, group: &str) -> bool {
        let path = format!("/apis/{group}/v1/namespaces/default/apps");
        let request = http::Request::get(path).body(Vec::new()).expect("a request");
        self.client
            .request_text(request)
            .await
            .is_ok_and(|text| text.contains(ANSWER))
    }

    async fn guards(&self, group: &str) -> usize {
        let name = format!("outrigger-guard.apps.{group}");
        let version = "admissionregistration.k8s.io/v1";
        let policies = self.api(
            version,
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
        );
        let bindings = self.api(
            version,
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        );
        let is_there =
            async |api: &Api<DynamicObject>| api.get_opt(&name).await.expect("an answer").is_some();
        usize::from(is_there(&policies).await) + usize::from(is_there(&bindings).await)
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !is_so().await {
            if start.elapsed() > WITHIN {
                let crds = self.crds().list(&ListParams::default()).await.expect("an answer");
                let conditions: Vec<_> = crds
                    .items
                    .iter()
                    .map(|c| &c.data["status"]["conditions"])
                    .collect();
                panic!("not so within {WITHIN:?}: {what}; {conditions:?}");
            }
            sleep(POLL).await;
        }
        println_step(what);
    }
}

fn println_step(what: &str) {
    eprintln!("ok: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kinds_come_and_go() {
    let Some(control_plane) = crate::control_plane().await else {
        return;
    };
    let server = FakeServer::start("outrigger", NAMESPACE, now()).await;
    let story = begin(&control_plane, &server).await;
    it_is_taken_over_and_stays_so(&story).await;
    objects_in_the_control_plane_are_a_refusal(&story).await;
    admission_is_a_refusal_until_it_is_accepted(&story).await;
    a_deleted_crd_takes_its_objects_and_its_api_service_along(&story).await;
    it_is_given_back(&story).await;
}

async fn begin(control_plane: &ControlPlane, server: &FakeServer) -> Story {
    let client = control_plane.client.clone();
    let (kinds_sender, kinds) = watch::channel(None);
    let (carried, _) = watch::channel(None);
    let (is_leader, leader) = watch::channel(false);
    let bundle = Arc::new(server.ca_pem.clone().into_bytes());
    let (_, bundle_receiver) = watch::channel(Arc::clone(&bundle));
    let objects = Arc::new(FakeObjects::default());
    let story = Story {
        client: client.clone(),
        objects: Arc::clone(&objects),
        kinds,
        is_leader,
        bundle,
    };
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let namespaces = story.api("v1", "Namespace", "namespaces");
    story.create(&namespaces, namespace).await.expect("created");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outrigger"},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    let services = Api::namespaced_with(client.clone(), NAMESPACE, &resource("v1", "Service", "services"));
    story.create(&services, service).await.expect("created");
    tokio::spawn(run(Controller {
        client,
        identity: "test".to_owned(),
        service: ServiceReference {
            namespace: NAMESPACE.to_owned(),
            name: "outrigger".to_owned(),
            port: server.port,
        },
        bundle: bundle_receiver,
        is_leader: leader,
        objects,
        clock: Arc::new(now),
        timing: Timing {
            guard_settle: Duration::from_secs(4),
            guard_settle_with_webhooks: Duration::from_secs(4),
            switch_settle: Duration::from_millis(500),
            release_settle: Duration::from_secs(1),
        },
        kinds: kinds_sender,
        carried,
    }));
    story
}

async fn it_is_taken_over_and_stays_so(story: &Story) {
    let group = "a.example.com";
    story.create_crd(group, &["v1", "v2"]).await;
    story.annotate(group, "distributed", Some("true")).await;
    story
        .until("who does not lead publishes", async || {
            story.state(group) == Some(KindState::Closed)
        })
        .await;
    sleep(Duration::from_secs(1)).await;
    assert!(
        story.condition(group, "Distributed").await.is_none(),
        "and writes nothing"
    );
    story.is_leader.send_replace(true);
    story
        .until("writes are denied before the switch", async || {
            story
                .try_app(group)
                .await
                .is_err_and(|e| e.to_string().contains("Outrigger"))
        })
        .await;
    assert!(story.is_local(group).await, "kube-apiserver still serves it");
    assert_ne!(
        story.state(group),
        Some(KindState::Open),
        "and we take no writes yet"
    );
    story
        .until("it is distributed", async || story.is_distributed(group).await)
        .await;
    assert!(story.is_ours(group).await && story.answers(group).await);
    let v2 = story.api_services().get("v2.a.example.com").await.expect("there");
    assert_eq!(
        v2.data["spec"]["service"]["name"], "outrigger",
        "with all its versions"
    );

    // Half a guard is none.
    let binding = resource(
        "admissionregistration.k8s.io/v1",
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
    );
    let bindings: Api<DynamicObject> = Api::all_with(story.client.clone(), &binding);
    let guard = "outrigger-guard.apps.a.example.com";
    let audit = json!({"spec": {"validationActions": ["Audit"]}});
    let edited = bindings
        .patch(guard, &PatchParams::default(), &Patch::Merge(&audit))
        .await;
    edited.expect("edited");
    story
        .until("the guard is put right after an edit", async || {
            let found = bindings.get_opt(guard).await.expect("an answer");
            found.is_some_and(|f| f.data["spec"]["validationActions"] == json!(["Deny"]))
        })
        .await;
    bindings
        .delete(guard, &DeleteParams::default())
        .await
        .expect("deleted");
    story
        .until("and after deletion", async || story.guards(group).await == 2)
        .await;

    // kube-apiserver takes policies up once a second.
    sleep(Duration::from_secs(4)).await;

    // Whatever is done to the APIService: nothing lands in the old store, and it is put right.
    let delete = story
        .api_services()
        .delete("v1.a.example.com", &DeleteParams::default())
        .await;
    delete.expect("deleted");
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        if let Ok(created) = story.create_app(group, "lost").await {
            assert_eq!(created.data["message"], ANSWER, "written to the old store");
        }
    }
    story
        .until("it is put right after deletion", async || {
            story.is_ours(group).await
        })
        .await;
    let edit = json!({"spec": {"caBundle": null, "insecureSkipTLSVerify": true, "versionPriority": 7}});
    let params = PatchParams::default();
    let edited = story
        .api_services()
        .patch("v1.a.example.com", &params, &Patch::Merge(&edit))
        .await;
    edited.expect("edited");
    story
        .until("it is put right after an edit", async || {
            let found = story
                .api_service(group)
                .await
                .unwrap_or_else(|| panic!("it is gone"));
            story.is_ours(group).await && found.data["spec"]["versionPriority"] == 100
        })
        .await;
    sleep(Duration::from_secs(2)).await;
    assert!(story.is_ours(group).await, "kube-apiserver does not take it back");
    story
        .until("and answers", async || story.answers(group).await)
        .await;
}

async fn objects_in_the_control_plane_are_a_refusal(story: &Story) {
    let group = "b.example.com";
    story.create_crd(group, &["v1"]).await;
    story.create_app(group, "one").await.expect("created");
    story.annotate(group, "distributed", Some("true")).await;
    story
        .until("ObjectsExist is said", async || {
            story
                .condition(group, "ObjectsExist")
                .await
                .is_some_and(|(status, _)| status == "True")
        })
        .await;
    let distributed = story.condition(group, "Distributed").await;
    assert_eq!(distributed, Some(("False".to_owned(), "ObjectsExist".to_owned())));
    assert!(story.is_local(group).await);
    story
        .create_app(group, "two")
        .await
        .expect("writes go on as ever");
    let events = story.api("events.k8s.io/v1", "Event", "events");
    story
        .until("an event says so", async || {
            let events = events.list(&ListParams::default()).await.expect("an answer");
            events.items.iter().any(|e| {
                e.data["reason"] == "ObjectsExist" && e.data["regarding"]["name"] == "apps.b.example.com"
            })
        })
        .await;
    for name in ["one", "two"] {
        story
            .apps(group)
            .delete(name, &DeleteParams::default())
            .await
            .expect("deleted");
    }
    story
        .until("it moves once it is empty", async || {
            story.is_distributed(group).await
        })
        .await;
    assert_eq!(story.condition(group, "ObjectsExist").await, None);
}

async fn admission_is_a_refusal_until_it_is_accepted(story: &Story) {
    let group = "c.example.com";
    let hook = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "hook"},
        "webhooks": [{
            "name": "hook.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": "Ignore", "clientConfig": {"url": "https://127.0.0.1:1/"},
            "rules": [{
                "apiGroups": [group], "apiVersions": ["*"], "resources": ["*"], "operations": ["CREATE"],
            }],
        }],
    });
    let hooks = story.api(
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    );
    story.create(&hooks, hook).await.expect("created");
    story.create_crd(group, &["v1"]).await;
    story.annotate(group, "distributed", Some("true")).await;
    story
        .until("PoliciesNotEnforced is said", async || {
            story
                .condition(group, "PoliciesNotEnforced")
                .await
                .is_some_and(|(status, _)| status == "True")
        })
        .await;
    assert!(story.is_local(group).await && story.guards(group).await == 0);
    story.annotate(group, "without-admission", Some("accepted")).await;
    story
        .until("it moves once that is accepted", async || {
            story.is_distributed(group).await
        })
        .await;
    assert_eq!(story.condition(group, "PoliciesNotEnforced").await, None);
}

async fn a_deleted_crd_takes_its_objects_and_its_api_service_along(story: &Story) {
    let group = "c.example.com";
    let deleted = story
        .crds()
        .delete("apps.c.example.com", &DeleteParams::default())
        .await;
    deleted.expect("deleted");
    story
        .until("the CRD is gone", async || {
            story
                .crds()
                .get_opt("apps.c.example.com")
                .await
                .expect("an answer")
                .is_none()
        })
        .await;
    assert!(
        locked(&story.objects.deleted).contains("apps.c.example.com"),
        "our objects went first"
    );
    story
        .until("its APIService is gone", async || {
            story.api_service(group).await.is_none()
        })
        .await;
    story
        .until("its guard is gone", async || story.guards(group).await == 0)
        .await;
}

async fn it_is_given_back(story: &Story) {
    let group = "a.example.com";
    locked(&story.objects.exist).insert("apps.a.example.com".to_owned());
    story.annotate(group, "distributed", None).await;
    story
        .until("it is not given back with objects", async || {
            story
                .condition(group, "ObjectsExist")
                .await
                .is_some_and(|(status, _)| status == "True")
        })
        .await;
    assert!(story.is_ours(group).await && story.is_distributed(group).await);
    story.annotate(group, "release", Some("confirmed")).await;
    story
        .until("it is local again", async || story.is_local(group).await)
        .await;
    story
        .until("nothing of ours is left", async || {
            let crd = story.crds().get("apps.a.example.com").await.expect("there");
            let finalizers = crd.metadata.finalizers.unwrap_or_default();
            story.guards(group).await == 0
                && story.condition(group, "Distributed").await.is_none()
                && !finalizers.iter().any(|f| f.starts_with("outrigger.dev/"))
                && story.state(group).is_none()
        })
        .await;
    story
        .until("kube-apiserver takes writes again", async || {
            story.create_app(group, "back").await.is_ok()
        })
        .await;
    assert!(!story.answers(group).await);
}
