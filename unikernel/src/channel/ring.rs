//! Two rings of bytes in shared pages, with indexes that only grow (modulo 2^32).

use grant::{PAGE_SIZE, Pages};

/// Pages of a channel.
pub const PAGES: usize = 2 + ANSWER_PAGES;
/// Pages of the ring of answers.
const ANSWER_PAGES: usize = 8;

/// At the head of the first page: "WCH1".
pub const MAGIC: u32 = u32::from_le_bytes(*b"WCH1");

const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 4;
/// dom0 writes a token that is not 0 to be listened to ...
const WANTED_AT: usize = 8;
/// ... and finds it here when it is.
const SESSION_AT: usize = 12;
/// Producer and consumer of the questions, then of the answers: cache lines of their own for each writer.
const ASK_PROD_AT: usize = 64;
const ASK_CONS_AT: usize = 128;
const ANSWER_PROD_AT: usize = 132;
const ANSWER_CONS_AT: usize = 68;

/// The other side broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// An index of theirs does not lie inside of the ring.
    #[error("an index of the other side lies outside of the ring")]
    Index,
    /// There are fewer pages than a channel has.
    #[error("the pages of a channel are missing")]
    Pages,
}

/// The shared words.
pub struct Head(Pages);

impl Head {
    /// The token that dom0 wants to be listened to by.
    pub fn wanted(&self) -> u32 {
        self.0.load_acquire(WANTED_AT)
    }

    /// dom0's side of that.
    pub fn want(&self, token: u32) {
        self.0.store_release(WANTED_AT, token);
    }

    /// Who is listened to.
    pub fn session(&self) -> u32 {
        self.0.load_acquire(SESSION_AT)
    }

    /// The VM's side of that.
    pub fn listen_to(&self, token: u32) {
        self.0.store_release(SESSION_AT, token);
    }

    /// What the VM said at the start.
    pub fn says(&self) -> (u32, u32) {
        (self.0.load_acquire(MAGIC_AT), self.0.load_acquire(VERSION_AT))
    }
}

/// The end of a ring that is written to.
pub struct Outlet {
    head: Pages,
    bytes: Pages,
    prod_at: usize,
    cons_at: usize,
    prod: u32,
}

/// The end of a ring that is read from.
pub struct Inlet {
    head: Pages,
    bytes: Pages,
    prod_at: usize,
    cons_at: usize,
    cons: u32,
}

/// Starts an empty channel in the VM's own pages.
///
/// # Errors
/// When they are too few.
pub fn found(pages: &Pages, version: u32) -> Result<(Head, Inlet, Outlet), Broken> {
    let (head, asks, answers) = parts(pages)?;
    head.store_release(VERSION_AT, version);
    head.store_release(MAGIC_AT, MAGIC);
    Ok((
        Head(head.clone()),
        inlet(&head, asks, ASK_PROD_AT, ASK_CONS_AT),
        outlet(&head, answers, ANSWER_PROD_AT, ANSWER_CONS_AT),
    ))
}

/// dom0's ends of a channel.
///
/// # Errors
/// When the pages are too few.
pub fn join(pages: &Pages) -> Result<(Head, Outlet, Inlet), Broken> {
    let (head, asks, answers) = parts(pages)?;
    Ok((
        Head(head.clone()),
        outlet(&head, asks, ASK_PROD_AT, ASK_CONS_AT),
        inlet(&head, answers, ANSWER_PROD_AT, ANSWER_CONS_AT),
    ))
}

fn parts(pages: &Pages) -> Result<(Pages, Pages, Pages), Broken> {
    let head = pages.page(0).ok_or(Broken::Pages)?;
    let asks = pages.page(1).ok_or(Broken::Pages)?;
    let answers = pages.slice(2 * PAGE_SIZE, ANSWER_PAGES * PAGE_SIZE).ok_or(Broken::Pages)?;
    Ok((head, asks, answers))
}

fn outlet(head: &Pages, bytes: Pages, prod_at: usize, cons_at: usize) -> Outlet {
    Outlet { head: head.clone(), bytes, prod_at, cons_at, prod: 0 }
}

fn inlet(head: &Pages, bytes: Pages, prod_at: usize, cons_at: usize) -> Inlet {
    Inlet { head: head.clone(), bytes, prod_at, cons_at, cons: 0 }
}

/// What lies between two indexes, if that fits a ring of `len` bytes, a power of two.
fn between(cons: u32, prod: u32, len: usize) -> Result<usize, Broken> {
    let bytes = prod.wrapping_sub(cons) as usize;
    if bytes <= len { Ok(bytes) } else { Err(Broken::Index) }
}

impl Outlet {
    /// Starts again from an empty ring; the other side must do so, too.
    pub fn reset(&mut self) {
        self.prod = 0;
        self.head.store_release(self.prod_at, 0);
    }

    /// Writes as much as there is room for, and says how much that was.
    ///
    /// # Errors
    /// [`Broken::Index`].
    pub fn write(&mut self, from: &[u8]) -> Result<usize, Broken> {
        let len = self.bytes.len();
        let taken = between(self.head.load_acquire(self.cons_at), self.prod, len)?;
        let count = from.len().min(len - taken);
        let at = self.prod as usize % len;
        let first = count.min(len - at);
        self.bytes.write(at, &from[..first]);
        self.bytes.write(0, &from[first..count]);
        self.prod = self.prod.wrapping_add(count as u32);
        self.head.store_release(self.prod_at, self.prod);
        Ok(count)
    }
}

impl Inlet {
    /// Starts again from an empty ring; the other side must do so, too.
    pub fn reset(&mut self) {
        self.cons = 0;
        self.head.store_release(self.cons_at, 0);
    }

    /// Reads as much as there is and `to` takes, and says how much that was.
    ///
    /// # Errors
    /// [`Broken::Index`].
    pub fn read(&mut self, to: &mut [u8]) -> Result<usize, Broken> {
        let len = self.bytes.len();
        let there = between(self.cons, self.head.load_acquire(self.prod_at), len)?;
        let count = there.min(to.len());
        let at = self.cons as usize % len;
        let first = count.min(len - at);
        self.bytes.read(at, &mut to[..first]);
        self.bytes.read(0, &mut to[first..count]);
        self.cons = self.cons.wrapping_add(count as u32);
        self.head.store_release(self.cons_at, self.cons);
        Ok(count)
    }
}
