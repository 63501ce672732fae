//! Programs that are not ours against our server: Debian's clients, Xen's own test of a xenstored, the crate
//! xenstore-rs.

mod daemon;

use std::os::unix::fs::FileTypeExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use daemon::Daemon;
use xenstore::Store;
use xenstore_rs::{Xs, XsTransaction, XsTransactionSpan};

/// In the environment: this process is the child that speaks xenstore-rs.
const CHILD: &str = "WINDSOR_TEST_XENSTORE_RS";

fn tool(daemon: &Daemon, name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(name);
    let output = command.args(arguments).env("XENSTORED_PATH", daemon.socket()).output();
    output.unwrap_or_else(|error| panic!("{name}: {error} (apt-get install xenstore-utils)"))
}

fn text(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn debian_s_own_clients_work() {
    let daemon = Daemon::new();
    text(tool(&daemon, "xenstore-write", &["/vm/name", "acme", "/vm/n", "7"]));
    assert_eq!(text(tool(&daemon, "xenstore-read", &["/vm/name"])), "acme\n");
    assert_eq!(text(tool(&daemon, "xenstore-list", &["/vm"])), "name\nn\n");
    text(tool(&daemon, "xenstore-exists", &["/vm/n"]));
    text(tool(&daemon, "xenstore-chmod", &["/vm/n", "n0", "r3"]));
    let listing = text(tool(&daemon, "xenstore-ls", &["-fp"]));
    assert!(listing.contains("/vm/name = \"acme\"") && listing.contains("(n0,r3)"), "{listing}");
    text(tool(&daemon, "xenstore-rm", &["/vm/n"]));
    assert!(!tool(&daemon, "xenstore-exists", &["/vm/n"]).status.success());
    let missing = tool(&daemon, "xenstore-read", &["/vm/n"]);
    assert_eq!(missing.status.code(), Some(1), "{missing:?}");
    let names: Vec<String> = (0..1200).map(|n| format!("a-rather-long-name-{n}")).collect();
    let mut dom0 = daemon.client();
    names.iter().for_each(|name| dom0.mkdir(&format!("/long/{name}")).unwrap());
    assert_eq!(text(tool(&daemon, "xenstore-list", &["/long"])).lines().collect::<Vec<_>>(), names);
}

#[test]
fn debian_s_own_watch_works() {
    let daemon = Daemon::new();
    daemon.client().mkdir("/vm").unwrap();
    let mut watch = Command::new("xenstore-watch");
    let watch = watch.args(["-n", "2", "/vm"]).env("XENSTORED_PATH", daemon.socket()).stdout(Stdio::piped());
    let child = watch.spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    daemon.client().write("/vm/x", b"1").unwrap();
    assert_eq!(text(child.wait_with_output().unwrap()), "/vm\n/vm/x\n");
}

#[test]
fn xen_s_own_test_passes() {
    let Some(program) = daemon::xen_utils("test-xenstore") else {
        return daemon::skip("test-xenstore", "xen-utils-4.17 is neither installed nor fetched by the lab");
    };
    let daemon = Daemon::new();
    let (iterations, seconds) = if daemon::is_long() { ("10000", "60") } else { ("1000", "3") };
    for arguments in [&["-i", iterations][..], &["-r", seconds]] {
        let output = tool(&daemon, program.to_str().unwrap(), arguments);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn debian_s_xenstore_control_works() {
    // Not the one in the path, which looks for a hypervisor first.
    let Some(program) = daemon::xen_utils("xenstore-control") else {
        return daemon::skip("xenstore-control", "xen-utils-4.17 is neither installed nor fetched by the lab");
    };
    let daemon = Daemon::new();
    let control = |words: &[&str]| tool(&daemon, program.to_str().unwrap(), words);
    assert!(text(control(&["quota"])).contains("nodes            :     1000 "));
    assert_eq!(text(control(&["quota", "set", "nodes", "20000"])), "OK\n");
    assert!(text(control(&["quota"])).contains("nodes            :    20000 "));
    assert!(text(control(&["quota-soft"])).contains("memory "));
    assert_eq!(text(control(&["check"])), "OK\n");
    let unknown = control(&["nonsense"]);
    assert!(
        !unknown.status.success() && String::from_utf8_lossy(&unknown.stderr).contains("quota-soft"),
        "{unknown:?}"
    );
}

#[test]
fn the_crate_xenstore_rs_works_against_our_server() {
    if std::env::var_os(CHILD).is_some() {
        return;
    }
    let daemon = Daemon::new();
    daemon.client().write("/rs/there", b"dom0").unwrap();
    // It finds its socket by one variable of the whole process only.
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "the_child_of_xenstore_rs", "--nocapture"]).env(CHILD, "1");
    let output = child.env("XENSTORED_PATH", daemon.socket()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(daemon.client().read("/rs/from/the/child").unwrap(), b"value");
    assert_eq!(daemon.client().read_optional("/rs/there").unwrap(), None, "the child removed it");
}

/// Does nothing but as the child of the test above.
#[test]
fn the_child_of_xenstore_rs() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let socket = std::fs::metadata(std::env::var_os("XENSTORED_PATH").unwrap()).unwrap();
    assert!(socket.file_type().is_socket());
    let xs = xenstore_rs::unix::XsUnix::new().unwrap();
    assert_eq!(&*xs.read("/rs/there").unwrap(), "dom0");
    xs.write("/rs/from/the/child", "value").unwrap();
    assert_eq!(xs.directory("/rs").unwrap(), ["there".into(), "from".into()]);
    xs.rm("/rs/there").unwrap();
    assert_eq!(xs.read("/rs/there").unwrap_err().kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn what_is_written_for_xenstore_rs_works_on_our_client() {
    let daemon = Daemon::new();
    let compat = xenstore::compat::Compat::new(daemon.client());
    compat.write("/rs/a", "1").unwrap();
    assert_eq!(&*compat.read("/rs/a").unwrap(), "1");
    assert_eq!(compat.directory("/rs").unwrap(), ["a".into()]);
    let span = compat.transaction().unwrap();
    span.write("/rs/b", "2").unwrap();
    assert_eq!(compat.read("/rs/b").unwrap_err().kind(), std::io::ErrorKind::NotFound, "not yet");
    assert_eq!(&*span.read("/rs/b").unwrap(), "2");
    span.commit().unwrap();
    assert_eq!(&*compat.read("/rs/b").unwrap(), "2");
    let given_up = compat.transaction().unwrap();
    given_up.rm("/rs").unwrap();
    drop(given_up);
    let late = compat.transaction().unwrap();
    late.write("/rs/a", "mine").unwrap();
    compat.write("/rs/a", "theirs").unwrap();
    assert_eq!(late.commit().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "somebody has interfered");
    assert_eq!(compat.directory("/rs").unwrap(), ["a".into(), "b".into()]);
    compat.rm("/rs").unwrap();
    assert_eq!(compat.read("/rs/a").unwrap_err().kind(), std::io::ErrorKind::NotFound);
}
