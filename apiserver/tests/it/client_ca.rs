//! What the ConfigMap `extension-apiserver-authentication` says, and that it is followed.

use crate::control_plane::{ControlPlane, config_map};
use crate::harness::provider;
use outrigger_apiserver::authentication::client_ca::{self, ClientCas};
use outrigger_certs::Authority;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

fn ca(name: &str) -> String {
    let authority = Authority::create(name, 1_800_000_000).expect("a CA");
    authority.certificate_pem().to_owned()
}

fn whole(client: &str, front_proxy: &str) -> BTreeMap<String, String> {
    config_map(client, front_proxy)
}

#[test]
fn what_the_control_plane_publishes() {
    let data = whole(&ca("clients"), &ca("proxies"));
    let cas = ClientCas::parse(&data, &ClientCas::default(), &provider()).expect("well formed");
    assert_eq!(cas.roots().expect("two").len(), 2);
    let front_proxy = cas.request_header.as_ref().expect("a front proxy");
    assert_eq!(front_proxy.allowed_names, ["front-proxy-client"]);
    assert_eq!(front_proxy.headers.username, ["x-remote-user"]);
    assert_eq!(front_proxy.headers.extra_prefixes, ["x-remote-extra-"]);
    let same = ClientCas::parse(&data, &cas, &provider()).expect("well formed");
    assert!(same == cas);
    // One authority for both is asked for once.
    let one = ca("one");
    let cas = ClientCas::parse(&whole(&one, &one), &ClientCas::default(), &provider()).expect("well formed");
    assert_eq!(cas.roots().expect("one").len(), 1);
    let nothing = ClientCas::parse(&BTreeMap::new(), &ClientCas::default(), &provider()).expect("nothing");
    assert!(nothing.roots().is_none());
}

#[test]
fn an_authority_that_is_taken_away_stays_until_there_is_another() {
    let (old, new) = (whole(&ca("a"), &ca("b")), whole(&ca("c"), &ca("d")));
    let cas = ClientCas::parse(&old, &ClientCas::default(), &provider()).expect("well formed");
    assert!(ClientCas::parse(&BTreeMap::new(), &cas, &provider()).expect("nothing") == cas);
    let next = ClientCas::parse(&new, &cas, &provider()).expect("well formed");
    assert!(next.client != cas.client && next.request_header != cas.request_header);
    assert_eq!(next.roots().expect("two").len(), 2, "the old ones are gone");
}

#[test]
fn mistakes_are_named_and_nothing_of_them_counts() {
    let (client, front_proxy) = (ca("a"), ca("b"));
    let check = |key: &str, value: Option<&str>, expect: &str| {
        let mut data = whole(&client, &front_proxy);
        match value {
            Some(value) => data.insert(key.to_owned(), value.to_owned()),
            None => data.remove(key),
        };
        let error = ClientCas::parse(&data, &ClientCas::default(), &provider());
        let error = error.expect_err(key).to_string();
        assert!(error.contains(key) && error.contains(expect), "{error}");
    };
    check("client-ca-file", Some("nonsense"), "no certificate in it");
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    check("requestheader-client-ca-file", Some(broken), "no bundle");
    check("client-ca-file", Some(&format!("{client}{broken}")), "no bundle");
    check("requestheader-allowed-names", Some("front-proxy"), "expected");
    check("requestheader-allowed-names", None, "missing");
    check(
        "requestheader-username-headers",
        Some(r#"["X Remote"]"#),
        "no header",
    );
    check(
        "requestheader-extra-headers-prefix",
        Some(r#"[" "]"#),
        "no header",
    );
    check("requestheader-group-headers", Some(r#"{"a": 1}"#), "expected");
}

/// Waits for the next value.
async fn next(seen: &mut watch::Receiver<Arc<ClientCas>>) -> Arc<ClientCas> {
    let changed = timeout(Duration::from_secs(10), seen.changed()).await;
    changed.expect("in time").expect("it is followed");
    Arc::clone(&seen.borrow_and_update())
}

#[tokio::test]
async fn the_config_map_is_followed_and_mistakes_keep_the_last_good_value() {
    let control_plane = ControlPlane::default();
    let missing = client_ca::initial(&control_plane.client(), &provider()).await;
    assert!(
        missing
            .expect_err("there is none")
            .to_string()
            .contains("does not exist")
    );
    control_plane.publish(whole(&ca("a"), &ca("b")));
    let first = client_ca::initial(&control_plane.client(), &provider())
        .await
        .expect("well formed");
    let (publish, mut seen) = watch::channel(Arc::new(first));
    let running = tokio::spawn(client_ca::run(control_plane.client(), provider(), publish));
    control_plane.publish(whole("nonsense", &ca("b")));
    let good = whole(&ca("c"), &ca("d"));
    control_plane.publish(good.clone());
    let cas = next(&mut seen).await;
    let expect = ClientCas::parse(&good, &ClientCas::default(), &provider()).expect("well formed");
    assert!(*cas == expect, "the mistake before it was never published");
    control_plane.end_watches();
    let later = whole(&ca("e"), &ca("f"));
    control_plane.publish(later.clone());
    let expect = ClientCas::parse(&later, &ClientCas::default(), &provider()).expect("well formed");
    assert!(
        *next(&mut seen).await == expect,
        "a broken watch is taken up again"
    );
    drop(seen);
    timeout(Duration::from_secs(5), running)
        .await
        .expect("it ends with its readers")
        .expect("no panic");
}

#[tokio::test]
async fn a_config_map_that_may_not_be_read_names_the_role() {
    let control_plane = ControlPlane::default();
    control_plane.fail_with(403);
    let error = client_ca::initial(&control_plane.client(), &provider())
        .await
        .expect_err("forbidden");
    assert!(
        error
            .to_string()
            .contains("extension-apiserver-authentication-reader"),
        "{error}"
    );
}
