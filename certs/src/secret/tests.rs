//! What stands in the Secret, and a year of replicas that share it: clocks that differ, writes that conflict, replicas cut
//! off for days, bundles that travel slowly.

use super::*;
use crate::certificates::CarriedBundles;
use crate::rotation::rotate;
use crate::{Issued, LeafRequest};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use std::time::Duration;

const NOW: UnixSeconds = 1_800_000_000;
const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
const POLICY: RotationPolicy = RotationPolicy {
    authority_days: 180,
    leaf_days: 30,
    bundle_out_seconds: HOUR,
};

fn step(state: SharedState, action: RotationAction, now: UnixSeconds) -> SharedState {
    let data = state
        .after(action, now, POLICY)
        .expect("possible")
        .encode()
        .expect("encoded");
    SharedState::decode(&data, "ns/ca").expect("decoded")
}

#[test]
fn a_rotation_keeps_what_clients_trust() {
    let first = step(SharedState::default(), RotationAction::Create, NOW);
    let a = first.bundle().expect("ours");
    let both = step(first, RotationAction::AddNext, NOW + 120 * DAY);
    assert!(both.bundle().expect("ours").holds(&a) && both.bundle().expect("ours").certificates().len() == 2);
    let b = both.next_bundle().expect("ours");
    let switched = step(both, RotationAction::Switch, NOW + 121 * DAY);
    assert!(switched.bundle().expect("ours").holds(&a) && switched.next.is_none());
    let current = switched
        .current
        .as_ref()
        .expect("one signs")
        .certificate_pem()
        .to_owned();
    assert!(CaBundle::from_pem(&current, "b").expect("ours").holds(&b));
    let kept = step(switched, RotationAction::DropPrevious, NOW + 150 * DAY);
    assert!(kept.bundle().expect("ours").holds(&a), "its leaves live");
    let dropped = step(kept, RotationAction::DropPrevious, NOW + 152 * DAY);
    assert_eq!(dropped.bundle().expect("ours"), b);
}

#[test]
fn half_an_authority_is_an_error_and_nothing_is_the_beginning() {
    let whole = SharedState::default()
        .after(RotationAction::Create, NOW, POLICY)
        .expect("possible")
        .encode()
        .expect("encoded");
    let check = |name: &str, change: &dyn Fn(&mut SecretData), expect: &str| {
        let mut data = whole.clone();
        change(&mut data);
        let said = match SharedState::decode(&data, "ns/ca") {
            Ok(state) if state.current.is_none() => "empty".to_owned(),
            Ok(_) => "whole".to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(said.contains(expect), "{name}: {said}");
    };
    let put = |data: &mut SecretData, key: &str, text: &str| {
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
    };
    check("whole", &|_| {}, "whole");
    check("empty", &SecretData::clear, "empty");
    check("no bundle", &|d| drop(d.remove(BUNDLE)), "whole");
    check(
        "no key",
        &|d| drop(d.remove("tls.key")),
        "ns/ca: of tls.crt and tls.key one is missing",
    );
    check("no certificate", &|d| put(d, "tls.crt", ""), "one is missing");
    check(
        "another key",
        &|d| put(d, "tls.key", "no"),
        "ns/ca, tls.crt: the key cannot be read",
    );
    check("not JSON", &|d| put(d, ROTATION, "{"), "ns/ca, rotation.json: ");
    check(
        "not text",
        &|d| drop(d.insert("tls.crt".to_owned(), ByteString(vec![255]))),
        "ns/ca, tls.crt: ",
    );
}

/// The Secret as the control plane keeps it.
#[derive(Default)]
struct Register {
    version: u64,
    data: SecretData,
}

struct Replica {
    /// Its clock is wrong by so much.
    skew: i64,
    leaf: Option<Issued>,
    /// Between its read and its write others may come.
    read: Option<(u64, SecretData)>,
    /// It cannot reach the control plane until then.
    away_until: UnixSeconds,
}

impl Register {
    fn replace(&mut self, read: u64, data: SecretData) -> bool {
        let is_ours = self.version == read;
        if is_ours {
            self.version += 1;
            self.data = data;
        }
        is_ours
    }
}

fn verifies(bundle: &CaBundle, leaf: &Issued, now: UnixSeconds) -> Result<(), String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in bundle.certificates() {
        roots.add(certificate.clone()).map_err(|e| e.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| e.to_string())?;
    let der: CertificateDer<'_> =
        issue::first_certificate(&leaf.certificate_pem, "leaf").map_err(|e| e.to_string())?;
    let name = ServerName::try_from("outrigger.outrigger-system.svc").map_err(|e| e.to_string())?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(now.unsigned_abs()));
    verifier
        .verify_server_cert(&der, &[], &name, &[], time)
        .map(|_| ())
        .map_err(|e| e.to_string())
}

/// One year. Returns how often an authority was replaced and how many writes were refused.
fn year(seed: u64) -> (usize, usize) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let request = LeafRequest::serving("outrigger", "outrigger-system", &[]);
    let mut register = Register::default();
    let mut replicas: Vec<Replica> = (0..3)
        .map(|_| Replica {
            skew: rng.random_range(-300..300),
            leaf: None,
            read: None,
            away_until: 0,
        })
        .collect();
    // The APIServices, and what each of two kube-apiservers makes of them, later.
    let mut published = CaBundle::default();
    let mut used = vec![CaBundle::default(), CaBundle::default()];
    let (mut switches, mut conflicts) = (0, 0);
    // A pair that verified is looked at again now and then: in between only time passes.
    let mut verified: Vec<(Issued, CaBundle)> = Vec::new();
    let mut now = NOW;
    while now < NOW + 366 * DAY {
        now += rng.random_range(60..4 * HOUR);
        for replica in &mut replicas {
            if rng.random_ratio(1, 400) {
                replica.away_until = now + rng.random_range(0..6 * DAY);
            }
            if rng.random_ratio(1, 300) && now >= replica.away_until {
                // It is restarted; it does not serve before it has a certificate.
                (replica.leaf, replica.read) = (None, None);
            }
            if now < replica.away_until || rng.random_ratio(1, 3) {
                continue;
            }
            let local = now + replica.skew;
            let (version, data) = replica
                .read
                .take()
                .unwrap_or_else(|| (register.version, register.data.clone()));
            let state = SharedState::decode(&data, "ns/ca").expect("ours");
            let carried = match published.is_empty() {
                true => vec![],
                false => vec![published.pem().to_owned()],
            };
            let carried = CarriedBundles::new(&Some(Arc::new(carried)));
            let everybody = carried.all_hold(&state.next_bundle().expect("ours"));
            match rotate(local, &state.rotation().expect("ours"), everybody, POLICY) {
                RotationAction::Keep { .. } => {}
                _ if rng.random_ratio(1, 3) => replica.read = Some((version, data.clone())),
                action => {
                    let next = state.after(action, local, POLICY).expect("possible");
                    let is_written = register.replace(version, next.encode().expect("encoded"));
                    conflicts += usize::from(!is_written);
                    switches += usize::from(is_written && action == RotationAction::Switch);
                }
            }
            // As `SharedAuthority::step` does: only from what was just read, and only when nothing is to be done.
            let state = SharedState::decode(&register.data, "ns/ca").expect("ours");
            if let Some(authority) = &state.current {
                let is_good = |leaf: &Issued| leaf.serves(&request, authority.key_id(), local);
                if !replica.leaf.as_ref().is_some_and(is_good) {
                    replica.leaf = Some(authority.issue(&request, local).expect("issued"));
                }
            }
        }
        // The leader writes the APIServices now and then; the kube-apiservers see it within the hour.
        let previous = published.clone();
        if rng.random_ratio(1, 3) {
            published = SharedState::decode(&register.data, "ns/ca")
                .and_then(|s| s.bundle())
                .expect("ours");
        }
        for used in &mut used {
            *used = match rng.random_bool(0.5) {
                true => published.clone(),
                false if previous.is_empty() => published.clone(),
                false => previous.clone(),
            };
            for (i, replica) in replicas.iter().enumerate() {
                let Some(leaf) = replica.leaf.as_ref().filter(|_| !used.is_empty()) else {
                    continue;
                };
                let pair = (leaf.clone(), used.clone());
                if verified.contains(&pair) && !rng.random_ratio(1, 20) {
                    continue;
                }
                if let Err(error) = verifies(used, leaf, now) {
                    panic!("seed {seed}, day {}, replica {i}: {error}", (now - NOW) / DAY);
                }
                verified.retain(|known| *known != pair);
                verified.push(pair);
                verified.drain(..verified.len().saturating_sub(16));
            }
        }
    }
    assert!(!verified.is_empty(), "seed {seed}: nothing was looked at");
    (switches, conflicts)
}

#[test]
fn in_a_year_no_leaf_is_served_that_a_published_bundle_does_not_verify() {
    let (mut switches, mut conflicts) = (0, 0);
    for seed in 0..4 {
        let year = year(seed);
        assert!(year.0 >= 2, "seed {seed}: {} rotations", year.0);
        switches += year.0;
        conflicts += year.1;
    }
    assert!(
        conflicts > 0,
        "{switches} rotations without a conflict show nothing"
    );
}
