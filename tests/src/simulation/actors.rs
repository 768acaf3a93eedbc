//! Who acts in a run: clients that write, read, list and watch, the namespace controller, and the disturber.

use super::Network;
use super::world::{Placement, Shared, any_namespace, any_object, key_of, pause, scope, sealed, tag_of};
use crate::history::{Delivered, Get, List, Nanos, Watch, WriteKind, WriteResult};
use outrigger_storage::federated::{Claim, ListOptions, ListVersion, WatchStart};
use outrigger_storage::key::Domain;
use outrigger_storage::testing::faulty_backend::{Faults, Outage};
use outrigger_storage::{
    Error, FederatedStore, Object, ResourceVersion, SelectionPredicate, Slot, WatchEvent,
};
use rand::Rng;
use rand::rngs::StdRng;
use std::time::Duration;
use tokio::time::Instant;

/// Writes objects, and places namespaces that are not placed.
pub(super) async fn writer(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 60).await;
        let object = any_object(&mut random);
        if world.is_draining(&object.0) {
            continue;
        }
        let store = world.store(&mut random);
        let read = if random.random_bool(0.3) {
            Err(Error::NotFound { verified_at: None })
        } else {
            store.get(&key_of(&object)).await
        };
        let tag = world.tag();
        let began = world.now();
        let (kind, tag, result) = match read {
            Ok(current) if random.random_bool(0.3) => {
                (WriteKind::Delete, tag_of(&current), store.delete(&current).await)
            }
            Ok(current) => (WriteKind::Update, tag, store.update(&current, &sealed(tag)).await),
            Err(Error::NotFound { .. }) => (
                WriteKind::Create,
                tag,
                store.create(&key_of(&object), &sealed(tag)).await,
            ),
            Err(_) => continue,
        };
        world.wrote((kind, object, tag), began, &result);
        if let Err(Error::Unplaced(name)) = &result {
            place(&world, &store, name, &mut random).await;
        }
    }
}

/// What the registry does: the placement's atomic create decides, then the claim is fenced, confirmed and activated.
pub(super) async fn place(world: &Shared, store: &FederatedStore, name: &str, random: &mut StdRng) {
    pause(random, 10).await;
    let placement = {
        let mut placements = world.placements.borrow_mut();
        placements.next += 1;
        let generation = placements.published.next_version();
        let slot = match world.settings.decided {
            true => world.control.any_member(random),
            false => Some(Slot(random.random_range(0..world.settings.backends))),
        };
        let Some(slot) = slot.filter(|slot| !world.busy.keeps_off(name, *slot)) else {
            return;
        };
        let new = Placement {
            uid: format!("ns-{}", placements.next),
            slot,
            generation,
            confirmed: false,
        };
        if !placements.by_name.contains_key(name) {
            placements.published.publish(name, Some(&new));
        }
        placements.by_name.entry(name.to_owned()).or_insert(new).clone()
    };
    let claim = Claim {
        domain: Domain::Namespace(name.into()),
        uid: placement.uid.clone(),
        generation: placement.generation,
        slot: placement.slot,
    };
    // A confirmed claim is finished, never begun again: its owner key may be gone because it was released.
    let claiming = match placement.confirmed {
        true => store.resume_claim(&claim).await,
        false => store.begin_claim(&claim).await,
    };
    let Ok(claiming) = claiming else { return };
    pause(random, 10).await;
    {
        let mut placements = world.placements.borrow_mut();
        match placements.by_name.get_mut(name) {
            Some(current) if current.uid == placement.uid => current.confirmed = true,
            _ => return,
        }
        if !placement.confirmed {
            let confirmed = placements.by_name.get(name).cloned();
            placements.published.publish(name, confirmed.as_ref());
        }
    }
    // Whether it worked shows when the write is tried again.
    let _ = store.activate(&claiming).await;
}

/// Empties a namespace and gives it up, as the namespace controller does; the next writer places it anew.
pub(super) async fn releaser(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 1500).await;
        let namespace = any_namespace(&mut random);
        let store = world.store(&mut random);
        let Some(placement) = world
            .placements
            .borrow()
            .by_name
            .get(&namespace)
            .filter(|p| p.confirmed)
            .cloned()
        else {
            continue;
        };
        empty_and_release(&world, &store, &namespace, &placement).await;
    }
}

/// Deletes what is in a namespace, and gives the namespace up if nothing is left.
pub(super) async fn empty_and_release(
    world: &Shared,
    store: &FederatedStore,
    namespace: &str,
    placement: &Placement,
) {
    if let Ok(mut list) = store.list(&scope(Some(namespace)), ListOptions::default()).await {
        while let Ok(Some(batch)) = list.next_batch().await {
            for object in batch.objects {
                let began = world.now();
                let result = store.delete(&object).await;
                record_delete(world, &object, began, &result);
            }
        }
    }
    release(world, store, namespace, placement).await;
}

/// Gives a namespace up if nothing is left in it. Whether that was done cannot be told if nobody answers.
pub(super) async fn release(world: &Shared, store: &FederatedStore, namespace: &str, placement: &Placement) {
    let domain = Domain::Namespace(namespace.into());
    let released = store.release(&domain, &placement.uid).await;
    match &released {
        Ok(()) | Err(Error::Conflict(_)) => world.unreleased.borrow_mut().remove(namespace),
        Err(_) => world.unreleased.borrow_mut().insert(namespace.to_owned()),
    };
    let mut placements = world.placements.borrow_mut();
    let current = placements.by_name.get(namespace);
    if released.is_ok() && current.is_some_and(|current| current.uid == placement.uid) {
        placements.by_name.remove(namespace);
        placements.published.publish(namespace, None);
    }
}

/// How often a namespace that was given up halfway is tried again.
const FINISH_TRIES_MAX: u32 = 100;

/// Finishes what was given up halfway, as the namespace controller does: the owner key of such a namespace may be gone.
pub(super) async fn finisher(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 300).await;
    }
    for _ in 0..FINISH_TRIES_MAX {
        let Some(namespace) = world.unreleased.borrow().first().cloned() else {
            return;
        };
        let placement = world.placements.borrow().by_name.get(&namespace).cloned();
        match placement {
            Some(placement) => release(&world, &world.store(&mut random), &namespace, &placement).await,
            None => drop(world.unreleased.borrow_mut().remove(&namespace)),
        }
        pause(&mut random, 300).await;
    }
}

pub(super) fn record_delete(world: &Shared, object: &Object, began: Nanos, result: &Result<Object, Error>) {
    let name = (object.namespace().to_owned(), object.name().to_owned());
    world.wrote((WriteKind::Delete, name, tag_of(object)), began, result);
}

pub(super) async fn reader(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 50).await;
        let object = any_object(&mut random);
        let began = world.now();
        let found = match world.store(&mut random).get(&key_of(&object)).await {
            Ok(found) => Some((tag_of(&found), found.resource_version())),
            Err(Error::NotFound { .. }) => None,
            Err(_) => continue,
        };
        let time = (began, world.now());
        world.history.borrow_mut().gets.push(Get { object, time, found });
    }
}

pub(super) async fn lister(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 200).await;
        let namespace = random.random_bool(0.4).then(|| any_namespace(&mut random));
        let version = match random.random_range(0..10) {
            0 => ListVersion::Any,
            1 | 2 => match last_version(&world, &mut random) {
                Some(version) => ListVersion::Exact(version),
                None => ListVersion::MostRecent,
            },
            3 => last_version(&world, &mut random).map_or(ListVersion::Any, ListVersion::NotOlderThan),
            _ => ListVersion::MostRecent,
        };
        let limit = if random.random_bool(0.3) {
            random.random_range(1..4)
        } else {
            0
        };
        let _ = list_all(&world, namespace, version, limit, &mut random).await;
    }
}

pub(super) fn last_version(world: &Shared, random: &mut StdRng) -> Option<ResourceVersion> {
    let history = world.history.borrow();
    let from_lists = history.lists.last().map(|list| list.version);
    let from_writes = history.writes.iter().rev().find_map(|write| match write.result {
        WriteResult::Acknowledged(version) => Some(version),
        _ => None,
    });
    if random.random_bool(0.5) {
        from_lists.or(from_writes)
    } else {
        from_writes.or(from_lists)
    }
}

/// Lists to the end, page by page if there is a limit; each page on any replica.
pub(super) async fn list_all(
    world: &Shared,
    namespace: Option<String>,
    version: ListVersion,
    limit: u64,
    random: &mut StdRng,
) -> Result<ResourceVersion, Error> {
    let scope = scope(namespace.as_deref());
    let most_recent = version == ListVersion::MostRecent;
    let not_older = match &version {
        ListVersion::NotOlderThan(rv) => Some(*rv),
        _ => None,
    };
    let began = world.now();
    let mut items = Vec::new();
    let mut options = ListOptions {
        version,
        limit,
        ..ListOptions::default()
    };
    loop {
        let mut list = world.store(random).list(&scope, options.clone()).await?;
        while let Some(batch) = list.next_batch().await? {
            let item = |o: &Object| {
                (
                    (o.namespace().to_owned(), o.name().to_owned()),
                    tag_of(o),
                    o.resource_version(),
                )
            };
            items.extend(batch.objects.iter().map(item));
        }
        let version = list.resource_version();
        match list.end().continue_token {
            Some(token) => {
                let token = outrigger_storage::continue_token::ContinueToken::decode(&token)?;
                options.version = ListVersion::Continue(token);
            }
            None => {
                assert!(
                    not_older.is_none_or(|rv| version >= rv),
                    "NotOlderThan {not_older:?} gave {version:?}"
                );
                let time = (began, world.now());
                world.history.borrow_mut().lists.push(List {
                    namespace,
                    most_recent,
                    time,
                    version,
                    items,
                });
                return Ok(version);
            }
        }
    }
}

/// Watches from a list, or from any version it knows; is cut off again and again and goes on at any replica. After the
/// writers have stopped it goes on until it has passed the end.
pub(super) async fn watcher(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 400).await;
        let namespace = random.random_bool(0.4).then(|| any_namespace(&mut random));
        let start = match random.random_range(0..3) {
            0 => last_version(&world, &mut random),
            _ => list_all(&world, namespace.clone(), ListVersion::MostRecent, 0, &mut random)
                .await
                .ok(),
        };
        let Some(after) = start else { continue };
        let mut watch = Watch {
            namespace,
            after,
            delivered: Vec::new(),
            expired: None,
            was_running: false,
            ended: 0,
            complete_to: None,
        };
        follow(&world, &mut watch, &mut random).await;
        watch.ended = world.now();
        world.history.borrow_mut().watches.push(watch);
    }
}

pub(super) async fn follow(world: &Shared, watch: &mut Watch, random: &mut StdRng) {
    let mut position = watch.after;
    // The end: a version above everything, once nobody writes any more.
    let mut end = None;
    loop {
        if !world.writing.get() && end.is_none() {
            end = list_version_at_rest(world, random).await;
        }
        let store = world.store(random);
        let scope = scope(watch.namespace.as_deref());
        let mut watching = match store
            .watch(&scope, SelectionPredicate::default(), WatchStart::After(position))
            .await
        {
            Ok(watching) => watching,
            Err(Error::Expired { .. }) => {
                watch.expired = Some(position);
                return;
            }
            Err(_) => {
                pause(random, 500).await;
                continue;
            }
        };
        let until = Instant::now() + Duration::from_millis(random.random_range(50..1500));
        loop {
            let slow = random.random_bool(0.1);
            match tokio::time::timeout_at(until, watching.next_batch()).await {
                Ok(Ok(events)) => {
                    for event in events {
                        let WatchEvent::Object(event) = event else {
                            continue;
                        };
                        let object = (
                            event.object.namespace().to_owned(),
                            event.object.name().to_owned(),
                        );
                        position = event.object.resource_version();
                        watch.delivered.push(Delivered::Event(
                            event.kind,
                            object,
                            tag_of(&event.object),
                            position,
                        ));
                    }
                }
                Ok(Err(Error::Expired { .. })) => {
                    (watch.expired, watch.was_running) = (Some(position), true);
                    return;
                }
                Ok(Err(_)) | Err(_) => break,
            }
            if random.random_bool(0.2)
                && let Some(bookmark) = watching.bookmark()
            {
                watch.delivered.push(Delivered::Bookmark(bookmark));
                position = bookmark;
            }
            if slow {
                pause(random, 300).await;
            }
        }
        if let Some(bookmark) = watching.bookmark() {
            watch.delivered.push(Delivered::Bookmark(bookmark));
            position = bookmark;
        }
        if end.is_some_and(|end| position >= end) {
            watch.complete_to = end;
            return;
        }
        // Some watches end early; the others see the end.
        if world.writing.get() && random.random_bool(0.1) {
            return;
        }
    }
}

pub(super) async fn list_version_at_rest(world: &Shared, random: &mut StdRng) -> Option<ResourceVersion> {
    list_all(world, None, ListVersion::MostRecent, 0, random)
        .await
        .ok()
}

/// Breaks things, and heals them before the end.
pub(super) async fn disturber(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 700).await;
        let faults = {
            let faults = world.faults.borrow();
            let of_replica = &faults[random.random_range(0..faults.len())];
            of_replica[random.random_range(0..of_replica.len())].clone()
        };
        match world.settings.network {
            Network::Good => {}
            Network::Lossy => lose(&faults, &mut random),
            Network::LateWrites => faults.set(|s| {
                s.timeout = s.round_trip * 2 + Duration::from_millis(20);
                s.execute_late = random.random_range(0.0..0.3);
                s.late_by = Duration::from_millis(300);
            }),
            Network::LateWatches => faults.set(|s| {
                s.watch_delay = Duration::from_millis(random.random_range(0..1500));
            }),
        }
        if world.settings.outages && random.random_bool(0.3) {
            let outages = [Outage::Down, Outage::Partitioned, Outage::Writes, Outage::Watches];
            faults.outage(outages[random.random_range(0..outages.len())]);
            pause(&mut random, 3000).await;
            faults.outage(Outage::None);
        }
    }
    for faults in world.faults.borrow().iter().flatten() {
        faults.heal();
    }
}

/// Takes a backend away from all replicas, or from some, for about as long as it takes to declare it lost.
pub(super) async fn blackouts(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        pause(&mut random, 1500).await;
        let backend = random.random_range(0..usize::from(world.settings.backends));
        let all = random.random_bool(0.7);
        let kinds = [
            Outage::Down,
            Outage::Partitioned,
            Outage::Partitioned,
            Outage::Writes,
        ];
        let kind = kinds[random.random_range(0..kinds.len())];
        let hit: Vec<_> = {
            let faults = world.faults.borrow();
            let of_backend = faults.iter().map(|replica| replica[backend].clone());
            of_backend.filter(|_| all || random.random_bool(0.5)).collect()
        };
        hit.iter().for_each(|faults| faults.outage(kind));
        pause(&mut random, 5000).await;
        for faults in hit {
            // Some replicas reach it again before others.
            if random.random_bool(0.3) {
                pause(&mut random, 800).await;
            }
            faults.outage(Outage::None);
        }
    }
}

/// A little of everything.
pub(super) fn lose(faults: &Faults, random: &mut StdRng) {
    let p = |random: &mut StdRng| {
        if random.random_bool(0.3) {
            random.random_range(0.0..0.15)
        } else {
            0.0
        }
    };
    faults.set(|s| {
        s.drop_request = p(random);
        s.drop_answer = p(random);
        s.execute_late = p(random);
        s.late_by = Duration::from_secs(3);
        s.execute_twice = p(random);
        s.watch_delay = Duration::from_millis(random.random_range(0..80));
        s.watch_stall = p(random) / 5.0;
        s.watch_stall_for = Duration::from_secs(3);
        s.watch_cut = p(random) / 3.0;
    });
}
