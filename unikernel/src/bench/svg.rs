//! Plots as SVG, small enough to be written by hand.

use std::fmt::Write as _;

use super::figures::{Curve, Figure, number};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
/// Room for the axes.
const LEFT: f64 = 70.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;
/// Told apart by those who see few colours as well.
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a00"];

/// The colour of the n-th line.
pub fn colour(n: usize) -> &'static str {
    COLOURS[n % COLOURS.len()]
}

/// Text as HTML and SVG may hold it.
pub fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c if c.is_control() => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// A step of 1, 2 or 5 times a power of ten that leaves at most six of them.
fn step(most: f64) -> f64 {
    let rough = (most / 5.0).max(f64::MIN_POSITIVE);
    let ten = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * ten >= rough).unwrap_or(10.0);
    factor * ten
}

/// A curve: a logarithmic axis to the right, a linear one from zero upwards.
pub fn curve(curve: &Curve) -> String {
    let points = || curve.series.iter().flat_map(|series| &series.points).filter(|[x, _]| *x > 0.0);
    let mut marks: Vec<f64> = points().map(|[x, _]| *x).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    let (Some(&first), Some(&last)) = (marks.first(), marks.last()) else { return String::new() };
    let top = points().map(|[_, y]| *y).fold(0.0, f64::max);
    let step = step(if top > 0.0 { top } else { 1.0 });
    let top = (top / step).ceil().max(1.0) * step;
    let span = (last / first).ln();
    let across = |x: f64| {
        let part = if span > 0.0 { (x / first).ln() / span } else { 0.5 };
        LEFT + part * (WIDTH - LEFT - RIGHT)
    };
    let up = |y: f64| HEIGHT - BOTTOM - (y / top).clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">");
    for n in 0..=10 {
        let y = f64::from(n) * step;
        if y > top * 1.001 {
            break;
        }
        let (at, right) = (up(y), WIDTH - RIGHT);
        let _ = write!(svg, "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" class=\"grid\"/>");
        let (x, below, label) = (LEFT - 6.0, at + 4.0, number(y));
        let _ = write!(svg, "<text x=\"{x}\" y=\"{below:.1}\" text-anchor=\"end\">{label}</text>");
    }
    let mut free = f64::MIN;
    for x in marks {
        let at = across(x);
        // Labels that would run into each other are left out.
        if at < free {
            continue;
        }
        free = at + 40.0;
        let (y, label) = (HEIGHT - BOTTOM + 16.0, label(x));
        let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{y}\" text-anchor=\"middle\">{label}</text>");
    }
    let (middle, bottom) = ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 6.0);
    let about = escaped(&curve.x);
    let _ = write!(svg, "<text x=\"{middle}\" y=\"{bottom}\" text-anchor=\"middle\">{about}</text>");
    for (n, series) in curve.series.iter().enumerate() {
        let colour = colour(n);
        let drawn = series.points.iter().filter(|[x, _]| *x > 0.0);
        let path: Vec<String> = drawn.clone().map(|[x, y]| format!("{:.1},{:.1}", across(*x), up(*y))).collect();
        let path = path.join(" ");
        let _ = write!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
        // A histogram has too many points to have each marked.
        for [x, y] in drawn.take(if series.points.len() > 64 { 0 } else { 64 }) {
            let (at, high, name) = (across(*x), up(*y), escaped(&series.name));
            let (x, y) = (label(*x), number(*y));
            let _ = write!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{high:.1}\" r=\"3\" fill=\"{colour}\"><title>{name}, {x}: {y}</title></circle>"
            );
        }
    }
    svg.push_str("</svg>");
    svg
}

/// Powers of two as people name them.
fn label(x: f64) -> String {
    match x {
        x if x >= 1048576.0 && x % 1048576.0 == 0.0 => format!("{}M", x / 1048576.0),
        x if x >= 1024.0 && x % 1024.0 == 0.0 => format!("{}K", x / 1024.0),
        x if x == x.trunc() && x < 1e6 => format!("{x}"),
        x => number(x),
    }
}

/// A figure beside others of its unit, of which `most` is the largest: its median, its spread, and what it must reach.
pub fn bar(figure: &Figure, most: f64) -> String {
    let at = |value: f64| if most > 0.0 { (value / most).clamp(0.0, 1.0) * 200.0 } else { 0.0 };
    let (median, min, max) = (at(figure.median), at(figure.min), at(figure.max));
    let met = figure.bar.is_none_or(|bar| bar.met(figure.median));
    let colour = if met { COLOURS[0] } else { COLOURS[1] };
    let mut svg = format!(
        "<svg class=\"bar\" viewBox=\"0 0 202 14\" xmlns=\"http://www.w3.org/2000/svg\">\
         <rect x=\"0\" y=\"3\" width=\"{median:.1}\" height=\"8\" fill=\"{colour}\"/>\
         <line x1=\"{min:.1}\" x2=\"{max:.1}\" y1=\"7\" y2=\"7\" stroke=\"#000\" stroke-width=\"1.5\"/>"
    );
    if let Some(bar) = figure.bar {
        let must = at(bar.must);
        let _ = write!(
            svg,
            "<line x1=\"{must:.1}\" x2=\"{must:.1}\" y1=\"0\" y2=\"14\" stroke=\"#c00\" stroke-width=\"2\"/>"
        );
    }
    svg.push_str("</svg>");
    svg
}

#[cfg(test)]
mod tests {
    use super::super::figures::Series;
    use super::*;

    fn drawn(points: &[[f64; 2]]) -> String {
        let series = vec![Series { name: "<a>".into(), points: points.to_vec() }];
        curve(&Curve { title: String::new(), x: "depth".into(), y: "IOPS".into(), series })
    }

    #[test]
    fn whatever_is_drawn_is_in_the_picture() {
        for points in [
            &[[1.0, 5.0], [128.0, 900_000.0]][..],
            &[[3.0, 0.0]],
            &[[0.0, 1.0]],
            &[[-4.0, -1.0], [1e18, 1e18]],
            &[],
            &[[1.0, -5.0], [2.0, 1e-300]],
        ] {
            let svg = drawn(points);
            assert!(!svg.contains("NaN") && !svg.contains("inf") && !svg.contains("<a>"), "{svg}");
        }
        assert!(drawn(&[[1.0, 5.0], [2.0, 7.0]]).contains("&lt;a&gt;, 2: 7.00"));
    }
}
