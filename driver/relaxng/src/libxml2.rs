//! The calls into libxml2, and all of this crate's unsafe code.
//!
//! Declared by hand from `libxml/parser.h`, `relaxng.h` and `xmlerror.h`, as they have been since
//! 2.9: twelve functions do not need a generated binding. Invariants:
//!
//! - libxml2 is entered by one thread at a time ([`LIBRARY`]). Its tables of types and its
//!   initialisation are globals without a lock of their own in older versions, and a validation
//!   takes a millisecond.
//! - Every pointer it gives is owned by one [`Owned`], which frees it once, in the same call. Only
//!   a [`Grammar`] lives on, for as long as the process.
//! - Nothing of it is printed: complaints go to a [`Complaints`] that outlives the call.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Held over every call into the library.
static LIBRARY: Mutex<()> = Mutex::new(());

/// Never load anything from the network, never print. Entities and DTDs are not asked for.
const OPTIONS: c_int = NO_NET | NO_ERROR | NO_WARNING;
const NO_ERROR: c_int = 1 << 5;
const NO_WARNING: c_int = 1 << 6;
const NO_NET: c_int = 1 << 11;

/// More than these say nothing new, and a document can cause any number.
const MOST_COMPLAINTS: usize = 8;

/// The head of `struct _xmlError`: the rest is not read.
#[repr(C)]
struct XmlError {
    domain: c_int,
    code: c_int,
    message: *const c_char,
}

type OnError = unsafe extern "C" fn(context: *mut c_void, error: *const XmlError);

#[link(name = "xml2")]
unsafe extern "C" {
    fn xmlInitParser();
    fn xmlReadMemory(
        text: *const c_char,
        size: c_int,
        url: *const c_char,
        encoding: *const c_char,
        options: c_int,
    ) -> *mut c_void;
    fn xmlFreeDoc(document: *mut c_void);
    fn xmlGetLastError() -> *const XmlError;
    fn xmlRelaxNGNewMemParserCtxt(text: *const c_char, size: c_int) -> *mut c_void;
    fn xmlRelaxNGSetParserStructuredErrors(parser: *mut c_void, on: OnError, context: *mut c_void);
    fn xmlRelaxNGParse(parser: *mut c_void) -> *mut c_void;
    fn xmlRelaxNGFreeParserCtxt(parser: *mut c_void);
    fn xmlRelaxNGNewValidCtxt(grammar: *mut c_void) -> *mut c_void;
    fn xmlRelaxNGSetValidStructuredErrors(valid: *mut c_void, on: OnError, context: *mut c_void);
    fn xmlRelaxNGValidateDoc(valid: *mut c_void, document: *mut c_void) -> c_int;
    fn xmlRelaxNGFreeValidCtxt(valid: *mut c_void);
}

/// What libxml2 said, in its order.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Vec<String>);

impl Complaints {
    fn one(text: impl Into<String>) -> Self {
        Self(vec![text.into()])
    }

    /// All of it as one line, or `otherwise`.
    pub(crate) fn said(&self, otherwise: &str) -> String {
        if self.0.is_empty() { otherwise.to_owned() } else { self.0.join("; ") }
    }
}

/// A grammar, ready to be applied. Never freed: a process has one, and keeps it.
#[derive(Debug)]
pub(crate) struct Grammar(NonNull<c_void>);

// SAFETY: the library's memory belongs to no thread, and `validate` reaches it under LIBRARY.
unsafe impl Send for Grammar {}
// SAFETY: as above: two threads that share it take turns.
unsafe impl Sync for Grammar {}

impl Grammar {
    pub(crate) fn parse(text: &str) -> Result<Self, Complaints> {
        let _turn = enter();
        let mut complaints = Complaints::default();
        let size = size(text)?;
        // SAFETY: text is readable for size bytes until the end of this function, which is where
        // the parser that refers to it is freed. The free function is the parser's own.
        let parser = unsafe {
            let parser = xmlRelaxNGNewMemParserCtxt(text.as_ptr().cast(), size);
            Owned::new(parser, xmlRelaxNGFreeParserCtxt)
        };
        let parser = parser.ok_or_else(out_of_memory)?;
        // SAFETY: the parser is alive. `complaints` outlives it (it was declared before), and is
        // not touched while the library may call back.
        let grammar = unsafe {
            let context = (&raw mut complaints).cast();
            xmlRelaxNGSetParserStructuredErrors(parser.pointer, collect, context);
            NonNull::new(xmlRelaxNGParse(parser.pointer))
        };
        drop(parser);
        grammar.map(Self).ok_or(complaints)
    }

    pub(crate) fn validate(&self, document: &str) -> Result<(), Complaints> {
        let _turn = enter();
        let mut complaints = Complaints::default();
        let document = read(document)?;
        // SAFETY: a grammar is never freed. The free function is the context's own.
        let valid =
            unsafe { Owned::new(xmlRelaxNGNewValidCtxt(self.0.as_ptr()), xmlRelaxNGFreeValidCtxt) };
        let valid = valid.ok_or_else(out_of_memory)?;
        // SAFETY: context and document are alive, and both are freed in this function, before
        // `complaints`, which is not touched while the library may call back.
        let verdict = unsafe {
            let context = (&raw mut complaints).cast();
            xmlRelaxNGSetValidStructuredErrors(valid.pointer, collect, context);
            xmlRelaxNGValidateDoc(valid.pointer, document.pointer)
        };
        drop(valid);
        if verdict == 0 { Ok(()) } else { Err(complaints) }
    }
}

/// Waits for this thread's turn. What a panicking thread left behind is no state of ours.
fn enter() -> MutexGuard<'static, ()> {
    let turn = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: may be called any number of times; no other thread is inside the library.
    unsafe { xmlInitParser() };
    turn
}

/// The library's tree of a document. The caller is inside [`enter`].
fn read(text: &str) -> Result<Owned, Complaints> {
    let size = size(text)?;
    // SAFETY: text is readable for size bytes, and copied; the name may be null, the encoding is a
    // C string. The free function is the document's own.
    let document = unsafe {
        let text = text.as_ptr().cast();
        let document = xmlReadMemory(text, size, ptr::null(), c"UTF-8".as_ptr(), OPTIONS);
        Owned::new(document, xmlFreeDoc)
    };
    document.ok_or_else(|| {
        // SAFETY: the error belongs to this thread, and stays until its next call.
        let reason = unsafe { xmlGetLastError().as_ref().and_then(|error| words(error)) };
        let reason = reason.unwrap_or_else(|| "it gives no reason".to_owned());
        Complaints::one(format!("libxml2 cannot read the document: {reason}"))
    })
}

fn size(text: &str) -> Result<c_int, Complaints> {
    c_int::try_from(text.len()).map_err(|_| Complaints::one("larger than 2 GiB"))
}

fn out_of_memory() -> Complaints {
    Complaints::one("libxml2 found no memory")
}

/// Called by libxml2 for each complaint.
///
/// # Safety
/// `context` is a [`Complaints`] that nothing else uses during the call, `error` null or valid.
unsafe extern "C" fn collect(context: *mut c_void, error: *const XmlError) {
    // SAFETY: by this function's own contract.
    let (complaints, error) = unsafe { (context.cast::<Complaints>().as_mut(), error.as_ref()) };
    let (Some(Complaints(complaints)), Some(error)) = (complaints, error) else { return };
    if complaints.len() < MOST_COMPLAINTS {
        // SAFETY: the library's error, valid during the call.
        complaints.extend(unsafe { words(error) });
    }
}

/// The message, if there is one.
///
/// # Safety
/// `error.message` is null or a C string.
unsafe fn words(error: &XmlError) -> Option<String> {
    let message = NonNull::new(error.message.cast_mut())?;
    // SAFETY: by this function's own contract.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy();
    Some(message.trim_end().to_owned())
}

/// Something that libxml2 made, and the function that frees it.
#[derive(Debug)]
struct Owned {
    pointer: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

impl Owned {
    /// `None` for a null pointer.
    ///
    /// # Safety
    /// `free` frees what `pointer` points to, and nobody else does.
    unsafe fn new(pointer: *mut c_void, free: unsafe extern "C" fn(*mut c_void)) -> Option<Self> {
        (!pointer.is_null()).then_some(Self { pointer, free })
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: `new`'s contract: the pointer is alive, this is its function, and nobody else
        // frees it. Every owner lives inside a call that holds LIBRARY.
        unsafe { (self.free)(self.pointer) }
    }
}
