//! Looking into a xenstore, and putting it back as it was: what `windsor xenstore` is made of.
//!
//! ```text
//!   text    values as Debian's xenstore-* programs write and read them
//!   tree    a part of the store, as read
//!   list    how xenstore-ls shows it
//!   dump    a part of the store as a file, without loss
//!   restore the file put back: only what differs is touched
//!   check   which device nodes break the xenbus protocol
//! ```

pub mod check;
pub mod dump;
pub mod list;
pub mod restore;
pub mod text;
pub mod tree;
