//! Lists of entries joined in a URL: a value that contains the separator would reach the server as two.

use minijinja::value::Value;
use minijinja::{Error, ErrorKind};

/// Checks the arguments of the filter `join` in a URL that names many entries.
///
/// # Errors
/// Names a value that contains the separator.
pub(super) fn check(args: &[Value]) -> Result<(), Error> {
    let named = |name: &str| args.iter().filter(|arg| arg.is_kwargs()).find_map(|arg| arg.get_attr(name).ok());
    let given = |place: usize, name: &str| {
        let value = args.get(place).filter(|arg| !arg.is_kwargs()).cloned().or_else(|| named(name));
        value.and_then(|value| value.as_str().map(str::to_owned))
    };
    let Some(separator) = given(1, "joiner").filter(|separator| !separator.is_empty()) else { return Ok(()) };
    let attribute = given(2, "attribute");
    let Some(Ok(items)) = args.first().filter(|value| value.as_str().is_none()).map(Value::try_iter) else {
        return Ok(());
    };
    for item in items {
        let value = attribute.as_ref().and_then(|name| item.get_attr(name).ok()).unwrap_or(item);
        let text = value.to_string();
        if text.contains(&separator) {
            let message = format!(
                "`{text}` contains `{separator}`, by which a list in a URL is joined: send the list in `body`, or \
                 repeat a parameter for each value"
            );
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}
