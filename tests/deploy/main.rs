//! What stands in `deploy/`: charts and kustomizations render as their goldens say, a real kube-apiserver accepts every
//! manifest, rights are no wider than meant, and the scripts of the etcd's chart do on a real etcd what they promise.
//!
//! It needs helm, kustomize, kubectl, kube-apiserver, etcd and etcdctl (`tests/assets/get`), and fails without them.
//! With `OUTRIGGER_REWRITE=1` it writes the goldens and the copies instead of comparing.

mod control_plane;
mod etcd_chart;
mod golden;
mod meaning;
mod render;
mod schemas;
