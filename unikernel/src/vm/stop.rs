//! `windsor vm stop`: asks the VM to shut down and waits for its end.

use std::thread::sleep;
use std::time::{Duration, Instant};

use xenstore::{Client, Store};

use super::consumers;
use super::xl::Xl;
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
