//! What runs beside the requests, each on a `kube::Client`.
