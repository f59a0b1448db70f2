//! Durations as text and as milliseconds.

use std::fmt::Write as _;
use std::time::Duration;

const DAY: u64 = 24 * 3_600;
/// 365.25 days, as settings read `1y`.
const YEAR: u64 = 31_557_600;

/// Returns a duration as text without loss: `500ms`, `30s`, `1h30m`, `7d`, `10y`. Job files and settings read it back.
pub fn text(time: Duration) -> String {
    let (seconds, nanos) = (time.as_secs(), u64::from(time.subsec_nanos()));
    if seconds > 0 && seconds.is_multiple_of(YEAR) && nanos == 0 {
        return format!("{}y", seconds / YEAR);
    }
    let parts = [
        (seconds / DAY, "d"),
        (seconds % DAY / 3_600, "h"),
        (seconds % 3_600 / 60, "m"),
        (seconds % 60, "s"),
        (nanos / 1_000_000, "ms"),
        (nanos / 1_000 % 1_000, "us"),
        (nanos % 1_000, "ns"),
    ];
    let mut text = String::new();
    for (count, unit) in parts.into_iter().filter(|(count, _)| *count > 0) {
        let _ = write!(text, "{count}{unit}");
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Reads a duration as job files and settings write it: `30s`, `5m`, `1h30m`.
///
/// # Errors
/// The text is none; the error continues the sentence that begins with the text, and tells what to write.
#[cfg(feature = "worker")]
pub fn parse(text: &str) -> Result<Duration, String> {
    if text != "0" && is_number(text) {
        return Err(format!("has no unit; write `{text}s` for seconds"));
    }
    humantime::parse_duration(text).map_err(|_| "is not a time; write `30s`, `5m` or `1h30m`".to_owned())
}

/// Reads a duration as [`parse`] does, or a whole number of seconds.
///
/// # Errors
/// The text is neither.
#[cfg(feature = "worker")]
pub fn parse_or_seconds(text: &str) -> Result<Duration, String> {
    if is_number(text) { parse(&format!("{text}s")) } else { parse(text) }
}

#[cfg(feature = "worker")]
fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns a duration in whole seconds as text. Use it where fractions of a second do not matter.
pub fn seconds(time: Duration) -> String {
    text(Duration::from_secs(time.as_secs()))
}

/// Returns a duration as text, rounded to what matters at its size: `120ms`, `1.5s`, `1m30s`, `2h5m`.
pub fn rough(time: Duration) -> String {
    let ms = time.saturating_add(Duration::from_micros(500)).as_millis();
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..9_950 => match ((ms + 50) / 1_000, (ms + 50) % 1_000 / 100) {
            (seconds, 0) => format!("{seconds}s"),
            (seconds, tenths) => format!("{seconds}.{tenths}s"),
        },
        9_950..119_500 => seconds(time + Duration::from_millis(500)),
        _ => text(Duration::from_secs(time.as_secs() / 60 * 60)),
    }
}

/// Returns a duration in whole milliseconds, at most [`i64::MAX`].
pub fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Returns a duration in seconds, rounded to milliseconds, for fields of log lines.
pub fn logged(time: Duration) -> f64 {
    Duration::from_millis(millis(time.saturating_add(Duration::from_micros(500))).unsigned_abs()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_reads_as_people_write_it() {
        for (time, expected) in [
            (Duration::ZERO, "0s"),
            (Duration::from_millis(500), "500ms"),
            (Duration::from_secs(90), "1m30s"),
            (Duration::from_secs(5_400), "1h30m"),
            (Duration::from_secs(7_200), "2h"),
            (Duration::from_secs(DAY), "1d"),
            (Duration::from_secs(7 * DAY), "7d"),
            (Duration::from_secs(400 * DAY), "400d"),
            (Duration::from_secs(10 * YEAR), "10y"),
            (Duration::from_micros(1_000_250), "1s250us"),
        ] {
            assert_eq!(text(time), expected);
        }
        assert_eq!(seconds(Duration::from_millis(61_900)), "1m1s");
        let rough = [0, 120, 1_000, 1_570, 9_970, 10_500, 7_199_000, 7_500_000].map(Duration::from_millis).map(rough);
        assert_eq!(rough, ["0ms", "120ms", "1s", "1.6s", "10s", "11s", "1h59m", "2h5m"]);
    }

    #[cfg(feature = "worker")]
    #[test]
    fn a_duration_reads_back() {
        for nanos in [0, 1, 999, 1_000, 123_456_789, 5_400_000_000_000, 40_000_000_000_000_001, u64::MAX] {
            let time = Duration::from_nanos(nanos);
            assert_eq!(humantime::parse_duration(&text(time)).unwrap(), time, "{}", text(time));
        }
    }

    #[cfg(feature = "worker")]
    #[test]
    fn a_plain_number_is_seconds_only_where_it_may_be() {
        let (minute, huge) = (Duration::from_secs(60), "9".repeat(40));
        for text in ["1m", "60s", "60000ms"] {
            assert_eq!((parse(text), parse_or_seconds(text)), (Ok(minute), Ok(minute)));
        }
        assert_eq!((parse("0"), parse_or_seconds("0")), (Ok(Duration::ZERO), Ok(Duration::ZERO)));
        assert_eq!(parse_or_seconds("60"), Ok(minute));
        assert_eq!(parse("60").unwrap_err(), "has no unit; write `60s` for seconds");
        for text in ["", " ", "-1", "1.5", "1 parsec", "soon", "60\u{660}", huge.as_str()] {
            assert!(parse_or_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_logged_duration_has_no_more_than_milliseconds() {
        assert_eq!(logged(Duration::from_nanos(172_502_949)).to_string(), "0.173");
        assert_eq!(logged(Duration::from_secs(61)).to_string(), "61");
    }

    #[test]
    fn milliseconds_do_not_overflow() {
        assert_eq!(millis(Duration::from_micros(1_999)), 1);
        assert_eq!(millis(Duration::MAX), i64::MAX);
    }
}
