//! The way back: from any point of an upgrade to the old image with every guest on it.

use super::super::xl::{Running, Xl};
use super::super::{start, stop};
use super::plan::{Guest, Plan};
use super::run::{Upgrade, switch, unpause};
use crate::toolstack::Refusal;

impl Upgrade<'_> {
    /// Goes back because of `why`, and returns what to tell the operator.
    pub(super) fn after(&mut self, plan: &Plan, why: Refusal) -> Refusal {
        let name = &plan.name;
        let guests: Vec<&str> = plan.guests.iter().map(|guest| guest.name.as_str()).collect();
        let guests = if guests.is_empty() { "no guest".to_owned() } else { guests.join(", ") };
        let text = match self.go_back(plan) {
            Ok(()) => format!("{name} was not upgraded: {why}; image {} serves {guests} as before", plan.from),
            Err(worse) => format!(
                "{name} was not upgraded: {why}; and going back failed: {worse}; guests may be saved in {}, `windsor vm rollback {name}` tries again",
                plan.saved.display()
            ),
        };
        match why {
            Refusal::TimedOut(_) => Refusal::TimedOut(text),
            _ => Refusal::Failed(text),
        }
    }

    /// Goes on with the way back that a crash of dom0, or an error, has interrupted. False if there is none.
    ///
    /// # Errors
    /// [`Refusal`]; it can be tried again.
    pub fn resume(&mut self) -> Result<bool, Refusal> {
        let Some(plan) = Plan::read(self.places, &self.record.name)? else { return Ok(false) };
        self.go_back(&plan)?;
        Ok(true)
    }

    fn go_back(&mut self, plan: &Plan) -> Result<(), Refusal> {
        let xl = Xl::default();
        let Upgrade { places, record, wait, .. } = *self;
        let domains = xl.list()?;
        let old = domains.iter().any(|domain| domain.name == plan.name && Some(domain.domid) == plan.domid);
        if !old {
            for guest in &plan.guests {
                take_back(&xl, plan, guest, self.say)?;
            }
            if xl.find(&plan.name)?.is_some() {
                stop::run(&xl, self.store, &plan.name, true, wait, self.say)?;
            }
            switch(places, &plan.name, &plan.from, None)?;
            start::run(places, &xl, self.store, record, wait)?;
        }
        let mut failed = Vec::new();
        for guest in &plan.guests {
            if let Err(why) = bring_back(&xl, plan, guest) {
                (self.say)(&format!("{}: {why}", guest.name));
                failed.push(guest.name.as_str());
            }
        }
        match failed.is_empty() {
            true => plan.forget(),
            false => Err(Refusal::Failed(format!("not restored: {}", failed.join(", ")))),
        }
    }
}

/// A guest that is on the new image is saved from there, unless it has not run there yet.
fn take_back(xl: &Xl, plan: &Plan, guest: &Guest, say: &mut dyn FnMut(&str)) -> Result<(), Refusal> {
    let Some(running) = xl.find(&guest.name)? else { return Ok(()) };
    if !plan.fresh(guest).exists() {
        say(&format!("saving {} again", guest.name));
        return xl.save(&guest.name, &plan.fresh(guest));
    }
    match is_untouched(&running) {
        true => xl.run(&["destroy", &running.domid.to_string()]),
        // Somebody else has started it: it is not ours to end, and what was saved is not to be restored beside it.
        false => Err(Refusal::Failed(format!(
            "{} runs (domain {}) although {} was saved and never restored: keep one of them, and delete or `xl destroy` the other",
            guest.name,
            running.domid,
            plan.fresh(guest).display()
        ))),
    }
}

/// Restored and not let go yet.
fn is_untouched(running: &Running) -> bool {
    running.state() == "paused"
}

/// A guest that is nowhere is restored. One that runs is left alone.
fn bring_back(xl: &Xl, plan: &Plan, guest: &Guest) -> Result<(), Refusal> {
    if xl.find(&guest.name)?.is_some() {
        return Ok(());
    }
    let file = plan.fresh(guest);
    if !file.exists() {
        return Err(Refusal::NotFound(format!("it has ended, and {} is not there", file.display())));
    }
    xl.run(&["restore", "-p", &file.display().to_string()])?;
    unpause(xl, plan, guest)
}
