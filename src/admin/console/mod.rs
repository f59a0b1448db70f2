//! The console: pages for people in a browser, served by every worker at `/`. docs/console.md shows the screens.
//!
//! Pages are made on the server from what `ops` and `admin` know, and need no script. While somebody looks, one poller
//! reads the state of the fleet for all tabs (`live`); otherwise the console sends no command. `routes` lists each
//! route with the right that it needs, and `access` checks them. A screen is a file with a handler, which asks `ops`,
//! and a view, which turns the answer into markup.

mod access;
mod actions;
mod agenda;
mod assets;
mod audit;
mod chart;
mod dead;
mod entry;
mod events;
mod failure;
mod fields;
mod fleet;
mod history;
mod invalidations;
mod job;
mod jobs;
mod live;
mod login;
mod logins;
mod neighbours;
mod overview;
mod page;
mod routes;
mod seal;
mod state;
mod upstreams;

pub use access::Needs;
pub(crate) use failure::refusal;
pub use routes::{ROUTES, Route, router};
pub use state::Console;
