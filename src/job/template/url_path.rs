//! The filter `path`: text that is several path segments of a URL.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use percent_encoding::utf8_percent_encode;

use super::ENCODED;

/// Path segments, separated by `/`. None is empty, `.` or `..`, so a URL keeps each of them. Only the filter makes it:
/// text that a template builds from it is plain text again, whose `/` is encoded.
#[derive(Debug)]
pub(super) struct UrlPath(String);

impl Object for UrlPath {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl UrlPath {
    /// Returns the path of a value that the filter made.
    pub(super) fn of(value: &Value) -> Option<&Self> {
        value.downcast_object_ref()
    }

    /// Writes the segments percent-encoded, with `/` between them.
    pub(super) fn write(&self, out: &mut impl fmt::Write) -> fmt::Result {
        for (place, segment) in self.0.split('/').enumerate() {
            if place > 0 {
                out.write_char('/')?;
            }
            write!(out, "{}", utf8_percent_encode(segment, ENCODED))?;
        }
        Ok(())
    }
}

/// The filter: takes text, a number or a boolean.
pub(super) fn path(value: &Value) -> Result<Value, Error> {
    let refused = |message: String| Err(Error::new(ErrorKind::InvalidOperation, message));
    if !matches!(value.kind(), ValueKind::String | ValueKind::Number | ValueKind::Bool) {
        return refused(format!("{} cannot be a path; only text, numbers and booleans can", value.kind()));
    }
    let text = value.to_string();
    for segment in text.split('/') {
        if segment.is_empty() {
            return refused("a path must not be empty, begin or end with `/`, or contain `//`".to_owned());
        }
        // `%2e` is no dot here, since its percent sign is encoded.
        if matches!(segment, "." | "..") {
            return refused(format!("a path segment would be `{segment}`, which no URL can carry"));
        }
    }
    Ok(Value::from_object(UrlPath(text)))
}
