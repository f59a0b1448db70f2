//! When warmups run: crontab's meaning over the `cron` crate's arithmetic, or a plain interval.
//!
//! Five fields are minute, hour, day of month, month, day of week; six begin with the second. As in Vixie cron and
//! cronie, 0 and 7 are Sunday, and where neither day field begins with `*`, a day that satisfies either of them is one.
//!
//! Daylight saving, after cronie:
//! - Where the hour field names hours, a time that spring skips runs once, at the first instant after the gap, and a
//!   time that autumn repeats runs at its first occurrence only.
//! - Where the hour field begins with `*`, every instant whose wall clock matches is a tick: nothing is made up for in
//!   spring, and the repeated hour runs twice.

use chrono::{DateTime, Duration as Span, MappedLocalTime, NaiveDateTime, Offset, SubsecRound, TimeZone, Utc};
use chrono_tz::{GapInfo, Tz};
use std::fmt;
use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use crate::entry::duration;

/// A cron expression in a time zone, or an interval.
#[derive(Clone)]
pub struct Schedule {
    text: String,
    kind: Kind,
}

/// Two are equal if they have the same times, however the file writes them.
impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

#[derive(Clone, PartialEq)]
enum Kind {
    Cron(Box<Cron>),
    Every { millis: i64 },
}

#[derive(Clone, PartialEq)]
struct Cron {
    /// A wall-clock time is a tick if it is one of any of these; there are two where either day field suffices.
    alternatives: Vec<cron::Schedule>,
    timezone: Tz,
    through_hours: bool,
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schedule").field(&self.text).finish()
    }
}

impl Schedule {
    /// Reads a cron expression of 5 or 6 fields, or one of `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`,
    /// `@yearly`, `@annually`.
    ///
    /// # Errors
    /// A text that says what is wrong, and the remedy; also for a well-formed expression that never matches
    /// (30 February).
    pub fn cron(text: &str, timezone: Tz) -> Result<Self, String> {
        let cron = Cron::parse(text, timezone)?;
        let start = DateTime::<Utc>::UNIX_EPOCH + Span::days(30 * 365);
        if cron.next_wall(start.naive_utc()).is_none() {
            return Err(format!("`{text}` never comes: no month it names has such a day"));
        }
        Ok(Self { text: text.trim().to_owned(), kind: Kind::Cron(Box::new(cron)) })
    }

    /// A tick each `interval`, counted from the Unix epoch, so that all workers agree on them without speaking.
    ///
    /// # Errors
    /// For intervals shorter than a second or longer than 366 days.
    pub fn every(interval: Duration) -> Result<Self, String> {
        let shown = duration::text(interval);
        if interval < Duration::from_secs(1) {
            return Err(format!("an interval of {shown} is too short; the least is 1s"));
        }
        if interval > Duration::from_secs(366 * 24 * 3600) {
            return Err(format!("an interval of {shown} is too long; the most is 366d"));
        }
        let millis = i64::try_from(interval.as_millis()).map_err(|_| format!("an interval of {shown} is too long"))?;
        Ok(Self { text: format!("every {shown}"), kind: Kind::Every { millis } })
    }

    /// The first tick strictly later than `after`; `None` where there never is one (cron's years end with 2100).
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match &self.kind {
            Kind::Cron(cron) => cron.next(after),
            Kind::Every { millis } => {
                let ticks = after.timestamp_millis().div_euclid(*millis);
                DateTime::from_timestamp_millis(ticks.checked_add(1)?.checked_mul(*millis)?)
            }
        }
    }

    /// The last tick from `from` to `to`, both included.
    pub fn last(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let instant = Span::milliseconds(1);
        let mut last = self.next(from.checked_sub_signed(instant)?).filter(|tick| *tick <= to)?;
        // No tick lies between `end` and `to`.
        let mut end = to;
        while end - last > instant {
            let middle = last + (end - last) / 2;
            match self.next(middle).filter(|tick| *tick <= to) {
                Some(tick) => last = tick,
                None => end = middle,
            }
        }
        Some(last)
    }

    /// As written in the file, for people.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whose clock a cron expression follows; `None` for an interval.
    pub fn timezone(&self) -> Option<Tz> {
        match &self.kind {
            Kind::Cron(cron) => Some(cron.timezone),
            Kind::Every { .. } => None,
        }
    }
}

impl Cron {
    fn parse(text: &str, timezone: Tz) -> Result<Self, String> {
        let text = text.trim();
        let expanded = match text.strip_prefix('@') {
            Some(word) => shorthand(word).ok_or_else(|| {
                format!("`{text}` is none of @hourly, @daily, @midnight, @weekly, @monthly, @yearly and @annually")
            })?,
            None => text,
        };
        let parts: Vec<&str> = expanded.split_ascii_whitespace().collect();
        let (second, parts) = match parts.as_slice() {
            [second, rest @ ..] if rest.len() == 5 => (*second, rest),
            rest if rest.len() == 5 => ("0", rest),
            other => {
                return Err(format!(
                    "`{text}` has {} fields; cron has 5 (minute hour day month weekday) or 6 (second first)",
                    other.len()
                ));
            }
        };
        let mut normal = vec![SECOND.normalise(second)?];
        for (field, part) in [MINUTE, HOUR, DAY, MONTH, WEEKDAY].iter().zip(parts) {
            normal.push(field.normalise(part)?);
        }
        let starred = |at: usize| parts.get(at).is_some_and(|part| part.starts_with(['*', '?']));
        let either_day = !starred(2) && !starred(4);
        let choices: &[Option<usize>] = if either_day { &[Some(3), Some(5)] } else { &[None] };
        let alternatives = choices
            .iter()
            .map(|&open| {
                let fields = normal.iter().enumerate().map(|(at, f)| if Some(at) == open { "*" } else { f.as_str() });
                let expression = fields.collect::<Vec<_>>().join(" ");
                cron::Schedule::from_str(&expression).map_err(|error| format!("`{text}`: {error}"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { alternatives, timezone, through_hours: starred(1) })
    }

    /// The first wall-clock time strictly later than another one, whatever the zone.
    fn next_wall(&self, after: NaiveDateTime) -> Option<NaiveDateTime> {
        let after = after.and_utc();
        self.alternatives.iter().filter_map(|schedule| schedule.after(&after).next()).min().map(|at| at.naive_utc())
    }

    fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let after = after.trunc_subsecs(0);
        if self.through_hours { self.next_through(after) } else { self.next_fixed(after) }
    }

    fn next_fixed(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let mut wall = self.wall(after)?;
        loop {
            wall = self.next_wall(wall)?;
            let tick = match self.timezone.from_local_datetime(&wall) {
                MappedLocalTime::Single(at) | MappedLocalTime::Ambiguous(at, _) => at.to_utc(),
                MappedLocalTime::None => GapInfo::new(&wall, &self.timezone)?.end?.to_utc(),
            };
            if tick > after {
                return Some(tick);
            }
        }
    }

    /// Goes on from `after` in stretches of one UTC offset. No match lies between `after` and the cursor.
    fn next_through(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Clocks are set back by two hours at most (Troll), so beyond these three the wall clock shows new times only.
        let near = Span::hours(3);
        let mut cursor = after;
        loop {
            let offset = self.offset(cursor);
            let wall = self.next_wall(self.wall(cursor)?)?;
            let tick = wall.and_utc().checked_sub_signed(offset)?;
            let horizon = tick.min(cursor.checked_add_signed(near)?);
            if self.offset(horizon) == offset {
                if tick <= horizon {
                    return Some(tick);
                }
                cursor = horizon.max(tick - near * 2);
                continue;
            }
            let change = first_instant(cursor, horizon, |at| self.offset(at) != offset);
            if tick < change {
                return Some(tick);
            }
            let wall = self.wall(change)?;
            if self.next_wall(wall - Span::seconds(1)) == Some(wall) {
                return Some(change);
            }
            cursor = change;
        }
    }

    fn offset(&self, at: DateTime<Utc>) -> Span {
        Span::seconds(self.timezone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc().into())
    }

    fn wall(&self, at: DateTime<Utc>) -> Option<NaiveDateTime> {
        at.naive_utc().checked_add_signed(self.offset(at))
    }
}

/// The first whole second in `(low, high]` where `changed` holds; it holds at `high` and stays true once it is.
fn first_instant(low: DateTime<Utc>, high: DateTime<Utc>, changed: impl Fn(DateTime<Utc>) -> bool) -> DateTime<Utc> {
    let (mut low, mut high) = (low, high);
    while (high - low).num_seconds() > 1 {
        let middle = low + Span::seconds((high - low).num_seconds() / 2);
        if changed(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

fn shorthand(word: &str) -> Option<&'static str> {
    Some(match word.to_ascii_lowercase().as_str() {
        "hourly" => "0 * * * *",
        "daily" | "midnight" => "0 0 * * *",
        "weekly" => "0 0 * * 0",
        "monthly" => "0 0 1 * *",
        "yearly" | "annually" => "0 0 1 1 *",
        _ => return None,
    })
}

/// One field of a crontab line.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    /// In the order of their numbers, from `least`.
    words: &'static [&'static str],
}

const SECOND: Field = Field { name: "second", least: 0, most: 59, words: &[] };
const MINUTE: Field = Field { name: "minute", least: 0, most: 59, words: &[] };
const HOUR: Field = Field { name: "hour", least: 0, most: 23, words: &[] };
const DAY: Field = Field { name: "day of month", least: 1, most: 31, words: &[] };
const MONTH: Field = Field {
    name: "month",
    least: 1,
    most: 12,
    words: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Field =
    Field { name: "day of week", least: 0, most: 7, words: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Field {
    /// The field as a plain list of numbers, in the `cron` crate's count (1 is Sunday), or `*`.
    fn normalise(&self, text: &str) -> Result<String, String> {
        let mut chosen = [false; 60];
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(self.step(step)?)),
                None => (part, None),
            };
            let (from, to) = self.range(range, step)?;
            for number in (from..=to).step_by(step.unwrap_or(1)) {
                let number = if self.most == 7 { number % 7 } else { number };
                if let Some(flag) = usize::try_from(number).ok().and_then(|at| chosen.get_mut(at)) {
                    *flag = true;
                }
            }
        }
        let numbers: Vec<u32> =
            (0..).zip(chosen).filter_map(|(number, chosen): (u32, bool)| chosen.then_some(number)).collect();
        let all = if self.most == 7 { 7 } else { self.most - self.least + 1 };
        if u32::try_from(numbers.len()) == Ok(all) {
            return Ok("*".to_owned());
        }
        let shift = u32::from(self.most == 7);
        let mut list = String::new();
        for number in numbers {
            let comma = if list.is_empty() { "" } else { "," };
            write!(list, "{comma}{}", number + shift).map_err(|error| error.to_string())?;
        }
        Ok(list)
    }

    fn range(&self, text: &str, step: Option<usize>) -> Result<(u32, u32), String> {
        if text == "*" || (text == "?" && matches!(self.name, "day of month" | "day of week")) {
            return Ok((self.least, if self.most == 7 { 6 } else { self.most }));
        }
        let Some((from, to)) = text.split_once('-') else {
            let number = self.number(text)?;
            return match step {
                None => Ok((number, number)),
                Some(step) => Err(format!(
                    "`{text}/{step}` in the {} field: a step needs a range; write `{text}-{}/{step}`",
                    self.name, self.most
                )),
            };
        };
        let low = self.number(from)?;
        let high = match self.number(to)? {
            0 if self.most == 7 && low > 0 => 7,
            high => high,
        };
        if low > high {
            return Err(format!(
                "`{text}` in the {} field runs backwards; write `{from}-{},{}-{to}`",
                self.name, self.most, self.least
            ));
        }
        Ok((low, high))
    }

    fn step(&self, text: &str) -> Result<usize, String> {
        match plain_number(text) {
            Some(step) if step > 0 => usize::try_from(step).map_err(|error| error.to_string()),
            _ => Err(format!("`{text}` is no step for the {} field; write a whole number from 1", self.name)),
        }
    }

    fn number(&self, text: &str) -> Result<u32, String> {
        let lower = text.to_ascii_lowercase();
        let word = (self.least..).zip(self.words).find(|(_, word)| **word == lower).map(|(number, _)| number);
        match word.or_else(|| plain_number(text)) {
            Some(number) if (self.least..=self.most).contains(&number) => Ok(number),
            _ => {
                let names = match (self.words.first(), self.words.last()) {
                    (Some(first), Some(last)) => format!(", or {first} to {last}"),
                    _ => String::new(),
                };
                Err(format!("`{text}` is no {}; it goes from {} to {}{names}", self.name, self.least, self.most))
            }
        }
    }
}

fn plain_number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests;
