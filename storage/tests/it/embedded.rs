//! The embedded backend: the suite in memory, on redb in memory and in a file; what a file must survive.

use futures::StreamExt;
use outrigger_storage::backend::embedded::{EmbeddedBackend, EmbeddedOptions};
use outrigger_storage::backend::{Backend, BackendError, Compare, Op, Range, Txn, WatchRequest};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

mod memory {
    use super::*;
    async fn new() -> ((), Arc<dyn Backend>) {
        ((), Arc::new(EmbeddedBackend::in_memory()))
    }
    outrigger_storage::backend_suite!(new());
}

mod redb_in_memory {
    use super::*;
    async fn new() -> ((), Arc<dyn Backend>) {
        (
            (),
            Arc::new(EmbeddedBackend::redb_in_memory(EmbeddedOptions::default()).expect("a database")),
        )
    }
    outrigger_storage::backend_suite!(new());
}

mod file {
    use super::*;
    async fn new() -> (tempfile::TempDir, Arc<dyn Backend>) {
        let folder = tempfile::tempdir().expect("a folder");
        let backend = open(&folder.path().join("db")).await.expect("a database");
        (folder, Arc::new(backend))
    }
    outrigger_storage::backend_suite!(new());
}

async fn open(path: &Path) -> Result<EmbeddedBackend, BackendError> {
    EmbeddedBackend::open_file(path, EmbeddedOptions::default()).await
}

fn put(key: impl Into<String>, value: impl Into<String>) -> Txn {
    let op = Op::Put {
        key: key.into().into(),
        value: value.into().into(),
    };
    Txn {
        success: vec![op],
        ..Txn::default()
    }
}

async fn value(backend: &dyn Backend, key: &str) -> Option<String> {
    let read = backend
        .txn(Txn::read([Range::key(key.to_owned())]))
        .await
        .expect("a read");
    let kv = read.responses.into_iter().next()?.into_range().kvs.pop()?;
    Some(String::from_utf8_lossy(&kv.value).into_owned())
}

#[tokio::test]
async fn a_reopened_file_has_data_history_and_compaction() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("db");
    let backend = open(&path).await.expect("created");
    let first = backend.txn(put("a", "1")).await.expect("a put").revision;
    let compacted = backend.txn(put("a", "2")).await.expect("a put").revision;
    let last = backend.txn(put("a", "3")).await.expect("a put").revision;
    backend.compact(compacted).await.expect("compacted");
    drop(backend);

    let backend = open(&path).await.expect("opened");
    assert_eq!(backend.status().await.expect("a status").revision, last);
    assert_eq!(value(&backend, "a").await.as_deref(), Some("3"));
    let past = backend
        .txn(Txn::read([Range::key("a").at(compacted)]))
        .await
        .expect("a read");
    assert_eq!(past.responses[0].clone().into_range().kvs[0].value, "2");
    let error = backend
        .txn(Txn::read([Range::key("a").at(first)]))
        .await
        .expect_err("compacted");
    assert_eq!(
        error,
        BackendError::Compacted {
            compact_revision: compacted
        }
    );
    let request = WatchRequest {
        start: "a".into(),
        end: None,
        start_revision: last,
        prev_kv: true,
        until: Some(last),
    };
    let mut watch = backend.watch(request).await.expect("a watch");
    let event = watch
        .next()
        .await
        .expect("a batch")
        .expect("no error")
        .events
        .remove(0);
    assert_eq!(
        (event.kv.version, event.prev.expect("the state before").value),
        (3, "2".into())
    );
    assert!(watch.next().await.is_none());
    assert_eq!(
        backend.txn(put("b", "1")).await.expect("a put").revision,
        last + 1
    );
}

#[tokio::test]
async fn a_file_in_use_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("cluster.db");
    let holder = open(&path).await.expect("created");
    let error = open(&path).await.expect_err("in use");
    assert!(
        matches!(&error, BackendError::Refused(cause) if cause.contains("cluster.db is in use")),
        "{error}"
    );
    drop(holder);
    open(&path).await.expect("free again");
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("db");
    std::fs::write(&path, "a text\n".repeat(1000)).expect("written");
    let error = open(&path).await.expect_err("no database");
    assert!(matches!(error, BackendError::Refused(_)), "{error:?}");
    assert_eq!(
        std::fs::read(&path).expect("still there").len(),
        7000,
        "left alone"
    );
}

#[tokio::test]
async fn a_database_that_was_not_finished_is_made_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("db");
    std::fs::write(folder.path().join("db.new"), [0; 5000]).expect("written");
    let backend = open(&path).await.expect("created");
    backend.txn(put("a", "1")).await.expect("a put");
    assert!(!folder.path().join("db.new").exists());
}

#[tokio::test]
async fn a_missing_folder_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = open(&folder.path().join("no/such/db"))
        .await
        .expect_err("no folder");
    assert!(error.to_string().contains("no/such/db"), "{error}");
}

#[tokio::test]
async fn dropping_a_backend_ends_its_watches() {
    let backend = EmbeddedBackend::in_memory();
    let request = WatchRequest {
        start: "a".into(),
        end: None,
        start_revision: 0,
        prev_kv: false,
        until: None,
    };
    let mut watch = backend.watch(request).await.expect("a watch");
    let close = async {
        tokio::task::yield_now().await;
        drop(backend);
    };
    let (last, ()) = tokio::join!(watch.next(), close);
    assert!(
        matches!(last, Some(Err(BackendError::Unavailable { .. }))),
        "{last:?}"
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_full_backend_takes_deletes_and_compactions_but_no_puts() {
    let backend = EmbeddedBackend::in_memory_with(EmbeddedOptions {
        quota_bytes: 10_000,
        ..EmbeddedOptions::default()
    });
    let big = "x".repeat(3000);
    let mut written = 0;
    let error = loop {
        match backend.txn(put(format!("{written}"), big.clone())).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 10, "the quota is reached");
    };
    assert_eq!(error, BackendError::NoSpace);
    let delete = Txn {
        success: vec![Op::Delete { key: "0".into() }],
        ..Txn::default()
    };
    let at = backend.txn(delete).await.expect("a delete").revision;
    backend.compact(at).await.expect("compacted");
    backend.txn(put("again", big)).await.expect("there is room again");
}

#[tokio::test]
async fn compaction_gives_all_room_back() {
    for backend in [
        EmbeddedBackend::in_memory(),
        EmbeddedBackend::redb_in_memory(EmbeddedOptions::default()).expect("redb"),
    ] {
        for i in 0..2500 {
            backend.txn(put(format!("{}", i % 3), "v")).await.expect("a put");
        }
        let delete = |key: &str| Op::Delete {
            key: key.to_owned().into(),
        };
        let ops = vec![delete("0"), delete("1"), delete("2")];
        let at = backend
            .txn(Txn {
                success: ops,
                ..Txn::default()
            })
            .await
            .expect("a delete")
            .revision;
        backend.compact(at).await.expect("compacted");
        assert_eq!(backend.status().await.expect("a status").db_size_in_use, 0);
    }
}

#[tokio::test]
async fn a_watch_overtaken_by_compaction_says_so() {
    let backend = EmbeddedBackend::in_memory();
    let request = WatchRequest {
        start: "a".into(),
        end: None,
        start_revision: 0,
        prev_kv: false,
        until: None,
    };
    let mut watch = backend.watch(request).await.expect("a watch");
    backend.txn(put("a", "1")).await.expect("a put");
    let at = backend.txn(put("a", "2")).await.expect("a put").revision;
    backend.compact(at).await.expect("compacted");
    let last = watch.next().await.expect("an item");
    assert_eq!(last, Err(BackendError::Compacted { compact_revision: at }));
    assert!(watch.next().await.is_none());
}

#[tokio::test]
async fn a_watch_of_quiet_keys_moves_on() {
    let backend = EmbeddedBackend::in_memory();
    let request = WatchRequest {
        start: "a".into(),
        end: None,
        start_revision: 0,
        prev_kv: false,
        until: None,
    };
    let mut watch = backend.watch(request).await.expect("a watch");
    let at = backend.txn(put("other", "1")).await.expect("a put").revision;
    let batch = watch.next().await.expect("an item").expect("no error");
    assert_eq!((batch.events.len(), batch.revision), (0, at));
}

/// Set for the process that writes until it is killed.
const VICTIM_FILE: &str = "OUTRIGGER_TEST_VICTIM_FILE";
/// How many writers the victim has.
const VICTIM_WRITERS: usize = 8;

/// Not a test by itself: what the victim of the next one runs. Prints a line for every acknowledged write.
#[tokio::test(flavor = "multi_thread")]
async fn victim() {
    use std::io::Write;
    let Ok(path) = std::env::var(VICTIM_FILE) else {
        return;
    };
    let backend = Arc::new(open(Path::new(&path)).await.expect("opened"));
    let writers = (0..VICTIM_WRITERS).map(|writer| {
        let backend = backend.clone();
        tokio::spawn(async move {
            let key = format!("w{writer}");
            let mut n = value(&*backend, &key)
                .await
                .map_or(0, |v| v.parse::<u64>().expect("a number"));
            loop {
                n += 1;
                let mut txn = put(key.clone(), n.to_string());
                txn.success.push(Op::Put {
                    key: format!("{key}/{n}").into(),
                    value: vec![b'x'; 700].into(),
                });
                let revision = backend.txn(txn).await.expect("a put").revision;
                if writer == 0 && n % 50 == 0 {
                    backend.compact(revision - 10).await.expect("compacted");
                }
                let mut out = std::io::stdout().lock();
                writeln!(out, "ack {writer} {n} {revision}")
                    .and_then(|()| out.flush())
                    .expect("printed");
            }
        })
    });
    futures::future::join_all(writers).await;
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    const KILLS: u64 = 8;
    // Another moment in every run: what is checked holds for all of them.
    let mut random = StdRng::seed_from_u64(u64::from(std::process::id()));
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("db");
    let mut acknowledged = [0_u64; VICTIM_WRITERS];
    let mut newest = 0;
    for round in 0..KILLS {
        let mut victim = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "embedded::victim", "--nocapture", "--test-threads=1"])
            .env(VICTIM_FILE, &path)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the victim starts");
        let stdout = victim.stdout.take().expect("a pipe");
        let (first_write, written) = tokio::sync::oneshot::channel();
        let reader = tokio::task::spawn_blocking(move || {
            let (mut lines, mut first_write) = (Vec::new(), Some(first_write));
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.contains("ack ")
                    && let Some(first_write) = first_write.take()
                {
                    let _ = first_write.send(());
                }
                lines.push(line);
            }
            lines
        });
        // Every other round dies anywhere, perhaps while the file is made or repaired; the others while they write.
        if round % 2 == 1 {
            let _ = tokio::time::timeout(Duration::from_secs(30), written).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
        victim.kill().expect("SIGKILL");
        victim.wait().expect("gone");
        for line in reader.await.expect("read") {
            let mut words = line
                .split_whitespace()
                .skip_while(|w| *w != "ack")
                .skip(1)
                .map(str::parse::<u64>);
            if let (Some(Ok(writer)), Some(Ok(n)), Some(Ok(revision))) =
                (words.next(), words.next(), words.next())
            {
                acknowledged[writer as usize] = acknowledged[writer as usize].max(n);
                newest = newest.max(revision);
            }
        }

        let backend = open(&path).await.expect("opened after the kill");
        assert!(backend.status().await.expect("a status").revision >= newest.max(1));
        for (writer, acknowledged) in acknowledged.iter().enumerate() {
            let key = format!("w{writer}");
            let stored = value(&backend, &key)
                .await
                .map_or(0, |v| v.parse().expect("a number"));
            assert!(
                stored >= *acknowledged,
                "round {round}, writer {writer}: {stored} < {acknowledged}"
            );
            for n in 1..=stored {
                let there = value(&backend, &format!("{key}/{n}")).await;
                assert_eq!(
                    there.map(|v| v.len()),
                    Some(700),
                    "round {round}, writer {writer}, write {n}"
                );
            }
        }
        // And it goes on working.
        let compare = vec![Compare::absent(format!("round/{round}"))];
        let txn = Txn {
            compare,
            ..put(format!("round/{round}"), "x")
        };
        assert!(backend.txn(txn).await.expect("a put").succeeded);
    }
    assert!(newest > 1, "the victims wrote something");
}
