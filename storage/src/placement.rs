//! Which cluster a namespace (or a kind without namespaces) should live on: weighted rendezvous hashing with bounded load.
//!
//! Pure: the same domain, uid and candidates give the same cluster on every replica and in every release (the test
//! vectors pin it). It does not know who may be a candidate, and it moves nothing: a cluster that joins takes its share
//! of new namespaces only.

use crate::key::Domain;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One cluster that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The cluster's name.
    pub name: &'a str,
    /// Its share, relative to the others'; 0: never.
    pub weight: u32,
    /// Namespaces that it owns.
    pub load: u64,
}

/// How far above its share a cluster may go before it is passed over, in percent.
const LOAD_PERCENT_MAX: u128 = 125;
const SEED: u64 = 0x6f75_7472_6967_6765;

/// The cluster for `domain` with `uid`, or `None` without candidates. A cluster at its bound is passed over; one is
/// always below, because the bounds together are above the load.
#[must_use]
pub fn choose<'a>(domain: &Domain, uid: &str, candidates: &[Candidate<'a>]) -> Option<&'a str> {
    let weights: u128 = candidates.iter().map(|c| u128::from(c.weight)).sum();
    let loads: u128 = 1 + candidates.iter().map(|c| u128::from(c.load)).sum::<u128>();
    let below_bound = |c: &Candidate<'_>| {
        let share = loads * u128::from(c.weight) * LOAD_PERCENT_MAX;
        u128::from(c.load) < share.div_ceil(weights.max(1) * 100)
    };
    let name = domain.placement_name();
    candidates
        .iter()
        .filter(|c| c.weight > 0 && below_bound(c))
        .map(|c| (score(&name, uid, c), c.name))
        // A tie goes to the smaller name, so that the order of candidates does not matter.
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))
        .map(|(_, name)| name)
}

/// `-weight / ln(u)` with u uniform in (0, 1): the greatest of such scores falls on each candidate by its weight.
fn score(domain: &str, uid: &str, candidate: &Candidate<'_>) -> f64 {
    let text = [
        domain.as_bytes(),
        &[0],
        uid.as_bytes(),
        &[0],
        candidate.name.as_bytes(),
    ]
    .concat();
    // 53 bits, so that the number is exact, and never 0 or 1.
    let bits = xxh3_64_with_seed(&text, SEED) >> 11;
    let uniform = (bits as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(candidate.weight) / uniform.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> Domain {
        Domain::Namespace(name.into())
    }

    fn fleet(loads: [u64; 3]) -> [Candidate<'static>; 3] {
        let [a, b, c] = loads;
        [
            Candidate {
                name: "blue",
                weight: 1,
                load: a,
            },
            Candidate {
                name: "green",
                weight: 1,
                load: b,
            },
            Candidate {
                name: "red",
                weight: 2,
                load: c,
            },
        ]
    }

    #[test]
    fn pinned_choices() {
        let chosen: Vec<_> = ["default", "team-a", "team-b", "team-c", "payments", "search"]
            .iter()
            .map(|n| {
                choose(
                    &namespace(n),
                    "9a0c7a5e-0000-4000-8000-000000000001",
                    &fleet([10, 10, 20]),
                )
                .unwrap_or("none")
            })
            .collect();
        assert_eq!(chosen, PINNED);
    }

    const PINNED: [&str; 6] = ["red", "green", "red", "red", "red", "blue"];

    #[test]
    fn shares_follow_the_weights_and_order_does_not_matter() {
        let mut counts = std::collections::BTreeMap::new();
        for n in 0..4000 {
            let domain = namespace(&format!("ns-{n}"));
            let mut candidates = fleet([1000, 1000, 2000]);
            let one = choose(&domain, "u", &candidates);
            candidates.reverse();
            assert_eq!(one, choose(&domain, "u", &candidates));
            *counts.entry(one).or_insert(0) += 1;
        }
        let red = counts[&Some("red")];
        assert!((1800..2200).contains(&red), "{counts:?}");
    }

    #[test]
    fn a_loaded_cluster_is_passed_over_and_nobody_is_chosen_from_nobody() {
        for n in 0..100 {
            assert_ne!(
                choose(&namespace(&n.to_string()), "u", &fleet([900, 10, 20])),
                Some("blue")
            );
        }
        assert_eq!(choose(&namespace("x"), "u", &[]), None);
        assert_eq!(
            choose(
                &namespace("x"),
                "u",
                &[Candidate {
                    name: "a",
                    weight: 0,
                    load: 0
                }]
            ),
            None
        );
        assert_eq!(
            choose(
                &namespace("x"),
                "u",
                &[Candidate {
                    name: "a",
                    weight: 1,
                    load: 7
                }]
            ),
            Some("a")
        );
    }
}
