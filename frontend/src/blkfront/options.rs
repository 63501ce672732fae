//! The widths of a blkfront: every choice that a real one makes somewhere, as a switch.

use blkback::proto::Abi;

/// What our side wants. The backend's offer bounds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Pages per ring as a power of two, 0..=4.
    pub ring_order: u8,
    /// Keep grants, if the backend does too.
    pub persistent: bool,
    /// Most segments of an indirect request; up to 11 means none.
    pub max_indirect: u16,
    /// Rings, at least 1.
    pub queues: u16,
    /// Layout of the rings.
    pub abi: Abi,
    /// Where the indexes of a fresh ring start: any number is right.
    pub first_index: u32,
    /// Writes `ring-page-order` even for one page, so that `ring-ref0` replaces `ring-ref`.
    pub order_key_for_one_page: bool,
    /// Goes from Initialising straight to Connected, as firmware does.
    pub straight_to_connected: bool,
    /// The 512-byte sector of a request's first page at which its data starts, 0..=7: memory in a guest is aligned
    /// to sectors, not to pages.
    pub first_sect: u8,
}

/// What Linux's own frontend wants, but with one ring.
impl Default for Options {
    fn default() -> Options {
        Options {
            ring_order: 0,
            persistent: true,
            max_indirect: 32,
            queues: 1,
            abi: Abi::X86_64,
            first_index: 0,
            order_key_for_one_page: false,
            straight_to_connected: false,
            first_sect: 0,
        }
    }
}
