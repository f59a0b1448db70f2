//! The style sheet, the script and the icon, which the binary contains.

use axum::http::header;
use axum::response::IntoResponse;
use twox_hash::XxHash3_64;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
const ICON: &str = include_str!("icon.svg");
/// Their URLs change with them.
const CACHING: &str = "public, max-age=31536000, immutable";

/// Returns the URLs of the style sheet, the script and the icon.
pub(super) fn urls() -> [String; 3] {
    let url = |name: &str, text: &str| format!("/console/{name}?v={:016x}", XxHash3_64::oneshot(text.as_bytes()));
    [url("style.css", STYLE), url("script.js", SCRIPT), url("icon.svg", ICON)]
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, CACHING)], text)
}

pub(super) async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", STYLE)
}

pub(super) async fn script() -> impl IntoResponse {
    asset("text/javascript; charset=utf-8", SCRIPT)
}

pub(super) async fn icon() -> impl IntoResponse {
    asset("image/svg+xml", ICON)
}
