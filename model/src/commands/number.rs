//! Numbers, as Redis reads and writes them.

use super::{NOT_FLOAT, NOT_INT};

/// Reads an integer: no sign but `-`, no leading zeros.
pub(crate) fn int(text: &[u8]) -> Result<i64, String> {
    strict(text).ok_or_else(|| NOT_INT.to_owned())
}

/// Reads an integer of the form that Redis writes.
pub(crate) fn strict(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        b"0" => (digits.len() == text.len()).then_some(0),
        [b'1'..=b'9', rest @ ..] if rest.len() < 20 && rest.iter().all(u8::is_ascii_digit) => {
            str::from_utf8(text).ok()?.parse().ok()
        }
        _ => None,
    }
}

/// Reads a float.
pub(crate) fn float(text: &[u8]) -> Result<f64, String> {
    let number = str::from_utf8(text).ok().and_then(|text| text.parse::<f64>().ok());
    number.filter(|number| !number.is_nan()).ok_or_else(|| NOT_FLOAT.to_owned())
}

/// Returns a double as C's `%.17g` prints it.
pub fn double(number: f64) -> String {
    general(number, 17)
}

/// Returns a double as C's `%.{digits}g` prints it.
pub(crate) fn general(number: f64, digits: usize) -> String {
    if number == 0.0 {
        return if number.is_sign_negative() { "-0".into() } else { "0".into() };
    }
    if !number.is_finite() {
        return if number.is_nan() {
            "nan"
        } else if number > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .into();
    }
    #[expect(clippy::cast_possible_truncation, reason = "a whole number of few digits")]
    if number.fract() == 0.0 && number.abs() < 1e14 {
        return (number as i64).to_string();
    }
    let trimmed = |text: &str| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    let scientific = format!("{number:.*e}", digits - 1);
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let precision = i32::try_from(digits).unwrap_or(17);
    if !(-4..precision).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trimmed(mantissa), exponent.abs());
    }
    trimmed(&format!("{number:.*}", usize::try_from(precision - 1 - exponent).unwrap_or(0)))
}
