//! Who may do what to a node.

use super::tree::{Node, View, parent};
use crate::Permission;
use crate::wire::ErrorName;

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

/// What a domain may do, as an entry for it: the owner everything, one with an entry what that says, the rest what the
/// owner's letter says. dom0 may do everything.
pub fn allowed(perms: &[Permission], domid: u16) -> Permission {
    match perms.split_first() {
        _ if domid == 0 => Permission::both(0),
        None => Permission::none(domid),
        Some((owner, _)) if owner.domid == domid => Permission::both(domid),
        Some((owner, others)) => *others.iter().find(|entry| entry.domid == domid).unwrap_or(owner),
    }
}

/// True when the node gives a domain what it needs.
pub fn permits(node: &Node, domid: u16, need: Need) -> bool {
    let may = allowed(&node.perms, domid);
    match need {
        Need::Read => may.read,
        Need::Write => may.write,
        Need::Own => domid == 0 || node.owner() == domid,
    }
}

/// How a missing node is reported: as missing to those whom what is above it would have given what they need, else as
/// forbidden, so that names do not leak.
pub fn missing(view: &mut dyn View, path: &str, domid: u16, need: Need) -> ErrorName {
    let mut above = parent(path);
    loop {
        match view.get(above) {
            Some(node) if permits(&node, domid, need) => return ErrorName::Enoent,
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
        let may = |domid| (allowed(&perms, domid).read, allowed(&perms, domid).write);
        assert_eq!(may(0), (true, true));
        assert_eq!(may(3), (true, true));
        assert_eq!(may(5), (false, false));
        assert_eq!(may(7), (true, true));
        assert_eq!(may(9), (true, false));
        assert!(!allowed(&[], 4).read);
    }
}
