//! Mistakes of use: one clear line, and an exit code.

use outrigger_storage::testing::etcd_server::EtcdServer;
use outrigger_tests::server::{Outrigger, run_to_end};
use std::fs;
use std::net::TcpListener;

/// The command ends with this code and one line that says all of this.
fn check(args: &[&str], code: i32, expect: &[&str]) {
    let output = run_to_end(args);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines: Vec<&str> = text.lines().filter(|l| l.starts_with("outrigger: ")).collect();
    assert_eq!(
        (output.status.code(), lines.len()),
        (Some(code), 1),
        "{args:?}: {text}"
    );
    for part in expect {
        assert!(
            lines[0].contains(part),
            "{args:?}: {:?} does not say {part:?}",
            lines[0]
        );
    }
}

#[test]
fn the_command_line() {
    check(&[], 2, &["outrigger up"]);
    check(&["down"], 2, &["down"]);
    check(&["up", "--backends", "0"], 2, &["--backends", "1..=511"]);
    check(
        &["up", "--backends", "2", "--etcd", "a=http://h"],
        2,
        &["--backends", "--etcd"],
    );
    check(&["up", "--etcd", "a=nonsense"], 2, &["nonsense", "http://"]);
    check(
        &["up", "--etcd", "a=http://h", "--etcd", "a=http://i"],
        2,
        &["\"a\"", "twice"],
    );
}

#[test]
fn a_port_that_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    check(
        &[
            "up",
            "--listen",
            &address,
            "--data-dir",
            &data.display().to_string(),
        ],
        1,
        &[&address, "taken", "--listen"],
    );
}

#[test]
fn a_data_folder_in_use() {
    let server = Outrigger::up(&[]);
    let data = server.data().display().to_string();
    check(
        &["up", "--listen", "127.0.0.1:0", "--data-dir", &data],
        1,
        &[&data, "in use", &server.pid().to_string()],
    );
}

#[test]
fn folders_of_crds() {
    let folder = tempfile::tempdir().expect("a folder");
    let crds = folder.path().join("crds");
    let (data, shown) = (
        folder.path().join("data").display().to_string(),
        crds.display().to_string(),
    );
    let args = [
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--crds",
        &shown,
    ];
    check(&args, 1, &["--crds", &shown]);
    fs::create_dir(&crds).expect("a folder");
    check(&args, 1, &["holds no CustomResourceDefinition"]);
    fs::write(
        crds.join("pod.yaml"),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n",
    )
    .expect("written");
    check(&args, 1, &["pod.yaml", "Pod"]);
    let bad = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: x.y.z}\nspec: {group: y.z, scope: Namespaced, names: {plural: a, kind: A}, versions: []}\n";
    fs::write(crds.join("pod.yaml"), bad).expect("written");
    check(&args, 1, &["pod.yaml", "is invalid"]);
}

#[test]
fn an_etcd_that_does_not_answer_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let args = [
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &data,
        "--etcd",
        "east=http://127.0.0.1:1",
    ];
    check(&args, 1, &["east", "http://127.0.0.1:1", "cannot be reached"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_of_another_fleet_or_slot_is_refused() {
    let (first, second) = (EtcdServer::start().await, EtcdServer::start().await);
    let (one, two) = (first.client_url(), second.client_url());
    let (east, west) = (format!("east={one}"), format!("west={two}"));
    let mut server = Outrigger::up(&["--etcd", &east, "--etcd", &west]);
    let data = server.data().display().to_string();
    let _ = server.stop();
    // The same folder with the etcds exchanged.
    let (east, west) = (format!("east={two}"), format!("west={one}"));
    check(
        &[
            "up",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &data,
            "--etcd",
            &east,
            "--etcd",
            &west,
        ],
        1,
        &["belongs to somebody else"],
    );
    // The same etcds with another folder.
    let folder = tempfile::tempdir().expect("a folder");
    let other = folder.path().join("data").display().to_string();
    let (east, west) = (format!("east={one}"), format!("west={two}"));
    check(
        &[
            "up",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &other,
            "--etcd",
            &east,
            "--etcd",
            &west,
        ],
        1,
        &["belongs to somebody else"],
    );
    // One of them left out: its objects would look deleted.
    check(
        &[
            "up",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            &data,
            "--etcd",
            &east,
        ],
        1,
        &["west", "--etcd"],
    );
}
