//! `windsor vm stop`: asks the VM to shut down and waits for its end; with `--all` every one, and their guests before them.

use std::cmp::Reverse;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xenstore::{Client, Store};

use super::places::at;
use super::xl::{Running, Xl};
use super::{Places, consumers};
use crate::toolstack::Refusal;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// Stops the domain of this name. With guests on it, only with `force`: then it goes on serving until the last has let
/// go, and is destroyed when the time is over. `say` hears whom it waits for.
///
/// # Errors
/// [`Refusal::Busy`] with the guests, [`Refusal::TimedOut`] when it does not end.
pub fn run(
    xl: &Xl,
    store: &mut Client,
    name: &str,
    force: bool,
    wait: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<(), Refusal> {
    let Some(running) = xl.find(name)? else {
        return Err(Refusal::NotFound(format!("{name} is not running")));
    };
    let users = consumers::of(store, running.domid)?;
    if !users.is_empty() && !force {
        return Err(Refusal::Busy(format!(
            "{name} serves {}: stop or detach them first, or --force, which lets them finish for {} s and then takes their disks away",
            consumers::names(&users),
            wait.as_secs()
        )));
    }
    // Without a driver that listens (it hangs in its start) xl complains: then only force helps.
    let domid = running.domid.to_string();
    match xl.run(&["shutdown", &domid]) {
        Err(Refusal::Failed(why)) if force => say(&why),
        other => other?,
    }
    if xl.dry_run {
        return Ok(());
    }
    let deadline = Instant::now() + wait;
    let mut told = String::new();
    loop {
        // The number, not the name: a VM that starts again has another one.
        if !xl.list()?.iter().any(|domain| domain.domid == running.domid) {
            return forget_pci(store, running.domid);
        }
        let users = consumers::names(&consumers::of(store, running.domid)?);
        if users != told {
            match users.is_empty() {
                true => say(&format!("waiting for {name} to end: it serves nobody any more")),
                false => say(&format!("waiting for {name} to end: it serves {users}")),
            }
            told = users;
        }
        if Instant::now() >= deadline {
            break;
        }
        sleep(PAUSE);
    }
    let seconds = wait.as_secs();
    if !force {
        return Err(Refusal::TimedOut(format!(
            "{name} has not ended after {seconds} s: see /var/log/xen/console/guest-{name}.log; --force ends it regardless"
        )));
    }
    say(&format!("{name} has not ended after {seconds} s: it is destroyed"));
    xl.run(&["destroy", &domid])
}

/// Takes away what libxl 4.17 leaves of a PV domain that has turned itself off: its kernel closes its PCI devices first,
/// and of those that are not connected libxl removes nothing.
fn forget_pci(store: &mut Client, domid: u16) -> Result<(), Refusal> {
    Ok(store.rm(&format!("/local/domain/0/backend/pci/{domid}"))?)
}

/// Stops every service VM that runs. Their guests end before them: they are saved in files of their names in `save`, and
/// shut down if there is no such directory or it fails. What goes wrong with one guest or VM does not spare the others.
///
/// # Errors
/// Of the last VM that was not stopped.
pub fn all(
    places: &Places,
    xl: &Xl,
    store: &mut Client,
    save: Option<&Path>,
    wait: Duration,
    say: &mut dyn FnMut(&str),
) -> Result<(), Refusal> {
    let names = places.names()?;
    let (mut vms, others): (Vec<Running>, Vec<Running>) =
        xl.list()?.into_iter().partition(|domain| names.contains(&domain.name));
    let mut users = Vec::new();
    for vm in &vms {
        users.extend(consumers::of(store, vm.domid)?.into_iter().map(|user| user.guest_domid));
    }
    let guests = others.iter().filter(|domain| domain.domid != 0 && users.contains(&domain.domid));
    for guest in guests.clone() {
        let ended = match save {
            Some(dir) => keep(xl, guest, dir).or_else(|why| {
                say(&why.to_string());
                shutdown(xl, guest)
            }),
            None => shutdown(xl, guest),
        };
        if let Err(why) = ended {
            say(&format!("{}: {why}", guest.name));
        }
    }
    let deadline = Instant::now() + wait;
    while !xl.dry_run && Instant::now() < deadline {
        let now = xl.list()?;
        if !guests.clone().any(|guest| now.iter().any(|domain| domain.domid == guest.domid)) {
            break;
        }
        sleep(PAUSE);
    }
    // A VM that has a disk of another one's was started after it.
    vms.sort_by_key(|vm| Reverse(vm.domid));
    let mut result = Ok(());
    for vm in &vms {
        if let Err(why) = run(xl, store, &vm.name, true, wait, say) {
            say(&why.to_string());
            result = Err(why);
        }
    }
    result
}

fn keep(xl: &Xl, guest: &Running, dir: &Path) -> Result<(), Refusal> {
    if !xl.dry_run {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| at(dir, &error))?;
    }
    xl.save(&guest.name, &dir.join(guest.name.replace('/', "_")))
}

fn shutdown(xl: &Xl, guest: &Running) -> Result<(), Refusal> {
    xl.run(&["shutdown", &guest.domid.to_string()])
}
