//! Decode and encode: JSON, YAML, protobuf for the built-in kinds, streams of lists and watches.
