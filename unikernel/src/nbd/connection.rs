//! One client: a thread that reads its requests, and one that sends answers which nobody else could.

use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use super::handshake::shake;
use super::replies::Replies;
use super::wire::{self, Request};
use super::{Command, Errno, Export, Exports, Job, MAX_REQUEST};

/// How long a client may think about its next word of the handshake.
const PATIENCE: Duration = Duration::from_secs(30);

/// Serves one client until it leaves. `number` tells connections apart.
///
/// # Errors
/// The client broke the protocol, or the connection failed.
pub fn serve(mut stream: UnixStream, number: u64, exports: &dyn Exports) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let Some(export) = shake(&mut stream, exports)? else { return Ok(()) };
    stream.set_read_timeout(None)?;
    stream.set_write_timeout(None)?;
    let replies = Arc::new(Replies::new(stream.try_clone()?));
    let (out, answers) = (stream.try_clone()?, Arc::clone(&replies));
    let sender = std::thread::Builder::new().name(format!("nbd-{number}-out")).spawn(move || {
        answers.send_rest();
        // A reader that waits for a client who takes no answers would wait for ever.
        let _ = out.shutdown(std::net::Shutdown::Both);
    })?;
    let result = read_all(BufReader::with_capacity(64 << 10, stream), number, &*export, &replies);
    replies.finish();
    if sender.join().is_err() {
        tracing::error!("an NBD sender panicked");
    }
    result
}

/// Reads requests until the client says goodbye or hangs up.
fn read_all(mut from: impl Read, number: u64, export: &dyn Export, replies: &Arc<Replies>) -> io::Result<()> {
    loop {
        let mut head = [0; Request::LEN];
        match from.read_exact(&mut head) {
            Ok(()) => {}
            // Clients that crash, and some that do not, leave without a word.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let request = Request::parse(&head).ok_or_else(|| broken("a request without its magic"))?;
        let data = match request.command {
            wire::CMD_READ | wire::CMD_WRITE if request.len > MAX_REQUEST => {
                return Err(broken("a request longer than the maximum"));
            }
            wire::CMD_READ | wire::CMD_WRITE => request.len as usize,
            wire::CMD_DISC => return Ok(()),
            _ => 0,
        };
        let read = request.command == wire::CMD_READ;
        let Some((ticket, mut buffer)) = replies.open(number, request.cookie, data, read) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        if request.command == wire::CMD_WRITE {
            // Even for a write that will be refused: what follows is the next request.
            from.read_exact(&mut buffer)?;
        }
        match check(&request, export) {
            Ok(Some(command)) => {
                let fua = request.flags & wire::CMD_FLAG_FUA != 0 && command != Command::Read;
                export.submit(Job { command, offset: request.offset, buffer, fua, ticket });
            }
            Ok(None) => ticket.finish(Ok(()), buffer),
            Err(errno) => ticket.finish(Err(errno), buffer),
        }
    }
}

/// What a request asks for, if it can be done; `None` when there is nothing to do.
fn check(request: &Request, export: &dyn Export) -> Result<Option<Command>, Errno> {
    let info = export.info();
    if request.flags & !wire::CMD_FLAG_FUA != 0 {
        return Err(Errno::Invalid);
    }
    let command = match request.command {
        wire::CMD_READ => Command::Read,
        wire::CMD_WRITE => Command::Write,
        wire::CMD_FLUSH if info.flush => return Ok(Some(Command::Flush)),
        wire::CMD_TRIM if info.trim => Command::Trim(request.len),
        _ => return Err(Errno::Invalid),
    };
    if info.read_only && command != Command::Read {
        return Err(Errno::NotPermitted);
    }
    let end = request.offset.checked_add(request.len.into());
    if end.is_none_or(|end| end > info.size) {
        return Err(if command == Command::Read { Errno::Invalid } else { Errno::NoSpace });
    }
    let block = u64::from(info.min_block);
    if !request.offset.is_multiple_of(block) || !u64::from(request.len).is_multiple_of(block) {
        return Err(Errno::Invalid);
    }
    Ok((request.len > 0).then_some(command))
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the client sent {what}"))
}
