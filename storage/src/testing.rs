//! What tests of the store need: [`backend_suite!`](crate::backend_suite), [`FaultyBackend`].

pub mod backend_suite;
pub mod etcd_server;
pub mod faulty_backend;
pub mod tcp_proxy;

pub use faulty_backend::{FaultSettings, Faults, FaultyBackend, Outage};
