//! The servers behind a connection, for people: addresses, never logins.

use std::fmt;

use serde::Serialize;

/// The servers behind a connection, as far as they are known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Servers {
    /// `single`, `sentinel` or `cluster`.
    pub topology: &'static str,
    /// The addresses of the masters; empty until they are known.
    pub masters: Vec<String>,
    /// The addresses of their replicas.
    pub replicas: Vec<String>,
    /// The addresses of the Sentinels that are asked.
    pub sentinels: Vec<String>,
}

impl Servers {
    /// The kinds of Redis.
    pub const TOPOLOGIES: [&str; 3] = ["single", "sentinel", "cluster"];
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listed = |what: &str, all: &[String]| match all {
            [] => format!("no {what} is known"),
            [one] => format!("the {what} is {one}"),
            all => format!("the {what}s are {}", all.join(", ")),
        };
        match self.topology {
            "single" => write!(f, "one server, {}", self.masters.join(", ")),
            "cluster" => write!(f, "a Cluster; {}", listed("master", &self.masters)),
            _ => f.write_str(&listed("master", &self.masters)),
        }
    }
}
