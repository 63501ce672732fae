//! `windsor vm start`: `xl create`, and the wait until the VM calls itself ready.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xenstore::Client;

use super::xl::Xl;
use super::{Places, Record, consumers, create, pci};
use crate::publish;
use crate::toolstack::{Refusal, domain};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts a VM and waits until it is ready; one that does not get there is taken away again. Returns its number.
///
/// # Errors
/// [`Refusal`].
pub fn run(places: &Places, xl: &Xl, store: &mut Client, record: &Record, wait: Duration) -> Result<u16, Refusal> {
    let name = &record.name;
    if let Some(running) = xl.find(name)? {
        return Err(Refusal::Busy(format!("{name} is there already: domain {}, {}", running.domid, running.state())));
    }
    create::check_image(&places.current(name), record)?;
    pci::check(xl, &record.pci)?;
    check_disks(store, &record.disks)?;
    xl.run(&["create", &places.cfg(name).display().to_string()])?;
    if xl.dry_run {
        return Ok(0);
    }
    wait_ready(xl, store, name, wait).inspect_err(|_| {
        // As before; what it wrote on its console stays in dom0's log.
        let _ = xl.run(&["destroy", name]);
    })
}

/// Waits until the domain of this name calls itself ready.
fn wait_ready(xl: &Xl, store: &mut Client, name: &str, wait: Duration) -> Result<u16, Refusal> {
    let console = format!("see /var/log/xen/console/guest-{name}.log, or `xl console {name}`");
    let deadline = Instant::now() + wait;
    let mut next_list = Instant::now() + Duration::from_secs(1);
    loop {
        let domains = domain::all(store)?;
        if let Some(domain) = domains.iter().find(|domain| domain.name == *name)
            && consumers::is_ready(store, domain.domid)?
        {
            return Ok(domain.domid);
        }
        let now = Instant::now();
        if now >= next_list {
            next_list = now + Duration::from_secs(1);
            match xl.find(name)? {
                None => return Err(Refusal::Failed(format!("{name} ended before it was ready: {console}"))),
                Some(domain) if ["crashed", "dying"].contains(&domain.state()) => {
                    return Err(Refusal::Failed(format!("{name} has crashed before it was ready: {console}")));
                }
                Some(_) => {}
            }
        }
        if now >= deadline {
            return Err(Refusal::TimedOut(format!(
                "{name} is not ready after {} s and was taken away again: {console}",
                wait.as_secs()
            )));
        }
        sleep(PAUSE);
    }
}

/// What a disk in xl's words names: `target=`, or the first word; and `backend=`.
fn parts(spec: &str) -> (Option<&str>, Option<&str>) {
    let (mut target, mut backend) = (None, None);
    let mut rest = spec;
    let mut first = true;
    while !rest.is_empty() {
        // The target is the rest of the line, whatever is in it.
        if let Some(path) = rest.strip_prefix("target=") {
            return (Some(path), backend);
        }
        let (word, after) = rest.split_once(',').unwrap_or((rest, ""));
        if let Some(name) = word.strip_prefix("backend=") {
            backend = Some(name);
        } else if first && !word.contains('=') {
            target =
                Some(["phy:", "file:", "raw:"].iter().find_map(|prefix| word.strip_prefix(prefix)).unwrap_or(word));
        }
        first = false;
        rest = after;
    }
    (target, backend)
}

/// Refuses disks that `xl create` could not give to the VM: a file that is not there; a volume of another service VM
/// that it does not have, or that somebody else writes to.
///
/// # Errors
/// [`Refusal`].
pub fn check_disks(store: &mut Client, disks: &[String]) -> Result<(), Refusal> {
    for spec in disks {
        match parts(spec) {
            (Some(volume), Some(backend)) => check_volume(store, spec, backend, volume)?,
            (Some(path), None) if path.starts_with('/') && !Path::new(path).exists() => {
                return Err(Refusal::NotFound(format!("disk \"{spec}\": there is no {path}")));
            }
            (None, _) => {
                return Err(Refusal::Usage(format!(
                    "disk \"{spec}\" names nothing: target=, see xl-disk-configuration(5)"
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_volume(store: &mut Client, spec: &str, backend: &str, name: &str) -> Result<(), Refusal> {
    let service = domain::find(store, backend, "service VM")?;
    let volumes = store.transaction(|tx| publish::read_volumes(tx, service.domid))?;
    if volumes.is_empty() && !consumers::is_ready(store, service.domid)? {
        // Not one of ours: xl will see.
        return Ok(());
    }
    let Some(volume) = volumes.get(name) else {
        let names: Vec<&str> = volumes.keys().map(String::as_str).collect();
        let has = domain::or_none(&names);
        return Err(Refusal::NotFound(format!(
            "disk \"{spec}\": {backend} has no volume named \"{name}\" (it has: {has})"
        )));
    };
    if volume.mode == "rw" && !volume.used_by.is_empty() {
        let users = volume.used_by.join(" ");
        return Err(Refusal::Busy(format!("disk \"{spec}\": volume {name} of {backend} is in use by {users}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_in_xl_s_words() {
        for (spec, target, backend) in [
            ("phy:/dev/vg0/a,xvda,w", Some("/dev/vg0/a"), None),
            ("/srv/a.img,raw,xvda,rw", Some("/srv/a.img"), None),
            ("format=raw,vdev=xvda,access=rw,backend=acme,target=db", Some("db"), Some("acme")),
            ("format=raw,vdev=xvda,target=/dev/a,backend=b", Some("/dev/a,backend=b"), None),
            ("vdev=xvda", None, None),
            ("", None, None),
        ] {
            assert_eq!(parts(spec), (target, backend), "{spec}");
        }
    }
}
