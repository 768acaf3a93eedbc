//! The API in process: a system backend and three workload backends in memory, and requests that have passed the filters.

use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use outrigger_apiserver::authentication::{SYSTEM_MASTERS, UserInfo};
use outrigger_apiserver::authorization::Authorizer;
use outrigger_apiserver::endpoints::{ApiConfig, ApiContext, serve};
use outrigger_apiserver::registry::control_plane::stored::StoredControlPlane;
use outrigger_apiserver::registry::{Registry, RegistryConfig};
use outrigger_apiserver::request::context::{WarningRecorder, WatchTermination};
use outrigger_apiserver::request::{Query, RequestInfo};
use outrigger_apiserver::resources::definition::ResourceDefinition;
use outrigger_apiserver::resources::{ServedResources, builtin};
use outrigger_storage::backend::Backend;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::federated::{Member, Routing, StoreConfig, WallClock};
use outrigger_storage::testing::faulty_backend::{Faults, FaultyBackend};
use outrigger_storage::{FederatedStore, Slot};
use serde_json::{Value, json};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

pub(crate) const APPS: &str = "/apis/paas.example.com/v1";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const JSON_PATCH: &str = "application/json-patch+json";
const JSON: &str = "application/json";

pub(crate) struct Api {
    pub(crate) context: ApiContext,
    pub(crate) workload: FederatedStore,
    pub(crate) termination: WatchTermination,
    pub(crate) served: watch::Sender<Arc<ServedResources>>,
}

/// What came back, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) warnings: Vec<String>,
    pub(crate) body: Bytes,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The JSON, once the code is the expected one.
    #[track_caller]
    pub(crate) fn expect(&self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The message of a Status with this code and reason.
    #[track_caller]
    pub(crate) fn error(&self, code: u16, reason: &str) -> String {
        let status = self.expect(code);
        assert_eq!(status["reason"], reason, "{status}");
        assert_eq!(status["kind"], "Status");
        status["message"].as_str().unwrap_or_default().to_owned()
    }
}

fn wall_clock() -> WallClock {
    Arc::new(|| u64::try_from(jiff::Timestamp::now().as_millisecond()).expect("after 1970"))
}

/// The backends of a fleet: each may be opened by several replicas.
#[derive(Clone)]
pub(crate) struct Fleet {
    system: Arc<dyn Backend>,
    clusters: Vec<(&'static str, Arc<dyn Backend>)>,
    /// What can be done to each cluster.
    pub(crate) faults: Vec<Arc<Faults>>,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        let mut faults = Vec::new();
        let cluster = |name: &'static str| {
            let (backend, fault) = FaultyBackend::new(Arc::new(EmbeddedBackend::in_memory()), 3);
            faults.push(fault);
            (name, backend as Arc<dyn Backend>)
        };
        let clusters = ["blue", "green", "red"].into_iter().map(cluster).collect();
        let system = Arc::new(EmbeddedBackend::in_memory());
        Self {
            system,
            clusters,
            faults,
        }
    }

    fn members(&self) -> Vec<Member> {
        let member = |(i, (name, backend)): (usize, &(&'static str, Arc<dyn Backend>))| Member {
            slot: Slot(u16::try_from(i).expect("few")),
            name: (*name).to_owned(),
            uid: format!("uid-{name}"),
            backend: backend.clone(),
            exclusive: true,
            seen: None,
            incarnation: 0,
        };
        self.clusters.iter().enumerate().map(member).collect()
    }
}

async fn store(routing: Routing, members: Vec<Member>, seed: u64) -> FederatedStore {
    let mut config = StoreConfig::new("test", routing, wall_clock(), seed);
    config.list_bytes_max = 8 << 20;
    config.ring_bytes_max = 4 << 20;
    config.write_deadline = Duration::from_secs(5);
    let (store, tasks) = FederatedStore::open(config, members).await.expect("a store");
    for task in tasks {
        tokio::spawn(task.run);
    }
    store
}

impl Api {
    pub(crate) async fn start() -> Self {
        Self::replica(&Fleet::new(), 7).await
    }

    /// One of the servers of a fleet.
    pub(crate) async fn replica(fleet: &Fleet, seed: u64) -> Self {
        let system = Member {
            slot: Slot(0),
            name: "system".to_owned(),
            uid: "uid-system".to_owned(),
            backend: fleet.system.clone(),
            exclusive: true,
            seen: None,
            incarnation: 0,
        };
        let system = store(Routing::Sole, vec![system], seed).await;
        let workload = store(Routing::Owned, fleet.members(), seed).await;
        // Placement chooses among the clusters that are connected.
        while workload.clusters().iter().any(|cluster| !cluster.reachable) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let control_plane = Arc::new(StoredControlPlane::new(system.clone(), wall_clock(), seed + 1));
        let registry = Registry::new(RegistryConfig {
            system: Some(system),
            control_plane,
            workload: workload.clone(),
            wall_clock: wall_clock(),
            seed,
        });
        let mut crd = builtin::example_crd();
        crd["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
        crd["metadata"]["uid"] = "crd-uid".into();
        let mut definitions = builtin::definitions();
        definitions.extend(builtin::outrigger_definitions());
        definitions.extend(ResourceDefinition::from_crd(&crd).into_iter().map(Arc::new));
        let (sender, served) = watch::channel(Arc::new(ServedResources::new(definitions)));
        let context = ApiContext::new(ApiConfig {
            registry,
            served,
            wall_clock: wall_clock(),
            seed: 13,
        });
        Self {
            context,
            workload,
            termination: WatchTermination::default(),
            served: sender,
        }
    }

    /// With these namespaces.
    pub(crate) async fn with_namespaces(names: &[&str]) -> Self {
        let api = Self::start().await;
        for name in names {
            api.post("/api/v1/namespaces", json!({"metadata": {"name": name}}))
                .await
                .expect(201);
        }
        api
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> (http::Response<Body>, WarningRecorder) {
        let mut request = Request::builder().method(&method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body)).expect("a request");
        let query = Query::of(request.uri());
        let info = Arc::new(RequestInfo::parse(&method, request.uri().path(), &query).expect("a path"));
        let user = UserInfo {
            name: "test".to_owned(),
            groups: vec![SYSTEM_MASTERS.to_owned()],
            ..UserInfo::default()
        };
        let user = Arc::new(user);
        let warnings = WarningRecorder::default();
        let authorized = Authorizer::standalone().authorize(&user, &info, &query).await;
        let extensions = request.extensions_mut();
        extensions.insert(authorized.expect("authorized"));
        extensions.insert(info);
        extensions.insert(Arc::new(query));
        extensions.insert(user);
        extensions.insert(warnings.clone());
        extensions.insert(self.termination.clone());
        (serve(self.context.clone(), request).await, warnings)
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let (response, warnings) = self.send(method, uri, headers, body.into()).await;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("a whole body").to_bytes();
        let text = |v: &http::HeaderValue| String::from_utf8_lossy(v.as_bytes()).into_owned();
        let warnings = warnings.headers().iter().map(text).collect();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            warnings,
            body,
        }
    }

    pub(crate) async fn get(&self, uri: &str) -> Answer {
        self.call(Method::GET, uri, &[], "").await
    }

    pub(crate) async fn post(&self, uri: &str, body: Value) -> Answer {
        self.call(Method::POST, uri, &[("content-type", JSON)], body.to_string())
            .await
    }

    pub(crate) async fn put(&self, uri: &str, body: Value) -> Answer {
        self.call(Method::PUT, uri, &[("content-type", JSON)], body.to_string())
            .await
    }

    pub(crate) async fn patch(&self, uri: &str, content_type: &str, body: Value) -> Answer {
        self.call(
            Method::PATCH,
            uri,
            &[("content-type", content_type)],
            body.to_string(),
        )
        .await
    }

    pub(crate) async fn delete(&self, uri: &str, options: Value) -> Answer {
        let body = if options.is_null() {
            String::new()
        } else {
            options.to_string()
        };
        self.call(Method::DELETE, uri, &[("content-type", JSON)], body)
            .await
    }

    /// Creates `namespace/name`.
    pub(crate) async fn app(&self, namespace: &str, name: &str) -> Value {
        self.post(&format!("{APPS}/namespaces/{namespace}/applications"), app(name))
            .await
            .expect(201)
    }

    /// Opens a watch.
    pub(crate) async fn watch(&self, uri: &str) -> Frames {
        let (response, _) = self.send(Method::GET, uri, &[], Bytes::new()).await;
        assert_eq!(response.status(), 200, "{uri}");
        Frames {
            body: Box::pin(response.into_body().into_data_stream()),
            rest: Vec::new(),
        }
    }
}

/// The frames of a watch.
pub(crate) struct Frames {
    body: Pin<Box<axum::body::BodyDataStream>>,
    rest: Vec<u8>,
}

impl Frames {
    /// The next frame; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a frame"));
            }
            let next = tokio::time::timeout(Duration::from_secs(20), self.body.next());
            match next.await.expect("a frame in time") {
                Some(chunk) => self.rest.extend_from_slice(&chunk.expect("a clean body")),
                None => return None,
            }
        }
    }

    /// The next frame as `TYPE name`.
    pub(crate) async fn line(&mut self) -> String {
        match self.next().await {
            None => "end".to_owned(),
            Some(frame) => {
                let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
                let name = text(&frame["object"]["metadata"]["name"]);
                format!("{} {name}", text(&frame["type"])).trim().to_owned()
            }
        }
    }
}

/// A small Application.
pub(crate) fn app(name: &str) -> Value {
    json!({
        "apiVersion": "paas.example.com/v1", "kind": "Application",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"image": "registry.example.com/web:1", "replicas": 2, "tier": "standard"},
    })
}

/// The path of an Application.
pub(crate) fn url(namespace: &str, name: &str) -> String {
    format!("{APPS}/namespaces/{namespace}/applications/{name}")
}

/// The resource version of an object or a list.
#[track_caller]
pub(crate) fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"]
        .as_str()
        .expect("a resource version");
    text.parse().expect("a number")
}

/// The names of a list's items.
pub(crate) fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let name = |o: &Value| {
        format!(
            "{}/{}",
            o["metadata"]["namespace"].as_str().unwrap_or_default(),
            o["metadata"]["name"].as_str().unwrap_or_default()
        )
    };
    items.iter().map(name).collect()
}
