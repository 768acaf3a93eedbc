//! Tests of the store through its public interface, in one binary.

mod accepted;
mod claims;
mod cut_lines;
mod embedded;
mod empty_fleet;
mod etcd;
mod far;
mod faulty_backend;
mod full;
mod impostors;
mod model;
mod restored;
mod round_trips;
