//! A strict reader of the text format: what a service VM hands out is looked at before it goes to a scraper, which would
//! throw all of it away over one bad line.

use std::collections::{HashMap, HashSet};

/// Checks a text; its samples, each with its name and labels as they stand there.
///
/// # Errors
/// The number of the first bad line and what is wrong with it.
pub fn check(text: &str) -> Result<Vec<(String, f64)>, String> {
    let mut samples = Vec::new();
    let mut names = HashSet::new();
    let mut families: HashMap<String, String> = HashMap::new();
    let mut helped = HashSet::new();
    let mut current = String::new();
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("the last line has no end".into());
    }
    for (number, line) in text.lines().enumerate() {
        let wrong = |why: &str| Err(format!("line {}: {why}", number + 1));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let name = rest.split(' ').next().unwrap_or_default();
            if !is_name(name) || !helped.insert(name.to_owned()) {
                return wrong("a bad or a second help");
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { return wrong("a type without a name") };
            if !is_name(name) || !["counter", "gauge", "histogram", "summary", "untyped"].contains(&kind) {
                return wrong("a bad type");
            }
            if families.insert(name.to_owned(), kind.to_owned()).is_some() {
                return wrong("a family in two places");
            }
            current = name.to_owned();
        } else if !line.starts_with('#') && !line.is_empty() {
            let (name, value) = match sample(line) {
                Ok(sample) => sample,
                Err(why) => return wrong(why),
            };
            let plain = name.split('{').next().unwrap_or_default();
            let kind = families.get(&current).map(String::as_str);
            let endings: &[&str] = if kind == Some("histogram") { &["_bucket", "_sum", "_count"] } else { &[""] };
            if !endings.iter().any(|ending| plain == format!("{current}{ending}")) {
                return wrong("a sample outside of its family");
            }
            if kind == Some("counter") && (!plain.ends_with("_total") || value < 0.0) {
                return wrong("a counter that is none");
            }
            if !names.insert(name.clone()) {
                return wrong("a second sample of the same name and labels");
            }
            samples.push((name, value));
        }
    }
    histograms(&samples)?;
    Ok(samples)
}

/// Buckets grow, and the last one is the count.
fn histograms(samples: &[(String, f64)]) -> Result<(), String> {
    let mut last: HashMap<String, (f64, f64)> = HashMap::new();
    for (name, value) in samples {
        if let Some((head, edge)) = name.split_once("le=\"").filter(|_| name.contains("_bucket{")) {
            let edge = edge.trim_end_matches("\"}");
            let edge =
                if edge == "+Inf" { f64::INFINITY } else { edge.parse().map_err(|_| format!("{name}: no edge"))? };
            let key = head.trim_end_matches([',', '{']).replacen("_bucket", "_count", 1);
            let (before, below) = last.get(&key).copied().unwrap_or((f64::NEG_INFINITY, 0.0));
            if edge <= before || *value < below {
                return Err(format!("{name}: buckets do not grow"));
            }
            last.insert(key, (edge, *value));
        }
    }
    for (key, (edge, value)) in last {
        let name = if key.contains('{') { format!("{key}}}") } else { key };
        let count = samples.iter().find(|(sample, _)| *sample == name);
        if edge != f64::INFINITY || count.is_none_or(|(_, count)| *count != value) {
            return Err(format!("{name}: the last bucket is not the count"));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

/// `name{label="value",...} number`
fn sample(line: &str) -> Result<(String, f64), &'static str> {
    let name_end = line.find(['{', ' ']).ok_or("no value")?;
    if !is_name(&line[..name_end]) {
        return Err("a bad name");
    }
    let mut rest = &line[name_end..];
    if let Some(mut labels) = rest.strip_prefix('{') {
        let mut seen = HashSet::new();
        loop {
            let (label, value) = labels.split_once("=\"").ok_or("a label without a value")?;
            if !is_name(label) || label.contains(':') || !seen.insert(label) {
                return Err("a bad or a second label");
            }
            let mut escaped = false;
            let end = value.char_indices().find(|(_, c)| {
                let here = !escaped && *c == '"';
                escaped = !escaped && *c == '\\';
                here
            });
            labels = &value[end.ok_or("a value without an end")?.0 + 1..];
            if let Some(more) = labels.strip_prefix(',') {
                labels = more;
            } else {
                rest = labels.strip_prefix('}').ok_or("labels without an end")?;
                break;
            }
        }
    }
    let value = rest.strip_prefix(' ').ok_or("no space before the value")?;
    let number = value.parse::<f64>().map_err(|_| "a value that is no number")?;
    Ok((line[..line.len() - value.len() - 1].to_owned(), number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prometheus_would_refuse_is_refused() {
        let head = "# HELP a_total Help.\n# TYPE a_total counter\n";
        check(&format!("{head}a_total{{b=\"c\",d=\"e\"}} 1\na_total 2\n")).unwrap();
        for bad in [
            "a_total 1",
            "a_total x\n",
            "a_total{b=c} 1\n",
            "a_total{b=\"c} 1\n",
            "a_total{b=\"c\",b=\"d\"} 1\n",
            "a_total{1b=\"c\"} 1\n",
            "a_total 1\na_total 1\n",
            "a_total -1\n",
            "b_total 1\n",
            "a-b 1\n",
            "# TYPE a_total counter\n",
            "# TYPE c counted\n",
            "# HELP a_total Again.\n",
        ] {
            assert!(check(&format!("{head}{bad}")).is_err(), "{bad}");
        }
        let head = "# TYPE h histogram\n";
        let good = "h_bucket{le=\"1\"} 1\nh_bucket{le=\"+Inf\"} 2\nh_sum 3\nh_count 2\n";
        check(&format!("{head}{good}")).unwrap();
        for (from, to) in
            [("\"1\"} 1", "\"1\"} 3"), ("h_count 2", "h_count 1"), ("+Inf", "2"), ("le=\"1\"", "le=\"x\"")]
        {
            assert!(check(&format!("{head}{}", good.replace(from, to))).is_err(), "{to}");
        }
    }
}
