//! What this kernel can do, found out by trying: setup flags, opcodes, and (per mapping, in [`crate::memory`])
//! fixed buffers. Nothing here is inferred from a version number.

use std::io;

use io_uring::{IoUring, Probe, opcode};

/// What one io_uring turned out to offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// `SINGLE_ISSUER | DEFER_TASKRUN` (6.1): completions are processed when we ask, without interrupts.
    pub defer_taskrun: bool,
    /// `READV_FIXED` and `WRITEV_FIXED` (6.15).
    pub vectored_fixed: bool,
    /// Entries may complete without a word when they succeed (`IORING_FEAT_CQE_SKIP`, 5.17).
    pub silent_success: bool,
    /// A sparse table of fixed buffers exists; whether a mapping may stand in it is another question.
    pub buffer_table: bool,
}

/// Most buffers in a ring's fixed table: persistent slabs and arenas.
pub const BUFFER_SLOTS: u32 = 4096;
/// Most registered files: the fence and one per disk.
pub const FILE_SLOTS: u32 = 1024;

/// Makes a ring with the best flags the kernel takes, and its tables.
///
/// # Errors
/// With what to do about it when io_uring is forbidden here.
pub(crate) fn open_ring(entries: u32) -> io::Result<(IoUring, Caps)> {
    let deferred = IoUring::builder()
        .setup_cqsize(entries * 4)
        .setup_submit_all()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .build(entries);
    let (ring, defer_taskrun) = match deferred {
        Ok(ring) => (ring, true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            (IoUring::builder().setup_cqsize(entries * 4).build(entries).map_err(forbidden)?, false)
        }
        Err(error) => return Err(forbidden(error)),
    };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    for (code, name) in [
        (opcode::ReadFixed::CODE, "READ_FIXED"),
        (opcode::Readv::CODE, "READV"),
        (opcode::Fsync::CODE, "FSYNC"),
        (opcode::Fallocate::CODE, "FALLOCATE"),
        (opcode::PollAdd::CODE, "POLL_ADD"),
        (opcode::Timeout::CODE, "TIMEOUT"),
    ] {
        if !probe.is_supported(code) {
            let text = format!("this kernel's io_uring has no {name}; Linux 6.1 or newer is needed");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    }
    ring.submitter().register_files_sparse(FILE_SLOTS)?;
    let buffer_table = ring.submitter().register_buffers_sparse(BUFFER_SLOTS).is_ok();
    let vectored_fixed = probe.is_supported(opcode::ReadvFixed::CODE) && probe.is_supported(opcode::WritevFixed::CODE);
    let silent_success = ring.params().is_feature_skip_cqe_on_success();
    Ok((ring, Caps { defer_taskrun, vectored_fixed, silent_success, buffer_table }))
}

/// Turns the two ways io_uring is switched off into a line that says how to switch it on.
fn forbidden(error: io::Error) -> io::Error {
    let fix = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "io_uring is forbidden here: set sysctl kernel.io_uring_disabled=0, or run outside of the container's seccomp profile (podman/docker: --security-opt seccomp=unconfined)"
        }
        Some(libc::ENOSYS) => {
            "this kernel has no io_uring, or a container's seccomp profile hides it (podman/docker: --security-opt seccomp=unconfined)"
        }
        Some(libc::ENOMEM) => "not enough locked memory for an io_uring: raise ulimit -l",
        _ => return error,
    };
    io::Error::new(error.kind(), fix)
}

/// Tries to open a small ring and says why not.
///
/// # Errors
/// As a ring that does real work would meet them.
pub fn check_io_uring() -> io::Result<Caps> {
    open_ring(8).map(|(_, caps)| caps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_io_uring_names_the_fix() {
        for (errno, word) in [(libc::EPERM, "io_uring_disabled"), (libc::ENOSYS, "seccomp"), (libc::ENOMEM, "ulimit")] {
            assert!(forbidden(io::Error::from_raw_os_error(errno)).to_string().contains(word));
        }
        assert_eq!(forbidden(io::Error::from_raw_os_error(libc::EIO)).raw_os_error(), Some(libc::EIO));
    }
}
