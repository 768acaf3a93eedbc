//! One leader among replicas, by a Lease: for controllers that only one may run. The answer is a published value.
//!
//! No two clocks are compared: a replica takes the Lease of another when it has not seen it change for the whole duration
//! that stands in it, measured by its own clock from the moment it saw the last change. The leader stops to be one, by its
//! own clock and counted from before its last successful write was sent, before anybody else may take over. A stopped
//! process that wakes up does not know it for a moment: what must not happen twice has to be conditional by itself.

use super::{FIELD_MANAGER, is_conflict, is_not_found};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use outrigger_storage::federated::WallClock;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

/// For how long others leave a Lease alone that does not change.
const LEASE: Duration = Duration::from_secs(15);
/// The leader gives up when it could not renew for so long: well before the others may take it.
const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed or looked at.
const RETRY: Duration = Duration::from_secs(2);
/// A Lease that says it lasts longer is taken after that: somebody wrote nonsense.
const LEASE_MAX: Duration = Duration::from_secs(300);
/// Who has resigned leaves the Lease to others for so long.
const RESIGNED: Duration = Duration::from_secs(20);

/// What is needed to take part.
pub struct LeaderElection {
    /// A client that may get, create and update the Lease.
    pub client: Client,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who this replica is: different from all others, and from itself before a restart.
    pub identity: String,
    /// Wall time, for people who read the Lease; decisions do not use it.
    pub wall_clock: WallClock,
    /// Where it is published who leads: whether it is this replica.
    pub is_leader: watch::Sender<bool>,
    /// Counts the times that this replica was asked not to lead.
    pub resign: watch::Receiver<u64>,
}

/// The Lease as this replica saw it last.
#[derive(Debug, Clone, Default)]
struct Observed {
    resource_version: String,
    /// When it was seen to have changed.
    at: Option<Instant>,
}

/// What to do with a Lease that was just read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// It is ours: renew it.
    Renew,
    /// It is nobody's, or its holder is gone: take it.
    Take,
    /// It is another's.
    Wait,
}

fn decide(spec: &LeaseSpec, identity: &str, unchanged_for: Duration) -> Decision {
    let seconds = spec.lease_duration_seconds.unwrap_or_default();
    let lasts = Duration::from_secs(u64::try_from(seconds).unwrap_or_default()).min(LEASE_MAX);
    match spec.holder_identity.as_deref() {
        None | Some("") => Decision::Take,
        Some(holder) if holder == identity => Decision::Renew,
        Some(_) if unchanged_for > lasts => Decision::Take,
        Some(_) => Decision::Wait,
    }
}

/// The Lease after this replica has written it.
fn held(old: &LeaseSpec, identity: &str, decision: Decision, now: MicroTime) -> LeaseSpec {
    let is_taken = decision == Decision::Take;
    let transitions = old.lease_transitions.unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LEASE.as_secs()).ok(),
        acquire_time: if is_taken {
            Some(now.clone())
        } else {
            old.acquire_time.clone()
        },
        renew_time: Some(now),
        lease_transitions: Some(if is_taken {
            transitions.saturating_add(1)
        } else {
            transitions
        }),
        ..old.clone()
    }
}

/// Takes part until it is dropped. The Lease is not given up at the end; the next leader comes when it has run out.
pub async fn run(mut election: LeaderElection) {
    let leases: Api<Lease> = Api::namespaced(election.client.clone(), &election.namespace);
    let mut observed = Observed::default();
    // Until when this replica leads.
    let mut leads_until: Option<Instant> = None;
    loop {
        // What counts is the time before the request: the others count from when they see its effect, which is later.
        let asked_at = Instant::now();
        let patience = leads_until.map_or(RENEW_DEADLINE, |until| until.saturating_duration_since(asked_at));
        match timeout(patience, election.attempt(&leases, &mut observed)).await {
            Ok(Ok(true)) => leads_until = Some(asked_at + RENEW_DEADLINE),
            Ok(Ok(false)) => leads_until = None,
            Ok(Err(error)) if is_conflict(&error) => debug!(%error, "somebody else was faster"),
            Ok(Err(error)) => debug!(%error, "the lease cannot be renewed, trying again"),
            Err(_) => debug!("the lease cannot be renewed in time, trying again"),
        }
        let leads = leads_until.is_some_and(|until| Instant::now() < until);
        if !leads {
            leads_until = None;
        }
        election.publish(leads);
        let rest = leads_until.map_or(RETRY, |until| until.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = sleep(rest.min(RETRY)) => {}
            () = asked(&mut election.resign) => {
                election.publish(false);
                if leads_until.take().is_some() {
                    let released = timeout(RETRY, election.release(&leases)).await;
                    debug!(lease = election.name, ?released, "resigned");
                }
                sleep(RESIGNED).await;
                election.resign.mark_unchanged();
            }
        }
    }
}

/// Waits until it is asked to resign.
async fn asked(resign: &mut watch::Receiver<u64>) {
    if resign.changed().await.is_err() {
        std::future::pending().await
    }
}

impl LeaderElection {
    /// Reads the Lease and writes it if it is ours or free. Says whether this replica holds it now.
    async fn attempt(&self, leases: &Api<Lease>, observed: &mut Observed) -> Result<bool, kube::Error> {
        let params = PostParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PostParams::default()
        };
        let now = MicroTime(self.now());
        let lease = match leases.get(&self.name).await {
            Ok(lease) => lease,
            Err(error) if is_not_found(&error) => {
                let lease = Lease {
                    metadata: ObjectMeta {
                        name: Some(self.name.clone()),
                        namespace: Some(self.namespace.clone()),
                        ..ObjectMeta::default()
                    },
                    spec: Some(held(&LeaseSpec::default(), &self.identity, Decision::Take, now)),
                };
                leases.create(&params, &lease).await?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let unchanged_for = observed.see(lease.metadata.resource_version.as_deref().unwrap_or_default());
        let spec = lease.spec.clone().unwrap_or_default();
        let decision = decide(&spec, &self.identity, unchanged_for);
        if decision == Decision::Wait {
            return Ok(false);
        }
        // As it was read, its resourceVersion included: of two who take it at once, one gets a conflict.
        let lease = Lease {
            spec: Some(held(&spec, &self.identity, decision, now)),
            ..lease
        };
        leases.replace(&self.name, &params, &lease).await?;
        Ok(true)
    }

    /// Leaves the Lease to whoever takes it. If that fails it runs out.
    async fn release(&self, leases: &Api<Lease>) -> Result<(), kube::Error> {
        let lease = leases.get(&self.name).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return Ok(());
        }
        let lease = Lease {
            spec: Some(LeaseSpec {
                holder_identity: None,
                ..spec
            }),
            ..lease
        };
        leases.replace(&self.name, &PostParams::default(), &lease).await?;
        Ok(())
    }

    fn publish(&self, leads: bool) {
        self.is_leader.send_if_modified(|known| {
            let is_new = *known != leads;
            *known = leads;
            match (is_new, leads) {
                (true, true) => info!(lease = self.name, identity = self.identity, "this replica leads"),
                (true, false) => warn!(
                    lease = self.name,
                    identity = self.identity,
                    "this replica no longer leads"
                ),
                (false, _) => {}
            }
            is_new
        });
    }

    fn now(&self) -> jiff::Timestamp {
        let ms = i64::try_from((self.wall_clock)()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX)
    }
}

impl Observed {
    /// For how long the Lease has been as it is now, as far as this replica has seen.
    fn see(&mut self, resource_version: &str) -> Duration {
        match self.at {
            Some(at) if self.resource_version == resource_version => at.elapsed(),
            _ => {
                self.resource_version = resource_version.to_owned();
                self.at = Some(Instant::now());
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use parking_lot::Mutex;
    use serde_json::{Value, json};
    use std::convert::Infallible;
    use std::sync::Arc;

    #[test]
    fn a_lease_is_taken_when_its_holder_is_gone() {
        let spec = |holder: &str, seconds| LeaseSpec {
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(seconds),
            // Times of others are never looked at.
            renew_time: Some(MicroTime(jiff::Timestamp::MAX)),
            ..LeaseSpec::default()
        };
        let check = |spec: &LeaseSpec, seconds, expect| {
            assert_eq!(
                decide(spec, "us", Duration::from_secs(seconds)),
                expect,
                "{spec:?}"
            );
        };
        check(&LeaseSpec::default(), 0, Decision::Take);
        check(&spec("", 15), 0, Decision::Take);
        check(&spec("us", 15), 1000, Decision::Renew);
        check(&spec("them", 15), 15, Decision::Wait);
        check(&spec("them", 15), 16, Decision::Take);
        check(&spec("them", i32::MAX), 301, Decision::Take);
        check(&spec("them", -1), 1, Decision::Take);
    }

    #[test]
    fn transitions_count_changes_of_holder() {
        let now = || MicroTime(jiff::Timestamp::UNIX_EPOCH);
        let first = held(&LeaseSpec::default(), "a", Decision::Take, now());
        let renewed = held(&first, "a", Decision::Renew, MicroTime(jiff::Timestamp::MAX));
        assert_eq!(renewed.acquire_time, first.acquire_time);
        assert_ne!(renewed.renew_time, first.renew_time);
        let taken = held(&renewed, "b", Decision::Take, now());
        assert_eq!(
            (taken.lease_transitions, taken.holder_identity.as_deref()),
            (Some(2), Some("b"))
        );
    }

    /// A control plane with one Lease. `cut` names a replica whose requests are not answered.
    #[derive(Default)]
    struct ControlPlane {
        version: u64,
        lease: Option<Value>,
        cut: Option<String>,
    }

    fn client(control_plane: &Arc<Mutex<ControlPlane>>, identity: &'static str) -> Client {
        let control_plane = Arc::clone(control_plane);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let control_plane = Arc::clone(&control_plane);
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
                if control_plane.lock().cut.as_deref() == Some(identity) {
                    std::future::pending::<()>().await;
                }
                let (status, answer) = control_plane.lock().answer(&parts.method, &bytes);
                let mut response = Response::new(Body::from(answer.to_string()));
                *response.status_mut() = status;
                Ok::<_, Infallible>(response)
            }
        });
        Client::new(service, "default")
    }

    impl ControlPlane {
        fn answer(&mut self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
            let failure = |code: StatusCode| {
                let status = json!({"kind": "Status", "status": "Failure", "code": code.as_u16(), "message": "no", "reason": "no"});
                (code, status)
            };
            let sent: Value = serde_json::from_slice(body).unwrap_or_default();
            let is_current =
                |lease: &Value| lease["metadata"]["resourceVersion"] == sent["metadata"]["resourceVersion"];
            match (method, &self.lease) {
                (&Method::GET, Some(lease)) => return (StatusCode::OK, lease.clone()),
                (&Method::GET, None) => return failure(StatusCode::NOT_FOUND),
                (&Method::POST, Some(_)) => return failure(StatusCode::CONFLICT),
                (&Method::PUT, Some(lease)) if !is_current(lease) => return failure(StatusCode::CONFLICT),
                _ => {}
            }
            self.version += 1;
            let mut lease = sent;
            lease["metadata"]["resourceVersion"] = self.version.to_string().into();
            self.lease = Some(lease.clone());
            (StatusCode::OK, lease)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_another_takes_over_after_it_has_stopped() {
        let control_plane = Arc::new(Mutex::new(ControlPlane::default()));
        let (mut leads, mut resigns) = (Vec::new(), Vec::new());
        // Their clocks are years apart.
        for (identity, now_ms) in [("a", 0), ("b", 4_000_000_000_000)] {
            let (is_leader, receiver) = watch::channel(false);
            leads.push(receiver);
            let (ask, resign) = watch::channel(0);
            resigns.push(ask);
            tokio::spawn(run(LeaderElection {
                client: client(&control_plane, identity),
                namespace: "default".to_owned(),
                name: "outrigger".to_owned(),
                identity: identity.to_owned(),
                wall_clock: Arc::new(move || now_ms),
                is_leader,
                resign,
            }));
        }
        let step = async || {
            sleep(Duration::from_millis(100)).await;
            let now = [*leads[0].borrow(), *leads[1].borrow()];
            assert_ne!(now, [true, true], "two leaders");
            now
        };
        for _ in 0..600 {
            step().await;
        }
        let before = step().await;
        assert!(before[0] || before[1], "somebody leads");
        let leader = if before[0] { "a" } else { "b" };
        control_plane.lock().cut = Some(leader.to_owned());
        let mut nobody = 0;
        let mut after = before;
        while after != [!before[0], !before[1]] {
            nobody += usize::from(after == [false, false]);
            after = step().await;
            assert!(nobody < 200, "nobody takes over");
        }
        assert!(nobody >= 30, "between them nobody leads for a while: {nobody}");
        control_plane.lock().cut = None;
        for _ in 0..300 {
            assert_eq!(step().await, after, "who comes back waits");
        }
        // Who resigns is followed soon, and leads again only when nobody else does.
        let place = usize::from(after[1]);
        resigns[place].send_modify(|times| *times += 1);
        for _ in 0..25 {
            step().await;
        }
        assert_eq!(step().await, before, "the other has taken over");
        for _ in 0..400 {
            assert_eq!(step().await, before, "who has resigned does not come back");
        }
        let other = if before[0] { "a" } else { "b" };
        control_plane.lock().cut = Some(other.to_owned());
        for _ in 0..300 {
            step().await;
        }
        assert_eq!(step().await, after, "it may lead again later");
    }
}
