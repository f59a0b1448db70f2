//! The `samovar` command: arguments, settings, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    samovar::cli::main()
}
