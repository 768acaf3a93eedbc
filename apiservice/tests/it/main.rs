//! The controller against a real etcd and kube-apiserver, with a small TLS server in Outrigger's place. Needs
//! `OUTRIGGER_ASSETS`, the folder that `tests/assets/get` prints; without it the tests are skipped, and say so.

mod certificates;
mod control_plane;
mod fake_server;
mod registration;

use control_plane::ControlPlane;

/// A control plane, or a loud word that there is none.
async fn control_plane() -> Option<ControlPlane> {
    match std::env::var_os("OUTRIGGER_ASSETS") {
        Some(assets) => Some(ControlPlane::start(assets.as_ref()).await),
        None => {
            eprintln!(
                "SKIPPED, nothing was tested: OUTRIGGER_ASSETS names no folder with etcd and kube-apiserver"
            );
            None
        }
    }
}
