//! Service VMs as dom0 keeps them: what each is made of, its images, and its life through `xl`.
//!
//! ```text
//! /etc/windsor/NAME.toml                     the VM's configuration, the operator's
//! /var/lib/windsor/NAME/vm.json              what it was created with
//!                       NAME.cfg             for `xl create`, written from that
//!                       images/ID/           an image, as `windsor image build` makes it
//!                       images/current       link to the one that NAME.cfg boots
//!                       images/previous      link to the one before an upgrade
//!                       saved/GUEST.save     guests on their way from one image to the next
//! ```
//!
//! `xl` is run as a program, like an operator would; nothing here is linked to libxl.

pub mod consumers;
pub mod create;
pub mod list;
pub mod pci;
pub mod places;
pub mod record;
pub mod rm;
pub mod start;
pub mod stop;
pub mod upgrade;
pub mod xl;

pub use places::Places;
pub use record::Record;
