//! What tests of the store need: `backend_suite!`, `FaultyBackend`, seeded helpers.
