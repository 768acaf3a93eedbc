//! End to end: the real program, real etcds, kubectl.

mod deletion;
mod durability;
mod kubectl;
mod real_input;
mod usage;
