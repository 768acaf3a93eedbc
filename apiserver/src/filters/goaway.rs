//! Now and then asks an HTTP/2 client to open a new connection, so that the load balancer before several servers gets to
//! choose again. Clients keep one connection for as long as it lives, the aggregator too.

use crate::request::context::CloseConnection;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::Version;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

/// The greatest chance: one request in fifty, as upstream.
pub const GOAWAY_CHANCE_MAX: f64 = 0.02;

/// How often. Cheap to clone.
#[derive(Clone)]
pub struct Goaway {
    chance: f64,
    rng: Arc<Mutex<StdRng>>,
}

impl Goaway {
    /// A chance between 0 (never) and [`GOAWAY_CHANCE_MAX`]; what lies outside is cut.
    #[must_use]
    pub fn new(chance: f64, seed: u64) -> Self {
        Self {
            chance: chance.clamp(0.0, GOAWAY_CHANCE_MAX),
            rng: Arc::new(Mutex::new(StdRng::seed_from_u64(seed))),
        }
    }

    fn is_due(&self) -> bool {
        self.chance > 0.0 && self.rng.lock().random::<f64>() < self.chance
    }
}

/// Ends the connection after this response, sometimes. What else runs on it goes on.
pub async fn goaway(State(goaway): State<Goaway>, request: Request, next: Next) -> Response {
    let is_due = request.version() == Version::HTTP_2 && goaway.is_due();
    let mut response = next.run(request).await;
    if is_due {
        response.extensions_mut().insert(CloseConnection);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_as_often_as_is_said() {
        let count = |chance| {
            let goaway = Goaway::new(chance, 7);
            (0..100_000).filter(|_| goaway.is_due()).count()
        };
        assert_eq!(count(0.0), 0);
        assert_eq!(count(-1.0), 0);
        assert!((800..1200).contains(&count(0.01)), "{}", count(0.01));
        assert!(
            (1700..2300).contains(&count(1.0)),
            "the chance is cut: {}",
            count(1.0)
        );
        assert_eq!(count(f64::NAN), 0);
    }
}
