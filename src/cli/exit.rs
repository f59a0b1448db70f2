//! Exit codes, all of them. Numbers above 63 are `sysexits.h`'s.

/// What was asked for was done.
pub const OK: u8 = 0;
/// Some of it was not: entries failed, or the worker ended when it should not have.
pub const FAILED: u8 = 1;
/// The command line makes no sense (clap's own number).
pub const USAGE: u8 = 2;
/// Redis cannot be reached, or is none that Samovar can work with; trying again may help.
pub const UNAVAILABLE: u8 = 69;
/// The settings or the job files have faults; trying again will not help.
pub const CONFIG: u8 = 78;
