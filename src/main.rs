//! The `samovar` command: arguments, settings, run, exit code.

use std::process::ExitCode;

// Warming is many small pieces of memory for a short time, which this allocator is good at, and gives back soon after: see
// .cargo/config.toml.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    samovar::cli::main()
}
