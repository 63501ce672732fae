//! Reading what benches have written: documents of figures, and fio's JSON as `windsor bench blk` prints it. Somebody else
//! may have written the file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::figures::{Bar, Curve, Document, Figure, Group, SCHEMA, Series};
use super::machine::Machine;

/// Bytes of a file at most.
const LONGEST: u64 = 16 << 20;
/// Figures, curves and points of a file at most.
const MOST: usize = 20_000;
/// A number larger than this is none that a bench has found, and cannot be drawn.
const LARGEST: f64 = 1e18;

/// Reads a file.
///
/// # Errors
/// One line that says what is wrong with it.
pub fn file(path: &Path) -> Result<Document, String> {
    let wrong = |why: String| {
        // A parser may quote what it found.
        let line: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        format!("{}: {line}", path.display())
    };
    let mut bytes = Vec::new();
    let opened = File::open(path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    opened.map_err(|error| wrong(error.to_string()))?;
    if bytes.len() as u64 > LONGEST {
        return Err(wrong(format!("more than {} MiB is no report of a bench", LONGEST >> 20)));
    }
    document(&bytes).map_err(wrong)
}

/// Reads what stood in one.
///
/// # Errors
/// What is wrong with it.
pub fn document(bytes: &[u8]) -> Result<Document, String> {
    let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("no JSON: {error}"))?;
    let document = match value["schema"].as_str() {
        Some(SCHEMA) => serde_json::from_value(value).map_err(|error| format!("no figures of a bench: {error}"))?,
        Some(_) => return Err(format!("of another version: this one reads {SCHEMA}")),
        None if value["windsor"]["machine"].is_object() => fio(&value)?,
        None => {
            return Err("neither figures of a bench nor what `windsor bench blk --output-format json` prints".into());
        }
    };
    check(&document)?;
    Ok(document)
}

fn check(document: &Document) -> Result<(), String> {
    let figures = document.groups.iter().flat_map(|group| &group.figures);
    let points = document.curves.iter().flat_map(|curve| &curve.series).flat_map(|series| &series.points);
    let lines = document.curves.iter().map(|curve| curve.series.len()).sum::<usize>();
    let many = document.groups.len() + document.curves.len() + lines + document.notes.len() + document.versions.len();
    if many.saturating_add(figures.clone().count()).saturating_add(points.clone().count()) > MOST {
        return Err(format!("more than {MOST} numbers"));
    }
    let of_figure = |figure: &Figure| {
        let Bar { must, aim } = figure.bar.unwrap_or(Bar { must: 0.0, aim: 0.0 });
        [figure.median, figure.min, figure.max, must, aim]
    };
    let mut numbers = figures.flat_map(of_figure).chain(points.flatten().copied());
    match numbers.find(|number| !number.is_finite() || number.abs() > LARGEST) {
        Some(number) => Err(format!("{number:e} is no number that a bench finds")),
        None => Ok(()),
    }
}

/// One run of `windsor bench blk`.
fn fio(value: &Value) -> Result<Document, String> {
    let (job, own) = (&value["jobs"][0], &value["windsor"]);
    let machine: Machine =
        serde_json::from_value(own["machine"].clone()).map_err(|error| format!("the machine: {error}"))?;
    let option = |name: &str| job["job options"][name].as_str().unwrap_or("?").to_owned();
    let one = |name: &str, unit: &str, value: &Value| Figure::new(name, unit, &[value.as_f64().unwrap_or_default()]);
    let mut found = Document {
        schema: SCHEMA.to_owned(),
        title: format!("{} of {} bytes, depth {}", option("rw"), option("bs"), option("iodepth")),
        machine,
        versions: [].into(),
        notes: vec![format!(
            "{} queues, {} s, direct {}, {}.",
            option("numjobs"),
            job["job_runtime"].as_f64().unwrap_or_default() / 1e3,
            option("direct"),
            own["data_path"].as_str().unwrap_or("?")
        )],
        load_average: [0.0; 2],
        cpu_pressure: own["cpu_pressure"].as_f64().unwrap_or_default(),
        groups: Vec::new(),
        curves: Vec::new(),
    };
    for side in ["read", "write"] {
        let half = &job[side];
        if half["total_ios"].as_u64().unwrap_or_default() == 0 {
            continue;
        }
        let us = |value: &Value| Value::from(value.as_f64().unwrap_or_default() / 1e3);
        let percentile = |name: &str| us(&half["clat_ns"]["percentile"][name]);
        found.groups.push(Group {
            title: side.to_owned(),
            figures: vec![
                one("requests", "IOPS", &half["iops"]),
                one("bandwidth", "B/s", &half["bw_bytes"]),
                one("mean latency", "us", &us(&half["clat_ns"]["mean"])),
                one("50 % within", "us", &percentile("50.000000")),
                one("99 % within", "us", &percentile("99.000000")),
                one("99.9 % within", "us", &percentile("99.900000")),
            ],
        });
        let bins = half["clat_ns"]["bins"].as_object().into_iter().flatten();
        let mut points: Vec<[f64; 2]> =
            bins.filter_map(|(ns, count)| Some([ns.parse::<f64>().ok()? / 1e3, count.as_f64()?])).collect();
        points.sort_by(|[a, _], [b, _]| a.total_cmp(b));
        found.curves.push(Curve {
            title: format!("Latencies of each {side}"),
            x: "us".into(),
            y: "requests".into(),
            series: vec![Series { name: side.to_owned(), points }],
        });
    }
    let costs = own["per_io"].as_object().into_iter().flatten();
    let figures: Vec<Figure> = costs.map(|(name, value)| one(&name.replace('_', " "), "per I/O", value)).collect();
    found.groups.push(Group { title: "What an I/O costs the service VM".into(), figures });
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_one_line() {
        let far = format!(
            r#"{{"schema":"{SCHEMA}","title":"","machine":{{"cpu":"","cpus":1,"kernel":"","windsor":"","command":[]}},
               "versions":{{}},"notes":[],"load_average":[0,0],"cpu_pressure":0,"groups":[],
               "curves":[{{"title":"","x":"","y":"","series":[{{"name":"","points":[[1,1e300]]}}]}}]}}"#
        );
        assert!(document(far.replace("1e300", "1e3").as_bytes()).is_ok());
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            "\u{0}",
            &deep,
            &far,
            "{\"schema\":\"a\\nb\"}",
            "{\"schema\":5}",
            "{\"schema\":\"windsor-figures-1\"}",
            "{\"windsor\":{\"machine\":{}}}",
        ] {
            let why = document(text.as_bytes()).expect_err(text);
            assert!(!why.contains('\n') && why.len() < 400, "{why}");
        }
    }
}
