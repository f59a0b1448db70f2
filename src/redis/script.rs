//! Lua scripts that begin with shared code.

use redis::Script;

/// Returns a script with these preludes before it. Its `#!` line, if it has one, stays the first line.
pub(crate) fn with_preludes(preludes: &[&str], script: &str) -> Script {
    let (flags, body) = match script.split_once('\n') {
        Some((flags, body)) if flags.starts_with("#!") => (format!("{flags}\n"), body),
        _ => (String::new(), script),
    };
    Script::new(&format!("{flags}{}{body}", preludes.concat()))
}
