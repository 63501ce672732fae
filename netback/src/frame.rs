//! Where a turn's packets lie in the thread's own memory: their first bytes, and whole frames for those that somebody
//! has to work on.
//!
//! ```text
//! 0 ..            HEADS heads:   [4 bytes: a tag to be put in][128 bytes: what is looked at]
//! FRAMES_AT ..    frames: [a page that ends with a virtio header and room for a tag][17 pages: the frame]
//! ```
//! A frame for a guest begins at a page border, so that each page of it is one element of a grant copy; one of a guest's
//! wherever in the first of its pages suits ([`in_page`]).

use grant::PAGE_SIZE;
use grant::exchange::Place;

use crate::packet::{HEADERS, VLAN_TAG};
use crate::proto::MAX_TX_SIZE;
use crate::receive::Piece;

/// Packets of one turn.
pub const HEADS: usize = 64;
/// Bytes from one head to the next.
const HEAD: usize = VLAN_TAG + HEADERS;
const FRAMES_AT: usize = (HEADS * HEAD).next_multiple_of(PAGE_SIZE);
/// Bytes of a frame's place: a page that ends with the virtio header and a tag's worth of room, and the largest packet.
pub const FRAME: usize = PAGE_SIZE + (MAX_TX_SIZE + VLAN_TAG).next_multiple_of(PAGE_SIZE);
// The largest packet fits behind the first page's last byte, too.
const _: () = assert!(2 * PAGE_SIZE - 1 + MAX_TX_SIZE <= FRAME);
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

/// Byte of a page at which a packet is to begin for its longest piece to lie in a page of ours as it does in the guest's: an
/// element of a grant copy crosses no border on either side, and the pieces after it mostly go on from page to page.
pub fn in_page(pieces: &[Piece]) -> usize {
    let (mut before, mut longest, mut begin) = (0, 0, 0);
    for piece in pieces {
        if let Place::Peer { offset, .. } = piece.at
            && piece.len > longest
        {
            longest = piece.len;
            begin = (usize::from(offset) + PAGE_SIZE - before % PAGE_SIZE) % PAGE_SIZE;
        }
        before += piece.len as usize;
    }
    begin
}

#[cfg(test)]
mod tests {
    use grant::GrantRef;
    use grant::exchange::PeerId;

    use super::*;

    /// Page borders that pieces cross, when a packet that begins at `begin` is copied.
    fn crossed(pieces: &[Piece], begin: usize) -> usize {
        let (mut at, mut crossed) = (begin, 0);
        for Piece { len, .. } in pieces {
            let end = at + *len as usize;
            crossed += (end - 1) / PAGE_SIZE - at / PAGE_SIZE;
            at = end;
        }
        crossed
    }

    #[test]
    fn a_packet_begins_where_its_pages_are_pages_of_ours() {
        let peer = PeerId(0);
        let piece = |offset: u16, len: u32| Piece { at: Place::Peer { peer, gref: GrantRef(9), offset }, len };
        let head = Piece { at: Place::Ours(4), len: 128 };
        // As Linux sends 28 KiB of TCP: headers apart, payload from the middle of a page on, 62 bytes of it looked at.
        let mut tcp = vec![head, piece(1062, 3034)];
        tcp.extend([piece(0, 4096); 5]);
        tcp.push(piece(0, 900));
        assert_eq!((crossed(&tcp, in_page(&tcp)), crossed(&tcp, 0)), (0, 5));
        for (pieces, begin) in [
            (vec![head], 0),
            (vec![head, piece(128, 1386)], 0),
            (vec![head, piece(100, 1386)], PAGE_SIZE - 28),
            (vec![head, piece(4000, 96), piece(0, 4096), piece(0, 4096)], PAGE_SIZE - 224),
        ] {
            assert_eq!((in_page(&pieces), crossed(&pieces[1..], begin + 128)), (begin, 0), "{pieces:?}");
        }
    }
}
