//! The subcommands of `outrigger`.

mod backends;
mod process;
pub(crate) mod serve;
pub(crate) mod up;
