//! JSON Schemas of the files, for editors.
//!
//! They are written by hand, and of draft 7, because TOML language servers read no later draft. The tests compare them
//! with the parser: the names of all fields, right and wrong files, and defaults.

/// JSON Schema of a job file.
pub const JOB_SCHEMA: &str = include_str!("../../../schemas/job.json");

/// JSON Schema of `upstreams.toml`.
pub const UPSTREAMS_SCHEMA: &str = include_str!("../../../schemas/upstreams.json");
