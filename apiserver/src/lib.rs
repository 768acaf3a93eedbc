//! The Kubernetes API in front of the federated store.
