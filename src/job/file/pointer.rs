//! JSON Pointers in job files.

use super::document::Field;
use jsonptr::PointerBuf;

/// Reads a JSON Pointer.
pub(super) fn pointer(field: &Field<'_>) -> Option<PointerBuf> {
    let text = field.plain()?;
    match PointerBuf::parse(text.value.as_str()) {
        Ok(pointer) => Some(pointer),
        Err(_) if !text.value.starts_with('/') => {
            text.fault_with_help(
                format!("`{}` is no JSON Pointer: it does not begin with `/`", text.value),
                &format!("write \"/{}\"", text.value.trim_start_matches("$.").replace('.', "/")),
            );
            None
        }
        Err(_) => {
            text.fault_with_help(
                format!("`{}` is no JSON Pointer: `~` stands alone", text.value),
                "write `~0` for `~` and `~1` for `/` in a name (RFC 6901)",
            );
            None
        }
    }
}
