//! What all commands have to do with the process: signals, the time of day, and why it cannot listen.

use anyhow::anyhow;
use outrigger_storage::federated::WallClock;
use std::net::SocketAddr;
use tokio::signal::unix::{SignalKind, signal};

/// Why nobody can listen there.
pub(super) fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("cannot listen on {address}: the port is taken; choose another one with --listen")
        }
        _ => anyhow!("cannot listen on {address}: {error}"),
    }
}

/// The first interrupt or termination asks to stop; the second one ends the process where it stands.
pub(super) async fn wait_for_signal() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::error!("signals cannot be received");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(1);
    });
}

/// The time of day as certificates and conditions have it.
pub(super) fn unix_seconds(wall_clock: &WallClock) -> i64 {
    i64::try_from(wall_clock() / 1000).unwrap_or(i64::MAX)
}
