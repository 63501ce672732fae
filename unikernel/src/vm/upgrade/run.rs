//! An upgrade, step by step.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use xenstore::xenbus::XenbusState;
use xenstore::{Client, Error};

use super::super::places::{at, point};
use super::super::xl::Xl;
use super::super::{Places, Record, consumers, start, stop};
use super::plan::{Guest, Plan, Step};
use crate::device::Device;
use crate::store::Nodes;
use crate::toolstack::look::Seen;
use crate::toolstack::{Paths, Refusal};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// What an upgrade works on.
pub struct Upgrade<'a> {
    /// Where the VM's files are.
    pub places: &'a Places,
    /// dom0's store.
    pub store: &'a mut Client,
    /// The VM as it was created.
    pub record: &'a Record,
    /// How long each part may take.
    pub wait: Duration,
    /// Hears each step.
    pub say: &'a mut dyn FnMut(&str),
}

impl Upgrade<'_> {
    /// Does what the plan says; when a step fails, the old image and all guests on it are brought back.
    ///
    /// # Errors
    /// What failed, and how things are now.
    pub fn run(&mut self, plan: &Plan) -> Result<(), Refusal> {
        let xl = Xl::default();
        plan.check_space(self.places)?;
        if plan.domid.is_none() {
            return switch(self.places, &plan.name, &plan.to, Some(&plan.from));
        }
        plan.write()?;
        for step in plan.steps() {
            (self.say)(&plan.describe(&step).to_string());
            if let Err(why) = self.take(&step, plan, &xl) {
                (self.say)(&format!("{why}: going back to image {}", plan.from));
                return Err(self.after(plan, why));
            }
        }
        plan.forget()
    }

    fn take(&mut self, step: &Step, plan: &Plan, xl: &Xl) -> Result<(), Refusal> {
        let Upgrade { places, record, wait, .. } = *self;
        match step {
            Step::Save(guest) => xl.save(&guest.name, &plan.fresh(guest)),
            Step::Stop(domid) => {
                let_go(self.store, &plan.name, *domid, wait)?;
                stop::run(xl, self.store, &plan.name, false, wait, self.say)
            }
            Step::Switch => switch(places, &plan.name, &plan.to, Some(&plan.from)),
            Step::Start => start::run(places, xl, self.store, record, wait).map(drop),
            Step::Restore(guest) => xl.run(&["restore", "-p", &plan.fresh(guest).display().to_string()]),
            Step::Unpause(guest) => unpause(xl, plan, guest),
            Step::Connect(guest) => connected(xl, self.store, guest, wait),
        }
    }
}

/// Points `current` to an image and `previous` to the one before.
pub(super) fn switch(places: &Places, name: &str, to: &str, from: Option<&str>) -> Result<(), Refusal> {
    point(&places.current(name), to)?;
    from.map_or(Ok(()), |from| point(&places.previous(name), from))
}

/// From here on the file is not restored again.
pub(super) fn unpause(xl: &Xl, plan: &Plan, guest: &Guest) -> Result<(), Refusal> {
    let (fresh, ran) = (plan.fresh(guest), plan.ran(guest));
    fs::rename(&fresh, &ran).map_err(|error| at(&fresh, &error))?;
    fs::File::open(&plan.saved).and_then(|dir| dir.sync_all()).map_err(|error| at(&plan.saved, &error))?;
    xl.run(&["unpause", &guest.name])
}

/// Waits until the VM has no device left: then its last I/O has ended, which it proves before it removes one.
fn let_go(store: &mut Client, name: &str, domid: u16, wait: Duration) -> Result<(), Refusal> {
    let deadline = Instant::now() + wait;
    loop {
        let users = consumers::of(store, domid)?;
        if users.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let users = consumers::names(&users);
            return Err(Refusal::TimedOut(format!("{name} has not let go of {users} after {} s", wait.as_secs())));
        }
        sleep(PAUSE);
    }
}

/// Waits until every device of a guest is Connected, whoever serves it.
pub(super) fn connected(xl: &Xl, store: &mut Client, guest: &Guest, wait: Duration) -> Result<(), Refusal> {
    let deadline = Instant::now() + wait;
    loop {
        let Some(running) = xl.find(&guest.name)? else {
            return Err(Refusal::Failed(format!("{} has ended after it was restored", guest.name)));
        };
        let Some(why) = unconnected(store, running.domid)? else { return Ok(()) };
        if Instant::now() >= deadline {
            let (name, seconds) = (&guest.name, wait.as_secs());
            return Err(Refusal::TimedOut(format!("{name} has not come back after {seconds} s: {why}")));
        }
        sleep(PAUSE);
    }
}

fn unconnected(store: &mut Client, guest: u16) -> Result<Option<String>, Error> {
    for class in Device::CLASSES {
        let root = format!("/libxl/{guest}/device/{class}");
        for devid in store.list(&root)? {
            let backend = store.text(&format!("{root}/{devid}/backend"))?.unwrap_or_default();
            let service = backend.strip_prefix("/local/domain/").and_then(|path| path.split('/').next()?.parse().ok());
            let device = devid.parse().ok().and_then(|devid| Device::new(class, devid));
            let (Some(service), Some(device)) = (service, device) else { continue };
            let seen = Seen::read(store, &Paths::new(guest, service, device))?;
            if (seen.backend, seen.frontend) != (XenbusState::Connected, XenbusState::Connected) {
                return Ok(Some(format!("{device}: {}", seen.describe())));
            }
        }
    }
    Ok(None)
}
