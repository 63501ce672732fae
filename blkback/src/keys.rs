//! The xenstore keys of a virtual disk: what a backend publishes and what its frontend answers (block.md A3, A4).
//!
//! Everything here is pure: the caller reads the store, in one transaction, and hands over a function that looks a
//! key up. A frontend is hostile: every number is bounded before anything is allocated for it, and an error never
//! carries more than a few printable bytes of a value.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io;

use crate::config::{DiskParams, Negotiated, Offer, QueueKeys};
use crate::proto::{Abi, SECTOR_SIZE, VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE};

/// `feature-persistent`, written by both sides.
pub const FEATURE_PERSISTENT: &str = "feature-persistent";
/// `max-ring-page-order`, written by the backend.
pub const MAX_RING_PAGE_ORDER: &str = "max-ring-page-order";
/// `ring-page-order`, written by the frontend.
pub const RING_PAGE_ORDER: &str = "ring-page-order";
/// `multi-queue-max-queues`, written by the backend.
pub const MAX_QUEUES: &str = "multi-queue-max-queues";
/// `multi-queue-num-queues`, written by the frontend.
pub const NUM_QUEUES: &str = "multi-queue-num-queues";
/// `feature-max-indirect-segments`, written by the backend.
pub const MAX_INDIRECT: &str = "feature-max-indirect-segments";

/// Longest value that any of the frontend's keys can need.
const MAX_VALUE: usize = 32;

/// Everything that a disk publishes, before InitWait (Windows' frontend reads most of it as early as that) and again with
/// the step to Connected. Whatever has the value that a frontend assumes without the key is left out: each key is a node
/// of the service VM's quota. The same goes for `max-ring-pages`, the older name of `max-ring-page-order`: who knows only
/// that one has a ring of one page.
pub fn published(offer: &Offer, disk: &DiskParams, cdrom: bool, removable: bool) -> Vec<(&'static str, String)> {
    let mut info = 0;
    for (set, bit) in [(cdrom, VDISK_CDROM), (removable, VDISK_REMOVABLE), (disk.read_only, VDISK_READONLY)] {
        info |= if set { bit } else { 0 };
    }
    let discard = disk.discard.filter(|_| !disk.read_only);
    // With what a frontend takes for granted; none where it insists on the key.
    let keys = [
        (FEATURE_PERSISTENT, flag(offer.persistent), Some("0")),
        (MAX_QUEUES, offer.queues.to_string(), Some("1")),
        (MAX_RING_PAGE_ORDER, offer.max_ring_order.to_string(), Some("0")),
        (MAX_INDIRECT, offer.max_indirect.to_string(), Some("0")),
        ("feature-flush-cache", flag(!disk.read_only), Some("0")),
        ("feature-barrier", flag(disk.barrier && !disk.read_only), Some("0")),
        ("feature-discard", flag(discard.is_some()), Some("0")),
        ("discard-secure", flag(discard.is_some_and(|discard| discard.secure)), Some("0")),
        ("sectors", disk.sectors.to_string(), None),
        // The one logical size that all frontends agree on (block.md A6).
        ("sector-size", SECTOR_SIZE.to_string(), None),
        ("physical-sector-size", disk.physical_sector_size.to_string(), Some("512")),
        ("info", info.to_string(), None),
    ];
    let mut keys: Vec<_> = keys
        .into_iter()
        .filter(|(_, value, default)| Some(value.as_str()) != *default)
        .map(|(key, value, _)| (key, value))
        .collect();
    if let Some(discard) = discard
        && (discard.granularity != SECTOR_SIZE as u32 || discard.alignment != 0)
    {
        // Both or none (blkif.h, note 4).
        keys.push(("discard-granularity", discard.granularity.to_string()));
        keys.push(("discard-alignment", discard.alignment.to_string()));
    }
    keys
}

/// Keys that [`published`] may leave out: what an earlier offer of the same disk may have left there.
pub const OPTIONAL: [&str; 11] = [
    FEATURE_PERSISTENT,
    MAX_QUEUES,
    MAX_RING_PAGE_ORDER,
    MAX_INDIRECT,
    "feature-flush-cache",
    "feature-barrier",
    "feature-discard",
    "discard-secure",
    "physical-sector-size",
    "discard-granularity",
    "discard-alignment",
];

fn flag(on: bool) -> String {
    u8::from(on).to_string()
}

/// Why a frontend's keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The store did not answer.
    #[error("reading the frontend's keys: {0}")]
    Store(#[from] io::Error),
    /// A key that must be there is not (or is empty, which means the same).
    #[error("the frontend did not write {0}")]
    Missing(String),
    /// A value that cannot be.
    #[error("the frontend wrote {key} = {value}: {why}")]
    Bad {
        /// Which key.
        key: String,
        /// What it says, cut and made printable.
        value: Excerpt,
        /// What would have been right.
        why: String,
    },
    /// Two rings on the same page, or a page twice in one ring.
    #[error("the frontend gave grant reference {0} for two pages of its rings")]
    SamePage(u32),
    /// Two queues on the same event channel.
    #[error("the frontend gave event channel {0} for two queues")]
    SameChannel(u32),
}

/// A few bytes of something a peer wrote, safe to print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt(Vec<u8>);

impl Excerpt {
    /// Keeps the first bytes.
    pub fn new(value: &[u8]) -> Excerpt {
        Excerpt(value[..value.len().min(MAX_VALUE)].to_vec())
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// Looks a key up below the frontend's directory; `None` when there is no such key.
pub type Lookup<'a> = dyn FnMut(&str) -> io::Result<Option<Vec<u8>>> + 'a;

impl Negotiated {
    /// Reads and checks what a frontend chose within `offer`. All look-ups must belong to one transaction.
    ///
    /// With one queue, or a ring of one page, a frontend need not say so (xen-blkfront of a crash kernel with one CPU, Windows'
    /// driver of the dump), and what the one before it wrote stands there still. So what was there before (`left`) does not
    /// outweigh what is new.
    ///
    /// # Errors
    /// [`KeyError`]; a conflict of the transaction comes back as [`KeyError::Store`] or when it is committed.
    pub fn read(offer: &Offer, left: &Left, lookup: &mut Lookup<'_>) -> Result<Negotiated, KeyError> {
        let mut keys = Keys { lookup };
        let abi = keys.abi()?;
        let persistent = offer.persistent && keys.feature(FEATURE_PERSISTENT)?;
        let mut order = keys.number(RING_PAGE_ORDER, 0, offer.max_ring_order.into())?;
        let mut count = keys.number(NUM_QUEUES, 1, offer.queues.max(1).into())?.unwrap_or(1);
        if count > 1
            && keys.is_left(left, [NUM_QUEUES, "queue-0/ring-ref", "queue-0/ring-ref0", "queue-0/event-channel"])?
        {
            let own = ["ring-ref", "ring-ref0", "event-channel"];
            count = if keys.is_left(left, own)? { count } else { 1 };
        }
        let (one, first) =
            if count > 1 { ("queue-0/ring-ref", "queue-0/ring-ref0") } else { ("ring-ref", "ring-ref0") };
        if order.is_some() && keys.is_left(left, [RING_PAGE_ORDER, first])? && !keys.is_left(left, [one])? {
            order = None;
        }
        let mut queues = Vec::with_capacity(count as usize);
        for queue in 0..count {
            // One queue, said or unsaid, keeps its keys at the top; several have a directory each.
            let prefix = match count {
                1 => String::new(),
                _ => format!("queue-{queue}/"),
            };
            queues.push(keys.queue(&prefix, order)?);
        }
        distinct(&queues)?;
        Ok(Negotiated { abi, persistent, max_indirect: offer.max_indirect, queues })
    }
}

/// The keys that decide which others count, as they stood when the frontend connected last; empty if it never has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Left(BTreeMap<&'static str, Vec<u8>>);

impl Left {
    const KEYS: [&str; 8] = [
        NUM_QUEUES,
        RING_PAGE_ORDER,
        "ring-ref",
        "ring-ref0",
        "event-channel",
        "queue-0/ring-ref",
        "queue-0/ring-ref0",
        "queue-0/event-channel",
    ];

    /// As they stand now.
    ///
    /// # Errors
    /// What the store says.
    pub fn read(lookup: &mut Lookup<'_>) -> Result<Left, KeyError> {
        let mut keys = Keys { lookup };
        let mut left = BTreeMap::new();
        for key in Left::KEYS {
            if let Some(value) = keys.value(key)? {
                left.insert(key, value);
            }
        }
        Ok(Left(left))
    }
}

/// Pages and channels that serve two masters would let the two corrupt each other.
fn distinct(queues: &[QueueKeys]) -> Result<(), KeyError> {
    let mut pages = HashSet::new();
    let mut channels = HashSet::new();
    for queue in queues {
        if let Some(&twice) = queue.ring_refs.iter().find(|&&page| !pages.insert(page)) {
            return Err(KeyError::SamePage(twice));
        }
        if !channels.insert(queue.event_channel) {
            return Err(KeyError::SameChannel(queue.event_channel));
        }
    }
    Ok(())
}

/// Typed look-ups.
struct Keys<'a, 'b> {
    lookup: &'a mut Lookup<'b>,
}

impl Keys<'_, '_> {
    /// A value without the NUL that some C frontends count in; an empty one is as good as none.
    fn value(&mut self, key: &str) -> Result<Option<Vec<u8>>, KeyError> {
        let Some(mut value) = (self.lookup)(key)? else {
            return Ok(None);
        };
        if value.last() == Some(&0) {
            value.pop();
        }
        Ok((!value.is_empty()).then_some(value))
    }

    /// True when none of `keys` says anything that it did not say before.
    fn is_left<const N: usize>(&mut self, left: &Left, keys: [&str; N]) -> Result<bool, KeyError> {
        for key in keys {
            let value = self.value(key)?;
            if value.is_some() && value.as_ref() != left.0.get(key) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A decimal number within bounds.
    fn number(&mut self, key: &str, min: u32, max: u32) -> Result<Option<u32>, KeyError> {
        let Some(value) = self.value(key)? else {
            return Ok(None);
        };
        match decimal(&value) {
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => {
                let why = match (min, max) {
                    (_, u32::MAX) => format!("not a number from {min}"),
                    _ => format!("not a number from {min} to {max}"),
                };
                Err(KeyError::Bad { key: key.to_owned(), value: Excerpt::new(&value), why })
            }
        }
    }

    fn required(&mut self, key: &str, min: u32) -> Result<u32, KeyError> {
        self.number(key, min, u32::MAX)?.ok_or_else(|| KeyError::Missing(key.to_owned()))
    }

    /// A feature is on only for a plain number other than 0; to leave it off is always safe.
    fn feature(&mut self, key: &str) -> Result<bool, KeyError> {
        Ok(self.value(key)?.and_then(|value| decimal(&value)).is_some_and(|n| n != 0))
    }

    fn abi(&mut self) -> Result<Abi, KeyError> {
        let key = "protocol";
        let Some(value) = self.value(key)? else {
            return Ok(Abi::X86_32);
        };
        std::str::from_utf8(&value).ok().and_then(Abi::from_protocol).ok_or_else(|| KeyError::Bad {
            key: key.to_owned(),
            value: Excerpt::new(&value),
            why: "neither x86_64-abi nor x86_32-abi".to_owned(),
        })
    }

    /// The order's presence, even as 0, decides the names: with the wrong ones we would map a ring that an earlier
    /// frontend left behind (block.md A4.1).
    fn queue(&mut self, prefix: &str, order: Option<u32>) -> Result<QueueKeys, KeyError> {
        let ring_refs = match order {
            None => vec![self.required(&format!("{prefix}ring-ref"), 0)?],
            Some(order) => (0..1u32 << order)
                .map(|page| self.required(&format!("{prefix}ring-ref{page}"), 0))
                .collect::<Result<_, _>>()?,
        };
        // Port 0 is never anybody's.
        let event_channel = self.required(&format!("{prefix}event-channel"), 1)?;
        Ok(QueueKeys { ring_refs, event_channel })
    }
}

/// Digits only: no sign, no space, no second meaning.
fn decimal(value: &[u8]) -> Option<u32> {
    if value.is_empty() || value.len() > 10 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Discard;

    fn read(offer: &Offer, keys: &[(&str, &str)]) -> Result<Negotiated, KeyError> {
        let keys: BTreeMap<_, _> = keys.iter().map(|&(key, value)| (key, value.as_bytes())).collect();
        Negotiated::read(offer, &Left::default(), &mut |key| Ok(keys.get(key).map(|value| value.to_vec())))
    }

    /// What is read of the keys of two kernels, one after the other, if the second removes nothing.
    fn read_over(first: &[(&str, &str)], second: &[(&str, &str)]) -> Negotiated {
        let mut keys: BTreeMap<&str, &[u8]> = first.iter().map(|&(key, value)| (key, value.as_bytes())).collect();
        let left = Left::read(&mut |key| Ok(keys.get(key).map(|value| value.to_vec()))).unwrap();
        keys.extend(second.iter().map(|&(key, value)| (key, value.as_bytes())));
        Negotiated::read(&Offer::default(), &left, &mut |key| Ok(keys.get(key).map(|value| value.to_vec()))).unwrap()
    }

    const TWO_QUEUES: [(&str, &str); 6] = [
        ("multi-queue-num-queues", "2"),
        ("queue-0/ring-ref", "8"),
        ("queue-0/event-channel", "5"),
        ("queue-1/ring-ref", "9"),
        ("queue-1/event-channel", "6"),
        ("protocol", "x86_64-abi"),
    ];

    #[test]
    fn what_the_kernel_before_wrote_does_not_outweigh_what_is_new() {
        let one = [("ring-ref", "20"), ("event-channel", "5")];
        assert_eq!(read_over(&TWO_QUEUES, &one).queues, [QueueKeys { ring_refs: vec![20], event_channel: 5 }]);
        let wide = [("ring-page-order", "1"), ("ring-ref0", "8"), ("ring-ref1", "9"), ("event-channel", "5")];
        assert_eq!(read_over(&wide, &one).queues, [QueueKeys { ring_refs: vec![20], event_channel: 5 }]);
        assert_eq!(read_over(&one, &wide).queues, [QueueKeys { ring_refs: vec![8, 9], event_channel: 5 }]);
    }

    #[test]
    fn who_comes_back_with_the_same_references_is_read_as_before() {
        assert_eq!(read_over(&TWO_QUEUES, &TWO_QUEUES).queues.len(), 2);
        // What is old at the top, from a firmware, is old still.
        let mut both = TWO_QUEUES.to_vec();
        both.extend(ONE_PAGE);
        assert_eq!(read_over(&both, &TWO_QUEUES).queues.len(), 2);
        let wide = [("ring-page-order", "1"), ("ring-ref0", "8"), ("ring-ref1", "9"), ("event-channel", "5")];
        assert_eq!(read_over(&wide, &wide).queues[0].ring_refs, [8, 9]);
    }

    fn says(result: Result<Negotiated, KeyError>) -> String {
        result.expect_err("accepted").to_string()
    }

    const ONE_PAGE: [(&str, &str); 3] = [("ring-ref", "8"), ("event-channel", "5"), ("protocol", "x86_64-abi")];

    #[test]
    fn one_page_and_no_extras() {
        let read = read(&Offer::default(), &ONE_PAGE).unwrap();
        assert_eq!(read.abi, Abi::X86_64);
        assert!(!read.persistent);
        assert_eq!(read.queues, [QueueKeys { ring_refs: vec![8], event_channel: 5 }]);
    }

    #[test]
    fn a_missing_protocol_is_32_bits() {
        let read = read(&Offer::default(), &ONE_PAGE[..2]).unwrap();
        assert_eq!(read.abi, Abi::X86_32);
    }

    #[test]
    fn an_unknown_protocol_is_refused() {
        let text = says(read(&Offer::default(), &[("protocol", "arm-abi")]));
        assert!(text.contains("protocol = \"arm-abi\""), "{text}");
    }

    #[test]
    fn an_empty_value_is_no_value() {
        let keys = [ONE_PAGE[0], ONE_PAGE[1], ("ring-page-order", ""), ("protocol", "")];
        assert_eq!(read(&Offer::default(), &keys).unwrap().queues[0].ring_refs, [8]);
        let text = says(read(&Offer::default(), &[("ring-ref", ""), ("event-channel", "5")]));
        assert_eq!(text, "the frontend did not write ring-ref");
    }

    #[test]
    fn order_zero_renames_the_reference() {
        let stale = [ONE_PAGE[0], ONE_PAGE[1], ("ring-page-order", "0"), ("ring-ref0", "9")];
        assert_eq!(read(&Offer::default(), &stale).unwrap().queues[0].ring_refs, [9]);
        let text = says(read(&Offer::default(), &stale[..3]));
        assert_eq!(text, "the frontend did not write ring-ref0");
    }

    #[test]
    fn every_page_of_a_large_ring_is_read() {
        let keys: Vec<(String, String)> =
            (0..16).map(|page| (format!("ring-ref{page}"), (100 + page).to_string())).collect();
        let mut keys: Vec<_> = keys.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        keys.extend([("ring-page-order", "4"), ("event-channel", "1")]);
        let negotiated = read(&Offer::default(), &keys).unwrap();
        assert_eq!(negotiated.queues[0].ring_refs, (100..116).collect::<Vec<u32>>());
        keys.remove(15);
        assert_eq!(says(read(&Offer::default(), &keys)), "the frontend did not write ring-ref15");
    }

    #[test]
    fn an_order_above_the_offer_is_refused() {
        let offer = Offer { max_ring_order: 2, ..Offer::default() };
        for order in ["3", "31", "32", "4294967295", "4294967296", "-1", "+1", " 1", "1x", "0x1"] {
            let text = says(read(&offer, &[("ring-page-order", order), ("event-channel", "1")]));
            assert!(text.ends_with("not a number from 0 to 2"), "{text}");
        }
    }

    #[test]
    fn one_queue_stands_at_the_top_and_more_have_directories() {
        let one = [ONE_PAGE[0], ONE_PAGE[1], ("multi-queue-num-queues", "1")];
        assert_eq!(read(&Offer::default(), &one).unwrap().queues.len(), 1);
        let two = [
            ("multi-queue-num-queues", "2"),
            ("queue-0/ring-ref", "1"),
            ("queue-0/event-channel", "11"),
            ("queue-1/ring-ref", "2"),
            ("queue-1/event-channel", "12"),
        ];
        let queues = read(&Offer::default(), &two).unwrap().queues;
        assert_eq!(queues[1], QueueKeys { ring_refs: vec![2], event_channel: 12 });
        // Keys at the top do not stand in for a queue's own.
        let mut top = ONE_PAGE.to_vec();
        top.push(("multi-queue-num-queues", "2"));
        assert_eq!(says(read(&Offer::default(), &top)), "the frontend did not write queue-0/ring-ref");
    }

    #[test]
    fn a_number_of_queues_out_of_bounds_is_refused() {
        for queues in ["0", "5", "4294967295"] {
            let text = says(read(&Offer::default(), &[("multi-queue-num-queues", queues)]));
            assert!(text.ends_with("not a number from 1 to 4"), "{text}");
        }
    }

    #[test]
    fn a_page_or_channel_for_two_is_refused() {
        let pages = [("ring-page-order", "1"), ("ring-ref0", "7"), ("ring-ref1", "7"), ("event-channel", "1")];
        assert!(says(read(&Offer::default(), &pages)).contains("grant reference 7"));
        let channels = [
            ("multi-queue-num-queues", "2"),
            ("queue-0/ring-ref", "1"),
            ("queue-0/event-channel", "11"),
            ("queue-1/ring-ref", "2"),
            ("queue-1/event-channel", "11"),
        ];
        assert!(says(read(&Offer::default(), &channels)).contains("event channel 11"));
        assert!(says(read(&Offer::default(), &[("ring-ref", "1"), ("event-channel", "0")])).contains("event-channel"));
    }

    #[test]
    fn persistence_needs_both_sides() {
        let mut keys = ONE_PAGE.to_vec();
        keys.push(("feature-persistent", "1"));
        assert!(read(&Offer::default(), &keys).unwrap().persistent);
        let offer = Offer { persistent: false, ..Offer::default() };
        assert!(!read(&offer, &keys).unwrap().persistent);
        keys[3].1 = "yes";
        assert!(!read(&Offer::default(), &keys).unwrap().persistent);
    }

    #[test]
    fn what_a_peer_wrote_is_printed_short_and_harmless() {
        let value = "\x1b[2J\n".repeat(400);
        let text = says(read(&Offer::default(), &[("protocol", &value)]));
        assert!(text.len() < 250 && text.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{text}");
    }

    #[test]
    fn the_store_s_error_comes_through() {
        let result =
            Negotiated::read(&Offer::default(), &Left::default(), &mut |_| Err(io::ErrorKind::ConnectionReset.into()));
        assert!(matches!(result, Err(KeyError::Store(_))));
    }

    #[test]
    fn what_is_published() {
        let discard = Discard { granularity: 4096, alignment: 512, secure: true, device: true };
        let disk =
            DiskParams { physical_sector_size: 4096, barrier: true, discard: Some(discard), ..DiskParams::plain(16) };
        let keys = published(&Offer::default(), &disk, false, false);
        for (key, value) in [
            (FEATURE_PERSISTENT, "1"),
            (MAX_QUEUES, "4"),
            (MAX_RING_PAGE_ORDER, "4"),
            (MAX_INDIRECT, "256"),
            ("feature-flush-cache", "1"),
            ("feature-barrier", "1"),
            ("feature-discard", "1"),
            ("discard-secure", "1"),
            ("discard-granularity", "4096"),
            ("discard-alignment", "512"),
            ("sectors", "16"),
            ("sector-size", "512"),
            ("physical-sector-size", "4096"),
            ("info", "0"),
        ] {
            assert!(keys.contains(&(key, value.to_owned())), "{key}");
        }
        assert_eq!(keys.len(), 14);
        assert!(OPTIONAL.iter().all(|key| keys.iter().any(|(there, _)| there == key)));
    }

    #[test]
    fn what_a_frontend_assumes_anyway_is_not_published() {
        let offer = Offer { max_ring_order: 0, max_indirect: 0, queues: 1, persistent: false };
        let plain = Discard { granularity: 512, alignment: 0, secure: false, device: false };
        let names = |keys: &[(&'static str, String)]| keys.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        let disk = DiskParams { discard: Some(plain), ..DiskParams::plain(16) };
        let keys = published(&offer, &disk, true, false);
        assert_eq!(names(&keys), ["feature-flush-cache", "feature-discard", "sectors", "sector-size", "info"]);
        let disk = DiskParams { read_only: true, barrier: true, ..disk };
        let keys = published(&offer, &disk, true, false);
        assert_eq!(names(&keys), ["sectors", "sector-size", "info"]);
        assert!(keys.contains(&("info", "5".to_owned())));
    }
}
