//! What a user may do. Standalone: `system:masters` everything, others nothing, anonymous the health paths.
