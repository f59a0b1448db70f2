//! The `samovar` command: arguments, settings, run, exit code.

use std::process::ExitCode;

// Warming allocates many small, short-lived blocks. This allocator handles them well, and returns memory early: see
// .cargo/config.toml.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    samovar::cli::main()
}
