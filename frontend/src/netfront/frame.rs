//! A packet on its way to the backend, and one that came from it.

use netback::packet::{Hash, Mac, Offload};

/// A packet to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// All of it, from its Ethernet header on.
    pub bytes: Vec<u8>,
    /// The work that is left to the backend.
    pub offload: Offload,
    /// Where it is cut into fragments: their lengths, each at most a page and together all of it. Empty: at each page.
    pub cuts: Vec<usize>,
    /// First byte of each fragment in its page.
    pub offset: usize,
    /// It only asks for a group (true), or gives one up.
    pub group: Option<(bool, Mac)>,
}

impl Frame {
    /// A packet with nothing left to do.
    pub fn new(bytes: Vec<u8>) -> Frame {
        Frame { bytes, ..Frame::default() }
    }

    /// The same with work left.
    #[must_use]
    pub fn with(mut self, offload: Offload) -> Frame {
        self.offload = offload;
        self
    }

    /// The same, cut into these fragments.
    #[must_use]
    pub fn cut(mut self, cuts: Vec<usize>) -> Frame {
        self.cuts = cuts;
        self
    }

    /// Asks for a group, or gives it up.
    pub fn group(add: bool, group: Mac) -> Frame {
        Frame { group: Some((add, group)), ..Frame::default() }
    }

    /// The lengths of its fragments.
    pub(super) fn fragments(&self) -> Vec<usize> {
        if self.cuts.is_empty() {
            let page = grant::PAGE_SIZE - self.offset;
            return self.bytes.chunks(page).map(<[u8]>::len).collect();
        }
        self.cuts.clone()
    }
}

/// A packet that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// All of it.
    pub bytes: Vec<u8>,
    /// The work that is left to us.
    pub offload: Offload,
    /// Its hash.
    pub hash: Option<Hash>,
    /// Slots that it took.
    pub slots: usize,
}
