//! The subcommands of `outrigger`.

pub(crate) mod up;
