//! What the benches under `tests/benches` write and `windsor bench report` reads: figures with their spread and their
//! bars, and curves, with what they were measured on.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::machine::{Machine, Pressure};

/// How a document says what it is.
pub const SCHEMA: &str = "windsor-figures-1";

/// Everything that one run of a bench has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was measured.
    pub title: String,
    /// On what, and by which command.
    pub machine: Machine,
    /// Other people's programs, with their versions.
    pub versions: BTreeMap<String, String>,
    /// How it was measured, and what is to be known of it; a sentence each.
    pub notes: Vec<String>,
    /// Tasks that wanted a processor, of the last minute, when it began and when it ended.
    pub load_average: [f64; 2],
    /// Share of the time in which some task of the machine waited for a processor, per cent. Those of the bench count.
    pub cpu_pressure: f64,
    /// Single numbers.
    pub groups: Vec<Group>,
    /// Numbers against something.
    pub curves: Vec<Curve>,
}

/// Figures that belong together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// What they have in common.
    pub title: String,
    /// One for each line.
    pub figures: Vec<Figure>,
}

/// A number of several rounds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// Of what.
    pub name: String,
    /// In what; "x" for a ratio.
    pub unit: String,
    /// The middle one of the rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// What it must reach, and what is aimed at.
    pub bar: Option<Bar>,
}

/// What a figure is held against.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Bar {
    /// Missed on the wrong side of it.
    pub must: f64,
    /// What would be better still.
    pub aim: f64,
}

impl Bar {
    /// Whether `value` is on the right side: an aim below what must be reached says that less is better.
    pub fn met(&self, value: f64) -> bool {
        if self.aim < self.must { value <= self.must } else { value >= self.must }
    }
}

impl Figure {
    /// Of the values of all rounds; nothing at all is zero.
    pub fn new(name: impl Into<String>, unit: &str, values: &[f64]) -> Figure {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.as_slice() {
            [] => 0.0,
            sorted if sorted.len() % 2 == 1 => sorted[middle],
            sorted => (sorted[middle - 1] + sorted[middle]) / 2.0,
        };
        let (min, max) = (sorted.first().copied().unwrap_or_default(), sorted.last().copied().unwrap_or_default());
        Figure { name: name.into(), unit: unit.to_owned(), median, min, max, bar: None }
    }

    /// Of the ratios of each round: both were measured next to each other.
    pub fn ratio(name: impl Into<String>, of: &[f64], to: &[f64]) -> Figure {
        let ratios: Vec<f64> = of.iter().zip(to).filter(|(_, to)| **to > 0.0).map(|(of, to)| of / to).collect();
        Figure::new(name, "x", &ratios)
    }

    /// With what it must reach and what is aimed at.
    #[must_use]
    pub fn with_bar(self, must: f64, aim: f64) -> Figure {
        Figure { bar: Some(Bar { must, aim }), ..self }
    }

    /// Its bar, in words.
    pub fn verdict(&self) -> String {
        match self.bar {
            None => String::new(),
            Some(bar) if bar.met(self.median) => format!("{} / {} met", bar.must, bar.aim),
            Some(bar) => format!("{} / {} MISSED", bar.must, bar.aim),
        }
    }
}

/// Numbers against something.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// What is shown.
    pub title: String,
    /// What is varied; its axis is logarithmic.
    pub x: String,
    /// What is measured, with its unit.
    pub y: String,
    /// One line each.
    pub series: Vec<Series>,
}

/// A line of a plot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// Of what.
    pub name: String,
    /// What was varied, and what was measured.
    pub points: Vec<[f64; 2]>,
}

/// What goes on at the machine while a bench runs.
#[derive(Debug)]
pub struct Meanwhile {
    load: f64,
    pressure: Pressure,
}

impl Meanwhile {
    /// From now on.
    pub fn start() -> Meanwhile {
        Meanwhile { load: load_average(), pressure: Pressure::read() }
    }

    /// The document of a bench that began then and ends now.
    pub fn document(&self, title: &str) -> Document {
        Document {
            schema: SCHEMA.to_owned(),
            title: title.to_owned(),
            machine: Machine::read(),
            versions: BTreeMap::new(),
            notes: Vec::new(),
            load_average: [self.load, load_average()],
            cpu_pressure: Pressure::read().since(&self.pressure),
            groups: Vec::new(),
            curves: Vec::new(),
        }
    }
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

/// A number with as many digits as say something.
pub fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 0.1 || small == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Document { machine, load_average: [before, after], .. } = self;
        writeln!(f, "{}", self.title)?;
        writeln!(f, "{}, {} processors, Linux {}", machine.cpu, machine.cpus, machine.kernel)?;
        for (name, version) in &self.versions {
            writeln!(f, "{name}: {version}")?;
        }
        writeln!(
            f,
            "load average {before:.2} before, {after:.2} after; some task waited for a processor {:.0} % of the time",
            self.cpu_pressure
        )?;
        for Group { title, figures } in &self.groups {
            writeln!(f, "\n{title:<58}{:>10}{:>10}{:>10}  {:<9}must / aim", "median", "min", "max", "unit")?;
            for figure in figures {
                let [median, min, max] = [figure.median, figure.min, figure.max].map(number);
                let line = format!(
                    "  {:<56}{median:>10}{min:>10}{max:>10}  {:<9}{}",
                    figure.name,
                    figure.unit,
                    figure.verdict()
                );
                writeln!(f, "{}", line.trim_end())?;
            }
        }
        for Curve { title, x, y, series } in &self.curves {
            writeln!(f, "\n{title}: {y} against {x}")?;
            for Series { name, points } in series {
                let points: Vec<String> =
                    points.iter().map(|[x, y]| format!("{}: {}", number(*x), number(*y))).collect();
                writeln!(f, "  {name}: {}", points.join(", "))?;
            }
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_middle_of_its_rounds() {
        let figure = Figure::ratio("a", &[2.0, 9.0, 4.0], &[1.0, 3.0, 4.0]).with_bar(1.5, 2.5);
        assert_eq!((figure.median, figure.min, figure.max), (2.0, 1.0, 3.0));
        assert!(figure.verdict().ends_with("met"));
        assert_eq!(Figure::new("b", "s", &[1.0, 2.0]).median, 1.5);
        assert_eq!(Figure::new("c", "s", &[]).median, 0.0);
    }

    #[test]
    fn less_may_be_better() {
        let less = Bar { must: 20.0, aim: 5.0 };
        assert!(less.met(20.0) && less.met(3.0) && !less.met(21.0));
        let more = Bar { must: 0.75, aim: 0.85 };
        assert!(more.met(0.75) && !more.met(0.7));
    }
}
