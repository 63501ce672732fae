//! Who may do what to a node.

use super::tree::{Look, Node, parent};
use crate::Permission;
use crate::wire::ErrorName;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// The domain.
    pub domid: u16,
    /// The domain it acts for as well (SET_TARGET): a device model's guest.
    pub target: Option<u16>,
}

impl Who {
    /// dom0, who may do everything and has no limits.
    pub const DOM0: Who = Who { domid: 0, target: None };

    /// A domain that acts for nobody else.
    #[cfg(test)]
    pub fn domain(domid: u16) -> Who {
        Who { domid, target: None }
    }

    /// True for the one that may do everything.
    pub fn is_dom0(self) -> bool {
        self.domid == 0
    }

    fn is(self, domid: u16) -> bool {
        self.domid == domid || self.target == Some(domid)
    }
}

/// What is asked of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To read it.
    Read,
    /// To write it.
    Write,
    /// To own it.
    Own,
}

/// What somebody may do, as an entry for it: the owner everything, one with an entry what that says, the rest what the
/// owner's letter says. dom0 may do everything.
pub fn allowed(perms: &[Permission], who: Who) -> Permission {
    match perms.split_first() {
        _ if who.is_dom0() => Permission::both(0),
        None => Permission::none(who.domid),
        Some((owner, _)) if who.is(owner.domid) => Permission::both(who.domid),
        Some((owner, others)) => *others.iter().find(|entry| who.is(entry.domid)).unwrap_or(owner),
    }
}

/// True when the node gives somebody what it needs.
pub fn permits(node: &Node, who: Who, need: Need) -> bool {
    let may = allowed(&node.perms, who);
    match need {
        Need::Read => may.read,
        Need::Write => may.write,
        Need::Own => owns(&node.perms, who),
    }
}

/// True for the owner, whose entry is the first, and for dom0.
pub fn owns(perms: &[Permission], who: Who) -> bool {
    who.is_dom0() || perms.first().is_some_and(|owner| who.is(owner.domid))
}

/// How a missing node is reported: as missing to those whom what is above it would have given what they need, else as
/// forbidden, so that names do not leak.
pub fn missing(view: &mut (impl Look + ?Sized), path: &str, who: Who, need: Need) -> ErrorName {
    let mut above = parent(path);
    loop {
        match view.get(above) {
            // Who may write what is above may know, though only an owner may give rights.
            Some(node) if permits(&node, who, need) || need == Need::Own && permits(&node, who, Need::Write) => {
                return ErrorName::Enoent;
            }
            Some(_) => return ErrorName::Eacces,
            None if above == "/" => return ErrorName::Enoent,
            None => above = parent(above),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_entry_and_default_in_this_order() {
        let perms: Vec<Permission> = ["r3", "n5", "b7"].iter().map(|text| text.parse().unwrap()).collect();
        let may = |who| (allowed(&perms, who).read, allowed(&perms, who).write);
        assert_eq!(may(Who::DOM0), (true, true));
        assert_eq!(may(Who::domain(3)), (true, true));
        assert_eq!(may(Who::domain(5)), (false, false));
        assert_eq!(may(Who::domain(7)), (true, true));
        assert_eq!(may(Who::domain(9)), (true, false));
        assert!(!allowed(&[], Who::domain(4)).read);
        let model_of = |target| Who { domid: 9, target: Some(target) };
        assert_eq!(may(model_of(3)), (true, true), "as the owner it acts for");
        assert_eq!(may(model_of(5)), (false, false));
        assert_eq!(may(model_of(8)), (true, false));
    }
}
