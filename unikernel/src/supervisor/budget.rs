//! Memory and grants of the service VM, and each guest's part of them: a disk is offered no wider than what is left can
//! hold, so nothing fails half-way. Nor is it offered more than its share, so that every volume finds room: there is one
//! for each.

use blkback::limit::{Need, Width};

use super::Supervisor;
use super::nodes::Name;

impl Supervisor {
    /// How wide a disk may be now.
    ///
    /// # Errors
    /// Which budget has no room for the smallest one, as a sentence.
    pub(super) fn width(&self, name: Name) -> Result<Width, String> {
        let worker = Need::worker(self.config.backend.worker_threads());
        let (mut all, mut own) = (Need::default(), worker);
        let mut guests = std::collections::BTreeSet::from([name.guest]);
        for (other, device) in self.devices.iter().filter(|(other, device)| **other != name && device.width.is_some()) {
            guests.insert(other.guest);
            all = all.and(device.need);
            if other.guest == name.guest {
                own = own.and(device.need);
            }
        }
        let all = (0..guests.len()).fold(all, |all, _| all.and(worker));
        let (vm, guest) = self.config.backend.budgets();
        let room = |budget: Need, used: Need| Need {
            memory: budget.memory.saturating_sub(used.memory),
            grants: budget.grants.saturating_sub(used.grants),
        };
        let (of_vm, of_guest) = (room(vm, all), room(guest, own));
        let least = Need { memory: of_vm.memory.min(of_guest.memory), grants: of_vm.grants.min(of_guest.grants) };
        let whole = Width::whole(self.config.backend.offer());
        let volumes = self.config.volumes.len().max(1) as u64;
        let share = |budget: Need| {
            let rest = room(budget, worker);
            Need { memory: rest.memory / volumes, grants: rest.grants / volumes }
        };
        let (of_all, of_own) = (share(vm), share(guest));
        let share = Need {
            memory: least.memory.min(of_all.memory).min(of_own.memory),
            grants: least.grants.min(of_all.grants).min(of_own.grants),
        };
        whole.within(share).or_else(|| whole.smallest().within(least)).ok_or_else(|| {
            let rest = |room: Need| Need { memory: room.memory, grants: u64::MAX };
            let (whose, keys, used, budget, room) = match whole.within(of_vm) {
                None => ("this service VM", ("memory", "grants"), all, vm, of_vm),
                Some(_) => ("this guest", ("guest-memory", "guest-grants"), own, guest, of_guest),
            };
            match whole.within(rest(room)) {
                None => format!(
                    "no memory left for another disk: {} of the {} KiB that {whose} may use are spoken for (raise `{}` under [backend])",
                    used.memory >> 10,
                    budget.memory >> 10,
                    keys.0
                ),
                Some(_) => format!(
                    "no grants left for another disk: {} of the {} that {whose} may have mapped are spoken for (raise `{}` under [backend])",
                    used.grants, budget.grants, keys.1
                ),
            }
        })
    }
}
