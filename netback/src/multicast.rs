//! The groups that a frontend has asked for (`feature-multicast-control`, netif.h).

use crate::packet::Mac;

/// Most groups of one card, as in Linux's backend.
pub const MAX_GROUPS: usize = 64;

/// The groups of one card.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    /// It wants only those that it has asked for.
    controlled: bool,
    groups: Vec<Mac>,
}

impl Groups {
    /// The frontend wants only what it asks for, or everything again. What it has asked for is kept.
    pub fn control(&mut self, controlled: bool) {
        self.controlled = controlled;
    }

    /// It asks for a group; false when that is none, or there are too many.
    pub fn add(&mut self, group: Mac) -> bool {
        if !group.is_group() {
            return false;
        }
        let known = self.groups.contains(&group);
        if !known && self.groups.len() < MAX_GROUPS {
            self.groups.push(group);
            return true;
        }
        known
    }

    /// It does not want a group any more; it may never have.
    pub fn remove(&mut self, group: Mac) {
        self.groups.retain(|other| *other != group);
    }

    /// Is a frame to this address for it?
    #[inline]
    pub fn wants(&self, destination: Mac) -> bool {
        !self.controlled
            || !destination.is_group()
            || destination == Mac::BROADCAST
            || self.groups.contains(&destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_and_what_is_for_all() {
        let group = |last| Mac([0x33, 0x33, 0, 0, 0, last]);
        let mut groups = Groups::default();
        assert!(groups.wants(group(1)), "nobody controls anything");
        groups.control(true);
        assert!(!groups.wants(group(1)) && groups.wants(Mac::BROADCAST) && groups.wants(Mac([2, 0, 0, 0, 0, 1])));
        assert!(groups.add(group(1)) && groups.add(group(1)) && groups.wants(group(1)));
        assert!(!groups.add(Mac([2, 0, 0, 0, 0, 1])), "one station is no group");
        for last in 2..=64 {
            assert!(groups.add(group(last)));
        }
        assert!(!groups.add(group(65)) && groups.add(group(64)), "64 of them");
        groups.remove(group(1));
        groups.remove(group(1));
        assert!(!groups.wants(group(1)) && groups.add(group(65)));
        groups.control(false);
        assert!(groups.wants(group(99)));
    }
}
