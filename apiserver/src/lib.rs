//! The Kubernetes API in front of `outrigger-storage`. Modules stand in the order in which a request meets them.

pub mod server;

pub mod filters;

pub mod request;

pub mod authentication;

pub mod authorization;

pub mod reviews;

pub mod endpoints;

pub mod negotiation;

pub mod serializer;

pub mod transform;

pub mod conversion;

pub mod resources;

pub mod discovery;

pub mod openapi;

pub mod registry;

pub mod controllers;

pub mod metrics;

pub mod status;
