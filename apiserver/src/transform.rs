//! Other representations of objects: Table, PartialObjectMetadata. Pure.
