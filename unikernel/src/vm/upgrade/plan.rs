//! What an upgrade will do, as data.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use xenstore::Client;

use super::super::places::{self, at};
use super::super::xl::{Xl, line};
use super::super::{Places, consumers};
use crate::toolstack::Refusal;

/// What is on the disk while guests are saved: enough to bring them back after a crash of dom0.
const JOURNAL: &str = "plan.json";
/// What a saved guest needs beyond its memory, in MiB.
const EXTRA: u64 = 16;

/// A guest of the VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its number before.
    pub domid: u16,
    /// Its memory in MiB.
    pub memory_mib: u64,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The VM.
    pub name: String,
    /// Its number before; none if it does not run.
    pub domid: Option<u16>,
    /// The image that it has.
    pub from: String,
    /// The image that it gets.
    pub to: String,
    /// Who uses it.
    pub guests: Vec<Guest>,
    /// Where guests are saved.
    pub saved: PathBuf,
    /// For `xl create`.
    pub cfg: PathBuf,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Save a guest, which ends it.
    Save(Guest),
    /// Wait until the VM has let go of everything, and stop it.
    Stop(u16),
    /// Make the new image the one that is booted.
    Switch,
    /// Start the VM and wait until it is ready.
    Start,
    /// Restore a guest, paused.
    Restore(Guest),
    /// Let a guest run.
    Unpause(Guest),
    /// Wait until every device of a guest is Connected.
    Connect(Guest),
}

impl Plan {
    /// For the VM `name` as it is now.
    ///
    /// # Errors
    /// [`Refusal::Busy`] when an earlier one has not been finished, or dom0 itself uses the VM.
    pub fn new(places: &Places, xl: &Xl, store: &mut Client, name: &str, to: &str) -> Result<Plan, Refusal> {
        let saved = places.saved(name);
        if saved.exists() {
            return Err(Refusal::Busy(format!(
                "an upgrade of {name} was not finished ({} is there): `windsor vm rollback {name}` brings its guests back",
                saved.display()
            )));
        }
        let from = places::target(&places.current(name))
            .ok_or_else(|| Refusal::NotFound(format!("{name} has no image ({})", places.current(name).display())))?;
        if from == to {
            return Err(Refusal::Failed(format!("{name} has image {to} already")));
        }
        let domains = xl.list()?;
        let running = domains.iter().find(|domain| domain.name == name);
        let mut guests: Vec<Guest> = Vec::new();
        for user in running.map(|vm| consumers::of(store, vm.domid)).transpose()?.unwrap_or_default() {
            if user.guest_domid == 0 {
                return Err(Refusal::Busy(format!("dom0 itself uses {} of {name}: detach it first", user.device)));
            }
            let Some(guest) = domains.iter().find(|domain| domain.domid == user.guest_domid) else {
                return Err(Refusal::Busy(format!(
                    "{name} still serves domain {}, which is gone: try again",
                    user.guest_domid
                )));
            };
            if guest.state() != "running" {
                return Err(Refusal::Failed(format!("{} is {}: it cannot be saved", guest.name, guest.state())));
            }
            if guests.iter().all(|its| its.domid != guest.domid) {
                guests.push(Guest { name: guest.name.clone(), domid: guest.domid, memory_mib: guest.memory_mib });
            }
        }
        let domid = running.map(|running| running.domid);
        Ok(Plan { name: name.to_owned(), domid, from, to: to.to_owned(), guests, saved, cfg: places.cfg(name) })
    }

    /// In order. A VM that does not run only changes its image.
    pub fn steps(&self) -> Vec<Step> {
        let Some(domid) = self.domid else { return vec![Step::Switch] };
        let each = |step: fn(Guest) -> Step| self.guests.iter().cloned().map(step);
        let mut steps: Vec<Step> = each(Step::Save).collect();
        steps.extend([Step::Stop(domid), Step::Switch, Step::Start]);
        steps.extend(each(Step::Restore));
        steps.extend(each(Step::Unpause));
        steps.extend(each(Step::Connect));
        steps
    }

    /// For people.
    pub fn describe<'a>(&'a self, step: &'a Step) -> Described<'a> {
        Described { plan: self, step }
    }

    /// Where a guest is saved; this file has not run.
    pub fn fresh(&self, guest: &Guest) -> PathBuf {
        self.saved.join(format!("{}.save", guest.domid))
    }

    /// The same file when it has.
    pub fn ran(&self, guest: &Guest) -> PathBuf {
        self.saved.join(format!("{}.ran", guest.domid))
    }

    /// Bytes that the saved guests take.
    pub fn needs(&self) -> u64 {
        self.guests.iter().fold(0, |sum, guest| sum.saturating_add((guest.memory_mib.saturating_add(EXTRA)) << 20))
    }

    /// Bytes that are free where they go.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn free(&self, places: &Places) -> Result<u64, Refusal> {
        let dir = places.of(&self.name);
        let about = rustix::fs::statvfs(&dir).map_err(|error| at(&dir, &error.into()))?;
        Ok(about.f_bavail.saturating_mul(about.f_frsize))
    }

    /// Refuses to begin what would not end.
    ///
    /// # Errors
    /// [`Refusal::Failed`] with both numbers.
    pub fn check_space(&self, places: &Places) -> Result<(), Refusal> {
        let (needs, free) = (self.needs(), self.free(places)?);
        if free < needs {
            return Err(Refusal::Failed(format!(
                "the guests of {} need {} MiB to be saved in, and {} has {} MiB free: make room, or make {} a link to a larger file system",
                self.name,
                needs >> 20,
                places.of(&self.name).display(),
                free >> 20,
                places.state.display()
            )));
        }
        Ok(())
    }

    pub(super) fn write(&self) -> Result<(), Refusal> {
        fs::create_dir_all(&self.saved).map_err(|error| at(&self.saved, &error))?;
        let text = serde_json::to_string_pretty(self).map_err(|error| Refusal::Failed(error.to_string()))?;
        places::write(&self.saved.join(JOURNAL), text.as_bytes())
    }

    pub(super) fn read(places: &Places, name: &str) -> Result<Option<Plan>, Refusal> {
        let path = places.saved(name).join(JOURNAL);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(|error| at(&path, &error))?;
        let plan: Plan =
            serde_json::from_str(&text).map_err(|error| Refusal::Failed(format!("{}: {error}", path.display())))?;
        Ok(Some(Plan { saved: places.saved(name), cfg: places.cfg(name), name: name.to_owned(), ..plan }))
    }

    /// Everything went well: nothing of it is needed any more.
    pub(super) fn forget(&self) -> Result<(), Refusal> {
        fs::remove_dir_all(&self.saved).map_err(|error| at(&self.saved, &error))
    }
}

/// A step with the plan that it is of.
#[derive(Debug)]
pub struct Described<'a> {
    plan: &'a Plan,
    step: &'a Step,
}

impl fmt::Display for Described<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan;
        let name = &plan.name;
        let xl = |words: &[&str]| line(words);
        match self.step {
            Step::Save(guest) => {
                let file = plan.fresh(guest).display().to_string();
                write!(out, "{}    # {}", xl(&["save", &guest.domid.to_string(), &file]), guest.name)
            }
            Step::Stop(domid) => {
                write!(
                    out,
                    "{}    # once {name} serves nobody; wait for its end",
                    xl(&["shutdown", &domid.to_string()])
                )
            }
            Step::Switch => write!(out, "image of {name}: {} instead of {}", plan.to, plan.from),
            Step::Start => {
                write!(out, "{}    # wait until it is ready", xl(&["create", &plan.cfg.display().to_string()]))
            }
            Step::Restore(guest) => {
                let file = plan.fresh(guest).display().to_string();
                write!(out, "{}    # {}", xl(&["restore", "-p", &file]), guest.name)
            }
            Step::Unpause(guest) => write!(out, "{}", xl(&["unpause", &guest.name])),
            Step::Connect(guest) => write!(out, "wait until every device of {} is Connected", guest.name),
        }
    }
}
