//! All routes of the console, each with the rights that it needs. There is no other way to add one.

use std::fmt;
use std::sync::Arc;

use axum::routing::{MethodRouter, get, post};
use axum::{Router, middleware};

use super::access::{self, Needs};
use super::state::Console;
use super::{
    actions, agenda, assets, audit, dead, entry, events, fleet, invalidations, job, jobs, login, overview, seal,
    upstreams,
};
use crate::admin::Admin;

/// A route.
pub struct Route {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// The path, with names in braces.
    pub path: &'static str,
    /// The right that it needs.
    pub needs: Needs,
    handler: fn() -> MethodRouter<Arc<Console>>,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} needs {:?}", self.method, self.path, self.needs)
    }
}

impl Route {
    const fn get(path: &'static str, needs: Needs, handler: fn() -> MethodRouter<Arc<Console>>) -> Self {
        Self { method: "GET", path, needs, handler }
    }

    const fn post(path: &'static str, needs: Needs, handler: fn() -> MethodRouter<Arc<Console>>) -> Self {
        Self { method: "POST", path, needs, handler }
    }
}

/// All routes.
pub const ROUTES: &[Route] = &[
    Route::get("/console/style.css", Needs::Nothing, || get(assets::style)),
    Route::get("/console/script.js", Needs::Nothing, || get(assets::script)),
    Route::get("/console/icon.svg", Needs::Nothing, || get(assets::icon)),
    Route::get("/console/login", Needs::Nothing, || get(login::form)),
    Route::post("/console/login", Needs::Nothing, || post(login::log_in)),
    Route::post("/console/logout", Needs::Nothing, || post(login::log_out)),
    Route::get("/console/events", Needs::Look, || get(events::events)),
    Route::get("/", Needs::Look, || get(overview::overview)),
    Route::get("/console/find", Needs::Look, || get(job::find)),
    Route::get("/console/jobs", Needs::Look, || get(jobs::jobs)),
    Route::get("/console/jobs/{job}", Needs::Look, || get(job::job)),
    Route::get("/console/entry", Needs::Look, || get(entry::entry)),
    Route::get("/console/agenda", Needs::Look, || get(agenda::agenda)),
    Route::get("/console/invalidations", Needs::Look, || get(invalidations::invalidations)),
    Route::get("/console/upstreams", Needs::Look, || get(upstreams::upstreams)),
    Route::get("/console/dead", Needs::Look, || get(dead::dead)),
    Route::get("/console/fleet", Needs::Look, || get(fleet::fleet)),
    Route::get("/console/audit", Needs::Look, || get(audit::audit)),
    Route::get("/console/compose", Needs::Act, || get(invalidations::compose)),
    Route::get("/console/ask/{action}", Needs::Act, || get(actions::ask)),
    Route::post("/console/do/{action}", Needs::Act, || post(actions::act)),
];

/// Returns the routes of a console.
pub fn router(console: &Arc<Console>) -> Router<Arc<Admin>> {
    let mut router = Router::new();
    for route in ROUTES {
        let check = access::Check { console: Arc::clone(console), needs: route.needs };
        let mut handler = (route.handler)();
        if route.needs == Needs::Look && ![events::PATH, "/console/find"].contains(&route.path) {
            handler = handler.layer(middleware::from_fn_with_state(Arc::clone(console), events::once_for_all));
        }
        router = router.route(route.path, handler.layer(middleware::from_fn_with_state(check, access::check)));
    }
    router.layer(middleware::map_response(seal::seal)).with_state(Arc::clone(console))
}
