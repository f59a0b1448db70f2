//! Templates: strict minijinja, checked when the file is loaded.

/// One text template, or one expression.
#[derive(Clone, Debug)]
pub struct Template {}

impl Template {
    /// The text, with every inserted value as it is.
    pub fn render(&self, _context: &serde_json::Value) -> Result<String, String> {
        todo!()
    }
    /// The text, with every inserted value percent-encoded (all but RFC 3986's unreserved characters).
    pub fn render_url(&self, _context: &serde_json::Value) -> Result<String, String> {
        todo!()
    }
    /// Whether the template's single expression is true, or its text says so.
    pub fn test(&self, _context: &serde_json::Value) -> Result<bool, String> {
        todo!()
    }
}

/// A JSON document whose strings are templates; one that is a single `{{ expression }}` keeps the expression's type.
#[derive(Clone, Debug)]
pub struct Shape {}

impl Shape {
    /// The document.
    pub fn render(&self, _context: &serde_json::Value) -> Result<serde_json::Value, String> {
        todo!()
    }
}
