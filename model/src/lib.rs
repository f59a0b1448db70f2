//! Explores Samovar's Lua scripts over a model of Redis: every interleaving to a depth, then random ones.
//!
//! The scripts are those of `src/`, unchanged, in Lua 5.1. `db` and `commands` are the modelled Redis, `world` has the
//! actors, `properties` what must hold, `explorer` the search. docs/verification.md says what this shows.

mod bytecode;
pub mod calls;
pub mod commands;
pub mod db;
pub mod engine;
pub mod server;
mod live;
pub mod limits;
mod lua;
pub mod schedules;
pub mod scripts;
pub mod storms;
pub mod explorer;
pub mod properties;
pub mod scenarios;
pub mod world;
pub mod faults;
pub mod guards;
pub mod claims;
pub mod rate_limits;
pub mod reports;
pub mod knowledge;
pub mod mends;
pub mod mutants;
