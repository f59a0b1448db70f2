//! The `samovar` command: arguments, settings, run, exit code.

use std::process::ExitCode;

// Warming is many small pieces of memory for a short time, which this allocator is good at; huge pages it would keep half empty.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    samovar::cli::main()
}
