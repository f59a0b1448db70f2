//! The pause that an upstream asks for: `Retry-After`, and spent rate limits.
//!
//! A refusal of that kind concerns the upstream and not the entry, so none of an entry's attempts is used up. A status
//! that blames the request itself ([`is_about_the_request`]) is never of that kind: one entry would hold up all others
//! for ever. Each wait is bounded.

use chrono::{DateTime, Utc};
use reqwest::header::{self, HeaderMap, HeaderName};
use std::time::Duration;

/// The pause if the upstream does not say how long.
const UNTOLD: Duration = Duration::from_secs(5);
/// The pause if its rate limit is spent and it does not say how long.
const SPENT: Duration = Duration::from_secs(60);
/// The shortest and the longest pause.
const LEAST: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(3600);
/// Numbers from here on are times since the epoch, in seconds; smaller ones count from now.
const EPOCH_SECONDS: f64 = 1e9;
/// From here on they are in milliseconds.
const EPOCH_MILLIS: f64 = 1e11;

/// Returns the pause that an answer with a status from 400 on asks for; `None` if it asks for none.
pub(super) fn wait(status: u16, headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    if is_about_the_request(status) {
        return None;
    }
    // By the upstream's own clock where it tells.
    let now = lines(headers, header::DATE.as_str()).find_map(date).unwrap_or(now);
    let told = lines(headers, header::RETRY_AFTER.as_str()).filter_map(|text| retry_after(text, now)).max();
    let spent = || if status < 500 { spent(headers, now) } else { None };
    let wait = told.or_else(spent).or_else(|| (status == 429).then_some(UNTOLD))?;
    Some(wait.clamp(LEAST, MOST))
}

/// Returns whether a status blames the request itself, or is about the credentials.
fn is_about_the_request(status: u16) -> bool {
    matches!(status, 400..=402 | 404..=407 | 410..=412 | 414..=419 | 422 | 424 | 426..=428 | 431 | 451)
}

/// RFC 9110, section 10.2.3: seconds, or a date in one of three forms. Fractions and RFC 3339 are read as well; what is
/// anything else counts as absent.
fn retry_after(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    seconds(text).or_else(|| Some(until(date(text)?, now)))
}

/// A number without a sign, however long.
fn seconds(text: &str) -> Option<Duration> {
    let number = number(text)?;
    Some(Duration::try_from_secs_f64(number).unwrap_or(Duration::MAX))
}

fn number(text: &str) -> Option<f64> {
    let digits = text.starts_with(|c: char| c.is_ascii_digit());
    let plain = digits && text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.parse().ok().filter(|_| plain)
}

fn date(text: &str) -> Option<DateTime<Utc>> {
    let http = || Some(DateTime::<Utc>::from(httpdate::parse_http_date(text).ok()?));
    let mail = || Some(DateTime::parse_from_rfc2822(text).ok()?.to_utc());
    let iso = || Some(DateTime::parse_from_rfc3339(text).ok()?.to_utc());
    http().or_else(mail).or_else(iso)
}

fn until(at: DateTime<Utc>, now: DateTime<Utc>) -> Duration {
    (at - now).to_std().unwrap_or_default()
}

/// When a rate limit that is spent begins anew; the last where several are. Read are `RateLimit` (as the IETF's drafts
/// have it), and pairs of headers of which one says what remains and one when it is reset: `X-RateLimit-Remaining` and
/// `X-RateLimit-Reset`, and whatever is called so but for its prefix and a suffix.
fn spent(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let pairs = headers.keys().filter_map(|name| {
        let reset = reset_of(name)?;
        lines(headers, name.as_str()).any(is_nothing).then(|| {
            let resets = lines(headers, &reset).filter_map(|text| reset_in(text, now));
            resets.max().unwrap_or(SPENT)
        })
    });
    let policies = lines(headers, "ratelimit").filter_map(|text| spent_policy(text, now));
    pairs.chain(policies).max()
}

/// The header that says when a limit is reset, by the one that says what remains of it.
fn reset_of(name: &HeaderName) -> Option<String> {
    let name = name.as_str();
    let (before, after) = name.split_once("remaining")?;
    let is_limit = before.ends_with("ratelimit-") || before.ends_with("rate-limit-") || name.contains("-ratelimit-");
    is_limit.then(|| format!("{before}reset{after}"))
}

fn is_nothing(text: &str) -> bool {
    let first = text.split([',', ';']).next().unwrap_or_default().trim();
    number(first).is_some_and(|left| left == 0.0)
}

/// Seconds, a time since the epoch, a date, or a span such as `6m0s`.
fn reset_in(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    let text = text.trim();
    match number(text) {
        Some(at) if at >= EPOCH_SECONDS => {
            let seconds = if at >= EPOCH_MILLIS { at / 1e3 } else { at };
            #[expect(clippy::cast_precision_loss, reason = "a time in ms")]
            let now = now.timestamp_millis() as f64 / 1e3;
            Some(Duration::try_from_secs_f64(seconds - now).unwrap_or(if seconds > now { MOST } else { LEAST }))
        }
        Some(_) => seconds(text),
        None => date(text).map(|at| until(at, now)).or_else(|| humantime::parse_duration(text).ok()),
    }
}

/// `"policy";r=0;t=30, "other";r=5;t=3`, and the older `limit=100, remaining=0, reset=30`.
fn spent_policy(text: &str, now: DateTime<Utc>) -> Option<Duration> {
    // Names are quoted, and may hold anything.
    let bare: String = text.split('"').step_by(2).collect();
    let field = |part: &str, names: [&str; 2]| {
        part.split([';', ',']).filter_map(|pair| pair.split_once('=')).find_map(|(name, value)| {
            names.contains(&name.trim().to_ascii_lowercase().as_str()).then(|| value.trim().to_owned())
        })
    };
    let policies = if bare.contains("remaining") { vec![bare.as_str()] } else { bare.split(',').collect() };
    let spent =
        policies.into_iter().filter(|part| field(part, ["r", "remaining"]).is_some_and(|left| is_nothing(&left)));
    spent.map(|part| field(part, ["t", "reset"]).and_then(|reset| reset_in(&reset, now)).unwrap_or(SPENT)).max()
}

fn lines<'h>(headers: &'h HeaderMap, name: &str) -> impl Iterator<Item = &'h str> {
    headers.get_all(name).iter().filter_map(|line| Some(line.to_str().ok()?.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_700_000_000;

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(NOW, 0).unwrap()
    }

    type Lines<'a> = &'a [(&'a str, &'a str)];

    /// The wait in milliseconds.
    fn waits(status: u16, lines: Lines<'_>) -> Option<u128> {
        let mut headers = HeaderMap::new();
        for (name, text) in lines {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), text.parse().unwrap());
        }
        wait(status, &headers, now()).map(|wait| wait.as_millis())
    }

    #[test]
    fn retry_after_is_read_in_every_form() {
        for (text, wait) in [
            ("7", Some(7_000)),
            (" 7 ", Some(7_000)),
            ("007", Some(7_000)),
            ("0", Some(1_000)),
            ("1.5", Some(1_500)),
            ("0.2", Some(1_000)),
            ("99999999", Some(3_600_000)),
            ("99999999999999999999999999999999", Some(3_600_000)),
            ("Tue, 14 Nov 2023 22:14:50 GMT", Some(90_000)),
            ("Tuesday, 14-Nov-23 22:14:50 GMT", Some(90_000)),
            ("Tue Nov 14 22:14:50 2023", Some(90_000)),
            ("Tue, 14 Nov 2023 23:14:50 +0100", Some(90_000)),
            ("2023-11-14T22:14:50Z", Some(90_000)),
            ("Tue, 14 Nov 2023 20:14:50 GMT", Some(1_000)),
            ("Thu, 14 Nov 2999 20:14:50 GMT", Some(3_600_000)),
            ("-5", None),
            ("+5", None),
            ("", None),
            ("soon", None),
            ("1e3", None),
            ("inf", None),
            ("NaN", None),
            ("1.2.3", None),
            ("7s", None),
            ("0x10", None),
            ("7, 8", None),
        ] {
            assert_eq!(waits(503, &[("retry-after", text)]), wait, "{text}");
            assert_eq!(waits(403, &[("retry-after", text)]), wait, "{text}");
            assert_eq!(waits(429, &[("retry-after", text)]), Some(wait.unwrap_or(5_000)), "{text}");
        }
        assert_eq!(waits(503, &[("retry-after", "3"), ("retry-after", "x"), ("retry-after", "9")]), Some(9_000));
        let late = [("date", "Tue, 14 Nov 2023 22:14:00 GMT"), ("retry-after", "Tue, 14 Nov 2023 22:14:50 GMT")];
        assert_eq!(waits(503, &late), Some(50_000));
    }

    #[test]
    fn retry_after_holds_where_it_is_not_about_the_request() {
        let obeyed: Vec<u16> = (400..600).filter(|status| waits(*status, &[("retry-after", "7")]).is_some()).collect();
        for status in [403, 408, 409, 413, 420, 423, 425, 429, 430, 500, 502, 503, 504, 509, 521, 529, 598] {
            assert!(obeyed.contains(&status), "{status}");
        }
        for status in [400, 401, 402, 404, 405, 406, 410, 411, 412, 414, 415, 416, 422, 428, 431, 451] {
            assert!(!obeyed.contains(&status), "{status}");
        }
        let by_itself: Vec<u16> = (400..600).filter(|status| waits(*status, &[]).is_some()).collect();
        assert_eq!(by_itself, [429]);
    }

    #[test]
    fn a_spent_rate_limit_is_waited_for() {
        let at = (NOW + 40).to_string();
        let at_ms = ((NOW + 40) * 1000).to_string();
        let past = (NOW - 40).to_string();
        let cases: [(Lines<'_>, Option<u128>); 24] = [
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &at)], Some(40_000)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &at_ms)], Some(40_000)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "40")], Some(40_000)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "40.5")], Some(40_500)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &past)], Some(1_000)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "99999999999999999999999")], Some(3_600_000)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "Tue, 14 Nov 2023 22:14:50 GMT")], Some(90_000)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "junk")], Some(60_000)),
            (&[("x-ratelimit-remaining", "0")], Some(60_000)),
            (&[("x-rate-limit-remaining", "0"), ("x-rate-limit-reset", &at)], Some(40_000)),
            (&[("ratelimit-remaining", "0"), ("ratelimit-reset", "30")], Some(30_000)),
            (&[("x-ratelimit-remaining-requests", "0"), ("x-ratelimit-reset-requests", "6m0s")], Some(360_000)),
            (&[("x-ratelimit-remaining-tokens", "0"), ("x-ratelimit-reset-tokens", "20ms")], Some(1_000)),
            (
                &[
                    ("anthropic-ratelimit-requests-remaining", "0"),
                    ("anthropic-ratelimit-requests-reset", "2023-11-14T22:14:50Z"),
                ],
                Some(90_000),
            ),
            (&[("ratelimit", "\"default\";r=0;t=30")], Some(30_000)),
            (&[("ratelimit", "\"a, r=9\";r=5;t=900, \"b\";r=0;t=30")], Some(30_000)),
            (&[("ratelimit", "limit=100, remaining=0, reset=30")], Some(30_000)),
            (&[("ratelimit", "default;r=0")], Some(60_000)),
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "30"), ("retry-after", "7")], Some(7_000)),
            (&[("x-ratelimit-remaining", "1"), ("x-ratelimit-reset", &at)], None),
            (&[("x-ratelimit-remaining", "-1"), ("x-ratelimit-reset", &at)], None),
            (&[("x-ratelimit-remaining", "none")], None),
            (&[("ratelimit", "\"default\";r=10;t=30")], None),
            (&[("x-remaining", "0"), ("x-ratelimit-reset", &at), ("ratelimit-limit", "0")], None),
        ];
        for (lines, wait) in cases {
            assert_eq!(waits(403, lines), wait, "{lines:?}");
            assert_eq!(waits(429, lines), Some(wait.unwrap_or(5_000)), "{lines:?}");
            assert!(lines.iter().any(|(name, _)| *name == "retry-after") || waits(500, lines).is_none(), "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn every_wait_is_bounded(
            status in 400_u16..600,
            after in prop_oneof!["[0-9]{0,40}", "-?[0-9]{1,20}\\.[0-9]{0,5}", "[ -~]{0,40}", "[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9]{4} [0-9:]{8} GMT"],
            remaining in "-?[0-9]{0,3}",
            reset in prop_oneof!["[0-9]{0,40}", "[ -~]{0,20}", "[0-9]{1,30}[smhdwy]"],
            policy in "[ -~]{0,40}",
        ) {
            let lines = [("retry-after", after.as_str()), ("x-ratelimit-remaining", &remaining), ("x-ratelimit-reset", &reset), ("ratelimit", &policy)];
            if let Some(wait) = waits(status, &lines) {
                prop_assert!((1_000..=3_600_000).contains(&wait), "{}", wait);
            }
        }

        #[test]
        fn seconds_are_waited_for_as_told(seconds in 1_u64..=3600, fraction in 0_u32..1000) {
            let told = format!("{seconds}.{fraction:03}");
            let wanted = u128::from(seconds * 1000 + u64::from(fraction)).min(3_600_000);
            let got = waits(403, &[("retry-after", &told)]).unwrap();
            prop_assert!(got.abs_diff(wanted) <= 1, "{} for {}", got, told);
        }

        #[test]
        fn dates_are_waited_for_in_all_three_forms(seconds in 1_i64..=3600) {
            let at = DateTime::<Utc>::from_timestamp(NOW + seconds, 0).unwrap();
            for form in ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"] {
                let told = at.format(form).to_string();
                prop_assert_eq!(waits(403, &[("retry-after", &told)]), Some(u128::from(seconds.unsigned_abs()) * 1000), "{}", told);
            }
        }
    }
}
