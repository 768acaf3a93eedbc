//! A balancer of TCP connections over replicas, as a Service with its EndpointSlices is one: a replica gets new
//! connections while its `/readyz` succeeds; those that it has stay with it.

use crate::raw_client::accept_any_certificate;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

/// How often a replica is asked whether it is ready, and how long it may take, as a kubelet would in a hurry.
const PROBE_EVERY: Duration = Duration::from_millis(200);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection waits for a replica that is ready.
const PICK_TIMEOUT: Duration = Duration::from_secs(10);
const PICK_POLL: Duration = Duration::from_millis(20);
/// Connections at once.
const CONNECTIONS_MAX: usize = 1000;

/// A running balancer. Dropping it ends it.
pub struct Balancer {
    address: SocketAddr,
    targets: Arc<Mutex<Vec<Target>>>,
    _tasks: JoinSet<()>,
}

struct Target {
    address: SocketAddr,
    ready: bool,
}

impl Balancer {
    /// On a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let targets: Arc<Mutex<Vec<Target>>> = Arc::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(forward(listener, Arc::clone(&targets)));
        tasks.spawn(probe(Arc::clone(&targets)));
        Self {
            address,
            targets,
            _tasks: tasks,
        }
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// One more replica.
    pub fn add(&self, address: SocketAddr) {
        self.targets.lock().push(Target {
            address,
            ready: false,
        });
    }

    /// A replica that is no more.
    pub fn remove(&self, address: SocketAddr) {
        self.targets.lock().retain(|target| target.address != address);
    }

    /// How many replicas are ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.targets.lock().iter().filter(|target| target.ready).count()
    }
}

async fn forward(listener: TcpListener, targets: Arc<Mutex<Vec<Target>>>) {
    let (turn, mut connections) = (AtomicUsize::new(0), JoinSet::new());
    while let Ok((mut client, _)) = listener.accept().await {
        while connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let (targets, first) = (Arc::clone(&targets), turn.fetch_add(1, Ordering::Relaxed));
        connections.spawn(async move {
            let pick = || {
                let targets = targets.lock();
                let ready: Vec<SocketAddr> = targets.iter().filter(|t| t.ready).map(|t| t.address).collect();
                ready.get(first % ready.len().max(1)).copied()
            };
            let target = async {
                loop {
                    match pick() {
                        Some(target) => return target,
                        None => sleep(PICK_POLL).await,
                    }
                }
            };
            let Ok(target) = timeout(PICK_TIMEOUT, target).await else {
                return;
            };
            let Ok(mut server) = TcpStream::connect(target).await else {
                return;
            };
            // A small request must not wait for a full packet.
            let _ = (client.set_nodelay(true), server.set_nodelay(true));
            let _ = copy_bidirectional(&mut client, &mut server).await;
        });
    }
}

async fn probe(targets: Arc<Mutex<Vec<Target>>>) {
    let connector = TlsConnector::from(Arc::new(accept_any_certificate()));
    loop {
        let addresses: Vec<SocketAddr> = targets.lock().iter().map(|target| target.address).collect();
        // All at once: one that is slow must not hide that another ends.
        let probes = addresses
            .iter()
            .map(|address| timeout(PROBE_TIMEOUT, is_ready(&connector, *address)));
        let answers = futures::future::join_all(probes).await;
        for (address, answer) in addresses.iter().zip(answers) {
            let ready = matches!(answer, Ok(Ok(true)));
            targets
                .lock()
                .iter_mut()
                .filter(|target| target.address == *address)
                .for_each(|target| target.ready = ready);
        }
        sleep(PROBE_EVERY).await;
    }
}

async fn is_ready(connector: &TlsConnector, address: SocketAddr) -> std::io::Result<bool> {
    let stream = TcpStream::connect(address).await?;
    let name = rustls_pki_types::ServerName::IpAddress(address.ip().into());
    let mut stream = connector.connect(name, stream).await?;
    stream
        .write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(&head == b"HTTP/1.1 200")
}
