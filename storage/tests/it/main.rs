//! Tests of the store through its public interface, in one binary.

mod embedded;
mod etcd;
mod faulty_backend;
mod model;
mod round_trips;
