//! The xenstore keys of a disk as its frontend sees them (block.md A3, A4). Pure: the caller brings a function that
//! looks a key up in the backend's directory, and writes what comes back to the frontend's own.
//!
//! A backend may be wrong or worse. What cannot be is an error where guessing could cost data, and the narrowest
//! choice elsewhere.

use blkback::proto::{MAX_INDIRECT_PAGES, MAX_SEGMENTS, SECTOR_SIZE, SEGMENTS_PER_PAGE};

use super::options::Options;

/// Looks a key up below the backend's directory; `None` when there is no such key.
pub type Lookup<'a> = dyn FnMut(&str) -> Result<Option<Vec<u8>>, xenstore::Error> + 'a;

/// Most queues, whatever anybody offers.
const MAX_QUEUES: u16 = 64;
/// Largest ring we lay out: what every known backend takes at most.
const MAX_RING_ORDER: u8 = 4;

/// The rings as they will be laid out; chosen when the backend is in InitWait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rings {
    /// Pages per ring as a power of two.
    pub order: u8,
    /// How many.
    pub queues: u16,
}

impl Rings {
    /// What we want, within what the backend offers. An offer that is missing or makes no sense is the smallest.
    pub fn choose(options: &Options, lookup: &mut Lookup<'_>) -> Result<Rings, xenstore::Error> {
        let order = number(lookup, "max-ring-page-order")?.unwrap_or(0);
        let queues = number(lookup, "multi-queue-max-queues")?.unwrap_or(1);
        let wanted = options.ring_order.min(MAX_RING_ORDER);
        Ok(Rings {
            order: u8::try_from(order).unwrap_or(u8::MAX).min(wanted),
            queues: u16::try_from(queues).unwrap_or(u16::MAX).min(options.queues).clamp(1, MAX_QUEUES),
        })
    }
}

/// One laid out ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingKeys {
    /// References of its pages.
    pub refs: Vec<u32>,
    /// Its event channel.
    pub port: u32,
}

/// The keys that tell the backend of our rings, in the order in which Linux writes them. Their number decides
/// between top-level keys and directories, never the caller.
pub fn ring_keys(options: &Options, order: u8, rings: &[RingKeys]) -> Vec<(String, String)> {
    let mut keys = Vec::new();
    let numbered = order > 0 || options.order_key_for_one_page;
    if numbered {
        keys.push(("ring-page-order".to_owned(), order.to_string()));
    }
    if rings.len() > 1 {
        keys.push(("multi-queue-num-queues".to_owned(), rings.len().to_string()));
    }
    for (queue, ring) in rings.iter().enumerate() {
        let prefix = match rings.len() {
            1 => String::new(),
            _ => format!("queue-{queue}/"),
        };
        for (page, gref) in ring.refs.iter().enumerate() {
            let name = match numbered {
                true => format!("{prefix}ring-ref{page}"),
                false => format!("{prefix}ring-ref"),
            };
            keys.push((name, gref.to_string()));
        }
        keys.push((format!("{prefix}event-channel"), ring.port.to_string()));
    }
    keys.push(("protocol".to_owned(), options.abi.protocol().to_owned()));
    keys.push(("feature-persistent".to_owned(), u8::from(options.persistent).to_string()));
    keys
}

/// A connected disk, as its backend describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Properties {
    /// Size in 512-byte sectors.
    pub sectors: u64,
    /// Alignment of requests, bytes.
    pub sector_size: u32,
    /// Best alignment, bytes.
    pub physical_sector_size: u32,
    /// `VDISK_*` bits.
    pub info: u32,
    /// Flush is worth asking for.
    pub flush: bool,
    /// Barriers are worth asking for.
    pub barrier: bool,
    /// Discard is worth asking for.
    pub discard: bool,
    /// Alignment of a discard, bytes.
    pub discard_granularity: u32,
    /// Both sides keep grants.
    pub persistent: bool,
    /// Segments of an indirect request that both sides take; 0 is none.
    pub max_indirect: u16,
}

/// Why a backend's description cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PropertyError {
    /// The store did not answer.
    #[error(transparent)]
    Store(#[from] xenstore::Error),
    /// `sectors` or `sector-size` is missing, no number or impossible.
    #[error("the backend says {0}, which no disk can have")]
    Impossible(&'static str),
}

impl Properties {
    /// Reads what the backend wrote before it went to Connected.
    pub fn read(options: &Options, lookup: &mut Lookup<'_>) -> Result<Properties, PropertyError> {
        let sectors = number(lookup, "sectors")?.ok_or(PropertyError::Impossible("no sectors"))?;
        if sectors.checked_mul(SECTOR_SIZE).is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(PropertyError::Impossible("too many sectors"));
        }
        let mut size = |key, default| -> Result<Option<u32>, xenstore::Error> {
            let size = number(lookup, key)?.unwrap_or(u64::from(default));
            Ok(u32::try_from(size).ok().filter(|size| size.is_power_of_two() && *size >= 512))
        };
        let sector_size = size("sector-size", 512)?.filter(|size| *size <= 4096);
        let sector_size = sector_size.ok_or(PropertyError::Impossible("an impossible sector-size"))?;
        let physical = size("physical-sector-size", sector_size)?;
        let granularity = size("discard-granularity", sector_size)?;
        let mut on = |key| -> Result<bool, xenstore::Error> { Ok(number(lookup, key)?.is_some_and(|n| n != 0)) };
        let persistent = options.persistent && on("feature-persistent")?;
        let (flush, barrier) = (on("feature-flush-cache")?, on("feature-barrier")?);
        let discard = on("feature-discard")?;
        let info = number(lookup, "info")?.and_then(|info| u32::try_from(info).ok());
        let offered = number(lookup, "feature-max-indirect-segments")?.unwrap_or(0);
        let most = (MAX_INDIRECT_PAGES * SEGMENTS_PER_PAGE) as u16;
        let offered = u16::try_from(offered).unwrap_or(most).min(most).min(options.max_indirect);
        Ok(Properties {
            sectors,
            sector_size,
            physical_sector_size: physical.unwrap_or(sector_size).max(sector_size),
            info: info.unwrap_or(0),
            flush,
            barrier,
            discard,
            discard_granularity: granularity.unwrap_or(sector_size),
            persistent,
            // No more than fits in the slot itself is no gain.
            max_indirect: if usize::from(offered) > MAX_SEGMENTS { offered } else { 0 },
        })
    }
}

/// A decimal number; anything else is none.
fn number(lookup: &mut Lookup<'_>, key: &str) -> Result<Option<u64>, xenstore::Error> {
    let Some(value) = lookup(key)? else {
        return Ok(None);
    };
    Ok(decimal(&value))
}

/// Digits only, with the NUL that some C backends count in.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(value).ok().filter(|_| digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use blkback::proto::{Abi, VDISK_READONLY};

    use super::*;

    fn with<T>(keys: &[(&str, &str)], read: impl FnOnce(&mut Lookup<'_>) -> T) -> T {
        let keys: BTreeMap<_, _> = keys.iter().copied().collect();
        read(&mut |key| Ok(keys.get(key).map(|value| value.as_bytes().to_vec())))
    }

    fn choose(options: &Options, keys: &[(&str, &str)]) -> Rings {
        with(keys, |lookup| Rings::choose(options, lookup)).unwrap()
    }

    fn written(options: &Options, order: u8, queues: u32) -> String {
        let ring = |queue| RingKeys { refs: (0..1 << order).map(|page| 100 * queue + page).collect(), port: queue + 7 };
        let rings: Vec<_> = (0..queues).map(ring).collect();
        let keys = ring_keys(options, order, &rings);
        keys.iter().map(|(key, value)| format!("{key}={value} ")).collect()
    }

    #[test]
    fn the_offer_bounds_the_wish() {
        let wish = Options { ring_order: 3, queues: 4, ..Options::default() };
        assert_eq!(choose(&wish, &[]), Rings { order: 0, queues: 1 });
        let offer = [("max-ring-page-order", "2"), ("multi-queue-max-queues", "16")];
        assert_eq!(choose(&wish, &offer), Rings { order: 2, queues: 4 });
    }

    #[test]
    fn an_offer_that_makes_no_sense_is_the_smallest_or_our_own_bound() {
        let wish = Options { ring_order: 200, queues: u16::MAX, ..Options::default() };
        for nonsense in ["", "-1", "x", "0x4", "99999999999999999999999"] {
            let offer = [("max-ring-page-order", nonsense), ("multi-queue-max-queues", nonsense)];
            assert_eq!(choose(&wish, &offer), Rings { order: 0, queues: 1 });
        }
        let offer = [("max-ring-page-order", "4294967296"), ("multi-queue-max-queues", "65536")];
        assert_eq!(choose(&wish, &offer), Rings { order: 4, queues: 64 });
        assert_eq!(choose(&wish, &[("multi-queue-max-queues", "0")]).queues, 1);
    }

    #[test]
    fn keys_of_one_page() {
        let tail = "event-channel=7 protocol=x86_64-abi feature-persistent=1 ";
        assert_eq!(written(&Options::default(), 0, 1), format!("ring-ref=0 {tail}"));
        let key = Options { order_key_for_one_page: true, ..Options::default() };
        assert_eq!(written(&key, 0, 1), format!("ring-page-order=0 ring-ref0=0 {tail}"));
    }

    #[test]
    fn keys_of_several_pages_and_queues() {
        let options = Options { abi: Abi::X86_32, persistent: false, ..Options::default() };
        assert_eq!(
            written(&options, 1, 2),
            "ring-page-order=1 multi-queue-num-queues=2 \
             queue-0/ring-ref0=0 queue-0/ring-ref1=1 queue-0/event-channel=7 \
             queue-1/ring-ref0=100 queue-1/ring-ref1=101 queue-1/event-channel=8 \
             protocol=x86_32-abi feature-persistent=0 "
        );
        assert!(written(&options, 0, 2).contains("queue-1/ring-ref=100 "));
    }

    fn properties(options: &Options, keys: &[(&str, &str)]) -> Result<Properties, PropertyError> {
        with(keys, |lookup| Properties::read(options, lookup))
    }

    #[test]
    fn a_disk_described() {
        let keys = [
            ("sectors", "2048"),
            ("sector-size", "512"),
            ("physical-sector-size", "4096"),
            ("info", "4"),
            ("feature-flush-cache", "1"),
            ("feature-persistent", "1"),
            ("feature-max-indirect-segments", "256"),
        ];
        let disk = properties(&Options::default(), &keys).unwrap();
        assert_eq!((disk.sectors, disk.sector_size, disk.physical_sector_size), (2048, 512, 4096));
        assert_eq!((disk.info, disk.max_indirect), (VDISK_READONLY, 32));
        assert!(disk.flush && disk.persistent && !disk.barrier && !disk.discard);
        let plain = Options { persistent: false, max_indirect: 0, ..Options::default() };
        let disk = properties(&plain, &keys).unwrap();
        assert!(!disk.persistent && disk.max_indirect == 0);
    }

    #[test]
    fn indirect_segments_must_be_worth_it_and_fit_the_pages() {
        let wish = Options { max_indirect: u16::MAX, ..Options::default() };
        for (offer, taken) in [("11", 0), ("12", 12), ("4096", 4096), ("70000", 4096), ("x", 0)] {
            let keys = [("sectors", "8"), ("feature-max-indirect-segments", offer)];
            assert_eq!(properties(&wish, &keys).unwrap().max_indirect, taken, "{offer}");
        }
    }

    #[test]
    fn an_impossible_disk_is_refused() {
        let options = Options::default();
        assert!(properties(&options, &[]).is_err());
        assert!(properties(&options, &[("sectors", "18014398509481984")]).is_err());
        for size in ["0", "256", "513", "8192", "4294967808"] {
            assert!(properties(&options, &[("sectors", "8"), ("sector-size", size)]).is_err(), "{size}");
        }
    }
}
