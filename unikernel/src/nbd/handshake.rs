//! What is said before the first request: options, until one of them opens a disk.

use std::io::{self, Read, Write};
use std::sync::Arc;

use super::wire::{self, Fields};
use super::{Export, Exports, Info, MAX_REQUEST};

/// Longest option that is read; a longer one ends the connection.
const MAX_OPTION: u32 = 16 << 10;
/// Most options one client may send.
const MAX_OPTIONS: u32 = 1024;

/// Talks until the client has chosen a disk; `None` when it has left.
///
/// # Errors
/// The client broke the protocol or the connection failed: hang up.
pub fn shake(stream: &mut (impl Read + Write), exports: &dyn Exports) -> io::Result<Option<Arc<dyn Export>>> {
    let ours = wire::FLAG_FIXED_NEWSTYLE | wire::FLAG_NO_ZEROES;
    let mut hello = Vec::with_capacity(18);
    hello.extend(wire::NBDMAGIC.to_be_bytes());
    hello.extend(wire::IHAVEOPT.to_be_bytes());
    hello.extend(ours.to_be_bytes());
    stream.write_all(&hello)?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    if flags & u32::from(wire::FLAG_FIXED_NEWSTYLE) == 0 || flags & !u32::from(ours) != 0 {
        return Err(broken("handshake flags that we do not know"));
    }
    let zeroes = flags & u32::from(wire::FLAG_NO_ZEROES) == 0;
    for _ in 0..MAX_OPTIONS {
        let (option, data) = read_option(stream)?;
        match option {
            wire::OPT_EXPORT_NAME => {
                // This option has no way to say no.
                let export = name(&data).and_then(|name| exports.open(name));
                let export = export.ok_or_else(|| broken("an export that is not attached"))?;
                let info = export.info();
                let mut answer = info.size.to_be_bytes().to_vec();
                answer.extend(transmission_flags(&info).to_be_bytes());
                answer.resize(answer.len() + if zeroes { 124 } else { 0 }, 0);
                stream.write_all(&answer)?;
                return Ok(Some(export));
            }
            wire::OPT_ABORT => {
                // The client may be gone already, and may be right to be.
                let _ = reply(stream, option, wire::REP_ACK, &[]);
                return Ok(None);
            }
            wire::OPT_LIST if data.is_empty() => {
                for name in exports.names() {
                    let mut server = (name.len() as u32).to_be_bytes().to_vec();
                    server.extend(name.as_bytes());
                    reply(stream, option, wire::REP_SERVER, &server)?;
                }
                reply(stream, option, wire::REP_ACK, &[])?;
            }
            wire::OPT_LIST => reply(stream, option, wire::REP_ERR_INVALID, &[])?,
            wire::OPT_INFO | wire::OPT_GO => {
                let Some((name, wanted)) = parse_info(&data) else {
                    reply(stream, option, wire::REP_ERR_INVALID, &[])?;
                    continue;
                };
                let Some(export) = exports.open(name) else {
                    let text = "no such disk is attached to this guest";
                    reply(stream, option, wire::REP_ERR_UNKNOWN, text.as_bytes())?;
                    continue;
                };
                send_info(stream, option, &export.info(), name, &wanted)?;
                reply(stream, option, wire::REP_ACK, &[])?;
                if option == wire::OPT_GO {
                    return Ok(Some(export));
                }
            }
            _ => reply(stream, option, wire::REP_ERR_UNSUP, &[])?,
        }
    }
    Err(broken("more options than anybody needs"))
}

fn read_option(stream: &mut impl Read) -> io::Result<(u32, Vec<u8>)> {
    let mut head = [0; 16];
    stream.read_exact(&mut head)?;
    let mut fields = Fields(&head);
    let (magic, option, len) = (fields.u64(), fields.u32(), fields.u32());
    let (Some(wire::IHAVEOPT), Some(option), Some(len)) = (magic, option, len) else {
        return Err(broken("an option without its magic"));
    };
    if len > MAX_OPTION {
        return Err(broken("an option that is too long"));
    }
    let mut data = vec![0; len as usize];
    stream.read_exact(&mut data)?;
    Ok((option, data))
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.extend(wire::OPTION_REPLY_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    stream.write_all(&bytes)
}

/// Name and wanted pieces of an info or go option.
fn parse_info(data: &[u8]) -> Option<(&str, Vec<u16>)> {
    let mut fields = Fields(data);
    let len = fields.u32()? as usize;
    let name = name(fields.bytes(len)?)?;
    let count = usize::from(fields.u16()?);
    if fields.0.len() != 2 * count {
        return None;
    }
    Some((name, std::iter::from_fn(|| fields.u16()).collect()))
}

fn name(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|name| name.len() <= wire::MAX_NAME)
}

fn send_info(stream: &mut impl Write, option: u32, info: &Info, name: &str, wanted: &[u16]) -> io::Result<()> {
    let mut export = wire::INFO_EXPORT.to_be_bytes().to_vec();
    export.extend(info.size.to_be_bytes());
    export.extend(transmission_flags(info).to_be_bytes());
    reply(stream, option, wire::REP_INFO, &export)?;
    // Sent unasked as well: it tells a client that never looks what its requests will run into.
    let mut sizes = wire::INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [info.min_block, info.preferred_block, MAX_REQUEST] {
        sizes.extend(size.to_be_bytes());
    }
    reply(stream, option, wire::REP_INFO, &sizes)?;
    if wanted.contains(&wire::INFO_NAME) {
        let mut bytes = wire::INFO_NAME.to_be_bytes().to_vec();
        bytes.extend(name.as_bytes());
        reply(stream, option, wire::REP_INFO, &bytes)?;
    }
    Ok(())
}

/// Several connections see each other's completed writes, and a flush on one covers them all: nothing is cached on
/// this side of the ring, and the disk's own flush knows no connections.
fn transmission_flags(info: &Info) -> u16 {
    let mut flags = wire::FLAG_HAS_FLAGS | wire::FLAG_CAN_MULTI_CONN;
    for (set, flag) in [
        (info.read_only, wire::FLAG_READ_ONLY),
        (info.flush, wire::FLAG_SEND_FLUSH | wire::FLAG_SEND_FUA),
        (info.trim && !info.read_only, wire::FLAG_SEND_TRIM),
    ] {
        flags |= if set { flag } else { 0 };
    }
    flags
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client sent {what}"))
}
