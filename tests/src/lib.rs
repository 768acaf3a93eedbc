//! The harness: everything that tests of the whole need and that is no test itself.

pub mod history;

pub mod simulation;

pub mod validate;
