//! What may change while a card is served: its rate, which groups it hears, and the room in front of its packets.
//!
//! ```text
//! frontend: xdp-headroom, Reconfiguring --> worker: Headroom --Reconfigured--> backend: Reconfigured
//! frontend: Connected                   --> backend: Connected
//! ```
//! A frontend waits for Reconfigured without end, so it is answered whatever it has written.

use netback::config::VifName;
use xenstore::Error;
use xenstore::xenbus::XenbusState;
use xenstore::xenbus::backend::Seen;

use super::nodes;
use super::vif::Headroom;
use crate::message::VifOrder;
use crate::supervisor::Supervisor;
use crate::supervisor::worker::Life;

impl Supervisor {
    /// Follows what has changed of a card that is served.
    pub(super) fn follow(&mut self, name: VifName, seen: &Seen) -> Result<(), Error> {
        let Some(vif) = self.vifs.vifs.get_mut(&name).filter(|vif| vif.is_served()) else { return Ok(()) };
        let changed = std::mem::take(&mut vif.changed);
        if changed.rate {
            self.follow_rate(name)?;
        }
        if changed.multicast {
            self.follow_multicast(name)?;
        }
        self.follow_headroom(name, seen)
    }

    fn follow_rate(&mut self, name: VifName) -> Result<(), Error> {
        let read = nodes::describe(&mut self.store, name)?;
        let network = self.network_of_vif(name).cloned();
        let params = read.and_then(|about| match &network {
            Some(network) => Ok((super::steps::params(network, &about).rate, about)),
            None => Err("it has no network".into()),
        });
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        let (rate, about) = match params {
            Ok(params) => params,
            Err(why) => {
                if vif.trouble == why {
                    return Ok(());
                }
                vif.trouble.clone_from(&why);
                self.say_of_vif(name, &format!("its rate stays as it is: {why}"));
                return Ok(());
            }
        };
        vif.trouble.clear();
        if vif.rate == rate {
            return Ok(());
        }
        vif.rate = rate;
        vif.about = Some(about);
        self.order(name, &VifOrder::Rate { vif: name, rate });
        let text = rate.map_or("none".to_owned(), |rate| format!("{} bytes in {} us", rate.bytes, rate.interval_us));
        self.tell_of_vif(name, &format!("its rate is {text} now"));
        Ok(())
    }

    fn follow_multicast(&mut self, name: VifName) -> Result<(), Error> {
        // Something else than a number is as good as nothing.
        let control = nodes::multicast(&mut self.store, name)?.unwrap_or(false);
        let offered = self.network_of_vif(name).is_some_and(|network| network.offer().multicast_control);
        let chosen = self.vifs.vifs.get_mut(&name).and_then(|vif| vif.negotiated.as_mut());
        if let Some(chosen) = chosen.filter(|chosen| offered && chosen.features.multicast_control != control) {
            chosen.features.multicast_control = control;
            self.order(name, &VifOrder::Multicast { vif: name, control });
        }
        Ok(())
    }

    fn follow_headroom(&mut self, name: VifName, seen: &Seen) -> Result<(), Error> {
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        match (vif.headroom, seen.frontend) {
            (Headroom::Settled, XenbusState::Reconfiguring) => self.ask_headroom(name, true)?,
            (Headroom::Done, XenbusState::Reconfiguring) => {
                vif.headroom = Headroom::Told;
                nodes::step(&mut self.store, name, XenbusState::Connected, XenbusState::Reconfigured)?;
            }
            // It did not wait.
            (Headroom::Done, _) => vif.headroom = Headroom::Settled,
            // Also where whoever was here before us has told it.
            (Headroom::Told | Headroom::Settled, XenbusState::Connected)
                if seen.backend == Some(XenbusState::Reconfigured) =>
            {
                vif.headroom = Headroom::Settled;
                nodes::step(&mut self.store, name, XenbusState::Reconfigured, XenbusState::Connected)?;
                // It may have asked for more while it could still read Reconfigured.
                self.ask_headroom(name, false)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Tells the worker which headroom the frontend wants; without an `answer` to give only what is new.
    fn ask_headroom(&mut self, name: VifName, answer: bool) -> Result<(), Error> {
        let read = nodes::headroom(&mut self.store, name)?;
        let offered = self.network_of_vif(name).is_some_and(|network| network.offer().xdp_headroom);
        let Some(vif) = self.vifs.vifs.get_mut(&name) else { return Ok(()) };
        let old = vif.negotiated.as_ref().map_or(0, |chosen| chosen.features.xdp_headroom);
        let headroom = *read.as_ref().unwrap_or(&old);
        if answer || offered && headroom != old {
            vif.headroom = Headroom::Asked;
            self.order(name, &VifOrder::Headroom { vif: name, headroom });
        }
        if let Err(why) = read {
            self.say_of_vif(name, &format!("its headroom stays as it is: {why}"));
        }
        Ok(())
    }

    /// Tells a card's worker; one that cannot be told is of no use to its other cards either.
    fn order(&mut self, name: VifName, order: &VifOrder) {
        let worker = self.vifs.vifs.get(&name).and_then(|vif| vif.worker);
        let Some(switch) = worker.and_then(|id| self.vifs.workers.get_mut(&id)) else { return };
        if switch.worker.life == Life::Running
            && let Err(error) = switch.worker.send(order, &[])
        {
            switch.worker.kill(&format!("it takes no messages ({error})"));
        }
    }
}
