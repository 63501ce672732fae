//! What callers rely on and cannot see: where vectors stay, and which memory goes when.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use super::*;

const SLOT: Owner = Owner { memory: MemoryId(0), slot: 0 };

/// A ring with one memory of 1024 pages, page n filled with n modulo 251.
fn ring() -> (Uring, RegionId) {
    let mut ring = Uring::new(None).unwrap();
    assert_eq!(ring.open_memory(1024), SLOT.memory);
    let memory = memfd::anonymous(1024 * PAGE_SIZE).unwrap();
    for page in 0..1024 {
        memory.pages().write(page * PAGE_SIZE, &[(page % 251) as u8; PAGE_SIZE]);
    }
    let region = ring.adopt(SLOT.memory, memory, false).unwrap();
    (ring, region)
}

fn file(ring: &mut Uring, bytes: usize) -> (File, FileSlot) {
    let file = tempfile::tempfile_in(".").unwrap();
    file.set_len(bytes as u64).unwrap();
    let slot = ring.register_file(file.as_fd()).unwrap();
    (file, slot)
}

fn page(region: RegionId, page: usize) -> Span {
    Span { region, offset: (page * PAGE_SIZE) as u32, len: PAGE_SIZE as u32 }
}

fn completion(ring: &mut Uring) -> Option<Completion> {
    ring.take_ended(|memory, _| panic!("{memory:?}"));
    ring.reap()
}

fn reap_all(ring: &mut Uring, count: usize) -> Vec<Completion> {
    let mut reaped = Vec::new();
    while reaped.len() < count {
        ring.submit_and_wait(None);
        reaped.extend(std::iter::from_fn(|| completion(ring)));
    }
    reaped
}

/// More operations than the queue has entries, pushed at once: the one that finds it full must not lose its vectors to
/// those behind it.
#[test]
fn vectors_stay_until_their_operation_is_submitted() {
    const WRITES: usize = 100;
    let (mut ring, region) = ring();
    let (file, slot) = file(&mut ring, WRITES * 2 * PAGE_SIZE);
    for _ in 0..ENTRIES - 3 {
        ring.flush(SLOT, slot);
    }
    for write in 0..WRITES {
        // Pages that are no neighbours: two vectors.
        let spans = [page(region, write * 4), page(region, write * 4 + 2)];
        let at = (write * 2 * PAGE_SIZE) as u64;
        let transfer = Transfer { direction: Direction::Write, file: slot, at, start: 0, len: 2 * PAGE_SIZE as u32 };
        ring.transfer(SLOT, transfer, &spans, u32::MAX);
    }
    let reaped = reap_all(&mut ring, ENTRIES as usize - 3 + WRITES);
    assert!(reaped.iter().all(|completion| completion.outcome() == Outcome::Done));
    for at in 0..WRITES * 2 {
        let mut bytes = [0; PAGE_SIZE];
        file.read_exact_at(&mut bytes, (at * PAGE_SIZE) as u64).unwrap();
        assert!(bytes == [(at * 2 % 251) as u8; PAGE_SIZE], "page {at} is {}", bytes[0]);
    }
}

/// The same for the times of timeouts: a short one that finds the queue full must not become a long one.
#[test]
fn timeouts_stay_until_they_are_submitted() {
    let (mut ring, _) = ring();
    let (_file, slot) = file(&mut ring, PAGE_SIZE);
    for _ in 0..ENTRIES {
        ring.flush(SLOT, slot);
    }
    ring.timeout(SLOT, Duration::from_millis(1));
    ring.timeout(SLOT, Duration::from_secs(3600));
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(10) {
        ring.submit_and_wait(Some(Duration::from_secs(1)));
        while let Some(ended) = completion(&mut ring) {
            if ended.operation == Operation::Timeout {
                return;
            }
        }
    }
    panic!("an hour instead of a millisecond");
}

/// A number that is used again must not be counted down by whoever had it before.
#[test]
fn a_transient_mapping_in_use_is_not_given_up() {
    let (mut ring, _) = ring();
    let (read_end, write_end) = rustix::pipe::pipe().unwrap();
    let slot = ring.register_file(read_end.as_fd()).unwrap();
    let region = ring.adopt_transient(SLOT.memory, memfd::anonymous(PAGE_SIZE).unwrap()).unwrap();
    let read = Transfer { direction: Direction::Read, file: slot, at: 0, start: 0, len: 1 };
    ring.transfer(SLOT, read, &[page(region, 0)], u32::MAX);
    ring.submit();
    for refused in [ring.unmap_now(SLOT.memory, region), ring.retire(SLOT.memory, region)] {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EBUSY));
    }
    rustix::io::write(&write_end, b"x").unwrap();
    assert_eq!(reap_all(&mut ring, 1)[0].result, 1);
    ring.retire(SLOT.memory, region).unwrap();
    // Nothing transient is left: operations on anything may follow.
    assert_eq!(ring.memory(SLOT.memory).mapped(), 1);
}

/// Whole transfers are told of a queue and a generation at a time, and counted where they began.
#[test]
fn whole_transfers_end_where_they_began() {
    let (mut ring, old) = ring();
    let ours = ring.adopt(SLOT.memory, memfd::anonymous(PAGE_SIZE).unwrap(), true).unwrap();
    let other = ring.open_memory(8);
    let theirs = ring.adopt(other, memfd::anonymous(PAGE_SIZE).unwrap(), true).unwrap();
    let (_file, slot) = file(&mut ring, PAGE_SIZE);
    let read = |ring: &mut Uring, memory, region, slots: std::ops::Range<u16>| {
        let mut wholes = ring.wholes(memory, slots.len());
        for at in slots {
            assert!(wholes.transfer(at, Direction::Read, slot, 0, page(region, 0)));
        }
    };
    read(&mut ring, SLOT.memory, ours, 0..3);
    ring.retire(SLOT.memory, old).unwrap();
    ring.flush(SLOT, slot);
    read(&mut ring, SLOT.memory, ours, 3..5);
    read(&mut ring, other, theirs, 5..6);
    assert_eq!((ring.memory(SLOT.memory).in_flight(), ring.memory(SLOT.memory).retired()), (6, 1));
    let (mut whole, mut flushed) = (Vec::new(), 0);
    while whole.len() + flushed < 7 {
        ring.submit_and_wait(None);
        ring.take_ended(|memory, ended| {
            let run: Vec<(u16, i32)> = ended.collect();
            let together = |slots: std::ops::Range<u16>| run.iter().all(|(slot, _)| slots.contains(slot));
            assert!(if memory == other { together(5..6) } else { together(0..3) || together(3..5) }, "{run:?}");
            whole.extend(run);
        });
        flushed += std::iter::from_fn(|| ring.reap()).count();
    }
    whole.sort_unstable();
    assert_eq!(whole, (0..6).map(|slot| (slot, PAGE_SIZE as i32)).collect::<Vec<_>>());
    for memory in [SLOT.memory, other] {
        let memory = ring.memory(memory);
        assert_eq!((memory.in_flight(), memory.mapped()), (0, 1));
    }
}
