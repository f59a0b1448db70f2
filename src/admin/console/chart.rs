//! Lines over time, as SVG. What is unknown is a gap.

use std::fmt::Write as _;
use std::time::Duration;

use maud::{Markup, html};

use crate::entry::duration;
use crate::ops::words::grouped;
use crate::redis::RedisTime;

/// The size of the plot, without the labels.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 110.0;
/// The room for labels.
const LEFT: f64 = 62.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 20.0;
/// The parts between the labels of the time.
const PARTS: u32 = 6;

/// The unit of a chart, which decides its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Something a minute, from 0 on.
    PerMinute,
    /// A share, from 0 to 1.
    Share,
    /// A time in seconds, on a logarithmic scale.
    Time,
}

impl Unit {
    /// Returns a value for people.
    fn text(self, value: f64) -> String {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, for people")]
        match self {
            Self::PerMinute if value > 0.0 && value < 10.0 && value.fract() > 0.0 => format!("{value:.1}"),
            Self::PerMinute => grouped(value.round() as u64),
            Self::Share => format!("{:.1} %", value * 100.0),
            Self::Time => duration::rough(Duration::try_from_secs_f64(value).unwrap_or(Duration::MAX)),
        }
    }
}

/// A line: its name, its class, and a value a step; `None` where nothing is known.
pub(super) struct Line {
    pub(super) name: &'static str,
    pub(super) values: Vec<Option<f64>>,
}

/// A chart.
pub(super) struct Chart {
    pub(super) title: &'static str,
    /// The meaning of a value, such as `entries a minute`.
    pub(super) what: &'static str,
    pub(super) unit: Unit,
    /// The beginning of the first step.
    pub(super) from: RedisTime,
    pub(super) step: Duration,
    pub(super) lines: Vec<Line>,
}

/// The lowest and the highest value of an axis.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    unit: Unit,
    least: f64,
    most: f64,
}

impl Axis {
    fn of(chart: &Chart) -> Self {
        let values = || chart.lines.iter().flat_map(|line| &line.values).filter_map(|value| *value);
        let (unit, most) = (chart.unit, values().fold(0.0, f64::max));
        match unit {
            Unit::PerMinute => Self { unit, least: 0.0, most: round(most.max(1.0)) },
            Unit::Share => Self { unit, least: 0.0, most: 1.0 },
            Unit::Time => {
                let least = 10_f64.powf(values().fold(most, f64::min).max(0.001).log10().floor());
                Self { unit, least, most: 10_f64.powf(most.max(0.001).log10().ceil()).max(least * 10.0) }
            }
        }
    }

    /// Returns the place of a value, from the top.
    fn y(self, value: f64) -> f64 {
        let share = match self.unit {
            Unit::Time => (value / self.least).log10() / (self.most / self.least).log10(),
            _ => (value - self.least) / (self.most - self.least),
        };
        TOP + HEIGHT * (1.0 - share.clamp(0.0, 1.0))
    }

    /// Returns the values that have a label.
    fn labels(self) -> Vec<f64> {
        match self.unit {
            Unit::Time => {
                let decades = std::iter::successors(Some(self.least), |label| Some(label * 10.0));
                decades.take_while(|label| *label <= self.most * 1.001).collect()
            }
            _ => vec![self.least, f64::midpoint(self.least, self.most), self.most],
        }
    }
}

/// Returns the next number that is 1, 2 or 5 times a power of ten.
fn round(most: f64) -> f64 {
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|round| *round >= most).unwrap_or(most)
}

/// Returns the path of a line: a level stroke for each step, joined where both are known.
fn path(values: &[Option<f64>], axis: Axis) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a few hundred steps")]
    let width = WIDTH / values.len().max(1) as f64;
    let (mut path, mut x, mut is_joined) = (String::new(), LEFT, false);
    for value in values {
        if let Some(value) = value {
            let verb = if is_joined { 'L' } else { 'M' };
            let _ = write!(path, "{verb}{x:.1} {:.1}H{:.1}", axis.y(*value), x + width);
        }
        (is_joined, x) = (value.is_some(), x + width);
    }
    path
}

impl Chart {
    /// Returns the drawing, with its values in words for those who cannot see it.
    pub(super) fn view(&self) -> Markup {
        let axis = Axis::of(self);
        let (width, height) = (LEFT + WIDTH + 40.0, TOP + HEIGHT + BOTTOM);
        html! {
            figure.lines {
                figcaption {
                    strong { (self.title) } ", " (self.what)
                    @for (n, line) in self.lines.iter().enumerate() {
                        span.legend { span.swatch.(format!("l{n}")) aria-hidden="true" {} (line.name) ": "
                            (self.latest(line)) }
                    }
                }
                div.scroll tabindex="0" role="region" aria-label=(self.title) {
                    svg role="img" aria-label=(self.told()) width=(width) height=(height)
                        viewBox=(format!("0 0 {width} {height}")) {
                        @for label in axis.labels() {
                            @let y = axis.y(label);
                            line.grid x1=(LEFT) x2=(LEFT + WIDTH) y1=(y) y2=(y) {}
                            text.label x=(LEFT - 6.0) y=(y + 4.0) text-anchor="end" { (axis.unit.text(label)) }
                        }
                        @for part in 0..=PARTS {
                            @let x = LEFT + WIDTH * f64::from(part) / f64::from(PARTS);
                            line.grid x1=(x) x2=(x) y1=(TOP + HEIGHT) y2=(TOP + HEIGHT + 4.0) {}
                            text.label x=(x) y=(height - 4.0) text-anchor="middle" { (self.time(part)) }
                        }
                        @for (n, line) in self.lines.iter().enumerate() {
                            path.line.(format!("l{n}")) d=(path(&line.values, axis)) {}
                        }
                    }
                }
            }
        }
    }

    fn length(&self) -> Duration {
        self.step * u32::try_from(self.lines.first().map_or(0, |line| line.values.len())).unwrap_or(0)
    }

    /// Returns a time of the axis: the day as well, if there are several.
    fn time(&self, part: u32) -> String {
        let at = (self.from + self.length() * part / PARTS).utc();
        let from = if self.length() > Duration::from_secs(24 * 3_600) { 5 } else { 11 };
        at.get(from..16).unwrap_or_default().to_owned()
    }

    fn latest(&self, line: &Line) -> String {
        let latest = line.values.iter().rev().find_map(|value| *value);
        latest.map_or_else(|| "–".to_owned(), |value| self.unit.text(value))
    }

    /// Returns the chart in words.
    fn told(&self) -> String {
        let mut told = format!(
            "{}, {}, from {} to {}.",
            self.title,
            self.what,
            self.from.utc(),
            (self.from + self.length()).utc()
        );
        for line in &self.lines {
            let known = || line.values.iter().filter_map(|value| *value);
            let text = |value: f64| self.unit.text(value);
            let _ = match known().count() {
                0 => write!(told, " {}: nothing is known.", line.name),
                count => write!(
                    told,
                    " {}: {} at last, {} at least, {} at most, known in {} of {} steps.",
                    line.name,
                    self.latest(line),
                    text(known().fold(f64::MAX, f64::min)),
                    text(known().fold(0.0, f64::max)),
                    count,
                    line.values.len()
                ),
            };
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(unit: Unit, values: Vec<Option<f64>>) -> Chart {
        let lines = vec![Line { name: "warmed", values }];
        let from = RedisTime::from_millis(1_764_547_200_000);
        Chart { title: "Outcomes", what: "entries a minute", unit, from, step: Duration::from_secs(60), lines }
    }

    #[test]
    fn what_is_unknown_is_a_gap_in_the_line() {
        let values = [Some(1.0), None, Some(0.0), Some(2.0)];
        let line = path(&values, Axis::of(&chart(Unit::PerMinute, values.to_vec())));
        assert_eq!(line, "M62.0 63.0H242.0M422.0 118.0H602.0L602.0 8.0H782.0");
        assert!(path(&[None, None], Axis::of(&chart(Unit::Share, vec![None]))).is_empty());
    }

    #[test]
    fn a_chart_tells_its_values_in_words() {
        let told = chart(Unit::PerMinute, vec![Some(3.5), None]).told();
        assert!(told.contains("warmed: 3.5 at last, 3.5 at least, 3.5 at most, known in 1 of 2 steps"), "{told}");
        assert!(chart(Unit::Time, vec![None]).told().contains("warmed: nothing is known"));
        assert!(chart(Unit::Time, vec![None]).view().into_string().contains("warmed: –"));
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        assert_eq!([0.7, 1.0, 3.0, 501.0].map(round), [1.0, 1.0, 5.0, 1_000.0]);
        let axis = Axis::of(&chart(Unit::Time, vec![Some(0.004), Some(3.0)]));
        assert_eq!(
            axis.labels().into_iter().map(|label| Unit::Time.text(label)).collect::<Vec<_>>(),
            ["1ms", "10ms", "100ms", "1s", "10s"]
        );
    }
}
