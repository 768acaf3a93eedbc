//! The harness: everything that tests of the whole need and that is no test itself.
//!
//! It panics where a test has to fail, and says what it saw.

pub mod balancer;

pub mod control_plane;

pub mod dataset;

pub mod history;

pub mod kubectl;

pub mod member;

mod process;

pub mod programs;

pub mod raw_client;

pub mod replica;

pub mod server;

pub mod simulation;

pub mod validate;
