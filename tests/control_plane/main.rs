//! Outrigger as a member of a real control plane: kube-apiserver, kube-controller-manager, etcds of three workload
//! clusters, two replicas behind a balancer, and through the aggregator kubectl and programs as users have them.

mod faults;
mod fleet;
mod garbage;
mod impostors;
mod kube_rs;
mod kubectl;
mod loss;
mod member;
mod programs;
mod replicas;
mod rights;
mod rotation;
mod rows;
