//! The set-up, which the benches share: it is the harness's.

pub(crate) use outrigger_tests::member::{CLUSTERS, Member};
