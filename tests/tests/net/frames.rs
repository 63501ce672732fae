//! Frames to send.

use netback::packet::{Checksum, Gso, GsoKind, Mac, Offload};

/// A frame of `len` bytes of no known protocol.
pub fn plain(from: Mac, to: Mac, len: usize) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.extend(from.0);
    frame.extend([0x88, 0xB5]);
    frame.extend((frame.len()..len).map(|at| (at * 31 + len) as u8));
    frame
}

/// What a TCP packet is like.
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Over IPv6.
    pub v6: bool,
    /// Bytes of payload.
    pub payload: usize,
}

impl Tcp {
    /// Bytes of all headers.
    pub fn headers(self) -> usize {
        if self.v6 { 74 } else { 54 }
    }

    /// The frame, its checksum left to do.
    pub fn frame(self, from: Mac, to: Mac) -> Vec<u8> {
        let mut frame = to.0.to_vec();
        frame.extend(from.0);
        let len = 20 + self.payload;
        if self.v6 {
            frame.extend([0x86, 0xDD, 0x60, 0, 0, 0]);
            frame.extend((len as u16).to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            frame.extend([0xFE, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend(((20 + len) as u16).to_be_bytes());
            frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            let sum = checksum(&frame[14..34], 0);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend([0x13, 0x88, 0x13, 0x89, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xFF, 0xFF, 0, 0, 0, 0]);
        frame.extend((0..self.payload).map(|at| (at % 251) as u8));
        frame
    }

    /// The work left on it, cut into segments of `size` bytes when that is not 0.
    pub fn offload(self, size: u16) -> Offload {
        let kind = if self.v6 { GsoKind::TcpV6 } else { GsoKind::TcpV4 };
        Offload { checksum: Checksum::Blank, gso: (size > 0).then_some(Gso { kind, size }) }
    }
}

/// RFC 1071, the slow way.
fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    !(sum as u16)
}

/// Is the TCP checksum of a frame right? Worked out apart from the backend.
pub fn is_right(frame: &[u8]) -> bool {
    let v6 = frame[12..14] == [0x86, 0xDD];
    let (addresses, tcp) = if v6 { (&frame[22..54], 54) } else { (&frame[26..34], 34) };
    let pseudo = u32::from(!checksum(addresses, 0)) + 6 + (frame.len() - tcp) as u32;
    let ip = v6 || checksum(&frame[14..34], 0) == 0;
    ip && checksum(&frame[tcp..], pseudo) == 0
}
