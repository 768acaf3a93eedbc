//! Applications as an internal platform has them: 2 to 4 KB each, a few namespaces with thousands, hundreds with a
//! handful. The same seed gives the same data.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

/// A set of namespaces with Applications.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Name and number of Applications of each namespace, the largest first.
    pub namespaces: Vec<(String, usize)>,
    seed: u64,
}

const TEAMS: [&str; 12] = [
    "checkout",
    "search",
    "billing",
    "identity",
    "media",
    "pricing",
    "logistics",
    "risk",
    "growth",
    "data",
    "edge",
    "mobile",
];
const REGIONS: [&str; 4] = ["eu-west", "eu-north", "us-east", "ap-south"];

impl Dataset {
    /// So many Applications in so many namespaces, each with one at least. Sizes fall as in reality: with the rank, and
    /// faster than its inverse.
    #[must_use]
    pub fn new(seed: u64, namespaces: usize, objects: usize) -> Self {
        assert!(
            namespaces > 0 && objects >= namespaces,
            "each namespace has one at least"
        );
        let mut rng = StdRng::seed_from_u64(seed);
        let weights: Vec<f64> = (1..=namespaces)
            .map(|rank| (rank as f64).powf(-1.1) * rng.random_range(0.8..1.2))
            .collect();
        let total: f64 = weights.iter().sum();
        let rest = objects - namespaces;
        let mut counts: Vec<usize> = weights
            .iter()
            .map(|w| 1 + (w / total * rest as f64) as usize)
            .collect();
        let placed: usize = counts.iter().sum();
        counts[0] += objects - placed;
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let name =
            |(rank, count): (usize, usize)| (format!("{}-{rank:03}", TEAMS[rank % TEAMS.len()]), count);
        Self {
            namespaces: counts.into_iter().enumerate().map(name).collect(),
            seed,
        }
    }

    /// How many Applications there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.namespaces.iter().map(|(_, count)| count).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, as namespace and number in it.
    pub fn applications(&self) -> impl Iterator<Item = (&str, usize)> {
        self.namespaces
            .iter()
            .flat_map(|(name, count)| (0..*count).map(move |i| (name.as_str(), i)))
    }

    /// One Application.
    #[must_use]
    pub fn application(&self, namespace: &str, number: usize) -> Value {
        application(self.seed, namespace, number)
    }
}

/// The name of an Application.
#[must_use]
pub fn name(number: usize) -> String {
    format!("app-{number:05}")
}

fn application(seed: u64, namespace: &str, number: usize) -> Value {
    let mut rng = StdRng::seed_from_u64(namespace.bytes().fold(seed ^ number as u64, |h, b| {
        h.wrapping_mul(31).wrapping_add(u64::from(b))
    }));
    let team = namespace.split('-').next().unwrap_or(namespace);
    let name = name(number);
    let word = |rng: &mut StdRng, length: usize| -> String {
        (0..length)
            .map(|_| char::from(rng.random_range(b'a'..=b'z')))
            .collect()
    };
    let variables = rng.random_range(18..34);
    let env: Vec<Value> = (0..variables)
        .map(|i| {
            let length = rng.random_range(20..90);
            json!({"name": format!("{}_{i}", word(&mut rng, 8).to_uppercase()), "value": word(&mut rng, length)})
        })
        .collect();
    let tier = ["critical", "standard", "batch"][number % 3];
    let region = REGIONS[rng.random_range(0..REGIONS.len())];
    json!({
        "apiVersion": "paas.example.com/v1",
        "kind": "Application",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "team": team,
                "region": region,
                "app.kubernetes.io/name": name,
                "app.kubernetes.io/managed-by": "platform",
                "wave": (number % 10).to_string(),
            },
            "annotations": {
                "platform.example.com/ticket": format!("OPS-{}", rng.random_range(1000..99999)),
                "platform.example.com/description": word(&mut rng, 120),
            },
        },
        "spec": {
            "image": format!("registry.example.com/{team}/{name}:1.{}.{}", rng.random_range(0..40), rng.random_range(0..9)),
            "port": rng.random_range(1024..65535),
            "replicas": rng.random_range(1..12),
            "tier": tier,
            "owner": team,
            "env": env,
            "resources": {"cpu": format!("{}m", rng.random_range(1..40) * 50), "memory": format!("{}Mi", rng.random_range(1..32) * 64)},
            "route": {"host": format!("{name}.{namespace}.example.com"), "path": "/", "public": rng.random_bool(0.3)},
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_as_uneven_as_in_reality() {
        let data = Dataset::new(7, 690, 29_000);
        let counts: Vec<usize> = data.namespaces.iter().map(|(_, n)| *n).collect();
        assert_eq!((counts.len(), data.len()), (690, 29_000));
        assert!(
            counts[0] > 4000 && counts[2] > 1000,
            "a few with thousands: {:?}",
            &counts[..5]
        );
        assert!(
            counts.iter().filter(|n| **n < 15).count() > 300,
            "hundreds with a handful"
        );
        assert!(counts.iter().all(|n| *n >= 1));
    }

    #[test]
    fn applications_are_two_to_four_kilobytes_and_repeatable() {
        let data = Dataset::new(7, 690, 29_000);
        let sizes: Vec<usize> = data
            .applications()
            .step_by(7)
            .map(|(ns, i)| data.application(ns, i).to_string().len())
            .collect();
        let (least, most) = (sizes.iter().min(), sizes.iter().max());
        assert!(
            least.is_some_and(|n| *n >= 2000) && most.is_some_and(|n| *n <= 4096),
            "{least:?} to {most:?}"
        );
        assert_eq!(
            data.application("search-001", 3),
            Dataset::new(7, 690, 29_000).application("search-001", 3)
        );
    }
}
