//! Other representations of objects: Table, PartialObjectMetadata. Pure.

pub mod jsonpath;

pub mod table;

pub mod partial_object_metadata;
