//! Which receive queue a packet goes to: by a hash that the frontend chooses and a table that it fills (netif.h, "Control
//! messages"), or, before it has, as we like.
//!
//! Pure: whoever calls brings the way to the guest's pages. What a request asks for happens whole or not at all.

use grant::GrantRef;

use crate::headers::{Headers, Network, Ports, Transport};
use crate::packet::Hash;
use crate::proto::{self, NetifCtrlRequest, NetifCtrlResponse};

/// Most bytes of a key: what 36 bytes of addresses and ports need, and what Linux's backend takes.
pub const MAX_KEY: usize = 40;
/// Most entries of the table, as in Linux's backend.
pub const MAX_MAPPING: usize = 128;
/// The hashes that can be asked for, a bit each.
const ALL_FLAGS: u32 = 1 << proto::CTRL_HASH_TYPE_IPV4
    | 1 << proto::CTRL_HASH_TYPE_IPV4_TCP
    | 1 << proto::CTRL_HASH_TYPE_IPV6
    | 1 << proto::CTRL_HASH_TYPE_IPV6_TCP;

/// What a frontend has chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    algorithm: u32,
    flags: u32,
    key: [u8; MAX_KEY],
    /// Entries of the table; with none, the hash itself says which queue.
    size: usize,
    mapping: [u16; MAX_MAPPING],
    queues: u16,
}

/// Copies the first bytes of a page of the guest's; false when they cannot be had.
pub type Fetch<'a> = dyn FnMut(GrantRef, &mut [u8]) -> bool + 'a;

/// A status, and data where there is some.
type Outcome = Result<u32, u32>;

impl Steering {
    /// Nothing is chosen, for a card with so many queues.
    pub fn new(queues: u16) -> Steering {
        let algorithm = proto::CTRL_HASH_ALGORITHM_NONE;
        Steering { algorithm, flags: 0, key: [0; MAX_KEY], size: 0, mapping: [0; MAX_MAPPING], queues: queues.max(1) }
    }

    /// The frontend wants a hash with its packets.
    pub fn is_on(&self) -> bool {
        self.algorithm == proto::CTRL_HASH_ALGORITHM_TOEPLITZ && self.flags != 0
    }

    /// Does what a request asks for.
    pub fn request(&mut self, request: &NetifCtrlRequest, fetch: &mut Fetch<'_>) -> NetifCtrlResponse {
        let (status, data) = match self.act(request, fetch) {
            Ok(data) => (proto::CTRL_STATUS_SUCCESS, data),
            Err(status) => (status, 0),
        };
        NetifCtrlResponse { id: request.id, kind: request.kind, status, data }
    }

    fn act(&mut self, request: &NetifCtrlRequest, fetch: &mut Fetch<'_>) -> Outcome {
        let [first, second, third] = request.data;
        match request.kind {
            proto::CTRL_TYPE_SET_HASH_ALGORITHM => match first {
                proto::CTRL_HASH_ALGORITHM_NONE | proto::CTRL_HASH_ALGORITHM_TOEPLITZ => self.algorithm = first,
                _ => return Err(proto::CTRL_STATUS_INVALID_PARAMETER),
            },
            proto::CTRL_TYPE_GET_HASH_FLAGS => {
                // "A valid hash algorithm must be selected before this operation can succeed."
                if self.algorithm == proto::CTRL_HASH_ALGORITHM_NONE {
                    return Err(proto::CTRL_STATUS_NOT_SUPPORTED);
                }
                return Ok(ALL_FLAGS);
            }
            proto::CTRL_TYPE_SET_HASH_FLAGS => {
                if first & !ALL_FLAGS != 0 || self.algorithm == proto::CTRL_HASH_ALGORITHM_NONE {
                    return Err(proto::CTRL_STATUS_INVALID_PARAMETER);
                }
                self.flags = first;
            }
            proto::CTRL_TYPE_SET_HASH_KEY => self.set_key(GrantRef(first), second, fetch)?,
            proto::CTRL_TYPE_GET_HASH_MAPPING_SIZE => return Ok(MAX_MAPPING as u32),
            proto::CTRL_TYPE_SET_HASH_MAPPING_SIZE => {
                let size = usize::try_from(first).ok().filter(|&size| size <= MAX_MAPPING);
                self.size = size.ok_or(proto::CTRL_STATUS_INVALID_PARAMETER)?;
                self.mapping = [0; MAX_MAPPING];
            }
            proto::CTRL_TYPE_SET_HASH_MAPPING => self.set_mapping(GrantRef(first), second, third, fetch)?,
            // Static grants among them: nobody is told that there are any.
            _ => return Err(proto::CTRL_STATUS_NOT_SUPPORTED),
        }
        Ok(0)
    }

    fn set_key(&mut self, page: GrantRef, len: u32, fetch: &mut Fetch<'_>) -> Result<(), u32> {
        let len = usize::try_from(len).ok().filter(|&len| len <= MAX_KEY).ok_or(proto::CTRL_STATUS_BUFFER_OVERFLOW)?;
        let mut key = [0; MAX_KEY];
        if len > 0 && !fetch(page, &mut key[..len]) {
            return Err(proto::CTRL_STATUS_INVALID_PARAMETER);
        }
        self.key = key;
        Ok(())
    }

    fn set_mapping(&mut self, page: GrantRef, len: u32, offset: u32, fetch: &mut Fetch<'_>) -> Result<(), u32> {
        let bad = proto::CTRL_STATUS_INVALID_PARAMETER;
        let (len, offset) = (usize::try_from(len).map_err(|_| bad)?, usize::try_from(offset).map_err(|_| bad)?);
        // The sum is what XSA-270 is about.
        let end = offset.checked_add(len).filter(|&end| end <= self.size).ok_or(bad)?;
        let mut bytes = [0; MAX_MAPPING * 4];
        let bytes = &mut bytes[..len * 4];
        if len > 0 && !fetch(page, bytes) {
            return Err(bad);
        }
        // Looked at as a whole before any of it counts.
        let mut mapping = self.mapping;
        for (entry, word) in mapping[offset..end].iter_mut().zip(bytes.as_chunks::<4>().0) {
            let queue = u16::try_from(u32::from_le_bytes(*word)).ok().filter(|&queue| queue < self.queues);
            *entry = queue.ok_or(bad)?;
        }
        self.mapping = mapping;
        Ok(())
    }

    /// The queue for a packet, and the hash that goes with it; none while the frontend has not asked for hashes. What
    /// has no hash of the kinds asked for counts as one of 0.
    pub fn steer(&self, headers: &Headers) -> Option<(usize, Option<Hash>)> {
        if !self.is_on() {
            return None;
        }
        let hash = self.hash(headers);
        let value = hash.map_or(0, |hash| hash.value) as usize;
        let queue = match self.size {
            0 => value % usize::from(self.queues),
            size => usize::from(self.mapping[value % size]),
        };
        Some((queue, hash))
    }

    /// The hash of the most that may be looked at: addresses, and the ports of TCP.
    fn hash(&self, headers: &Headers) -> Option<Hash> {
        let wanted = |kind: u8| self.flags & 1 << kind != 0;
        let mut input = [0; 36];
        let (addresses, fragment, transport, whole, part) = match &headers.network {
            Network::Ip(ip) => {
                input[..4].copy_from_slice(&ip.source);
                input[4..8].copy_from_slice(&ip.destination);
                let kinds = (proto::CTRL_HASH_TYPE_IPV4_TCP, proto::CTRL_HASH_TYPE_IPV4);
                (8, ip.fragment, ip.transport, kinds.0, kinds.1)
            }
            Network::Ip6(ip) => {
                input[..16].copy_from_slice(&ip.source);
                input[16..32].copy_from_slice(&ip.destination);
                let kinds = (proto::CTRL_HASH_TYPE_IPV6_TCP, proto::CTRL_HASH_TYPE_IPV6);
                (32, ip.fragment, ip.transport, kinds.0, kinds.1)
            }
            _ => return None,
        };
        let (kind, len) = match transport {
            // All fragments of a packet go the same way, and only one of them has ports.
            Transport::Tcp { ports: Ports { source, destination }, .. } if wanted(whole) && !fragment => {
                input[addresses..addresses + 2].copy_from_slice(&source.to_be_bytes());
                input[addresses + 2..addresses + 4].copy_from_slice(&destination.to_be_bytes());
                (whole, addresses + 4)
            }
            _ if wanted(part) => (part, addresses),
            _ => return None,
        };
        let value = toeplitz(&self.key, &input[..len]);
        Some(Hash { algorithm: proto::CTRL_HASH_ALGORITHM_TOEPLITZ as u8, kind, value })
    }
}

/// The hash of netif.h: for each bit of `input` that is set, 32 bits of the key from there on.
fn toeplitz(key: &[u8; MAX_KEY], input: &[u8]) -> u32 {
    let mut window = key.iter().take(8).fold(0u64, |window, &byte| window << 8 | u64::from(byte));
    let mut hash = 0;
    for (at, byte) in input.iter().enumerate() {
        for bit in (0..8).rev() {
            if byte >> bit & 1 != 0 {
                hash ^= window;
            }
            window <<= 1;
        }
        window |= u64::from(key.get(at + 8).copied().unwrap_or(0));
    }
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests;
