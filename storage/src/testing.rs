//! What tests of the store need: [`backend_suite!`](crate::backend_suite), [`FaultyBackend`].

pub mod backend_suite;
mod faulty_backend;

pub use faulty_backend::{FaultSettings, Faults, FaultyBackend, Outage};
