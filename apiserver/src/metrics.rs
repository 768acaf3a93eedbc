//! Metrics in Prometheus text, under kube-apiserver's names.
