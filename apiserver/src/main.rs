//! The binary `outrigger`: the command line, then the command; what went wrong, as one line.

mod options;

use std::io::Write;
use std::process::ExitCode;

/// Exit code of a command line that cannot be carried out.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match options::parse(std::env::args_os()) {
        Ok(options::Command::Up(_)) => ExitCode::SUCCESS,
        Err(options::UsageError::Print(text)) => {
            // Nobody is left to tell when stdout is closed.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("outrigger: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}
