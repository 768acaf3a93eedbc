//! The binary `outrigger`: the command line, then the command; what went wrong, as one line.

mod app;
mod commands;
mod options;

use options::{Command, UsageError};
use outrigger_storage::federated::WallClock;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use tracing_subscriber::filter::EnvFilter;

/// Returns memory to the system, which flat memory is about; a feature, because it takes long to build.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit code of a command line that cannot be carried out.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match options::parse(std::env::args_os()) {
        Ok(Command::Up(config)) => {
            let log_level = config.limits.log_level.clone();
            run(&log_level, commands::up::run(*config, wall_clock()))
        }
        Ok(Command::Serve(config)) => {
            let log_level = config.limits.log_level.clone();
            run(&log_level, commands::serve::run(*config, wall_clock()))
        }
        Err(UsageError::Print(text)) => {
            // Nobody is left to tell when stdout is closed.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => complain(&error.to_string(), ExitCode::from(EXIT_USAGE)),
    }
}

/// Runs a command to its end.
fn run(log_level: &str, command: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let filter = EnvFilter::try_new(log_level).unwrap_or_default();
    let is_terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal)
        .init();
    // Whoever asks rustls for its default gets this one; two would be an error at run time.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return complain(
                &format!("the runtime cannot be started: {error}"),
                ExitCode::FAILURE,
            );
        }
    };
    match runtime.block_on(Box::pin(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), ExitCode::FAILURE),
    }
}

/// Milliseconds since 1970, from the system's clock: the only place that reads it.
fn wall_clock() -> WallClock {
    Arc::new(|| {
        #[expect(
            clippy::disallowed_methods,
            reason = "the composition root hands wall time to everybody else"
        )]
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

/// One line on stderr, whatever the error's own form.
fn complain(message: &str, code: ExitCode) -> ExitCode {
    let line = message
        .split('\n')
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    let _ = writeln!(std::io::stderr(), "outrigger: {line}");
    code
}
