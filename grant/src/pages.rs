//! Memory that somebody else can write at any moment: raw mappings, checked copies of plain data, and never a
//! Rust reference. Every access is bounds-checked, and every copied type is plain data (zerocopy), so a peer's
//! scribbling can change *what* is read, never what is safe.

use std::io;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Access, PAGE_SIZE};

/// Gives back what a [`SharedMemory`] stood on; called once, before the value is gone.
pub trait Release: Send {
    /// Unmaps `len` bytes at `address`.
    fn release(&mut self, address: NonNull<u8>, len: usize) -> io::Result<()>;
}

/// Owns one mapping and unmaps it on drop.
pub struct SharedMemory {
    pages: Pages,
}

/// The mapping behind one or more [`Pages`].
struct Mapping {
    address: NonNull<u8>,
    len: usize,
    writable: bool,
    release: Option<Box<dyn Release>>,
}

// SAFETY: the mapping is plain memory that is valid from every thread; all access goes through volatile or atomic
// copies, and `release` is Send.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing behind a shared reference is mutated except the mapped memory, by volatile or atomic copies.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn unmap(&mut self) -> io::Result<()> {
        match self.release.take() {
            Some(mut release) => release.release(self.address, self.len),
            None => Ok(()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Err(error) = self.unmap() {
            tracing::error!(%error, len = self.len, "unmapping shared memory failed");
        }
    }
}

impl std::fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedMemory({} bytes)", self.pages.len)
    }
}

impl SharedMemory {
    /// Takes over a mapping.
    ///
    /// # Safety
    /// `address..address + len` is mapped readable, and writable for [`Access::ReadWrite`], is not referenced by any
    /// Rust reference, and stays mapped until `release` is called.
    pub unsafe fn new(address: NonNull<u8>, len: usize, access: Access, release: Box<dyn Release>) -> SharedMemory {
        let mapping = Mapping { address, len, writable: access == Access::ReadWrite, release: Some(release) };
        SharedMemory { pages: Pages { mapping: Arc::new(mapping), first: address, len } }
    }

    /// A view of the whole memory; it keeps the memory mapped as long as it lives.
    pub fn pages(&self) -> Pages {
        self.pages.clone()
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.pages.len
    }

    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Unmaps now and tells whether it worked.
    ///
    /// # Errors
    /// `EBUSY` while a view of it lives elsewhere (it is unmapped when that one goes); else what the kernel said.
    pub fn unmap(self) -> io::Result<()> {
        match Arc::try_unwrap(self.pages.mapping) {
            Ok(mut mapping) => mapping.unmap(),
            Err(_) => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        }
    }
}

/// A bounds-checked view of shared memory. Cloning shares it; the memory stays mapped while a view lives.
#[derive(Clone)]
pub struct Pages {
    mapping: Arc<Mapping>,
    /// Inside of the mapping, as are the `len` bytes from it.
    first: NonNull<u8>,
    len: usize,
}

// SAFETY: as for `Mapping`, which it keeps alive.
unsafe impl Send for Pages {}
// SAFETY: as for `Mapping`.
unsafe impl Sync for Pages {}

impl std::fmt::Debug for Pages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pages({} bytes)", self.len)
    }
}

impl Pages {
    /// Bytes in the view.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when the view covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `len` bytes from `offset`, as a view of their own.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Pages> {
        let first = self.address(offset, len)?;
        Some(Pages { mapping: Arc::clone(&self.mapping), first, len })
    }

    /// Page `index` as a view of its own.
    pub fn page(&self, index: usize) -> Option<Pages> {
        self.slice(index.checked_mul(PAGE_SIZE)?, PAGE_SIZE)
    }

    /// Address of `len` bytes at `offset`; `None` when they are not all inside.
    #[inline]
    pub(crate) fn address(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: offset + len is inside the view, and the view is inside the mapping.
        Some(unsafe { self.first.add(offset) })
    }

    #[inline]
    #[track_caller]
    fn checked(&self, offset: usize, len: usize, align: usize) -> NonNull<u8> {
        let address = self.address(offset, len).expect("access outside of shared memory");
        assert!((address.as_ptr() as usize).is_multiple_of(align), "misaligned access to shared memory");
        address
    }

    /// As [`Pages::checked`], for memory that will be written.
    #[inline]
    #[track_caller]
    fn checked_for_write(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(self.mapping.writable, "a write to memory that is mapped read-only");
        self.checked(offset, len, 1)
    }

    /// Copies a value out. Words are read one by one; what a peer changes meanwhile may be torn, never unsound.
    ///
    /// # Panics
    /// When `offset` is outside: offsets come from our own layout, never from a peer.
    #[inline]
    pub fn load<T: FromBytes + IntoBytes>(&self, offset: usize) -> T {
        let mut value = T::new_zeroed();
        self.read(offset, value.as_mut_bytes());
        value
    }

    /// Copies a value in.
    ///
    /// # Panics
    /// When `offset` is outside.
    #[inline]
    pub fn store<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.write(offset, value.as_bytes());
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// When the range is outside.
    #[inline]
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.checked(offset, to.len(), 1);
        // SAFETY: `from` covers to.len() mapped bytes (checked), `to` is ours and cannot overlap foreign memory.
        unsafe { copy_shared(from.as_ptr(), to.as_mut_ptr(), to.len()) }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// When the range is outside, or the memory is mapped read-only.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.checked_for_write(offset, from.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { copy_shared(from.as_ptr(), to.as_ptr(), from.len()) }
    }

    /// Copies `len` bytes from `source` at `from` to here at `to`; the two may be the same memory.
    ///
    /// # Panics
    /// When a range is outside.
    #[inline]
    pub fn copy_from(&self, to: usize, source: &Pages, from: usize, len: usize) {
        let target = self.checked_for_write(to, len);
        let source = source.checked(from, len, 1);
        // SAFETY: both ranges are mapped (checked); copy_shared allows overlap.
        unsafe { copy_shared(source.as_ptr(), target.as_ptr(), len) }
    }

    /// Fills `len` bytes at `offset` with zeros.
    ///
    /// # Panics
    /// When the range is outside.
    pub fn zero(&self, offset: usize, len: usize) {
        let to = self.checked_for_write(offset, len);
        // SAFETY: `to` covers len mapped bytes (checked).
        unsafe { std::ptr::write_bytes(to.as_ptr(), 0, len) }
    }

    /// Loads a `u32`, ordered before everything that follows.
    ///
    /// # Panics
    /// When the word is outside or misaligned.
    #[inline]
    pub fn load_acquire(&self, offset: usize) -> u32 {
        self.atomic32(offset).load(Ordering::Acquire)
    }

    /// Stores a `u32`, ordered after everything before it.
    ///
    /// # Panics
    /// When the word is outside or misaligned.
    #[inline]
    pub fn store_release(&self, offset: usize, value: u32) {
        self.checked_for_write(offset, 4);
        self.atomic32(offset).store(value, Ordering::Release);
    }

    /// The `u32` at `offset` as an atomic: the one kind of reference to shared memory that is allowed, for it
    /// never assumes that nobody writes.
    #[inline]
    pub(crate) fn atomic32(&self, offset: usize) -> &AtomicU32 {
        let address = self.checked(offset, 4, 4);
        // SAFETY: in range and aligned (checked), mapped as long as self lives; atomics tolerate any writer.
        unsafe { AtomicU32::from_ptr(address.as_ptr().cast()) }
    }
}

/// Records of `STRIDE` bytes in a row, in shared memory that we may write. Range, alignment and access are checked once,
/// here, so that an access checks nothing but the record's number: for what is touched with every request.
///
/// Each word is read or written exactly once (volatile): the compiler can neither repeat nor invent an access, which is
/// what [`Pages`] gets from a routine out of line.
pub(crate) struct Records<const STRIDE: usize> {
    first: NonNull<u8>,
    count: usize,
    /// Keeps the memory mapped.
    _pages: Pages,
}

// SAFETY: as for `Mapping`: plain memory that is valid from every thread, touched by volatile accesses of words only.
unsafe impl<const STRIDE: usize> Send for Records<STRIDE> {}

impl<const STRIDE: usize> Records<STRIDE> {
    /// `count` records from `offset`; `None` when there are none, or not all are there, aligned to what moves at a time and
    /// ours to write.
    pub(crate) fn new(pages: &Pages, offset: usize, count: usize) -> Option<Records<STRIDE>> {
        let first = pages.address(offset, count.checked_mul(STRIDE)?)?;
        let aligned = STRIDE.is_multiple_of(8) && (first.as_ptr() as usize).is_multiple_of(size_of::<Pair>());
        (count > 0 && aligned && pages.mapping.writable).then(|| Records { first, count, _pages: pages.clone() })
    }

    /// The first of them, which there always is.
    #[inline(always)]
    pub(crate) fn first(&self) -> Record<'_, STRIDE> {
        Record { first: self.first, records: PhantomData }
    }

    /// A record, whose number is checked here.
    ///
    /// # Panics
    /// When there is no such record.
    #[inline(always)]
    pub(crate) fn record(&self, record: usize) -> Record<'_, STRIDE> {
        assert!(record < self.count);
        // SAFETY: the record is one of those that were checked.
        Record { first: unsafe { self.first.add(record * STRIDE) }, records: PhantomData }
    }
}

/// One of [`Records`]. Where words lie is known when this is compiled, and what is wrong about it then is, too.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a, const STRIDE: usize> {
    first: NonNull<u8>,
    records: PhantomData<&'a Records<STRIDE>>,
}

/// What moves at a time from record to record: one instruction each for the load and the store of it.
#[cfg(target_arch = "x86_64")]
type Pair = std::arch::x86_64::__m128i;
#[cfg(not(target_arch = "x86_64"))]
type Pair = u64;

impl<const STRIDE: usize> Record<'_, STRIDE> {
    #[inline(always)]
    fn word(self, at: usize) -> *mut u64 {
        assert!(at.is_multiple_of(8) && at + 8 <= STRIDE);
        // SAFETY: the word lies in the record.
        unsafe { self.first.as_ptr().add(at).cast() }
    }

    /// The word at byte `at`.
    ///
    /// # Panics
    /// When there is no such word.
    #[inline(always)]
    pub(crate) fn load(self, at: usize) -> u64 {
        // SAFETY: mapped and aligned, see `word`; a volatile load of an integer tolerates any writer.
        unsafe { self.word(at).read_volatile() }
    }

    /// Sets the word at byte `at`.
    ///
    /// # Panics
    /// As [`Record::load`].
    #[inline(always)]
    pub(crate) fn store(self, at: usize, value: u64) {
        // SAFETY: mapped, ours to write and aligned, see `word` and `Records::new`.
        unsafe { self.word(at).write_volatile(value) }
    }

    /// Sets half a word at byte `at`.
    ///
    /// # Panics
    /// As [`Record::load`].
    #[inline(always)]
    pub(crate) fn store_half(self, at: usize, value: u32) {
        assert!(at.is_multiple_of(4));
        let word = self.word(at - at % 8).cast::<u32>();
        // SAFETY: as in `store`; the half lies in its word.
        unsafe { word.add(at % 8 / 4).write_volatile(value) }
    }

    /// Writes words from byte `at` on.
    ///
    /// # Panics
    /// As [`Record::load`].
    #[inline(always)]
    pub(crate) fn store_all<const N: usize>(self, at: usize, words: &[u64; N]) {
        assert!(at + N * 8 <= STRIDE);
        for (word, value) in words.iter().enumerate() {
            self.store(at + word * 8, *value);
        }
    }

    /// Copies the whole of another record to byte `at` of this one, each word once.
    ///
    /// # Panics
    /// When it does not fit there.
    #[inline(always)]
    pub(crate) fn copy<const LEN: usize>(self, at: usize, from: Record<'_, LEN>) {
        const { assert!(LEN.is_multiple_of(size_of::<Pair>()) && STRIDE.is_multiple_of(size_of::<Pair>())) };
        assert!(at.is_multiple_of(size_of::<Pair>()) && at + LEN <= STRIDE);
        for pair in (0..LEN).step_by(size_of::<Pair>()) {
            // SAFETY: both ends lie in their records and are aligned as those are (see `Records::new`); plain bits tolerate any writer.
            unsafe {
                let from = from.first.as_ptr().add(pair).cast::<Pair>();
                self.first.as_ptr().add(at + pair).cast::<Pair>().write_volatile(from.read_volatile());
            }
        }
    }
}

/// The one routine that moves bytes between us and shared memory.
///
/// It is kept out of line so that the compiler can neither merge two copies of the same place into one nor
/// read a place twice where the program reads it once (XSA-155): for all it knows the call has side effects.
///
/// # Safety
/// Both ranges of `len` bytes are mapped; they may overlap.
#[inline(never)]
unsafe fn copy_shared(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy(std::hint::black_box(from), std::hint::black_box(to), len) }
}
