//! The way of one part through a queue: memory, ring slot, response, and memory back.

use blkback::proto::{BlkifRequestSegment, MAX_INDIRECT_PAGES, MAX_SEGMENTS, SECTOR_SIZE, SEGMENTS_PER_PAGE};
use grant::{Access, PAGE_SIZE};
use zerocopy::IntoBytes;

use super::io::{Op, Status};
use super::queue::Queue;
use super::request::{Encoded, Response};
use super::slot::{Held, Lent, Slot};

impl Queue {
    /// Puts parts into the ring until it is full or nothing is left.
    pub(super) fn issue(&mut self) {
        while let Some(&entry) = self.unsent.front() {
            if self.wiring.ring.free() == 0 {
                break;
            }
            let Some(id) = self.free_slots.pop() else {
                break;
            };
            match self.send_part(entry, id) {
                Some(true) => {
                    self.unsent.pop_front();
                }
                Some(false) => {}
                None => {
                    self.free_slots.push(id);
                    self.starved = self.free_slots.len() == self.slots.len();
                    break;
                }
            }
        }
    }

    /// Puts the next part of a request into the ring as slot `id`; true when it was the last one, `None` when there
    /// are no pages for it.
    fn send_part(&mut self, index: u32, id: u16) -> Option<bool> {
        let mut slot = self.spare.pop().unwrap_or_else(|| Slot::new(self.widths.pages()));
        let entry = self.entries[index as usize].as_ref()?;
        let room = self.widths.segments() * PAGE_SIZE - self.widths.skew();
        slot.entry = index;
        slot.offset = entry.sent;
        slot.len = room.min(entry.buffer.len() - entry.sent);
        let Some(encoded) = self.prepare(&mut slot, u64::from(id)) else {
            self.spare.push(slot);
            return None;
        };
        self.wiring.ring.put(encoded.bytes());
        self.unpushed = true;
        self.starved = false;
        self.counts.requests += 1;
        let entry = self.entries[index as usize].as_mut()?;
        entry.sent += slot.len;
        entry.parts += 1;
        let last = entry.sent == entry.buffer.len();
        self.slots[usize::from(id)] = Some(slot);
        Some(last)
    }

    /// Gets memory for a part, copies a write's data into it and makes the ring's words of it.
    fn prepare(&mut self, slot: &mut Slot, id: u64) -> Option<Encoded> {
        let entry = self.entries[slot.entry as usize].as_ref()?;
        let encoder = self.widths.encoder;
        match entry.op {
            Op::Flush => return Some(encoder.direct(entry.op.wire(), id, 0, &[])),
            Op::Discard { sectors, secure } => {
                return Some(encoder.discard(id, entry.sector, sectors, secure));
            }
            Op::Read | Op::Write | Op::WriteBarrier => {}
        }
        let (op, sector) = (entry.op, entry.sector + slot.offset as u64 / SECTOR_SIZE);
        slot.data_pages = (self.widths.skew() + slot.len).div_ceil(PAGE_SIZE);
        let indirect_pages = match slot.data_pages > MAX_SEGMENTS {
            true => slot.data_pages.div_ceil(SEGMENTS_PER_PAGE),
            false => 0,
        };
        self.hold(slot, op, indirect_pages)?;
        let entry = self.entries[slot.entry as usize].as_ref()?;
        if op != Op::Read {
            let data = &entry.buffer[slot.offset..slot.offset + slot.len];
            let pool = self.pool.as_ref();
            self.widths.pieces(slot.len, |page, offset, from, len| {
                if let Some((memory, at, _)) = slot.page(pool, page) {
                    memory.write(at + offset, &data[from..from + len]);
                }
            });
        }
        self.segments.clear();
        let (pool, segments) = (self.pool.as_ref(), &mut self.segments);
        self.widths.pieces(slot.len, |page, offset, _, len| {
            let first = offset / SECTOR_SIZE as usize;
            let sectors = len / SECTOR_SIZE as usize;
            segments.push(BlkifRequestSegment {
                gref: slot.page(pool, page).map_or(0, |(_, _, gref)| gref),
                first_sect: first as u8,
                last_sect: (first + sectors - 1) as u8,
                pad: 0,
            });
        });
        if indirect_pages == 0 {
            return Some(encoder.direct(op.wire(), id, sector, &self.segments));
        }
        let mut grefs = [0; MAX_INDIRECT_PAGES];
        let filled = self.segments.chunks(SEGMENTS_PER_PAGE);
        for (index, (gref, segments)) in grefs.iter_mut().zip(filled).enumerate() {
            let (memory, at, its) = slot.indirect_page(pool, index)?;
            memory.write(at, segments.as_bytes());
            *gref = its;
        }
        self.counts.indirect += 1;
        Some(encoder.indirect(op.wire(), id, sector, self.segments.len() as u16, grefs))
    }

    /// Gets granted pages for a part: all or nothing.
    fn hold(&mut self, slot: &mut Slot, op: Op, indirect: usize) -> Option<()> {
        let (grants, peer) = (&mut *self.wiring.grants, self.wiring.peer);
        if let Some(pool) = &mut self.pool {
            slot.pages.clear();
            let before = pool.len();
            let taken = pool.take(grants, peer, slot.data_pages + indirect, &mut slot.pages);
            self.counts.pages_granted += (pool.len() - before) as u64;
            slot.memory = Held::Pool;
            return taken.then_some(());
        }
        let access = match op {
            Op::Read => Access::ReadWrite,
            _ => Access::ReadOnly,
        };
        let data = grants.grant(peer, slot.data_pages, access).ok()?;
        let indirect = match indirect {
            0 => None,
            count => match grants.grant(peer, count, Access::ReadOnly) {
                Ok(indirect) => Some(Lent::new(indirect)),
                Err(_) => {
                    // Nobody has heard of these yet, so nobody can have them mapped.
                    self.orphans.extend(grants.end(data).err().map(|refused| refused.0));
                    return None;
                }
            },
        };
        let data = Lent::new(data);
        let pages = data.len() + indirect.as_ref().map_or(0, Lent::len);
        self.counts.pages_granted += pages as u64;
        slot.memory = Held::Once { data, indirect };
        Some(())
    }

    /// Takes every response that is there.
    pub(super) fn take_responses(&mut self) -> Result<(), String> {
        if self.gate.is_failed() {
            return Ok(());
        }
        loop {
            let waiting = self.wiring.ring.unconsumed().map_err(|error| error.to_string())?;
            if waiting == 0 {
                return Ok(());
            }
            for _ in 0..waiting {
                let mut bytes = [0; Response::LEN];
                self.wiring.ring.take(&mut bytes);
                self.complete(Response::parse(&bytes))?;
            }
        }
    }

    /// One part has ended. What a backend cannot have meant ends the device, as in a stock frontend.
    fn complete(&mut self, response: Response) -> Result<(), String> {
        let id = usize::try_from(response.id).unwrap_or(usize::MAX);
        let Some(slot) = self.slots.get_mut(id).and_then(Option::take) else {
            return Err(format!("response to request {}, which is not under way", response.id));
        };
        let Some(entry) = self.entries[slot.entry as usize].as_mut() else {
            return Err(format!("response to request {}, which has ended", response.id));
        };
        let expected = entry.op.wire();
        let mut status = Status::from_wire(response.status);
        let mut wrong = None;
        if response.operation != expected {
            let text = format!("operation {} answered as {}", expected, response.operation);
            (status, wrong) = (Status::Error, Some(text));
        }
        if entry.op == Op::Read && status == Status::Okay {
            let data = &mut entry.buffer[slot.offset..slot.offset + slot.len];
            let pool = self.pool.as_ref();
            self.widths.pieces(slot.len, |page, offset, from, len| {
                if let Some((memory, at, _)) = slot.page(pool, page) {
                    memory.read(at + offset, &mut data[from..from + len]);
                }
            });
        }
        let index = slot.entry;
        self.free_slots.push(id as u16);
        if let Err(refused) = self.release(slot) {
            (status, wrong) = (Status::Error, wrong.or(Some(refused)));
        }
        self.part_ended(index, status);
        wrong.map_or(Ok(()), Err)
    }

    /// Takes a part's memory back.
    fn release(&mut self, mut slot: Slot) -> Result<(), String> {
        let mut refused = 0;
        if let (Held::Pool, Some(pool)) = (&slot.memory, &mut self.pool) {
            pool.give(&slot.pages);
        }
        for granted in slot.take_lent() {
            if let Err(still) = self.wiring.grants.end(granted) {
                refused += 1;
                self.orphans.push(still.0);
            }
        }
        self.spare.push(slot);
        self.counts.refusals += refused;
        match refused {
            0 => Ok(()),
            _ => Err("the backend still maps the grants of a request that it has answered".into()),
        }
    }
}
