//! Memory maps of files, and what the kernel is asked about them: the only `unsafe` of the crate.
//!
//! A map is never read through. It exists so that the kernel keeps the pages behind it, so nothing here hands out a
//! slice or a pointer, and a file that is cut short under its map cannot bring the process down (no `SIGBUS`).
#![allow(
    unsafe_code,
    reason = "mmap, mlock, madvise and two system calls without a safe wrapper; nothing dereferences"
)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags};

/// `cachestat(2)`, Linux 6.5 and later. The same number on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// Bytes of a page.
pub(super) fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// A shared, read-only map of the first bytes of a file. Unmapped, and so unlocked, when dropped.
#[derive(Debug)]
pub(super) struct Map {
    start: NonNull<c_void>,
    /// Whole pages.
    bytes: usize,
}

// SAFETY: the address is only ever passed to the kernel, which serialises changes to an address space itself.
unsafe impl Send for Map {}
// SAFETY: as above; no method reads or writes the memory.
unsafe impl Sync for Map {}

impl Map {
    /// Maps the first `bytes` bytes of a file, at least one page.
    pub(super) fn new(file: &File, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes.max(1).next_multiple_of(page())).map_err(|_| Errno::NOMEM)?;
        // SAFETY: the kernel chooses the address, so no other memory is replaced; the file is not touched through it.
        let start =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file, 0) }?;
        let map = Self { start: NonNull::new(start).ok_or(Errno::NOMEM)?, bytes };
        // Reads 2 MiB for each fault whatever the device's read-ahead is set to. A wish: kernels without it say no.
        let _ = map.advise(&map.all(), Advice::LinuxHugepage);
        Ok(map)
    }

    fn all(&self) -> Range<u64> {
        0..self.bytes as u64
    }

    /// The address and length of the whole pages around `range`, cut to the map.
    fn pages(&self, range: &Range<u64>) -> (*mut c_void, usize) {
        let whole = whole_pages(range);
        let start = usize::try_from(whole.start).unwrap_or(usize::MAX).min(self.bytes);
        let end = usize::try_from(whole.end).unwrap_or(usize::MAX).min(self.bytes);
        // SAFETY: `start` is at most the map's length, so the result stays inside the map or is its end.
        (unsafe { self.start.as_ptr().byte_add(start) }, end.saturating_sub(start))
    }

    /// Reads what is missing of a range and locks it.
    pub(super) fn lock(&self, range: &Range<u64>) -> io::Result<()> {
        let (start, bytes) = self.pages(range);
        // SAFETY: the pages belong to this map.
        Ok(unsafe { rustix::mm::mlock(start, bytes) }?)
    }

    /// Reads what is missing of a range and maps it, without a lock. `InvalidInput` before Linux 5.14.
    pub(super) fn populate(&self, range: &Range<u64>) -> io::Result<()> {
        self.advise(range, Advice::LinuxPopulateRead)
    }

    fn advise(&self, range: &Range<u64>, advice: Advice) -> io::Result<()> {
        let (start, bytes) = self.pages(range);
        // SAFETY: the pages belong to this map, and neither advice that is given here changes their content.
        Ok(unsafe { rustix::mm::madvise(start, bytes, advice) }?)
    }

    /// Bytes of a range that are in the page cache, page by page: 70 ms for 4 GiB.
    pub(super) fn mincore(&self, range: &Range<u64>) -> io::Result<u64> {
        let (start, bytes) = self.pages(range);
        let page = usize::try_from(page()).expect("a page fits the address space");
        let mut pages = vec![0_u8; bytes.div_ceil(page)];
        // SAFETY: the range belongs to this map, and the vector has one byte for each of its pages.
        let answer = unsafe { libc::mincore(start, bytes, pages.as_mut_ptr()) };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((pages.iter().filter(|seen| **seen & 1 == 1).count() * page) as u64)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: nobody else holds this address, and nothing reads through it. It cannot fail for a whole map.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// The whole pages around a range of bytes.
pub(super) fn whole_pages(range: &Range<u64>) -> Range<u64> {
    let page = page();
    range.start - range.start % page..range.end.next_multiple_of(page)
}

/// Bytes of a file's range that are in the page cache, counted by the kernel without walking pages: 0.4 ms for 4 GiB.
/// `Unsupported` where the kernel has no such call, or a container's filter hides it.
pub(super) fn cachestat(file: &File, range: &Range<u64>) -> io::Result<u64> {
    #[repr(C)]
    struct Asked {
        offset: u64,
        bytes: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    struct Answer {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    if range.is_empty() {
        // A length of zero would mean "to the end".
        return Ok(0);
    }
    let asked = Asked { offset: range.start, bytes: range.end - range.start };
    let mut answer = Answer::default();
    // SAFETY: both pointers are to live values laid out as the kernel's `cachestat_range` and `cachestat`.
    let code =
        unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const asked, &raw mut answer, 0 as libc::c_uint) };
    if code == 0 {
        return Ok(answer.cached * page());
    }
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        Some(Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => Err(io::ErrorKind::Unsupported.into()),
        _ => Err(error),
    }
}

/// Starts writing a range's dirty pages to the disk, and waits for none of it.
pub(super) fn start_writeback(file: &File, range: &Range<u64>) -> io::Result<()> {
    let offset = libc::off64_t::try_from(range.start).map_err(|_| Errno::OVERFLOW)?;
    let bytes = libc::off64_t::try_from(range.end.saturating_sub(range.start)).map_err(|_| Errno::OVERFLOW)?;
    // SAFETY: takes a file and numbers; no memory is involved.
    let code = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, bytes, libc::SYNC_FILE_RANGE_WRITE) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Tries whether `bytes` bytes of memory can be locked, without touching any: they are locked on fault, and none comes.
pub(super) fn try_lock(bytes: u64) -> io::Result<()> {
    let bytes = usize::try_from(bytes.next_multiple_of(page())).map_err(|_| Errno::NOMEM)?;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: the kernel chooses the address; the memory is never read or written.
    let start = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, ProtFlags::READ, flags) }?;
    // SAFETY: the pages were mapped above.
    let locked = unsafe { rustix::mm::mlock_with(start, bytes, MlockFlags::ONFAULT) };
    // SAFETY: mapped above, and known to nobody else. Unmapping unlocks.
    let _ = unsafe { rustix::mm::munmap(start, bytes) };
    Ok(locked?)
}
