//! Routes, and the OpenAPI document, which is made from them.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Router, middleware};
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Content, PathItem, Ref, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::Problem;
use super::{Admin, clear, dead, entries, guard, health, invalidate, jobs, metrics, reload, stats, warm};

/// The name of the token in the document.
const TOKEN: &str = "token";

#[derive(OpenApi)]
#[openapi(
    info(title = "Samovar", description = "The HTTP API of a worker: see docs/http.md."),
    components(schemas(Problem))
)]
struct Document;

/// All routes with those of `pages`, and the document of the others as JSON.
pub(super) fn router(admin: &Arc<Admin>, pages: Router<Arc<Admin>>) -> (Router<Arc<Admin>>, String) {
    let open = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(health::health))
        .routes(routes!(health::live))
        .routes(routes!(health::ready))
        .routes(routes!(health::health_redis))
        .routes(routes!(health::redis_health))
        .routes(routes!(stats::redis_stats))
        .routes(routes!(stats::cache_stats))
        .routes(routes!(jobs::jobs))
        .routes(routes!(jobs::job))
        .routes(routes!(dead::dead))
        .routes(routes!(metrics::metrics))
        .routes(routes!(document));
    let mut owners = OpenApiRouter::new()
        .routes(routes!(clear::clear))
        .routes(routes!(clear::clear_matching))
        .routes(routes!(invalidate::invalidate))
        .routes(routes!(warm::warm))
        .routes(routes!(jobs::pause))
        .routes(routes!(jobs::resume))
        .routes(routes!(jobs::accept_gone))
        .routes(routes!(jobs::hold_gone))
        .routes(routes!(entries::entry))
        .routes(routes!(dead::retry))
        .routes(routes!(reload::reload));
    for operation in owners.get_openapi_mut().paths.paths.values_mut().flat_map(operations) {
        operation.security =
            Some(vec![SecurityRequirement::default(), SecurityRequirement::new::<_, [&str; 0], &str>(TOKEN, [])]);
    }
    let owners = owners.route_layer(middleware::from_fn_with_state(Arc::clone(admin), guard::owner));
    let (router, mut api) = open.merge(owners).split_for_parts();
    for operation in api.paths.paths.values_mut().flat_map(operations) {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        let problem = ResponseBuilder::new()
            .description("An error as in RFC 9457")
            .content("application/problem+json", content)
            .build();
        operation.responses.responses.insert("default".to_owned(), problem.into());
    }
    let bearer =
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some("The worker's SAMOVAR_TOKEN")).build();
    api.components.get_or_insert_default().add_security_scheme(TOKEN, SecurityScheme::Http(bearer));
    let mut api = serde_json::to_value(&api).unwrap_or_default();
    name_something(&mut api);
    let text = serde_json::to_string_pretty(&api).unwrap_or_default();
    (router.merge(pages).fallback(unknown).method_not_allowed_fallback(not_allowed), text)
}

/// Adds the constraints between fields that derived schemas cannot express.
fn name_something(api: &mut Value) {
    let named = |field: &str| json!({ "required": [field], "properties": { field: { "minItems": 1 } } });
    let schemas = &mut api["components"]["schemas"];
    for (body, fields) in [("Invalidation", &["keys", "patterns", "tags", "jobs"][..]), ("Wanted", &["keys", "jobs"])] {
        schemas[body]["anyOf"] = fields.iter().map(|field| named(field)).collect();
        schemas[body]["additionalProperties"] = json!(false);
    }
    // `warm` takes keys only.
    let none = json!({ "maxItems": 0 });
    let only_keys = json!({ "properties": { "patterns": none, "tags": none, "jobs": none } });
    let warm = json!({ "required": ["action"], "properties": { "action": { "const": "warm" } } });
    schemas["Invalidation"]["properties"]["tags"]["items"]["minLength"] = json!(1);
    schemas["Invalidation"]["if"] = warm;
    schemas["Invalidation"]["then"] = only_keys;
}

fn operations(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [&mut item.get, &mut item.post, &mut item.delete].into_iter().filter_map(Option::as_mut)
}

/// The OpenAPI document
#[utoipa::path(get, path = "/openapi.json", tag = "stats", responses((status = 200, body = serde_json::Value)))]
async fn document(State(admin): State<Arc<Admin>>) -> Response {
    let document = admin.document.get().cloned().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

async fn unknown(uri: Uri) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no {}; GET /openapi.json lists the routes", uri.path()))
}

async fn not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed for {}", uri.path()))
}
