//! A report in fio's own JSON (as fio 3.33 writes it), so that whatever reads that reads this; what fio has no words for
//! stands beside it under "windsor".

use std::time::{SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::report::{Half, Report};

/// The percentiles that fio shows.
const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];

/// The report as one object.
pub fn json(report: &Report) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let job = &report.job;
    let options = json!({
        "name": "bench",
        "rw": job.rw.name(),
        "bs": job.bs.to_string(),
        "iodepth": job.iodepth.to_string(),
        "numjobs": report.numjobs.to_string(),
        "size": job.size.to_string(),
        "runtime": format!("{}ms", job.runtime_ms),
        "direct": u8::from(report.direct).to_string(),
    });
    json!({
        "fio version": format!("windsor-{}", env!("CARGO_PKG_VERSION")),
        "timestamp": now.as_secs(),
        "timestamp_ms": now.as_millis() as u64,
        "jobs": [{
            "jobname": "bench",
            "groupid": 0,
            "error": if report.read.errors + report.write.errors > 0 { 5 } else { 0 },
            "elapsed": report.seconds.ceil() as u64,
            "job options": options,
            "read": half(&report.read, report),
            "write": half(&report.write, report),
            "job_runtime": (report.seconds * 1e3) as u64,
        }],
        "windsor": report.own,
    })
}

fn half(half: &Half, report: &Report) -> Value {
    let bytes = half.ios * u64::from(report.job.bs);
    let bandwidth = (half.iops(report.seconds) * f64::from(report.job.bs)) as u64;
    let latency = times(&half.latencies);
    let mut completion = latency.clone();
    if half.ios > 0 {
        let all = PERCENTILES.map(|per_cent| {
            let value = half.latencies.value_at_quantile(per_cent / 100.0);
            (format!("{per_cent:.6}"), Value::from(value))
        });
        completion["percentile"] = Value::Object(Map::from_iter(all));
        let bins = half.latencies.iter_recorded();
        let bins = bins.map(|step| (step.value_iterated_to().to_string(), Value::from(step.count_at_value())));
        completion["bins"] = Value::Object(bins.collect());
    }
    json!({
        "io_bytes": bytes,
        "io_kbytes": bytes / 1024,
        "bw_bytes": bandwidth,
        "bw": bandwidth / 1024,
        "iops": half.iops(report.seconds),
        "runtime": (report.seconds * 1e3) as u64,
        "total_ios": half.ios,
        "short_ios": 0,
        "drop_ios": 0,
        // A request is put into shared memory: nobody waits for its submission.
        "slat_ns": { "min": 0, "max": 0, "mean": 0.0, "stddev": 0.0, "N": 0 },
        "clat_ns": completion,
        "lat_ns": latency,
    })
}

fn times(latencies: &Histogram<u64>) -> Value {
    let any = !latencies.is_empty();
    json!({
        "min": if any { latencies.min() } else { 0 },
        "max": latencies.max(),
        "mean": if any { latencies.mean() } else { 0.0 },
        "stddev": if any { latencies.stdev() } else { 0.0 },
        "N": latencies.len(),
    })
}
