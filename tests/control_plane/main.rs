//! Outrigger as a member of a real control plane: kube-apiserver, kube-controller-manager, etcds of three workload
//! clusters, two replicas behind a balancer, and kubectl through the aggregator.

mod faults;
mod garbage;
mod kubectl;
mod member;
mod replicas;
mod rights;
