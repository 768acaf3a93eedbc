//! What a request asks, parsed once: which verb on which resource, with which options.

pub mod query;

pub mod request_info;

pub mod options;

pub mod body;

pub mod context;

pub use context::RequestContext;
pub use query::Query;
pub use request_info::RequestInfo;
