//! PID 1 of a service VM: mounts, loads modules, and then is the keeper of the supervisor. It ends by turning the VM
//! off; a panic here is the kernel's panic, which `panic=1` turns into a crash that dom0 sees.
//!
//! The same program is /sbin/poweroff and /sbin/reboot of the image. The kernel itself reads dom0's
//! `control/shutdown` and runs these, so PID 1 needs no xenstore for it: it gets a signal.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::time::{ClockId, clock_gettime};

use crate::image::modules::{Wanted, normal};
use crate::image::{CONFIG_PATH, HOSTNAME_PATH, MODULES_DIR, MODULES_PATH};
use crate::keeper;
use crate::settings::MAX_LINGER;

/// In the supervisor's environment: when PID 1 began, in milliseconds since the kernel's start.
const BEGUN: &str = "WINDSOR_PID1_BEGUN_MS";

/// What a backend in user space cannot do without.
const DEVICES: [&str; 3] = ["/dev/xen/xenbus", "/dev/xen/evtchn", "/dev/xen/gntdev"];

/// Seconds that guests are served after `xl shutdown`, unless somebody says otherwise.
const LINGER: &str = "300";

/// The memory plan (linux: admin-guide/sysctl/vm.rst, kernel.rst). Dirty pages are those of volumes without O_DIRECT.
const SYSCTLS: [(&str, &str); 7] = [
    ("vm/swappiness", "0"),
    ("vm/dirty_bytes", "8388608"),
    ("vm/dirty_background_bytes", "4194304"),
    ("vm/dirty_expire_centisecs", "500"),
    ("vm/vfs_cache_pressure", "200"),
    ("vm/min_free_kbytes", "4096"),
    // What is wrong in the kernel ends the VM, so that dom0 sees a crash (see `image::xl::COMMAND_LINE`).
    ("kernel/panic_on_oops", "1"),
];

/// Files that a process of the VM may have open: several a queue, and there may be hundreds of queues.
const OPEN_FILES: u64 = 1 << 20;

/// Plays the part that this process was started for, if it is one of an image: PID 1 does not return; poweroff and
/// reboot give their exit code. `None` means that this is an ordinary command.
///
/// Being process 1 is not enough, since containers have one too: the kernel starts `/init`.
pub fn enter() -> Option<i32> {
    let called = std::env::args_os().next()?;
    match called.to_str()? {
        "/init" if std::process::id() == 1 => run(),
        "/sbin/poweroff" => Some(ask(Signal::SIGTERM)),
        "/sbin/reboot" => Some(ask(Signal::SIGINT)),
        _ => None,
    }
}

fn ask(signal: Signal) -> i32 {
    match kill(Pid::from_raw(1), signal) {
        Ok(()) => 0,
        Err(error) => {
            log(&format!("cannot signal process 1: {error}"));
            1
        }
    }
}

fn run() -> ! {
    crate::log::as_init();
    let mode = match boot() {
        Ok(ended) => {
            log(&format!("the supervisor has ended with code {}", ended.code));
            // The keeper knows two ways to stop; init's tradition gives SIGINT the meaning "start again".
            if ended.signal == Some(Signal::SIGINT) { RebootMode::RB_AUTOBOOT } else { RebootMode::RB_POWER_OFF }
        }
        Err(why) => {
            crate::log::line(2, &why);
            RebootMode::RB_POWER_OFF
        }
    };
    log(if mode == RebootMode::RB_AUTOBOOT { "restarting this VM" } else { "turning this VM off" });
    nix::unistd::sync();
    // The console's ring is read by dom0 at its leisure; the last line is the one somebody looks for.
    std::thread::sleep(Duration::from_millis(300));
    let Err(error) = reboot(mode);
    log(&format!("cannot turn this VM off: {error}"));
    std::process::exit(1);
}

/// Everything from the first mount to the end of the supervisor. The error is a line for the console.
fn boot() -> Result<keeper::Ended, String> {
    // Not the process's age in /proc, which holds the kernel's own start as well.
    let begun = clock();
    for (kind, target) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/run")] {
        mount_one(kind, target)?;
    }
    open_console();
    log(&format!("windsor {} as process 1", env!("CARGO_PKG_VERSION")));
    if let Ok(name) = fs::read_to_string(HOSTNAME_PATH)
        && let Err(error) = nix::unistd::sethostname(name.trim())
    {
        warn(&format!("cannot set the host name: {error}"));
    }
    plan_memory();
    let command_line =
        fs::read_to_string("/proc/cmdline").map_err(|error| format!("cannot read /proc/cmdline: {error}"))?;
    load_modules(&command_line)?;
    for (resource, name, limit) in [
        (Resource::RLIMIT_NOFILE, "open files", OPEN_FILES),
        (Resource::RLIMIT_MEMLOCK, "locked memory", RLIM_INFINITY),
    ] {
        if let Err(error) = setrlimit(resource, limit, limit) {
            warn(&format!("cannot raise the limit of {name}: {error}"));
        }
    }
    let missing: Vec<_> = DEVICES.into_iter().filter(|path| !Path::new(path).exists()).collect();
    if !missing.is_empty() {
        return Err(format!(
            "{} missing: {}",
            missing.join(", "),
            if missing.contains(&DEVICES[0]) {
                "this kernel does not run as a Xen guest; start the image with `xl create`"
            } else {
                "the modules above did not load; rebuild the image with the modules of its kernel"
            }
        ));
    }
    let mut spec = keeper::Spec::supervisor(["--config", CONFIG_PATH, "--linger", LINGER]);
    spec.environment.push((crate::log::CONSOLE.into(), "1".into()));
    spec.environment.push((BEGUN.into(), begun.as_millis().to_string().into()));
    spec.lingers = true;
    // The supervisor knows how long it may serve on; this is for one that hangs.
    spec.limits.stop = Duration::from_secs(MAX_LINGER + 60);
    keeper::run_with(&spec, Vec::new(), watchdog(&command_line)).map_err(|error| error.to_string())
}

fn mount_one(kind: &str, target: &str) -> Result<(), String> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let flags = if kind == "devtmpfs" { flags } else { flags | MsFlags::MS_NODEV };
    match mount(Some(kind), target, Some(kind), flags, None::<&str>) {
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(error) => Err(format!("cannot mount {kind} on {target}: {error}; does the kernel have {kind}?")),
    }
}

/// Makes the console standard input, output and error. The kernel has done so already, unless it found no console
/// when it started us; then nothing is said, for there is nowhere to say it.
fn open_console() {
    if let Ok(console) = File::options().read(true).write(true).open("/dev/console") {
        let _ = rustix::stdio::dup2_stdin(&console);
        let _ = rustix::stdio::dup2_stdout(&console);
        let _ = rustix::stdio::dup2_stderr(&console);
    }
}

/// Loads what the image lists. One that fails is logged and the rest goes on: which of them matter shows in /dev/xen.
fn load_modules(command_line: &str) -> Result<(), String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
    for line in read(MODULES_PATH)?.lines() {
        let module = Wanted::parse(line, true);
        let params = parameters(&module, command_line);
        let named = format!("module {} {params}", module.name);
        match load(&module.name, &params) {
            Ok(()) => log(named.trim_end()),
            Err(why) => warn(&format!("{}: {why}", named.trim_end())),
        }
    }
    Ok(())
}

fn load(name: &str, params: &str) -> Result<(), String> {
    let path = format!("{MODULES_DIR}/{name}.ko");
    let file = File::open(&path).map_err(|error| format!("cannot open {path}: {error}"))?;
    let params = CString::new(params).map_err(|error| error.to_string())?;
    match finit_module(&file, &params, ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error @ Errno::ENODEV) => Err(format!("{error}; it has nothing to do in a machine of this kind")),
        Err(error @ (Errno::ENOENT | Errno::EINVAL)) => {
            Err(format!("{error}; a parameter that it does not know? The kernel's log says more"))
        }
        Err(error) => Err(format!("{error}; the kernel's log says more")),
    }
}

/// A module's parameters: those of the image, then those on the kernel's command line, `module.parameter=value`, which
/// the kernel leaves to whoever loads the module.
fn parameters(module: &Wanted, command_line: &str) -> String {
    let given = command_line.split_whitespace().filter_map(|word| {
        let (owner, parameter) = word.split_once('.')?;
        (normal(owner) == module.name).then_some(parameter)
    });
    let own = Some(module.params.as_str()).filter(|params| !params.is_empty());
    own.into_iter().chain(given).collect::<Vec<_>>().join(" ")
}

/// A line on the console.
fn log(text: &str) {
    crate::log::line(6, text);
}

/// Something is wrong.
fn warn(text: &str) {
    crate::log::line(4, text);
}

/// Keeps the memory of the VM in bounds: there is no swap, what files leave in the page cache is small and written
/// soon, and enough stays free for what cannot wait.
fn plan_memory() {
    for (path, value) in SYSCTLS {
        if let Err(error) = fs::write(format!("/proc/sys/{path}"), value) {
            warn(&format!("cannot set {path}: {error}"));
        }
    }
}

/// A watchdog, if the kernel has one: when this process hangs, so does all else, and Xen is to know.
fn watchdog(command_line: &str) -> Option<File> {
    if command_line.split_whitespace().any(|word| word == "windsor.watchdog=off") {
        return None;
    }
    let device = File::options().write(true).open("/dev/watchdog").ok()?;
    log("watchdog: on");
    Some(device)
}

/// How long ago PID 1 began, for its supervisor; `None` for any other process.
pub fn age() -> Option<Duration> {
    let begun = Duration::from_millis(std::env::var(BEGUN).ok()?.parse().ok()?);
    clock().checked_sub(begun)
}

/// Since the kernel's start.
fn clock() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_supervisor_knows_pid_1_s_age() {
        assert_eq!(age(), None);
        let before = clock();
        assert!(before > Duration::ZERO && clock() >= before);
    }

    #[test]
    fn an_ordinary_process_is_not_an_image() {
        assert_eq!(enter(), None);
    }

    #[test]
    fn parameters_come_from_the_list_and_the_command_line() {
        let line = "console=hvc0 xen_blkfront.trusted=0 xen-blkfront.max=4 brd.rd_nr=3 nvme_core.x=1 panic=1";
        let params = |text: &str| parameters(&Wanted::parse(text, true), line);
        assert_eq!(params("xen-blkfront"), "trusted=0 max=4");
        assert_eq!(params("brd rd_nr=2 rd_size=65536"), "rd_nr=2 rd_size=65536 rd_nr=3");
        assert_eq!(params("nvme"), "");
    }
}
