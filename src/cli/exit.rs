//! All exit codes. Numbers above 63 are those of `sysexits.h`.

/// Success.
pub const OK: u8 = 0;
/// Failure: entries failed, the fleet knows no such name, or the worker ended unexpectedly.
pub const FAILED: u8 = 1;
/// The command line is invalid (clap's number).
pub const USAGE: u8 = 2;
/// Redis is unreachable or unsupported; a retry may help.
pub const UNAVAILABLE: u8 = 69;
/// The settings or the job files have faults; a retry will not help.
pub const CONFIG: u8 = 78;
