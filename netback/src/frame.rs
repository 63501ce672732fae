//! Where a turn's packets lie in the thread's own memory: their first bytes, and whole frames for those that somebody
//! has to work on.
//!
//! ```text
//! 0 ..            HEADS heads:   [4 bytes: a tag to be put in][128 bytes: what is looked at]
//! FRAMES_AT ..    frames of 17 pages: [10 bytes: virtio header, ends where the frame begins] at byte 4086
//! ```
//! A frame begins at a page border, so that each page of it is one element of a grant copy.

use grant::PAGE_SIZE;

use crate::packet::{HEADERS, VLAN_TAG};
use crate::proto::MAX_TX_SIZE;

/// Packets of one turn.
pub const HEADS: usize = 64;
/// Bytes from one head to the next.
const HEAD: usize = VLAN_TAG + HEADERS;
const FRAMES_AT: usize = (HEADS * HEAD).next_multiple_of(PAGE_SIZE);
/// Bytes of a frame's place: a page that ends with the virtio header and a tag's worth of room, and the largest packet.
pub const FRAME: usize = PAGE_SIZE + (MAX_TX_SIZE + VLAN_TAG).next_multiple_of(PAGE_SIZE);
/// Frames at a time.
pub const FRAMES: usize = 96;
/// Pages of all of it.
pub const ARENA_PAGES: usize = (FRAMES_AT + FRAMES * FRAME) / PAGE_SIZE;

/// Where the tag of packet `number` is put.
pub fn tag_at(number: usize) -> usize {
    number * HEAD
}

/// Where the first bytes of packet `number` are.
pub fn head_at(number: usize) -> usize {
    number * HEAD + VLAN_TAG
}

/// The packet whose first bytes are at `at`.
pub fn head_of(at: usize) -> usize {
    at / HEAD
}

/// One whole frame's place.
#[derive(Debug, PartialEq, Eq)]
pub struct FrameId(u16);

impl FrameId {
    /// Where the frame begins: a page border.
    pub fn at(&self) -> usize {
        FRAMES_AT + usize::from(self.0) * FRAME + PAGE_SIZE
    }
}

/// The places that are free.
pub struct Frames {
    free: Vec<u16>,
}

impl Default for Frames {
    fn default() -> Frames {
        Frames { free: (0..FRAMES as u16).rev().collect() }
    }
}

impl Frames {
    /// A place, or none until one is given back.
    pub fn take(&mut self) -> Option<FrameId> {
        self.free.pop().map(FrameId)
    }

    /// Gives a place back.
    pub fn give(&mut self, frame: FrameId) {
        debug_assert!(!self.free.contains(&frame.0), "given back twice");
        self.free.push(frame.0);
    }
}
