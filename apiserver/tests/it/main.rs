//! The server in process: what clients see of it on the wire.

mod api;
mod verbs;
mod watch;
