//! References: bad, revoked, the same again, too many; and what stays mapped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use blkback::config::FaultParams;
use blkback::proto::{BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_RSP_ERROR};
use frontend::hostile::write_segments;
use grant::{Access, DomId, GrantAccess, GrantRef, PAGE_SIZE};
use tests::world::{Disk, Lane, Shape, rw, start_worker};

use crate::tamper::{Plan, Tamper};
use crate::{Case, content, indirect, is_served, long, punch, request, segment, shapes, statuses};

const ENOMEM: i32 = 12;

/// A disk whose worker goes through a [`Tamper`].
fn tampered(case: &mut Case, volume: &std::fs::File, shape: Shape) -> (Disk, Arc<Plan>) {
    let plan = Arc::new(Plan::default());
    let (mut worker, fence) = start_worker(case.guest, Box::new(case.world.ports(case.service)));
    let of = Arc::clone(&plan);
    let guest = (case.guest, case.memory.clone());
    let lane =
        Lane::connect(&case.world, &mut worker, guest, 51712, volume, shape, move |inner| Box::new(Tamper(inner, of)));
    (Disk { worker, fence, lane: lane.unwrap() }, plan)
}

/// XSA-361 and XSA-365: one element of a batch is bad, first, in the middle or last, and the batch takes several calls.
#[test]
fn t08_xsa_361_xsa_365_one_bad_reference_fails_its_request_alone() {
    for shape in shapes() {
        let mut case = Case::new();
        let (mut file, before) = case.image(2 << 20);
        let mut disk = case.disk(&file, shape);
        let (data, list) = (case.pages(256), case.pages(1));
        // Granted to somebody else, and given up again.
        let foreign = case.memory.grant(DomId(0x7F00), 1, Access::ReadWrite).unwrap();
        let revoked = case.pages(1);
        let old = revoked.refs[0];
        case.memory.end(revoked).unwrap();
        for bad in [GrantRef(0), GrantRef(7), foreign.refs[0], old, GrantRef(u32::MAX), GrantRef(1 << 20)] {
            for at in [0, 5, 10] {
                let mut segments = [segment(data.refs[0], 0, 7); 11];
                for (n, segment) in segments.iter_mut().enumerate() {
                    segment.gref = data.refs[n].0;
                }
                segments[at].gref = bad.0;
                // Beside good ones, in one batch.
                let slots = [
                    rw(BLKIF_OP_READ, 1, 0, &data.refs[20..31]),
                    request(BLKIF_OP_WRITE, 2, 0, &segments),
                    request(BLKIF_OP_READ, 3, 0, &segments),
                    rw(BLKIF_OP_READ, 4, 0, &data.refs[31..42]),
                ];
                let expected = [0, BLKIF_RSP_ERROR, BLKIF_RSP_ERROR, 0];
                assert_eq!(statuses(&mut disk, &slots), expected, "{bad} at {at} {shape:?}");
            }
            for at in [0, 100, 255] {
                let mut segments = [segment(data.refs[0], 0, 7); 256];
                for (n, segment) in segments.iter_mut().enumerate() {
                    segment.gref = data.refs[n].0;
                }
                segments[at].gref = bad.0;
                write_segments(&list.memory.pages(), 0, &segments);
                let slots =
                    [indirect(BLKIF_OP_WRITE, 1, 0, 256, list.refs[0]), rw(BLKIF_OP_READ, 2, 0, &data.refs[..1])];
                assert_eq!(statuses(&mut disk, &slots), [BLKIF_RSP_ERROR, 0], "{bad} at {at} {shape:?}");
            }
        }
        assert!(content(&mut file) == before);
        case.over(disk);
        case.end([data, list, foreign]);
    }
}

/// XSA-71: error paths let go of what they took. A million failing requests with `WINDSOR_LONG`.
#[test]
fn t08_xsa_71_a_million_failing_requests_leave_nothing_mapped() {
    for shape in [Shape::default(), Shape { persistent: false, ..Shape::default() }] {
        let mut case = Case::new();
        let (file, _) = case.image(1 << 20);
        let mut disk = case.disk(&file, shape);
        let data = case.pages(10);
        let mut refs = data.refs.clone();
        refs.push(GrantRef(30_000));
        let slots: Vec<_> = (0..32).map(|id| rw(BLKIF_OP_READ, id, 0, &refs)).collect();
        for _ in 0..long(500_000) / 32 {
            disk.put(&slots);
            assert!(disk.responses(32).iter().all(|response| response.status == BLKIF_RSP_ERROR));
        }
        let most = if shape.persistent { 11 } else { 1 };
        assert!(case.world.active_grants() <= most, "{} {shape:?}", case.world.active_grants());
        case.over(disk);
        case.end([data]);
    }
}

/// XSA-218, 224, 228, 230, 234 and 236 needed a grant that is mapped twice, or unmapped while it is.
#[test]
fn t08_xsa_218_xsa_224_xsa_228_xsa_230_xsa_234_xsa_236_a_reference_is_mapped_once() {
    for shape in [Shape::default(), Shape { zero_copy: false, ..Shape::default() }] {
        let mut case = Case::new();
        let (file, before) = case.image(1 << 20);
        let (mut disk, plan) = tampered(&mut case, &file, shape);
        let (data, list) = (case.pages(4), case.pages(1));
        let same = [data.refs[0]; 11];
        let all = [segment(data.refs[0], 0, 0); 256];
        write_segments(&list.memory.pages(), 0, &all);
        // As a page of data, and as the page of segments itself.
        write_segments(&list.memory.pages(), 100, &[segment(list.refs[0], 7, 7)]);
        let slots = [
            rw(BLKIF_OP_WRITE, 1, 0, &same),
            rw(BLKIF_OP_WRITE, 2, 88, &same),
            rw(BLKIF_OP_WRITE, 3, 176, &[data.refs[1], data.refs[0], data.refs[1]]),
            indirect(BLKIF_OP_WRITE, 4, 512, 256, list.refs[0]),
            indirect(BLKIF_OP_WRITE, 5, 1024, 256, list.refs[0]),
        ];
        for _ in 0..20 {
            assert_eq!(statuses(&mut disk, &slots), [0; 5], "{shape:?}");
        }
        let mut mapped = plan.mapped.lock().unwrap().clone();
        let count = mapped.len();
        mapped.sort_unstable();
        mapped.dedup();
        // The ring, two pages of data, the page of segments.
        assert_eq!((mapped.len(), count), (4, 4), "{shape:?}");
        assert!(before.len() == 1 << 20);
        case.over(disk);
        case.end([data, list]);
    }
}

/// XSA-500: no page is copied through the hypervisor while we have it mapped.
#[test]
fn t08_xsa_500_what_is_mapped_is_not_copied() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let (mut disk, plan) = tampered(&mut case, &file, Shape::default());
    let data = case.pages(64);
    let mut random = fastrand::Rng::with_seed(500);
    for _ in 0..300 {
        let mut refs: Vec<GrantRef> = (0..11).map(|_| data.refs[random.usize(..64)]).collect();
        let bad = random.u8(..4) == 0;
        if bad {
            // The mapping fails, and what is good of it is copied: then it must not be mapped.
            refs[random.usize(..11)] = GrantRef(random.u32(20_000..));
        }
        let operation = if random.bool() { BLKIF_OP_READ } else { BLKIF_OP_WRITE };
        assert_eq!(statuses(&mut disk, &[rw(operation, 1, 0, &refs)]), [if bad { BLKIF_RSP_ERROR } else { 0 }]);
        let copied = std::mem::take(&mut *plan.copied.lock().unwrap());
        let mapped = plan.mapped.lock().unwrap();
        assert!(copied.iter().all(|gref| !mapped.contains(gref)), "{copied:?} are mapped");
    }
    assert!(plan.mapped.lock().unwrap().len() > 60);
    case.over(disk);
    case.end([data]);
}

/// XSA-316 and 318: a call may fail and every status say otherwise, or the other way round.
#[test]
fn t08_xsa_316_xsa_318_a_call_and_each_of_its_parts_must_have_succeeded() {
    let mut case = Case::new();
    let (mut file, before) = case.image(1 << 20);
    let (mut disk, plan) = tampered(&mut case, &file, Shape { persistent: false, ..Shape::default() });
    let data = case.pages(3);
    let pages = data.memory.pages();
    pages.write(0, &[3; 3 * PAGE_SIZE]);
    for (call, part) in [(false, false), (true, false), (false, true), (true, true)] {
        plan.copy_errno.store(if call { ENOMEM } else { 0 }, Ordering::Relaxed);
        plan.bad_ref.store(if part { data.refs[1].0 } else { 0 }, Ordering::Relaxed);
        let slots = [rw(BLKIF_OP_WRITE, 1, 800, &data.refs[..2]), rw(BLKIF_OP_READ, 2, 0, &data.refs[2..])];
        let first = if call || part { BLKIF_RSP_ERROR } else { 0 };
        let second = if call { BLKIF_RSP_ERROR } else { 0 };
        assert_eq!(statuses(&mut disk, &slots), [first, second], "call {call}, part {part}");
        if first == 0 {
            assert!(content(&mut file)[800 * 512..816 * 512] == [3; 2 * PAGE_SIZE]);
            // Back to what it was, for those that fail.
            pages.write(0, &before[800 * 512..816 * 512]);
            assert_eq!(statuses(&mut disk, &[rw(BLKIF_OP_WRITE, 1, 800, &data.refs[..2])]), [0]);
            pages.write(0, &[3; 2 * PAGE_SIZE]);
        } else {
            assert!(content(&mut file) == before, "call {call}, part {part}: half a write");
        }
    }
    plan.copy_errno.store(0, Ordering::Relaxed);
    plan.bad_ref.store(0, Ordering::Relaxed);
    case.over(disk);
    case.end([data]);
}

/// XSA-362: a mapping that cannot be had is an error for a request, or a slower way, and never our end.
#[test]
fn t44_xsa_362_mappings_that_fail_are_no_end() {
    for shape in shapes() {
        let mut case = Case::new();
        let (mut file, before) = case.image(1 << 20);
        let (mut disk, plan) = tampered(&mut case, &file, shape);
        let (data, list) = (case.pages(40), case.pages(1));
        let segments: Vec<_> = data.refs.iter().map(|gref| segment(*gref, 0, 7)).collect();
        write_segments(&list.memory.pages(), 0, &segments);
        for (map, copy) in [(ENOMEM, 0), (ENOMEM, 14), (28, 28), (24, 4), (0, 12), (0, 0)] {
            plan.map_errno.store(map, Ordering::Relaxed);
            plan.copy_errno.store(copy, Ordering::Relaxed);
            let slots = [
                rw(BLKIF_OP_READ, 1, 0, &data.refs[..11]),
                indirect(BLKIF_OP_READ, 2, 0, 40, list.refs[0]),
                rw(BLKIF_OP_READ, 3, 0, &data.refs[11..22]),
            ];
            let found = statuses(&mut disk, &slots);
            if copy == 0 {
                assert_eq!(found, [0; 3], "copied where it cannot be mapped: {map} {copy} {shape:?}");
            } else if map != 0 {
                assert_eq!(found, [BLKIF_RSP_ERROR; 3], "{map} {copy} {shape:?}");
            }
        }
        assert!(content(&mut file) == before);
        let mut pages = data.memory.pages();
        is_served(&mut disk, &mut pages, &data.refs, 5);
        case.over(disk);
        case.end([data, list]);
    }
}

/// XSA-300 and XSA-380: what one guest makes us map is bounded, and mapped and unmapped in calls of bounded size.
#[test]
fn t09_xsa_300_xsa_380_what_a_guest_has_mapped_is_bounded() {
    const MOST: u32 = 64;
    for zero_copy in [true, false] {
        let mut case = Case::new();
        let (file, _) = case.image(1 << 20);
        let shape = Shape { zero_copy, max_persistent: MOST, ..Shape::default() };
        let (mut disk, plan) = tampered(&mut case, &file, shape);
        let data = case.pages(4096);
        let mut random = fastrand::Rng::with_seed(9);
        let rounds = long(1_000_000) / (32 * 11);
        for _ in 0..rounds {
            let page = |random: &mut fastrand::Rng| data.refs[random.usize(..4096)];
            let slots: Vec<_> = (0..32)
                .map(|id| rw(BLKIF_OP_READ, id, 0, &(0..11).map(|_| page(&mut random)).collect::<Vec<_>>()))
                .collect();
            disk.put(&slots);
            assert!(disk.responses(32).iter().all(|response| response.status == 0));
            assert!(case.world.active_grants() <= MOST + 1, "{} are mapped", case.world.active_grants());
        }
        assert!(plan.mapped.lock().unwrap().len() > MOST as usize * 10, "evicted and mapped anew");
        assert!(plan.most.load(Ordering::Relaxed) <= 32 * 11);
        case.over(disk);
        case.end([data]);
    }
}

/// XSA-371: what XSA-365's repair leaked. Mapped is what the table holds, after each request.
#[test]
fn t09_xsa_371_what_is_mapped_is_what_good_requests_named() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape::default());
    let data = case.pages(200);
    let mut random = fastrand::Rng::with_seed(371);
    let mut named = std::collections::BTreeSet::new();
    for _ in 0..400 {
        let mut refs: Vec<GrantRef> = (0..random.usize(1..=11)).map(|_| data.refs[random.usize(..200)]).collect();
        let bad = random.u8(..3) == 0;
        if bad {
            let at = random.usize(..refs.len());
            refs[at] = GrantRef(random.u32(20_000..));
        }
        let status = statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &refs)]);
        assert_eq!(status, [if bad { BLKIF_RSP_ERROR } else { 0 }]);
        named.extend(refs.iter().filter(|gref| gref.0 < 20_000).copied());
        let mapped = case.world.active_grants() as usize;
        assert!(mapped <= named.len() + 1, "{mapped} mapped, {} named", named.len());
        if !bad {
            assert!(mapped > refs.iter().collect::<std::collections::BTreeSet<_>>().len());
        }
    }
    case.over(disk);
    case.end([data]);
}

/// XSA-396: who is not persistent gets its pages back before the answer.
#[test]
fn t09_xsa_396_nothing_is_mapped_after_an_answer_to_a_guest_that_is_not_persistent() {
    let mut case = Case::new();
    let (file, _) = case.image(1 << 20);
    let mut disk = case.disk(&file, Shape { persistent: false, ..Shape::default() });
    for round in 0..200 {
        let (data, list) = (case.pages(12), case.pages(1));
        let segments: Vec<_> = data.refs.iter().map(|gref| segment(*gref, 0, 7)).collect();
        write_segments(&list.memory.pages(), 0, &segments);
        let operation = if round % 2 == 0 { BLKIF_OP_READ } else { BLKIF_OP_WRITE };
        let slots = [rw(operation, 1, 0, &data.refs[..11]), indirect(operation, 2, 0, 12, list.refs[0])];
        assert_eq!(statuses(&mut disk, &slots), [0, 0]);
        // A driver ends its grants as soon as it has the answer, and gives the disk up when it cannot.
        case.end([data]);
        case.end([list]);
        assert_eq!(case.world.active_grants(), 1, "the ring");
    }
    assert_eq!(case.memory.refusals(), 0);
    case.over(disk);
}

/// XSA-226 and 411 were about transitive grants, XSA-255, 486 and 501 about version 2 tables: the backend asks for
/// neither. A grant's type bits are the guest's to write, and those that are not plain access are refused.
#[test]
fn t10_grants_that_change_and_memory_that_gets_holes_hurt_nobody() {
    for shape in shapes() {
        let mut case = Case::new();
        let (file, _) = case.image(1 << 20);
        let fault = Some(FaultParams { delay_ms: 1, ..FaultParams::default() });
        let mut disk = case.disk(&file, Shape { fault, ..shape });
        let data = case.pages(16);
        let memory = std::fs::File::from(case.memory.fd().try_clone_to_owned().unwrap());
        assert!(memory.set_len(0).is_err() && memory.set_len(1 << 40).is_err(), "its size is sealed");
        case.descriptors += 1;
        let len = memory.metadata().unwrap().len();
        for round in 0..20 {
            let slots: Vec<_> = (0..16).map(|n| rw(BLKIF_OP_WRITE, n, n * 8, &data.refs[n as usize..][..1])).collect();
            disk.put(&slots);
            if round % 2 == 0 {
                // All of it but the table and the ring.
                let ring = u64::from(disk.ring_grant.memory.len() as u32);
                punch(&memory, len / 2, len / 2 - ring);
            }
            assert!(disk.responses(16).iter().all(|response| response.status == 0), "{shape:?}");
        }
        // The table goes too: every reference is a bad one, and what is mapped stays valid.
        let lost = case.pages(1);
        punch(&memory, 0, 16 * PAGE_SIZE as u64);
        let status = statuses(&mut disk, &[rw(BLKIF_OP_READ, 1, 0, &lost.refs)]);
        assert_eq!(status, [BLKIF_RSP_ERROR]);
        case.witness.is_served();
        disk.close();
        drop(disk);
        case.settled();
    }
}
