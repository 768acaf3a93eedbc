//! A kube-apiserver that knows three things: the ConfigMap of authentication, whose tokens are, and who may do what. It
//! writes down what it was asked.

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use tokio::sync::watch;

const CONFIG_MAPS: &str = "/api/v1/namespaces/kube-system/configmaps";

/// The fake. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct ControlPlane {
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<u64>>,
    watches_end: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct State {
    /// Every value the ConfigMap has had.
    config_maps: Vec<BTreeMap<String, String>>,
    tokens: BTreeMap<String, Value>,
    /// Users that may do nothing, and why.
    denied: BTreeMap<String, String>,
    failing: Option<u16>,
    token_reviews: usize,
    access_reviews: Vec<Value>,
}

/// What kube-apiserver publishes for these authorities.
pub(crate) fn config_map(client_ca: &str, front_proxy_ca: &str) -> BTreeMap<String, String> {
    [
        ("client-ca-file", client_ca),
        ("requestheader-client-ca-file", front_proxy_ca),
        ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-uid-headers", r#"["X-Remote-Uid"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

impl ControlPlane {
    pub(crate) fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let this = this.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                Ok::<_, Infallible>(this.answer(&head, &body))
            }
        });
        kube::Client::new(service, "default")
    }

    /// Writes the ConfigMap.
    pub(crate) fn publish(&self, data: BTreeMap<String, String>) {
        self.state.lock().config_maps.push(data);
        self.changes.send_modify(|n| *n += 1);
    }

    pub(crate) fn end_watches(&self) {
        self.watches_end.send_modify(|n| *n += 1);
    }

    /// Every request gets this code.
    pub(crate) fn fail_with(&self, code: u16) {
        self.state.lock().failing = Some(code);
    }

    pub(crate) fn recover(&self) {
        self.state.lock().failing = None;
    }

    pub(crate) fn add_token(&self, token: &str, user: Value) {
        self.state.lock().tokens.insert(token.to_owned(), user);
    }

    pub(crate) fn deny(&self, user: &str, reason: &str) {
        self.state
            .lock()
            .denied
            .insert(user.to_owned(), reason.to_owned());
    }

    pub(crate) fn token_reviews(&self) -> usize {
        self.state.lock().token_reviews
    }

    /// The specs of all reviews since the last look.
    pub(crate) fn access_reviews(&self) -> Vec<Value> {
        std::mem::take(&mut self.state.lock().access_reviews)
    }

    fn answer(&self, head: &http::request::Parts, body: &Bytes) -> Response<Body> {
        let mut state = self.state.lock();
        if let Some(code) = state.failing {
            return json_answer(code, &status(code, "as asked"));
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        match (&head.method, head.uri.path()) {
            (&Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews") => {
                state.token_reviews += 1;
                let token = body["spec"]["token"].as_str().unwrap_or_default();
                let status = match state.tokens.get(token) {
                    Some(user) => json!({"authenticated": true, "user": user}),
                    None => json!({"authenticated": false, "error": "[invalid bearer token]"}),
                };
                json_answer(
                    201,
                    &review(body, "TokenReview", "authentication.k8s.io/v1", status),
                )
            }
            (&Method::POST, "/apis/authorization.k8s.io/v1/subjectaccessreviews") => {
                let user = body["spec"]["user"].as_str().unwrap_or_default();
                let status = match state.denied.get(user) {
                    Some(reason) => json!({"allowed": false, "reason": reason}),
                    None => json!({"allowed": true, "reason": "everybody may"}),
                };
                state.access_reviews.push(body["spec"].clone());
                json_answer(
                    201,
                    &review(body, "SubjectAccessReview", "authorization.k8s.io/v1", status),
                )
            }
            (&Method::GET, path) if path.starts_with(CONFIG_MAPS) => {
                let query = head.uri.query().unwrap_or_default();
                match path.strip_prefix(CONFIG_MAPS) {
                    Some("/extension-apiserver-authentication") => match object(&state.config_maps) {
                        Some(object) => json_answer(200, &object),
                        None => json_answer(404, &status(404, "not found")),
                    },
                    Some("") => {
                        assert!(
                            query.contains("metadata.name"),
                            "one object is asked for: {query}"
                        );
                        match query.contains("watch=") {
                            true => self.watch(query),
                            false => json_answer(
                                200,
                                &json!({
                                    "kind": "ConfigMapList", "apiVersion": "v1",
                                    "metadata": {"resourceVersion": state.config_maps.len().to_string()},
                                    "items": object(&state.config_maps).into_iter().collect::<Vec<_>>(),
                                }),
                            ),
                        }
                    }
                    _ => json_answer(404, &status(404, "not found")),
                }
            }
            (method, path) => panic!("{method} {path} is not known here"),
        }
    }

    /// All values after the one that the client knows, as they come.
    fn watch(&self, query: &str) -> Response<Body> {
        let version = query.split('&').find_map(|p| p.strip_prefix("resourceVersion="));
        let next = version.and_then(|v| v.parse::<usize>().ok()).unwrap_or_default();
        let (state, changes, end) = (
            Arc::clone(&self.state),
            self.changes.subscribe(),
            self.watches_end.subscribe(),
        );
        let events = stream::unfold((next, changes, end), move |(next, mut changes, mut end)| {
            let state = Arc::clone(&state);
            async move {
                loop {
                    let object = object(state.lock().config_maps.get(..=next).unwrap_or_default());
                    if let Some(object) = object {
                        let line = format!("{}\n", json!({"type": "MODIFIED", "object": object}));
                        return Some((Ok::<_, Infallible>(line), (next + 1, changes, end)));
                    }
                    tokio::select! {
                        _ = changes.changed() => {}
                        _ = end.changed() => return None,
                    }
                }
            }
        });
        Response::new(Body::from_stream(events))
    }
}

fn object(versions: &[BTreeMap<String, String>]) -> Option<Value> {
    let data = versions.last()?;
    Some(json!({
        "kind": "ConfigMap", "apiVersion": "v1", "data": data,
        "metadata": {
            "name": "extension-apiserver-authentication", "namespace": "kube-system",
            "resourceVersion": versions.len().to_string(),
        },
    }))
}

fn review(mut body: Value, kind: &str, api_version: &str, status: Value) -> Value {
    body["kind"] = kind.into();
    body["apiVersion"] = api_version.into();
    body["status"] = status;
    body
}

fn status(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message, "reason": "Test", "code": code})
}

fn json_answer(code: u16, value: &Value) -> Response<Body> {
    Response::builder()
        .status(code)
        .header("content-type", "application/json")
        .body(Body::from(value.to_string()))
        .expect("an answer")
}
