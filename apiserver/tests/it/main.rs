//! The server in process: what clients see of it on the wire.

mod api;
mod auth;
mod client_ca;
mod clusters;
mod control_plane;
mod delegated_authorization;
mod delegation;
mod deletion;
mod golden;
mod harness;
mod http2;
mod limits;
mod lists;
mod protobuf;
mod real_control_plane;
mod shutdown;
mod verbs;
mod watch;
