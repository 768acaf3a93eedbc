//! The Secret that replicas share, in a real control plane.

use crate::control_plane;
use crate::control_plane::now;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use outrigger_certs::{CertificateSource, Certificates, CertificatesConfig, RotationPolicy};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

const NAMESPACE: &str = "certs";
const WITHIN: Duration = Duration::from_secs(60);

async fn replica(client: &Client) -> Certificates {
    let (_, carried) = watch::channel(Some(Arc::new(Vec::new())));
    Certificates::start(CertificatesConfig {
        source: CertificateSource::SharedAuthority {
            client: client.clone(),
            namespace: NAMESPACE.to_owned(),
            name: "outrigger-ca".to_owned(),
            policy: RotationPolicy::default(),
        },
        service: "outrigger".to_owned(),
        service_namespace: NAMESPACE.to_owned(),
        extra_names: Vec::new(),
        carried,
        clock: Arc::new(now),
        provider: Arc::new(rustls::crypto::aws_lc_rs::default_provider()),
    })
    .await
    .expect("a certificate")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_start_at_once_share_one_authority() {
    let Some(control_plane) = crate::control_plane().await else {
        return;
    };
    let client = &control_plane.client;
    let namespace: Namespace =
        serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).expect("a namespace");
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .expect("created");

    let replicas = futures::future::join_all((0..4).map(|_| replica(client))).await;
    let bundle = replicas[0].bundle.borrow().clone();
    assert_eq!(bundle.certificates().len(), 1);
    for replica in &replicas {
        assert_eq!(*replica.bundle.borrow(), bundle, "one authority for all");
    }
    let mut leaves: Vec<_> = replicas
        .iter()
        .map(|r| r.serving.current().cert[0].clone())
        .collect();
    leaves.dedup();
    assert_eq!(leaves.len(), 4, "each its own certificate");

    // Who deletes the Secret deletes nobody's trust: it comes back as it was.
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    let before = secrets.get("outrigger-ca").await.expect("there").data;
    let tasks: Vec<_> = replicas.into_iter().map(|r| tokio::spawn(r.run)).collect();
    // The watches must be there to see it go.
    tokio::time::sleep(Duration::from_secs(2)).await;
    secrets
        .delete("outrigger-ca", &DeleteParams::default())
        .await
        .expect("deleted");
    let back = tokio::time::timeout(WITHIN, async {
        loop {
            match secrets.get_opt("outrigger-ca").await.expect("an answer") {
                Some(secret) => return secret,
                None => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    });
    assert_eq!(back.await.expect("it comes back").data, before);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    drop::<control_plane::ControlPlane>(control_plane);
}
