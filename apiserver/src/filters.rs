//! One layer a file; their order and the reasons stand in `server/handler_chain.rs`.
