//! The listener: TLS, HTTP/1.1 and HTTP/2, the chain of filters, start and stop.
