//! What a request asks, parsed once: which verb on which resource, with which options.

pub mod request_info;
