//! The keeper with real processes. It reaps every child of its process and blocks signals, so each one runs in a
//! process of its own: this program again, by role. (Hence no test harness: its threads would take the signals.)

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio, abort, exit};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use unikernel::keeper::{self, Keeper, Limits, Spec};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["keeper", behaviour] => run_keeper(behaviour),
        ["supervisor", behaviour] => run_supervisor(behaviour),
        ["worker"] => run_worker(),
        _ => {}
    }
    let tests: [(&str, fn()); 7] = [
        ("a_crash_hands_everything_over", a_crash_hands_everything_over),
        ("an_exit_code_is_passed_on", an_exit_code_is_passed_on),
        ("too_many_crashes_are_the_end", too_many_crashes_are_the_end),
        ("a_stop_is_forwarded", a_stop_is_forwarded),
        ("a_supervisor_that_does_not_stop_is_killed", a_supervisor_that_does_not_stop_is_killed),
        ("a_supervisor_that_closes_its_socket_costs_no_cpu", a_supervisor_that_closes_its_socket_costs_no_cpu),
        ("workers_end_after_the_supervisor", workers_end_after_the_supervisor),
    ];
    for (name, test) in tests {
        let started = Instant::now();
        test();
        println!("test {name} ... ok ({:?})", started.elapsed());
    }
    ExitCode::SUCCESS
}

fn run_keeper(behaviour: &str) -> ! {
    let limits = Limits {
        crashes: 2,
        first_pause: Duration::from_millis(1),
        stop: Duration::from_millis(300),
        workers: Duration::from_secs(5),
        ..Limits::default()
    };
    let args = vec!["supervisor".into(), behaviour.into()];
    let ended =
        keeper::run(&Spec { program: "/proc/self/exe".into(), args, environment: Vec::new(), lingers: false, limits })
            .expect("keeper");
    println!("ended {ended:?}");
    exit(ended.code)
}

fn run_supervisor(behaviour: &str) -> ! {
    let keeper = Keeper::from_stdin().expect("started by a keeper");
    let say = |text: &str| {
        let mut out = io::stdout();
        writeln!(out, "{text}").and_then(|()| out.flush()).expect("stdout");
    };
    match behaviour {
        "hand-over" => {
            let kept = keeper.list().expect("list");
            if kept.is_empty() {
                let (reader, mut writer) = io::pipe().expect("pipe");
                keeper.keep("pipe", &[reader.as_fd()]).expect("keep");
                keeper.keep("gone", &[reader.as_fd()]).expect("keep");
                keeper.forget("gone").expect("forget");
                writer.write_all(b"from the first life").expect("write");
                abort();
            }
            let (key, mut fds) = kept.into_iter().next().expect("one key");
            let mut text = String::new();
            std::fs::File::from(fds.remove(0)).read_to_string(&mut text).expect("read");
            say(&format!("{key}: {text}"));
            exit(0)
        }
        "exit" => exit(7),
        "crash" => abort(),
        "stop" => {
            say("ready");
            let mut mask = SigSet::empty();
            mask.add(Signal::SIGTERM);
            mask.wait().expect("sigwait");
            say("flushed");
            exit(0)
        }
        "deaf" => {
            say("ready");
            loop {
                std::thread::park();
            }
        }
        "close" => {
            drop(keeper);
            say("ready");
            std::thread::sleep(Duration::from_millis(300));
            exit(0)
        }
        "worker" => {
            let (ours, theirs) = rustix::net::socketpair(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::SEQPACKET,
                rustix::net::SocketFlags::CLOEXEC,
                None,
            )
            .expect("socketpair");
            let kept = keeper.list().expect("list");
            if let [(key, _)] = kept.as_slice() {
                say(&format!("second life knows {key}"));
                exit(0);
            }
            let worker = Command::new("/proc/self/exe").arg("worker").stdin(theirs).spawn().expect("spawn");
            keeper.keep("worker", &[ours.as_fd()]).expect("keep");
            say(&format!("worker {}", worker.id()));
            abort();
        }
        other => panic!("{other}?"),
    }
}

/// Ends when nobody holds the other end of its standard input.
fn run_worker() -> ! {
    let mut byte = [0];
    let got = io::stdin().read(&mut byte).expect("read");
    println!("worker read {got}");
    exit(0)
}

/// Runs a keeper to its end: exit code, standard output, standard error.
fn whole(behaviour: &str) -> (Option<i32>, String, String) {
    let output = keeper_process(behaviour).output().expect("run");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

fn keeper_process(behaviour: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["keeper", behaviour]).stdin(Stdio::null());
    command
}

/// Starts a keeper, waits for its supervisor's `ready`, sends SIGTERM: exit code and what else was said.
fn stopped(behaviour: &str) -> (Option<i32>, String, String) {
    let mut child = keeper_process(behaviour).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("spawn");
    let mut out = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("read");
    assert_eq!(line, "ready\n");
    kill(Pid::from_raw(i32::try_from(child.id()).expect("pid")), Signal::SIGTERM).expect("kill");
    let (mut rest, mut errors) = (String::new(), String::new());
    out.read_to_string(&mut rest).expect("read");
    child.stderr.take().expect("piped").read_to_string(&mut errors).expect("read");
    (child.wait().expect("wait").code(), rest, errors)
}

fn a_crash_hands_everything_over() {
    let (code, out, errors) = whole("hand-over");
    assert_eq!(code, Some(0), "{errors}");
    assert!(out.starts_with("pipe: from the first life\n"), "{out}");
    assert!(errors.contains("SIGABRT") && errors.contains("starting it again"), "{errors}");
}

fn an_exit_code_is_passed_on() {
    let (code, _, errors) = whole("exit");
    assert_eq!((code, errors.as_str()), (Some(7), ""));
}

fn too_many_crashes_are_the_end() {
    let (code, _, errors) = whole("crash");
    assert_eq!(code, Some(1));
    assert_eq!(errors.matches("starting it again").count(), 2, "{errors}");
    assert!(errors.contains("3 times within 60s, giving up"), "{errors}");
}

fn a_stop_is_forwarded() {
    let (code, out, errors) = stopped("stop");
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    assert_eq!(out, "flushed\nended Ended { code: 0, signal: Some(SIGTERM) }\n");
}

fn a_supervisor_that_does_not_stop_is_killed() {
    let (code, _, errors) = stopped("deaf");
    assert_eq!(code, Some(1));
    assert!(errors.contains("did not stop within 300ms"), "{errors}");
}

fn a_supervisor_that_closes_its_socket_costs_no_cpu() {
    let (code, _, errors) = whole("close");
    assert_eq!((code, errors.as_str()), (Some(0), ""));
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN).expect("rusage");
    let total = used.user_time() + used.system_time();
    assert!(total.tv_sec() == 0 && total.tv_usec() < 250_000, "{total}");
}

fn workers_end_after_the_supervisor() {
    let (code, out, errors) = whole("worker");
    assert_eq!(code, Some(0), "{errors}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[1..3], ["second life knows worker", "worker read 0"], "{out}");
    let pid: i32 = lines[0].strip_prefix("worker ").and_then(|pid| pid.parse().ok()).expect("a process id");
    assert!(kill(Pid::from_raw(pid), None).is_err(), "the worker is still there");
}
