//! Fills a backend until it takes nothing more that grows, then deletes what it has written: there is room again once that
//! is compacted. It writes one object after another in one namespace, as a controller gone wild.

use super::actors::{place, record_delete};
use super::world::{Shared, any_namespace, key_of, pause, sealed_with};
use crate::history::WriteKind;
use outrigger_storage::{Error, Object};
use rand::rngs::StdRng;
use std::time::Duration;

/// The quota of every backend. Its last tenth is much more than is written between two looks at the size.
pub(super) const QUOTA_BYTES: u64 = 700_000;
/// About how large an object of the hoarder is.
const OBJECT_BYTES: usize = 8_000;
/// Between two of them, at most.
const PAUSE_MILLIS: u64 = 50;
/// What was deleted takes room until it is compacted.
const ROOM_WITHIN: Duration = Duration::from_secs(4);
/// Objects after which there was no quota to be reached.
const OBJECTS_MAX: u64 = 300;

pub(super) async fn hoarder(world: Shared, mut random: StdRng) {
    while world.writing.get() {
        let namespace = any_namespace(&mut random);
        let mut hoard = Vec::new();
        let is_full = fill(&world, &namespace, &mut hoard, &mut random).await;
        for object in hoard {
            let began = world.now();
            let result = world.store(&mut random).delete(&object).await;
            record_delete(&world, &object, began, &result);
        }
        if is_full {
            let (full, room) = world.filled.get();
            world.filled.set((full + 1, room));
            tokio::time::sleep(ROOM_WITHIN).await;
            let object = create(&world, &namespace, &mut random).await;
            world.filled.set((full + 1, room + usize::from(object.is_ok())));
        }
        pause(&mut random, 500).await;
    }
}

/// Whether the backend of the namespace is full now.
async fn fill(world: &Shared, namespace: &str, hoard: &mut Vec<Object>, random: &mut StdRng) -> bool {
    for _ in 0..OBJECTS_MAX {
        if !world.writing.get() || world.is_draining(namespace) {
            return false;
        }
        pause(random, PAUSE_MILLIS).await;
        match create(world, namespace, random).await {
            Ok(object) => hoard.push(object),
            Err(Error::Full { .. }) => return true,
            Err(Error::Unplaced(name)) => place(world, &world.store(random), &name, random).await,
            Err(_) => {}
        }
    }
    false
}

async fn create(world: &Shared, namespace: &str, random: &mut StdRng) -> Result<Object, Error> {
    let tag = world.tag();
    let object = (namespace.to_owned(), format!("hoard-{tag}"));
    let began = world.now();
    let created = world
        .store(random)
        .create(&key_of(&object), &sealed_with(tag, OBJECT_BYTES))
        .await;
    world.wrote((WriteKind::Create, object, tag), began, &created);
    created
}
