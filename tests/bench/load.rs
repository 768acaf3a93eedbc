//! Creates over TLS: every client has a connection of its own and sends the next object when the one before is answered.

use anyhow::{Context, Result, bail};
use http::{Method, StatusCode};
use outrigger_tests::dataset::Dataset;
use outrigger_tests::raw_client::RawClient;
use serde_json::json;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Clients that create at once.
pub(crate) const CLIENTS: usize = 32;
/// How long one create may take.
const CREATE_TIMEOUT: Duration = Duration::from_secs(60);
/// A load that a server refuses this often has failed. A new namespace may be unknown for a moment.
const REFUSALS_MAX: usize = 20;

/// What a load took.
pub(crate) struct Load {
    objects: usize,
    seconds: f64,
    /// Of single creates, in seconds: the middle one, and one of a hundred.
    median: f64,
    p99: f64,
}

impl Load {
    pub(crate) fn per_second(&self) -> f64 {
        self.objects as f64 / self.seconds
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in {:.1} s, {:.0} a second, p50 {:.1} ms, p99 {:.1} ms",
            self.objects,
            self.seconds,
            self.per_second(),
            self.median * 1e3,
            self.p99 * 1e3
        )
    }
}

/// Creates the namespaces (which do not count), then the Applications.
pub(crate) async fn load(kubeconfig: &Path, data: &Dataset) -> Result<Load> {
    let data = Arc::new(data.clone());
    let namespaces: Vec<(String, usize)> = data
        .namespaces
        .iter()
        .map(|(name, _)| (name.clone(), 0))
        .collect();
    each(kubeconfig, Arc::new(namespaces), |name, _| {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        ("/api/v1/namespaces".to_owned(), body.to_string().into_bytes())
    })
    .await?;

    // Clients write into all namespaces in turn, as it is when many people do.
    let mut objects: Vec<(String, usize)> = data.applications().map(|(ns, i)| (ns.to_owned(), i)).collect();
    objects.sort_by_key(|(_, number)| *number);
    let start = Instant::now();
    let count = objects.len();
    let mut times = each(kubeconfig, Arc::new(objects), move |namespace, number| {
        let path = format!("/apis/paas.example.com/v1/namespaces/{namespace}/applications");
        (path, data.application(namespace, number).to_string().into_bytes())
    })
    .await?;
    let seconds = start.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    Ok(Load {
        objects: count,
        seconds,
        median: at(50),
        p99: at(99),
    })
}

/// POSTs what `request` makes of every item; how long each took.
async fn each<F>(kubeconfig: &Path, items: Arc<Vec<(String, usize)>>, request: F) -> Result<Vec<f64>>
where
    F: Fn(&str, usize) -> (String, Vec<u8>) + Send + Sync + 'static,
{
    let (next, request) = (Arc::new(AtomicUsize::new(0)), Arc::new(request));
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let client = RawClient::connect(kubeconfig).await?;
        let (items, next, request) = (Arc::clone(&items), Arc::clone(&next), Arc::clone(&request));
        clients.spawn(async move {
            let mut times = Vec::new();
            while let Some((name, number)) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (path, body) = request(name, *number);
                let start = Instant::now();
                create(&client, &path, body).await?;
                times.push(start.elapsed().as_secs_f64());
            }
            Ok::<_, anyhow::Error>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = clients.join_next().await {
        times.extend(done??);
    }
    Ok(times)
}

async fn create(client: &RawClient, path: &str, body: Vec<u8>) -> Result<()> {
    let headers = [("content-type", "application/json")];
    let mut said = String::new();
    for _ in 0..REFUSALS_MAX {
        let answer = client.request(Method::POST, path, &headers, body.clone());
        let answer = timeout(CREATE_TIMEOUT, answer)
            .await
            .context("a create did not end")??;
        match answer.status {
            StatusCode::CREATED => return Ok(()),
            // What a server starts with is there already.
            StatusCode::CONFLICT if path.ends_with("/namespaces") => return Ok(()),
            StatusCode::NOT_FOUND | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                said = format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            status => bail!("POST {path}: {status}: {}", String::from_utf8_lossy(&answer.body)),
        }
    }
    bail!("POST {path}: {said}")
}
