//! `windsor bench`: that it measures what it says, in fio's words, and leaves nothing behind. Times are not looked at.

mod rig;

use rig::{Ended, Rig, run, windsor};
use serde_json::Value;

/// What it prints, as programs read it.
#[track_caller]
fn json(ended: &Ended) -> Value {
    serde_json::from_str(ended.fine()).expect("JSON")
}

fn bench(args: &[&str]) -> Ended {
    run(windsor().args(["bench", "blk", "--size", "8m"]).args(args))
}

#[test]
fn a_bench_counts_in_fio_s_words() {
    for data_path in ["zero-copy", "arena"] {
        let json = json(&bench(&[
            "--lock-step",
            "32",
            "--number-ios",
            "3200",
            "--data-path",
            data_path,
            "--output-format",
            "json",
        ]));
        let job = &json["jobs"][0];
        assert_eq!((job["error"].as_u64(), job["write"]["total_ios"].as_u64()), (Some(0), Some(0)));
        let read = &job["read"];
        assert_eq!((read["total_ios"].as_u64(), read["io_bytes"].as_u64()), (Some(3200), Some(3200 * 4096)));
        assert!(read["iops"].as_f64() > Some(0.0) && read["bw_bytes"].as_u64() > Some(0));
        let times = &read["clat_ns"];
        assert_eq!(times["N"], 3200);
        let percentile = |name: &str| times["percentile"][name].as_u64().expect("a percentile");
        assert!(percentile("50.000000") <= percentile("99.990000") && percentile("1.000000") > 0);
        let bins = times["bins"].as_object().expect("bins").values().map(|count| count.as_u64().expect("a count"));
        assert_eq!(bins.sum::<u64>(), 3200);
        let own = &json["windsor"];
        let each = |name: &str| own["per_publish"][name].as_f64().expect("a number");
        assert!(own["grants"].as_u64() >= Some(1056), "{own}");
        assert!(each("batches") == 1.0 && each("notifications_in") <= 1.0 && each("notifications_out") <= 1.0, "{own}");
        assert!(each("system_calls") <= 3.01 && each("map_calls") == 0.0 && each("copy_calls") == 0.0, "{own}");
        assert_eq!(each("pages_copied"), if data_path == "arena" { 32.0 } else { 0.0 }, "{own}");
        // Nobody but the queue's own thread has anything to do with a request.
        for (name, thread) in own["threads"].as_object().expect("threads") {
            let idle = !name.starts_with("worker/queues-");
            assert!(!idle || thread["sleeps"].as_u64() <= Some(3), "{name} {thread}");
        }
    }
}

#[test]
fn every_kind_of_load_goes_through() {
    for (rw, reads, writes) in
        [("read", true, false), ("write", false, true), ("randwrite", false, true), ("randrw", true, true)]
    {
        for more in [&["--bs", "512"][..], &["--bs", "1m", "--iodepth", "4"], &["--numjobs", "2", "--no-persistent"]] {
            let json = json(&bench(&[&["--rw", rw, "--number-ios", "64", "--output-format", "json"], more].concat()));
            let ios = |side: &str| json["jobs"][0][side]["total_ios"].as_u64().expect("a number");
            assert_eq!((ios("read") > 0, ios("write") > 0), (reads, writes), "{rw} {more:?}");
            let queues = if more.contains(&"--numjobs") { 2 } else { 1 };
            assert_eq!(ios("read") + ios("write"), 64 * queues);
        }
    }
    let text = bench(&["--number-ios", "32"]);
    assert!(text.fine().contains("per I/O") && text.fine().contains("IOPS"));
}

fn there(rig: &Rig, args: &[&str]) -> Ended {
    run(windsor().args(["bench", "blk", "--dir"]).arg(rig.dir()).args(args))
}

#[test]
fn a_host_that_is_there_is_used_and_left_as_it_was() {
    let mut rig = Rig::new();
    rig.serve("acme", "");
    for _ in 0..2 {
        let ended = there(
            &rig,
            &["--volume", "acme:db", "--guest", "loader", "--number-ios", "320", "--output-format", "json"],
        );
        assert_eq!(json(&ended)["jobs"][0]["read"]["total_ios"], 320);
    }
    rig::eventually("the disk is gone", || rig.disks().is_empty().then_some(()));
    let missing = there(&rig, &["--volume", "acme:other"]);
    assert!(missing.refused(3).contains("no volume named"), "{missing:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for args in [&["--bs", "1000"][..], &["--bs", "2m"], &["--bs", "16m"], &["--iodepth", "4", "--lock-step", "4"]] {
        assert_eq!(bench(args).code, Some(2), "{args:?}");
    }
    assert_eq!(bench(&["--filename", "/nonexistent/disk"]).code, Some(3));
}

#[test]
fn a_report_is_one_page_of_what_benches_wrote() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    let blk = bench(&["--number-ios", "320", "--output-format", "json"]);
    std::fs::write(path("blk.json"), blk.fine()).unwrap();
    let net = run(windsor().args(["bench", "net", "--runtime", "1", "--output-format", "json"]));
    assert_eq!(json(&net)["groups"].as_array().map(Vec::len), Some(2), "{net:?}");
    std::fs::write(path("net.json"), net.fine()).unwrap();
    let report = |file: &str| {
        let mut windsor = windsor();
        run(windsor.args(["bench", "report"]).args([path("blk.json"), path(file)]).arg("-o").arg(path("report.html")))
    };
    assert_eq!(report("net.json").fine(), "");
    let html = std::fs::read_to_string(path("report.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("randread") && html.contains("64 KiB of TCP"), "{html}");
    // Nothing is loaded from anywhere.
    assert!(!html.contains("src=") && !html.contains("href=") && !html.contains("url("), "{html}");
    std::fs::remove_file(path("report.html")).unwrap();
    for text in ["", "{", "[1]", "{\"schema\":\"windsor-figures-1\",\"title\":\"<\\n>\"}", "\u{1}"] {
        std::fs::write(path("other.json"), text).unwrap();
        assert!(report("other.json").refused(1).contains("other.json: "), "{text}");
    }
    assert!(report("missing.json").refused(1).contains("missing.json") && !path("report.html").exists());
}
