//! A TCP proxy on a loopback port that can delay, stall and cut what it forwards: a network for tests.
//!
//! A delay moves bytes later and does not limit how many are under way (up to a bound), so it acts like distance. It knows
//! nothing of what it forwards.

use bytes::{Bytes, BytesMut};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// One read.
const CHUNK_BYTES: usize = 64 << 10;
/// So many reads may be under way in one direction: 64 MiB.
const CHUNKS_MAX: usize = 1024;

/// A running proxy. Dropping it closes the port and all connections.
#[derive(Debug)]
pub struct TcpProxy {
    address: SocketAddr,
    behaviour: watch::Sender<Behaviour>,
    task: JoinHandle<()>,
}

/// What the network does now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// How much later what the client sends arrives.
    pub delay_up: Duration,
    /// How much later what the server sends arrives.
    pub delay_down: Duration,
    /// Nothing the client sends arrives, until this ends.
    pub stall_up: bool,
    /// Nothing the server sends arrives, until this ends.
    pub stall_down: bool,
    /// New connections are closed at once.
    pub refuse: bool,
    /// Raised to close all connections.
    cut: u64,
}

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

impl TcpProxy {
    /// A proxy to this address (`127.0.0.1:2379` or a URL with it).
    ///
    /// # Panics
    /// When there is no free port.
    pub async fn start(target: &str) -> Self {
        let target = target.rsplit('/').next().unwrap_or(target).to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let behaviour = watch::Sender::new(Behaviour::default());
        let task = tokio::spawn(serve(listener, target, behaviour.subscribe()));
        Self {
            address,
            behaviour,
            task,
        }
    }

    /// `http://` and the proxy's address.
    #[must_use]
    pub fn http_url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The proxy's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what the network does, for running connections too.
    pub fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        self.behaviour.send_modify(change);
    }

    /// A round trip of this length: half of it in each direction.
    pub fn set_round_trip(&self, round_trip: Duration) {
        self.change(|b| (b.delay_up, b.delay_down) = (round_trip / 2, round_trip / 2));
    }

    /// Closes all connections, with what is under way in them.
    pub fn cut(&self) {
        self.change(|b| b.cut += 1);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target: String, behaviour: watch::Receiver<Behaviour>) {
    let target: Arc<str> = target.into();
    // Ended with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if !behaviour.borrow().refuse {
                    connections.spawn(connection(client, Arc::clone(&target), behaviour.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(client: TcpStream, target: Arc<str>, mut behaviour: watch::Receiver<Behaviour>) {
    let born_at = behaviour.borrow_and_update().cut;
    let Ok(server) = TcpStream::connect(&*target).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let up = forward(from_client, to_server, Direction::Up, behaviour.clone());
    let down = forward(from_server, to_client, Direction::Down, behaviour.clone());
    tokio::select! {
        // Both ends close in the end; one direction may end before the other.
        _ = async { tokio::join!(up, down) } => {}
        _ = behaviour.wait_for(|b| b.cut != born_at) => {}
    }
}

/// Forwards one direction until its end.
async fn forward(
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    way: Direction,
    behaviour: watch::Receiver<Behaviour>,
) {
    let (queue, queued) = mpsc::channel(CHUNKS_MAX);
    // An error closes its half; the other direction notices by itself.
    let _ = tokio::join!(
        read(from, queue, way, behaviour.clone()),
        write(to, queued, way, behaviour)
    );
}

async fn read(
    mut from: OwnedReadHalf,
    queue: mpsc::Sender<(Instant, Bytes)>,
    way: Direction,
    behaviour: watch::Receiver<Behaviour>,
) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK_BYTES);
        if from.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
        let at = Instant::now() + way.delay(&behaviour.borrow());
        if queue.send((at, buffer.split().freeze())).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(
    mut to: OwnedWriteHalf,
    mut queued: mpsc::Receiver<(Instant, Bytes)>,
    way: Direction,
    mut behaviour: watch::Receiver<Behaviour>,
) -> io::Result<()> {
    while let Some((at, bytes)) = queued.recv().await {
        sleep_until(at).await;
        // An error means that the proxy is gone.
        let _ = behaviour.wait_for(|b| !way.stalled(b)).await;
        to.write_all(&bytes).await?;
    }
    to.shutdown().await
}

impl Direction {
    fn delay(self, behaviour: &Behaviour) -> Duration {
        match self {
            Self::Up => behaviour.delay_up,
            Self::Down => behaviour.delay_down,
        }
    }

    fn stalled(self, behaviour: &Behaviour) -> bool {
        match self {
            Self::Up => behaviour.stall_up,
            Self::Down => behaviour.stall_down,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        address
    }

    async fn ask(stream: &mut TcpStream) -> io::Result<Duration> {
        let start = Instant::now();
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        Ok(start.elapsed())
    }

    #[tokio::test]
    async fn it_delays_stalls_and_cuts() {
        let proxy = TcpProxy::start(&format!("http://{}", echo().await)).await;
        let mut stream = TcpStream::connect(proxy.address())
            .await
            .expect("the proxy listens");
        ask(&mut stream).await.expect("forwarded");
        proxy.set_round_trip(Duration::from_millis(100));
        assert!(ask(&mut stream).await.expect("forwarded") >= Duration::from_millis(100));
        proxy.set_round_trip(Duration::ZERO);
        proxy.change(|b| b.stall_down = true);
        let waiting = tokio::time::timeout(Duration::from_millis(50), ask(&mut stream)).await;
        assert!(waiting.is_err(), "the answer must not arrive");
        proxy.cut();
        assert!(ask(&mut stream).await.is_err());
        proxy.change(|b| (b.stall_down, b.refuse) = (false, true));
        let mut refused = TcpStream::connect(proxy.address())
            .await
            .expect("the port is open");
        assert!(ask(&mut refused).await.is_err());
    }
}
