//! The special nodes `@introduceDomain` and `@releaseDomain`: nobody reads or writes them, but they have permissions,
//! which say what domains beside dom0 hear of them.

use std::sync::Arc;

use super::perms::{Who, allowed, owns};
use crate::Permission;
use crate::wire::ErrorName;

/// A domain has come.
pub const INTRODUCED: &str = "@introduceDomain";
/// A domain has gone.
pub const RELEASED: &str = "@releaseDomain";

/// Both, with their permissions.
#[derive(Debug)]
pub struct Specials([(&'static str, Arc<[Permission]>); 2]);

impl Specials {
    /// As the C daemon begins: dom0 alone hears.
    pub fn new() -> Specials {
        Specials([INTRODUCED, RELEASED].map(|name| (name, [Permission::none(0)].into())))
    }

    /// SET_PERMS.
    ///
    /// # Errors
    /// `EINVAL` for any other name, and for everybody but dom0 and the domain that it gave the node to.
    pub fn set_perms(&mut self, name: &[u8], perms: Vec<Permission>, who: Who) -> Result<(), ErrorName> {
        let special = self.0.iter_mut().find(|(special, there)| special.as_bytes() == name && owns(there, who));
        let (_, there) = special.ok_or(ErrorName::Einval)?;
        *there = perms.into();
        Ok(())
    }

    /// Who hears of one.
    pub fn is_for(&self, name: &str, who: Who) -> bool {
        self.0.iter().any(|(special, perms)| *special == name && allowed(perms, who).read)
    }

    /// Takes away what a domain that is gone was given.
    pub fn forget_domain(&mut self, domid: u16) {
        for (_, perms) in &mut self.0 {
            let mut first = true;
            let stays = |entry: &&Permission| std::mem::take(&mut first) || entry.domid != domid;
            let mut left: Vec<Permission> = perms.iter().filter(stays).copied().collect();
            left.iter_mut().filter(|entry| entry.domid == domid).for_each(|owner| owner.domid = 0);
            *perms = left.into();
        }
    }
}
