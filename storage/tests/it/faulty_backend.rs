//! `FaultyBackend` does what it says, and the same for one seed.

use futures::StreamExt;
use outrigger_storage::backend::embedded::EmbeddedBackend;
use outrigger_storage::backend::{
    Backend, BackendError, KeyValue, Op, Range, Revision, Txn, WatchBatch, WatchRequest, WatchStream,
};
use outrigger_storage::testing::{FaultSettings, Faults, FaultyBackend, Outage};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

// What a network without faults promises is what every backend promises.
mod without_faults {
    use super::*;
    async fn new() -> ((), Arc<dyn Backend>) {
        (
            (),
            FaultyBackend::new(Arc::new(EmbeddedBackend::in_memory()), 1).0,
        )
    }
    outrigger_storage::backend_suite!(new());
}

const MS: Duration = Duration::from_millis(1);

fn new(seed: u64, settings: FaultSettings) -> (Arc<dyn Backend>, Arc<FaultyBackend>, Arc<Faults>) {
    let inner: Arc<dyn Backend> = Arc::new(EmbeddedBackend::in_memory());
    let (faulty, faults) = FaultyBackend::new(inner.clone(), seed);
    faults.set(|s| *s = settings);
    (inner, faulty, faults)
}

fn put(key: &str, value: &str) -> Txn {
    let op = Op::Put {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
    };
    Txn {
        success: vec![op],
        ..Txn::default()
    }
}

async fn get(backend: &dyn Backend, key: &str) -> Option<KeyValue> {
    let read = backend
        .txn(Txn::read([Range::key(key.to_owned())]))
        .await
        .expect("a read");
    read.responses.into_iter().next()?.into_range().kvs.pop()
}

async fn watch(backend: &dyn Backend, start_revision: Revision) -> Result<WatchStream, BackendError> {
    let end = Some(bytes::Bytes::from_static(b"\0"));
    backend
        .watch(WatchRequest {
            start: "a".into(),
            end,
            start_revision,
            prev_kv: true,
            until: None,
        })
        .await
}

fn is_unavailable(error: &BackendError, was_sent: bool) -> bool {
    matches!(error, BackendError::Unavailable { sent, .. } if *sent == was_sent)
}

/// One write under a fault that is certain: how often it was carried out when the caller was told, and later.
async fn check(fault: impl FnOnce(&mut FaultSettings), is_told: bool, at_once: u64, later: u64) {
    let mut settings = FaultSettings {
        round_trip: 30 * MS,
        timeout: 1000 * MS,
        late_by: 500 * MS,
        ..FaultSettings::default()
    };
    fault(&mut settings);
    let (inner, faulty, _) = new(7, settings.clone());
    let answer = faulty.txn(put("a", "1")).await;
    let version = |kv: Option<KeyValue>| kv.map_or(0, |kv| kv.version);
    assert_eq!(version(get(&*inner, "a").await), at_once, "{settings:?}");
    match answer {
        Ok(_) => assert!(is_told),
        Err(error) => assert!(!is_told && is_unavailable(&error, true), "{error:?}"),
    }
    tokio::time::sleep(2000 * MS).await;
    assert_eq!(version(get(&*inner, "a").await), later, "{settings:?}");
}

#[tokio::test(start_paused = true)]
async fn each_fault_is_what_it_is_called() {
    check(|_| (), true, 1, 1).await;
    check(|s| s.drop_request = 1.0, false, 0, 0).await;
    check(|s| s.drop_answer = 1.0, false, 1, 1).await;
    check(|s| s.execute_late = 1.0, false, 0, 1).await;
    check(|s| s.execute_twice = 1.0, true, 2, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_takes_its_round_trip_and_a_lost_one_its_timeout() {
    let settings = FaultSettings {
        round_trip: 40 * MS,
        timeout: 700 * MS,
        ..FaultSettings::default()
    };
    let (_, faulty, faults) = new(7, settings);
    let started = Instant::now();
    faulty.txn(put("a", "1")).await.expect("a put");
    assert_eq!(started.elapsed(), 40 * MS);
    faults.set(|s| s.drop_answer = 1.0);
    let started = Instant::now();
    faulty.txn(put("a", "1")).await.expect_err("lost");
    assert_eq!(started.elapsed(), 700 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_write_goes_on_when_its_caller_gives_up() {
    let (inner, faulty, _) = new(
        7,
        FaultSettings {
            round_trip: 100 * MS,
            ..FaultSettings::default()
        },
    );
    let gave_up = tokio::time::timeout(10 * MS, faulty.txn(put("a", "1"))).await;
    assert!(gave_up.is_err() && get(&*inner, "a").await.is_none());
    tokio::time::sleep(100 * MS).await;
    assert!(get(&*inner, "a").await.is_some());
}

#[tokio::test(start_paused = true)]
async fn outages_differ_in_what_works() {
    for (outage, read, write) in [
        (Outage::None, Ok(()), Ok(())),
        (Outage::Down, Err(false), Err(false)),
        (Outage::Partitioned, Err(true), Err(true)),
        (Outage::Writes, Ok(()), Err(true)),
        (Outage::Watches, Ok(()), Ok(())),
    ] {
        let (inner, faulty, faults) = new(
            7,
            FaultSettings {
                timeout: 100 * MS,
                ..FaultSettings::default()
            },
        );
        let mut running = watch(&*faulty, 0).await.expect("a watch");
        faults.outage(outage);
        for (txn, expect) in [(Txn::read([Range::key("a")]), read), (put("b", "1"), write)] {
            match (faulty.txn(txn).await, expect) {
                (Ok(_), Ok(())) => {}
                (Err(error), Err(sent)) => assert!(is_unavailable(&error, sent), "{outage:?}: {error:?}"),
                (answer, _) => panic!("{outage:?}: {answer:?}"),
            }
        }
        assert_eq!(
            get(&*inner, "b").await.is_some(),
            write.is_ok(),
            "{outage:?}: not carried out"
        );

        let at = inner.txn(put("c", "1")).await.expect("a put").revision;
        let delivered = tokio::time::timeout(1000 * MS, up_to(&mut running, at)).await;
        match outage {
            Outage::None | Outage::Writes | Outage::Full => assert_eq!(delivered, Ok(Ok(())), "{outage:?}"),
            Outage::Down => assert!(matches!(delivered, Ok(Err(_))), "{outage:?}"),
            Outage::Partitioned | Outage::Watches => {
                assert!(delivered.is_err(), "{outage:?}: stalls");
                faults.heal();
                assert_eq!(up_to(&mut running, at).await, Ok(()), "{outage:?}: goes on");
            }
        }
    }
}

async fn up_to(watch: &mut WatchStream, revision: Revision) -> Result<(), BackendError> {
    while let Some(batch) = watch.next().await {
        if batch?.revision >= revision {
            return Ok(());
        }
    }
    panic!("the watch ended")
}

#[tokio::test(start_paused = true)]
async fn a_full_backend_refuses_puts_and_takes_deletes() {
    let (inner, faulty, faults) = new(7, FaultSettings::default());
    faulty.txn(put("a", "1")).await.expect("a put");
    faults.outage(Outage::Full);
    assert_eq!(faulty.txn(put("a", "2")).await, Err(BackendError::NoSpace));
    let delete = Txn {
        success: vec![Op::Delete { key: "a".into() }],
        ..Txn::default()
    };
    faulty.txn(delete).await.expect("a delete");
    assert_eq!(get(&*inner, "a").await, None);
}

#[tokio::test(start_paused = true)]
async fn suspecting_a_member_may_heal_its_watches() {
    let (_, faulty, faults) = new(7, FaultSettings::default());
    faults.outage(Outage::Watches);
    faulty.suspect_member();
    assert_eq!(
        (faults.suspected(), faults.settings().outage),
        (1, Outage::Watches)
    );
    faults.heal_on_suspect(true);
    faulty.suspect_member();
    assert_eq!((faults.suspected(), faults.settings().outage), (2, Outage::None));
}

#[tokio::test(start_paused = true)]
async fn cut_watches_end_with_an_error() {
    let (_, faulty, faults) = new(7, FaultSettings::default());
    let mut running = watch(&*faulty, 0).await.expect("a watch");
    let cut = async {
        tokio::task::yield_now().await;
        faults.cut_watches();
    };
    let (last, ()) = tokio::join!(running.next(), cut);
    assert!(matches!(last, Some(Err(_))) && running.next().await.is_none());
    let mut fresh = watch(&*faulty, 0).await.expect("new watches are not cut");
    faulty.txn(put("b", "1")).await.expect("a put");
    assert!(fresh.next().await.expect("a batch").is_ok());
}

#[tokio::test(start_paused = true)]
async fn batches_travel_at_the_same_time() {
    let (inner, faulty, _) = new(
        7,
        FaultSettings {
            round_trip: 200 * MS,
            ..FaultSettings::default()
        },
    );
    let mut running = watch(&*faulty, 2).await.expect("a watch");
    let writer = async {
        for _ in 0..20 {
            inner
                .txn(put("b", &Instant::now().elapsed().as_millis().to_string()))
                .await
                .expect("a put");
            tokio::time::sleep(10 * MS).await;
        }
    };
    let started = Instant::now();
    let reader = async {
        let mut arrivals = Vec::new();
        while arrivals.len() < 20 {
            let batch = running.next().await.expect("a batch").expect("no error");
            arrivals.extend(batch.events.iter().map(|_| started.elapsed().as_millis()));
        }
        arrivals
    };
    let (arrivals, ()) = tokio::join!(reader, writer);
    let expect: Vec<u128> = (0..20).map(|i| 100 + i * 10).collect();
    let late = arrivals.iter().zip(&expect).map(|(a, e)| a.abs_diff(*e)).max();
    assert!(late <= Some(2), "{arrivals:?}");
}

/// Writers, readers and watchers under every fault; everything they saw.
fn history(seed: u64) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    runtime.expect("a runtime").block_on(async {
        let settings = FaultSettings {
            round_trip: 20 * MS,
            jitter: 15 * MS,
            timeout: 300 * MS,
            drop_request: 0.1,
            drop_answer: 0.1,
            execute_late: 0.1,
            late_by: 200 * MS,
            execute_twice: 0.1,
            watch_delay: 50 * MS,
            watch_stall: 0.1,
            watch_stall_for: 400 * MS,
            watch_cut: 0.05,
            drop_prev: 0.1,
            outage: Outage::None,
        };
        let (inner, faulty, faults) = new(seed, settings);
        let started = Instant::now();
        let log = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let note = |what: String| log.lock().push(format!("{:?} {what}", started.elapsed()));
        let writer = |name: &'static str| {
            let (faulty, note) = (faulty.clone(), &note);
            async move {
                for i in 0..25 {
                    let answer = faulty.txn(put(name, &i.to_string())).await;
                    note(format!("{name} {i} {answer:?}"));
                }
            }
        };
        let watcher = |name: &'static str| {
            let (faulty, note) = (faulty.clone(), &note);
            async move {
                let mut next = 2;
                loop {
                    let Ok(mut running) = watch(&*faulty, next).await else {
                        tokio::time::sleep(10 * MS).await;
                        continue;
                    };
                    while let Some(item) = running.next().await {
                        note(format!("{name} {item:?}"));
                        let Ok(WatchBatch { events, revision }) = item else {
                            break;
                        };
                        for event in events {
                            assert!(event.kv.mod_revision >= next, "in order, and nothing twice");
                            next = event.kv.mod_revision;
                        }
                        next = revision + 1;
                    }
                }
            }
        };
        let writers = async {
            futures::future::join_all([writer("a"), writer("b"), writer("c")]).await;
            faults.outage(Outage::Partitioned);
            tokio::time::sleep(500 * MS).await;
            faults.heal();
            tokio::time::sleep(1000 * MS).await;
        };
        let watchers = futures::future::join(watcher("one"), watcher("two"));
        tokio::select! {
            biased;
            () = writers => {}
            _ = watchers => {}
        }
        note(format!(
            "{:?} {:?}",
            inner.status().await,
            get(&*inner, "a").await
        ));
        let log = log.lock();
        log.clone()
    })
}

#[test]
fn one_seed_is_one_history() {
    let histories: Vec<_> = (0..5).map(history).collect();
    for (seed, expect) in histories.iter().enumerate() {
        assert!(expect.len() > 100, "something happened");
        assert_eq!(history(seed as u64), *expect, "seed {seed}");
    }
    assert!(
        histories.windows(2).all(|pair| pair[0] != pair[1]),
        "seeds differ"
    );
}
