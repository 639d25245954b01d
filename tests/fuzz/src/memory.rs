//! What a target allocates at most, so that a length field cannot make it allocate a promise.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[global_allocator]
static COUNTED: Counted = Counted { now: AtomicUsize::new(0), peak: AtomicUsize::new(0) };

/// Runs `work`; how many bytes more than before were allocated at once.
pub(crate) fn peak<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = COUNTED.now.load(Relaxed);
    COUNTED.peak.store(before, Relaxed);
    let result = work();
    (result, COUNTED.peak.load(Relaxed).saturating_sub(before))
}

/// The system's allocator, counted.
struct Counted {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Counted {
    fn more(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Relaxed).wrapping_add(bytes);
        self.peak.fetch_max(now, Relaxed);
    }

    fn less(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Relaxed);
    }
}

// SAFETY: every call goes on to the system's allocator as it came, and its answer back as it is.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.more(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.more(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        self.less(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.more(size);
        self.less(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
