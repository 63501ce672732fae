//! `windsor bench report`: one page that holds everything, from the JSON of benches alone.

use std::fmt::Write as _;

use super::figures::{Document, Group, number};
use super::svg;
use super::svg::escaped;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em;color:#111;background:#fff}\
table{border-collapse:collapse;width:100%;margin:.5em 0 1.5em}th,td{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:left}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}.missed{color:#b00;font-weight:600}svg{max-width:100%;height:auto}\
svg text{font:12px system-ui,sans-serif;fill:#333}.grid{stroke:#ddd}.bar{width:202px;height:14px;vertical-align:middle}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em}dt{color:#666}dd{margin:0;overflow-wrap:anywhere}\
.key span{margin-right:1.2em;white-space:nowrap}.key i{display:inline-block;width:1em;height:.35em;margin-right:.35em;vertical-align:middle}";

/// The page.
pub fn page(documents: &[Document]) -> String {
    let mut html = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>Windsor: what was measured</title><style>{STYLE}</style></head><body>\n<h1>Windsor: what was measured</h1>\n\
         <p>Times depend on the machine and on what else ran there: compare ratios of one run, not numbers of two. Spread is from \
         the least round to the most. A red line is what must be reached.</p>\n"
    );
    for document in documents {
        one(&mut html, document);
    }
    html.push_str("</body></html>\n");
    html
}

fn one(html: &mut String, document: &Document) {
    let Document { machine, load_average: [before, after], .. } = document;
    let _ = writeln!(html, "<h2>{}</h2>\n<dl>", escaped(&document.title));
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
    };
    line("machine", &format!("{}, {} processors", machine.cpu, machine.cpus));
    line("kernel", &machine.kernel);
    line("windsor", &machine.windsor);
    for (name, version) in &document.versions {
        line(name, version);
    }
    line("command", &machine.command.join(" "));
    let load = format!("load average {before:.2} before and {after:.2} after");
    line("meanwhile", &format!("{load}; some task waited for a processor {:.0} % of the time", document.cpu_pressure));
    html.push_str("</dl>\n");
    for note in &document.notes {
        let _ = writeln!(html, "<p>{}</p>", escaped(note));
    }
    for of_group in &document.groups {
        group(html, of_group);
    }
    for curve in &document.curves {
        let (title, y) = (escaped(&curve.title), escaped(&curve.y));
        let _ = writeln!(html, "<h3>{title}: {y}</h3>\n{}\n<p class=\"key\">", svg::curve(curve));
        for (n, series) in curve.series.iter().enumerate() {
            let (colour, name) = (svg::colour(n), escaped(&series.name));
            let _ = write!(html, "<span><i style=\"background:{colour}\"></i>{name}</span>");
        }
        html.push_str("</p>\n");
    }
}

fn group(html: &mut String, group: &Group) {
    let _ = writeln!(
        html,
        "<h3>{}</h3>\n<table><tr><th></th><th class=\"n\">median</th><th class=\"n\">least</th><th class=\"n\">most</th>\
         <th>unit</th><th></th><th>must / aim</th></tr>",
        escaped(&group.title)
    );
    for figure in &group.figures {
        let same = group.figures.iter().filter(|other| other.unit == figure.unit);
        let most = same.map(|other| other.max.max(other.bar.map_or(0.0, |bar| bar.must))).fold(0.0, f64::max);
        let [median, min, max] = [figure.median, figure.min, figure.max].map(number);
        let class = if figure.bar.is_some_and(|bar| !bar.met(figure.median)) { " class=\"missed\"" } else { "" };
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{median}</td><td class=\"n\">{min}</td><td class=\"n\">{max}</td><td>{}</td>\
             <td>{}</td><td{class}>{}</td></tr>",
            escaped(&figure.name),
            escaped(&figure.unit),
            svg::bar(figure, most),
            figure.verdict()
        );
    }
    html.push_str("</table>\n");
}

#[cfg(test)]
mod tests {
    use super::super::figures::{Figure, Meanwhile};
    use super::*;

    #[test]
    fn nothing_of_a_file_is_markup() {
        let mut document = Meanwhile::start().document("<script>alert(1)</script>");
        document.notes.push("a \"note\" & <b>more</b>".into());
        document.versions.insert("<i>".into(), "'".into());
        let figures = vec![Figure::new("<u>", "<x>", &[1.0]).with_bar(2.0, 3.0)];
        document.groups.push(Group { title: "</table>".into(), figures });
        let html = page(&[document]);
        assert!(!["<script>", "<b>", "<i>", "<u>", "<x>"].iter().any(|markup| html.contains(markup)), "{html}");
        assert!(html.contains("class=\"missed\"") && html.matches("</table>").count() == 1);
    }
}
