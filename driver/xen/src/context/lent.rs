//! What libxl is lent, and what it hands out: configurations, the logger, strings.

#![expect(unsafe_code, reason = "libxl is a C library")]

use std::ffi::{CStr, c_char, c_int, c_ulong, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use virtsnap_xen_sys::v4_17 as xl;

use super::log::Log;

/// The longest line that is heard.
const MAX_LINE: usize = 1024;

/// A `libxl_domain_config`, at one address until it is freed.
pub(super) struct Config<'a> {
    lib: &'a xl::Libxl,
    ctx: *mut xl::libxl_ctx,
    raw: Box<MaybeUninit<xl::libxl_domain_config>>,
}

impl<'a> Config<'a> {
    /// SAFETY: the context is of that library, and valid for as long as this lives.
    pub(super) unsafe fn new(lib: &'a xl::Libxl, ctx: *mut xl::libxl_ctx) -> Self {
        let mut raw = Box::new(MaybeUninit::zeroed());
        // SAFETY: `init` makes all of the structure valid.
        unsafe { lib.libxl_domain_config_init(raw.as_mut_ptr()) };
        Self { lib, ctx, raw }
    }

    pub(super) fn as_mut(&mut self) -> *mut xl::libxl_domain_config {
        self.raw.as_mut_ptr()
    }

    /// libxl's number: 0 is well.
    pub(super) fn read(&mut self, json: &CStr) -> c_int {
        // SAFETY: all three are valid for the call.
        unsafe { self.lib.libxl_domain_config_from_json(self.ctx, self.as_mut(), json.as_ptr()) }
    }

    /// None: libxl cannot.
    pub(super) fn write(&mut self) -> Option<String> {
        // SAFETY: what is given is a string of ours to free, or null.
        unsafe { taken(self.lib.libxl_domain_config_to_json(self.ctx, self.as_mut())) }
    }
}

impl Drop for Config<'_> {
    fn drop(&mut self) {
        // SAFETY: it was initialised, and is not used after this.
        unsafe { self.lib.libxl_domain_config_dispose(self.raw.as_mut_ptr()) };
    }
}

/// A `xentoollog_logger`, which is its first field, and what it hears.
#[repr(C)]
pub(super) struct Logger {
    raw: xl::xentoollog_logger,
    pub(super) log: Log,
}

impl Default for Logger {
    fn default() -> Self {
        let raw = xl::xentoollog_logger {
            vmessage: Some(hear),
            progress: Some(hear_progress),
            destroy: Some(forget),
        };
        Self { raw, log: Log::default() }
    }
}

impl Logger {
    pub(super) fn as_raw(&'static self) -> *mut xl::xentoollog_logger {
        ptr::from_ref(self).cast_mut().cast()
    }
}

unsafe extern "C" {
    fn vsnprintf(
        to: *mut c_char,
        size: usize,
        format: *const c_char,
        arguments: *mut xl::__va_list_tag,
    ) -> c_int;
}

/// SAFETY: called by libxl alone, with the logger it was given and a format that fits its arguments.
unsafe extern "C" fn hear(
    logger: *mut xl::xentoollog_logger,
    level: xl::xentoollog_level,
    errno: c_int,
    _context: *const c_char,
    format: *const c_char,
    arguments: *mut xl::__va_list_tag,
) {
    let mut buffer = [0u8; MAX_LINE];
    // SAFETY: at most the buffer's length is written, and a zero byte ends it.
    unsafe { vsnprintf(buffer.as_mut_ptr().cast(), buffer.len(), format, arguments) };
    let text = CStr::from_bytes_until_nul(&buffer).map(CStr::to_string_lossy).unwrap_or_default();
    // FILE:LINE:FUNCTION: what it says.
    let said = text.splitn(4, ':').nth(3).map_or(text.trim(), str::trim);
    // SAFETY: it is the `Logger` that this is the first field of, and never freed.
    let logger = unsafe { &*logger.cast::<Logger>() };
    logger.log.hear(level, said, errno);
}

unsafe extern "C" fn hear_progress(
    _logger: *mut xl::xentoollog_logger,
    _context: *const c_char,
    _doing: *const c_char,
    _percent: c_int,
    _done: c_ulong,
    _total: c_ulong,
) {
}

unsafe extern "C" fn forget(_logger: *mut xl::xentoollog_logger) {}

/// SAFETY: `text` is null, or a string from malloc that nobody else uses.
pub(super) unsafe fn taken(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        libc::free(text.cast::<c_void>());
        Some(copy)
    }
}
