//! What stock `xl`, kernels and service VMs asked of Xen's own xenstored, asked of ours: the same answers and events.
//! `traces/README.md` says how the recordings were made.

#[path = "replay/player.rs"]
mod player;
#[path = "replay/trace.rs"]
mod trace;

use player::{Report, play};

/// Names the file of one more recording: the lab plays what it has just recorded.
const FRESH: &str = "WINDSOR_XENSTORE_TRACE";

fn report(text: &str) -> Report {
    play(&trace::parse(text).unwrap())
}

fn has_the_same_results(name: &str, text: &str) {
    let report = report(text);
    let first: Vec<&String> = report.differences.iter().take(20).collect();
    assert!(first.is_empty(), "{name}: {} differences, at first {first:#?}", report.differences.len());
    println!(
        "{name}: {} answers and {} events are the same; unlike the C daemon's, {} events were not dropped as repeated, \
         {} messages not left unsent, {} events of a shutdown not sent",
        report.answers, report.events, report.repeated, report.unread, report.shutdowns
    );
    assert!(report.answers == report.requests && report.events > 0, "{name}: {report:?}");
}

#[test]
fn what_stock_xl_asked_has_the_same_results() {
    has_the_same_results("xl.trace", include_str!("traces/xl.trace"));
    if let Some(path) = std::env::var_os(FRESH) {
        has_the_same_results(&path.to_string_lossy(), &std::fs::read_to_string(&path).unwrap());
    }
}

/// Two clients of dom0 and a guest, with what each is told.
const SMALL: &str = r"
+ 1 ring 0
+ 2 socket
> 2 WATCH 0 /local\x00token\x00
< 2 WATCH OK\x00
< 2 WATCH_EVENT /local\x00token\x00
> 2 WATCH 0 @releaseDomain\x00end\x00
< 2 WATCH OK\x00
< 2 WATCH_EVENT @releaseDomain\x00end\x00
> 1 TRANSACTION_START 0 \x00
< 1 TRANSACTION_START 7\x00
> 1 WRITE 7 /local/domain/1/data\x00value
< 1 WRITE OK\x00
> 1 SET_PERMS 7 /local/domain/1/data\x00n1\x00
< 1 SET_PERMS OK\x00
> 1 READ 0 /local/domain/1/data\x00
< 1 ERROR ENOENT\x00
> 1 TRANSACTION_END 7 T\x00
< 1 TRANSACTION_END OK\x00
< 2 WATCH_EVENT /local/domain/1/data\x00token\x00
> 1 INTRODUCE 0 1\x0099\x005\x00
+ 3 ring 1
< 1 INTRODUCE OK\x00
> 3 READ 0 data\x00
> 3 WRITE 0 data/one\x001
< 3 READ value
< 3 WRITE OK\x00
< 2 WATCH_EVENT /local/domain/1/data/one\x00token\x00
> 3 WRITE 0 data/two\x00
< 3 WRITE OK\x00
> 1 DIRECTORY 0 /local/domain/1/data\x00
< 2 WATCH_EVENT /local/domain/1/data/two\x00token\x00
< 1 DIRECTORY one\x00two\x00
!
< 2 WATCH_EVENT @releaseDomain\x00end\x00
!
- 3
< 2 WATCH_EVENT /local/domain/1/data\x00token\x00
< 2 WATCH_EVENT @releaseDomain\x00end\x00
- 2
";

fn small(change: impl Fn(&str) -> String) -> Report {
    report(&change(SMALL.trim_start()))
}

#[test]
fn a_small_recording_has_the_same_results() {
    let report = small(str::to_owned);
    assert_eq!(report.differences, [""; 0]);
    assert_eq!((report.requests, report.answers, report.events, report.shutdowns), (12, 12, 7, 1));
}

/// The C daemon takes a request of each connection and sends afterwards, so that an event it knows of already leaves
/// before the answer.
#[test]
fn an_event_of_a_shutdown_may_come_before_the_answer_to_a_later_request() {
    let told = "!\n< 2 WATCH_EVENT @releaseDomain\\x00end\\x00\n!\n";
    let asked = "!\n> 2 READ 0 /local/domain/1/data/two\\x00\n< 2 WATCH_EVENT @releaseDomain\\x00end\\x00\n\
                 < 2 READ \n!\n";
    assert!(SMALL.contains(told));
    let report = small(|text| text.replacen(told, asked, 1));
    assert_eq!(report.differences, [""; 0]);
    assert_eq!((report.answers, report.shutdowns), (13, 1));
    // Without word of a shutdown it is none.
    let report = small(|text| text.replacen(told, &asked[2..], 1));
    assert!(!report.differences.is_empty(), "{report:?}");
}

/// The comparison can fail: every way in which an answer or an event may be another one, be missing, be too many or
/// come in another order.
#[test]
fn a_damaged_recording_has_not() {
    for (old, new) in [
        // Answers.
        ("< 3 READ value", "< 3 READ valve"),
        ("< 1 ERROR ENOENT", "< 1 ERROR EACCES"),
        ("< 1 ERROR ENOENT\\x00", "< 1 READ value"),
        ("DIRECTORY one\\x00two\\x00", "DIRECTORY two\\x00one\\x00"),
        ("< 1 TRANSACTION_END OK", "< 1 ERROR EAGAIN"),
        ("< 1 DIRECTORY one\\x00two\\x00\n", ""),
        // Requests: another transaction, another order, another connection.
        ("> 1 READ 0 ", "> 1 READ 7 "),
        ("> 1 WRITE 7 ", "> 1 WRITE 0 "),
        ("> 3 READ 0 data\\x00\n> 3 WRITE 0 data/one\\x001\n", "> 3 WRITE 0 data/one\\x001\n> 3 READ 0 data\\x00\n"),
        ("> 3 READ 0 data", "> 2 READ 0 data"),
        ("> 1 INTRODUCE 0 1\\x0099\\x005\\x00\n", ""),
        // Events: another one, one too few, one too many, another order.
        ("data/one\\x00token", "data/one\\x00other"),
        ("< 2 WATCH_EVENT /local/domain/1/data/two\\x00token\\x00\n", ""),
        (
            "< 2 WATCH_EVENT /local\\x00token\\x00\n",
            "< 2 WATCH_EVENT /local\\x00token\\x00\n< 2 WATCH_EVENT /local\\x00token\\x00\n",
        ),
        ("< 2 WATCH_EVENT /local/domain/1/data\\x00token\\x00\n> 1", "> 1"),
        (
            "< 2 WATCH OK\\x00\n< 2 WATCH_EVENT /local\\x00token\\x00\n",
            "< 2 WATCH_EVENT /local\\x00token\\x00\n< 2 WATCH OK\\x00\n",
        ),
        // An end that is none: no more than one event for a shutdown, none without.
        ("!\n< 2 WATCH_EVENT @releaseDomain\\x00end\\x00\n!\n", "< 2 WATCH_EVENT @releaseDomain\\x00end\\x00\n!\n"),
        ("!\n- 3\n", "!\n"),
    ] {
        assert!(SMALL.contains(old), "{old}");
        let report = small(|text| text.replacen(old, new, 1));
        assert!(!report.differences.is_empty(), "{old} for {new} is not seen: {report:?}");
    }
}

#[test]
fn what_is_no_recording_is_refused() {
    for line in ["> 1 NONE 0 x", "> 1 READ x", "> 1 READ 0 \\x0", "< 1", "! 1", "+ 1 rung 2", "+ x socket", "? 1", ""] {
        assert!(trace::parse(&format!("+ 1 socket\n{line}\n- 1\n")).is_err(), "{line}");
    }
}
