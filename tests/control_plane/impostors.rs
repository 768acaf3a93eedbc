//! Whoever administers one workload cluster holds its etcd, and takes no other tenant's namespace with it.

use super::fleet::place;
use super::kubectl::application;
use super::member::Member;
use outrigger_storage::backend::etcd::EtcdBackend;
use outrigger_storage::backend::{Backend, KeyValue, Op, Range, Txn};
use outrigger_storage::key::{Domain, Key, Resource};
use std::time::Duration;

/// Where objects say under which clock they were written: their epoch and the clock's revision.
const EPOCH: std::ops::Range<usize> = 4..12;
const BASE: std::ops::Range<usize> = 12..20;

/// Somebody with the credentials of one etcd.
struct Impostor(EtcdBackend);

impl Impostor {
    async fn read(&self, key: bytes::Bytes) -> KeyValue {
        let answer = self.0.txn(Txn::read([Range::key(key)])).await.expect("an answer");
        let range = answer.responses.into_iter().next().expect("a range").into_range();
        range.kvs.into_iter().next().expect("it is there")
    }

    async fn write(&self, op: Op) {
        let txn = Txn {
            compare: vec![],
            success: vec![op],
            failure: vec![],
        };
        self.0
            .txn(txn)
            .await
            .expect("whoever holds an etcd may write to it");
    }

    /// With the highest generation there is.
    async fn claim(&self, namespace: &str) {
        let value = serde_json::json!({"state": "Active", "generation": u64::MAX, "uid": "forged"});
        let (key, value) = (owner(namespace), value.to_string().into());
        self.write(Op::Put { key, value }).await;
    }

    /// A copy of an object of its own, as if it had been written there just now.
    async fn forge(&self, from: &Key, namespace: &str, name: &str) {
        let original = self.read(from.encode()).await;
        let clock = self.read("clock".into()).await;
        let mut value = original.value.to_vec();
        value[EPOCH].copy_from_slice(&clock.value);
        value[BASE].copy_from_slice(&clock.mod_revision.to_be_bytes());
        let key = app(namespace, name).encode();
        let value = value.into();
        self.write(Op::Put { key, value }).await;
    }
}

fn owner(namespace: &str) -> bytes::Bytes {
    Domain::Namespace(namespace.into()).owner_key()
}

fn app(namespace: &str, name: &str) -> Key {
    Key::new(Resource::new("paas.example.com", "applications"), namespace, name)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_one_etcd_takes_no_namespace() {
    let mut member = Member::start(2).await;
    place(&member, "team-east", "east");
    place(&member, "team-west", "west");
    let _ = member.kubectl.ok(&["create", "namespace", "unplaced"]);
    let apps = ["east", "west"].map(|at| application(&format!("team-{at}"), at, 1));
    let _ = member.kubectl.ok_with(&["create", "-f", "-"], &apps.concat());
    let mut wide = member.kubectl.start(&["get", "apps", "-A", "-w", "-o", "name"]);
    let mut narrow = member
        .kubectl
        .start(&["-n", "team-east", "get", "apps", "-w", "-o", "name"]);
    let _ = wide.line(|line| line.contains("west"));
    let _ = narrow.line(|line| line.contains("east"));

    let impostor = Impostor(member.etcds[2].backend());
    let own = app("team-west", "west");
    for namespace in ["team-east", "unplaced", "nowhere"] {
        impostor.claim(namespace).await;
        impostor.forge(&own, namespace, "forged").await;
    }
    impostor.forge(&own, "team-east", "east").await;
    impostor.forge(&own, "keyless", "forged").await;

    let seen = |member: &Member, args: &[&str]| {
        let said = member.kubectl.ok(args);
        assert!(!said.contains("forged"), "{args:?}: {said}");
        said
    };
    for _ in 0..5 {
        let all = seen(&member, &["get", "apps", "-A", "-o", "name"]);
        assert_eq!(all.lines().count(), 2, "{all}");
        let east = seen(&member, &["-n", "team-east", "get", "apps", "-o", "yaml"]);
        assert!(east.contains("owner: team-east"), "{east}");
        let _ = seen(&member, &["-n", "unplaced", "get", "apps", "-o", "name"]);
        let said = member
            .kubectl
            .fails(&["-n", "team-east", "get", "app", "forged"], "");
        assert!(said.contains("NotFound"), "{said}");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // What is written lands where it belongs, and watches go on with it and with nothing else.
    for name in ["one", "two"] {
        let _ = member
            .kubectl
            .ok_with(&["create", "-f", "-"], &application("team-east", name, 1));
        for watch in [&mut wide, &mut narrow] {
            let line = watch.line(|line| !line.is_empty());
            assert!(line.contains(name), "{line}");
        }
    }
    let at_west = [Range::key(app("team-east", "one").encode())];
    let at_west = impostor.0.txn(Txn::read(at_west)).await.expect("an answer");
    let at_west = at_west
        .responses
        .into_iter()
        .next()
        .expect("a range")
        .into_range();
    assert_eq!(at_west.kvs.len(), 0);
    // Neither while the control plane does not answer, nor for replicas that come later.
    member.control_plane.restart().await.expect("kube-apiserver");
    member.restart_replicas(Duration::from_secs(1)).await;
    let _ = member
        .kubectl
        .eventually(&["get", "apps", "-A", "-o", "name"], |said| {
            assert!(!said.contains("forged"), "{said}");
            said.lines().count() == 4
        });

    // A placement whose owner key is gone is neither nothing nor a reason to claim anew.
    let key = owner("team-west");
    impostor.write(Op::Delete { key }).await;
    let app = application("team-west", "more", 1);
    for (args, stdin) in [
        (&["-n", "team-west", "get", "app", "west"][..], ""),
        (&["-n", "team-west", "get", "apps", "-o", "json"], ""),
        (&["create", "-f", "-"], &app),
    ] {
        let said = member.kubectl.fails(args, stdin);
        assert!(
            said.contains("west") && !said.contains("NotFound"),
            "{args:?}: {said}"
        );
    }
    let condition = [
        "get",
        "namespaceplacement",
        "team-west",
        "-o",
        "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}/{.status.conditions[?(@.type==\"Ready\")].reason}",
    ];
    let _ = member
        .kubectl
        .eventually(&condition, |said| said == "False/OwnerKeyMissing");
}
