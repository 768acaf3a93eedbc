//! The subcommands of `outrigger`.

mod process;
pub(crate) mod serve;
pub(crate) mod up;
