//! The wire format of Xen's public `io/xs_wire.h`: a 16-byte header and at most 4096 bytes of payload.
//!
//! Nothing a peer sends can make decoding allocate more than one message, and error names nobody has heard of are
//! kept as they are.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// Longest payload (`XENSTORE_PAYLOAD_MAX`).
pub const PAYLOAD_MAX: usize = 4096;
/// Longest absolute path (`XENSTORE_ABS_PATH_MAX`).
pub const ABS_PATH_MAX: usize = 3072;
/// Longest relative path (`XENSTORE_REL_PATH_MAX`).
pub const REL_PATH_MAX: usize = 2048;
/// Bytes of a header.
pub const HEADER: usize = 16;

/// Message types (`enum xsd_sockmsg_type`); the numbers have gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
#[allow(missing_docs, reason = "the names are the header's")]
pub enum MessageType {
    Control = 0,
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    Introduce = 8,
    Release = 9,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    Resume = 18,
    SetTarget = 19,
    ResetWatches = 21,
    DirectoryPart = 22,
    GetFeature = 23,
    SetFeature = 24,
    GetQuota = 25,
    SetQuota = 26,
}

impl MessageType {
    /// From the number in a header.
    pub fn from_number(number: u32) -> Option<MessageType> {
        use MessageType::*;
        [
            Control,
            Directory,
            Read,
            GetPerms,
            Watch,
            Unwatch,
            TransactionStart,
            TransactionEnd,
            Introduce,
            Release,
            GetDomainPath,
            Write,
            Mkdir,
            Rm,
            SetPerms,
            WatchEvent,
            Error,
            IsDomainIntroduced,
            Resume,
            SetTarget,
            ResetWatches,
            DirectoryPart,
            GetFeature,
            SetFeature,
            GetQuota,
            SetQuota,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
    }
}

/// A header (`struct xsd_sockmsg`), little-endian on every Xen machine there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// [`MessageType`], or a number that nobody knows.
    pub kind: u32,
    /// Chosen by whoever asks, echoed in the answer.
    pub request: u32,
    /// Transaction, 0 for none.
    pub transaction: u32,
    /// Bytes that follow.
    pub len: u32,
}

impl Header {
    /// The bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        for (at, word) in [self.kind, self.request, self.transaction, self.len].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the bytes; any 16 are a header, whether it makes sense is another question.
    pub fn decode(bytes: &[u8; HEADER]) -> Header {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Header { kind: word(0), request: word(4), transaction: word(8), len: word(12) }
    }
}

/// A whole message; `None` when the payload is too long.
pub fn message(kind: u32, request: u32, transaction: u32, parts: &[&[u8]]) -> Option<Vec<u8>> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    if len > PAYLOAD_MAX {
        return None;
    }
    let mut bytes = Vec::with_capacity(HEADER + len);
    bytes.extend_from_slice(&Header { kind, request, transaction, len: len as u32 }.encode());
    parts.iter().for_each(|part| bytes.extend_from_slice(part));
    Some(bytes)
}

/// The error names of `xs_wire.h`, and whatever else a daemon may send.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are errno's")]
pub enum ErrorName {
    Einval,
    Eacces,
    Eexist,
    Eisdir,
    Enoent,
    Enomem,
    Enospc,
    Eio,
    Enotempty,
    Enosys,
    Erofs,
    Ebusy,
    Eagain,
    Eisconn,
    E2big,
    Eperm,
    /// Any other name, `EQUOTA` of oxenstored for one; printable, at most 32 characters.
    Other(String),
}

const NAMES: [(ErrorName, &str); 16] = [
    (ErrorName::Einval, "EINVAL"),
    (ErrorName::Eacces, "EACCES"),
    (ErrorName::Eexist, "EEXIST"),
    (ErrorName::Eisdir, "EISDIR"),
    (ErrorName::Enoent, "ENOENT"),
    (ErrorName::Enomem, "ENOMEM"),
    (ErrorName::Enospc, "ENOSPC"),
    (ErrorName::Eio, "EIO"),
    (ErrorName::Enotempty, "ENOTEMPTY"),
    (ErrorName::Enosys, "ENOSYS"),
    (ErrorName::Erofs, "EROFS"),
    (ErrorName::Ebusy, "EBUSY"),
    (ErrorName::Eagain, "EAGAIN"),
    (ErrorName::Eisconn, "EISCONN"),
    (ErrorName::E2big, "E2BIG"),
    (ErrorName::Eperm, "EPERM"),
];

/// What Linux fails with where a daemon has said one of these.
const ERRNOS: [(Errno, ErrorName); 16] = [
    (Errno::INVAL, ErrorName::Einval),
    (Errno::ACCESS, ErrorName::Eacces),
    (Errno::EXIST, ErrorName::Eexist),
    (Errno::ISDIR, ErrorName::Eisdir),
    (Errno::NOENT, ErrorName::Enoent),
    (Errno::NOMEM, ErrorName::Enomem),
    (Errno::NOSPC, ErrorName::Enospc),
    (Errno::IO, ErrorName::Eio),
    (Errno::NOTEMPTY, ErrorName::Enotempty),
    (Errno::NOSYS, ErrorName::Enosys),
    (Errno::ROFS, ErrorName::Erofs),
    (Errno::BUSY, ErrorName::Ebusy),
    (Errno::AGAIN, ErrorName::Eagain),
    (Errno::ISCONN, ErrorName::Eisconn),
    (Errno::TOOBIG, ErrorName::E2big),
    (Errno::PERM, ErrorName::Eperm),
];

impl ErrorName {
    /// From an error message's payload, with or without its NUL.
    pub fn parse(payload: &[u8]) -> ErrorName {
        let name = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        NAMES.iter().find(|(_, known)| known.as_bytes() == name).map_or_else(
            || {
                let printable = name.iter().take(32).map(|byte| char::from(*byte)).filter(char::is_ascii_graphic);
                ErrorName::Other(printable.collect())
            },
            |(error, _)| error.clone(),
        )
    }

    /// From an error number of this machine, for those that have a name in the protocol.
    pub fn from_errno(error: &io::Error) -> Option<ErrorName> {
        let errno = Errno::from_io_error(error)?;
        ERRNOS.iter().find(|(number, _)| *number == errno).map(|(_, name)| name.clone())
    }

    /// As it goes over the wire, without its NUL.
    pub fn name(&self) -> &str {
        match self {
            ErrorName::Other(name) => name,
            known => NAMES.iter().find(|(error, _)| error == known).map_or("EIO", |(_, name)| name),
        }
    }
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_the_header_s_number() {
        let known: Vec<u32> = (0..100).filter(|number| MessageType::from_number(*number).is_some()).collect();
        let expected: Vec<u32> = (0..=26).filter(|number| *number != 20).collect();
        assert_eq!(known, expected);
        assert_eq!(MessageType::ResetWatches as u32, 21);
    }

    #[test]
    fn a_header_survives_and_a_long_payload_does_not() {
        let bytes = message(11, 7, 9, &[b"/a\0", b"value"]).unwrap();
        let header = Header::decode(bytes[..16].try_into().unwrap());
        assert_eq!(header, Header { kind: 11, request: 7, transaction: 9, len: 8 });
        assert_eq!(&bytes[16..], b"/a\0value");
        assert!(message(0, 0, 0, &[&[0; 4096]]).is_some());
        assert!(message(0, 0, 0, &[&[0; 4096], b"x"]).is_none());
    }

    #[test]
    fn unknown_error_names_are_kept_and_harmless() {
        assert_eq!(ErrorName::parse(b"ENOENT\0"), ErrorName::Enoent);
        assert_eq!(ErrorName::parse(b"EQUOTA\0"), ErrorName::Other("EQUOTA".into()));
        assert_eq!(ErrorName::parse(&[0x1B; 4096]), ErrorName::Other(String::new()));
        for (error, name) in &NAMES {
            assert_eq!(&ErrorName::parse(name.as_bytes()), error);
            assert_eq!(error.name(), *name);
        }
    }
}
