//! `windsor vm upgrade`: another image under a VM whose guests go on. Every guest is saved, the VM stopped, the new one
//! started, and all guests are restored there: `backend=NAME` of their disks then means the new one.
//!
//! A guest never runs twice. A file `DOMID.save` has not run since it was written: it is renamed to `DOMID.ran` before the
//! guest is let go, and no file of that name is ever restored. Guests are restored paused, and the first of them runs
//! when all are there. Whatever fails, the old image is started again and the guests are restored on that; those that
//! ran on the new one are saved anew.

mod back;
mod plan;
mod run;

pub use plan::{Guest, Plan, Step};
pub use run::Upgrade;
