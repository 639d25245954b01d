//! libxl: the one owner of its context, and every call of it.
//!
//! libxl allows any thread to call it at any time. The end of a long operation is told by a callback
//! (`libxl_asyncop_how`); one thread waits for events for as long as the process lives
//! (`libxl_event_wait`), and runs libxl's own loop thereby. An end that came as an event would not do:
//! that thread sleeps on when another one's call makes an event, as a pause does, which has ended
//! before the call that began it returns. All here blocks, operations until they have ended; at its
//! deadline, or where it is not wanted any more, one is told to end (`libxl_ao_abort`).
//!
//! Children: libxl reaps its own and no others, by a handler of SIGCHLD of its own
//! (`always_selective_reap`). So the context is made before anybody else installs one.

#![expect(unsafe_code, reason = "libxl is a C library")]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::VcpuTime;
use virtsnap_xen_sys::v4_17 as xl;

use super::lent::{Config, Logger, taken};
use super::log::Log;
use super::told::{End, Ended, HostInfo, Info, vcpu};
use super::{LONG, SHORT, lock};
use crate::device_model::wait_for_end;

/// Configurations are some KiB.
const MAX_STORED: usize = 4 << 20;

/// Watched for as long as we live: a watch that is the only one is not noticed by a thread which waits
/// for events already (`libxl_evenable_domain_death` does not wake it).
const DOM0: u32 = 0;

/// The userdata that xl and libxl start a guest from again.
const CONFIGURATION: &CStr = c"libxl-json";

pub(super) struct Libxl {
    lib: xl::Libxl,
    ctx: *mut xl::libxl_ctx,
    log: &'static Log,
    watches: Mutex<BTreeMap<u32, *mut xl::libxl_evgen_domain_death>>,
    /// Whoever waits for the memory of that domain to be saved.
    saves: Mutex<BTreeMap<u32, Sender<Told>>>,
    ended: UnboundedSender<Ended>,
}

// SAFETY: libxl locks its context itself and may be called from any thread (`libxl.h`, "Some libxl
// functions may be called from any thread"), and what it gave us belongs to it; the rest of `Libxl`
// is `Send` and `Sync` by itself.
unsafe impl Send for Libxl {}
// SAFETY: as above.
unsafe impl Sync for Libxl {}

/// What is told to whoever waits for an operation.
enum Told {
    Ended(c_int),
    /// It is not wanted any more.
    Stop,
}

/// `libxl_trigger`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Trigger {
    Power,
    Reset,
    Nmi,
}

impl Libxl {
    pub(super) fn open(ended: UnboundedSender<Ended>) -> Result<Self> {
        let lib = virtsnap_xen_sys::load()
            .map_err(|err| Error::new(Condition::Internal, "cannot use libxl").caused_by(err))?;
        let logger: &'static Logger = Box::leak(Box::default());
        let log = &logger.log;
        let mut ctx = ptr::null_mut();
        let version = c_int::try_from(xl::LIBXL_VERSION).unwrap_or_default();
        // SAFETY: `ctx` outlives the call; the logger is never freed, has the layout that libxl
        // expects as its first field, and its functions have the types of the headers.
        let rc = unsafe { lib.libxl_ctx_alloc(&raw mut ctx, version, 0, logger.as_raw()) };
        if rc != 0 {
            let refusal = "cannot connect to the hypervisor; is this a Xen host?";
            return Err(log.error(rc, 0, None, refusal));
        }
        let hooks: &'static _ = Box::leak(Box::new(xl::libxl_childproc_hooks {
            chldowner: xl::libxl_sigchld_owner_libxl_always_selective_reap,
            fork_replacement: None,
            reaped_callback: None,
        }));
        // SAFETY: the context was just made and has no children; the hooks are never freed.
        unsafe { lib.libxl_childproc_setmode(ctx, hooks, ptr::null_mut()) };
        let (watches, saves) = (Mutex::default(), Mutex::default());
        let libxl = Self { lib, ctx, log, watches, saves, ended };
        libxl.watch(DOM0)?;
        Ok(libxl)
    }

    // -- looking -------------------------------------------------------------------------------

    pub(super) fn host_info(&self) -> Result<HostInfo> {
        let (lib, ctx, mark) = (&self.lib, self.ctx, self.log.mark());
        // SAFETY: the answer belongs to the context and lives as long.
        let version = unsafe { lib.libxl_get_version_info(ctx).as_ref() };
        let version = version
            .ok_or_else(|| self.failed(mark, "cannot ask the hypervisor for its version"))?;
        let number = |n: c_int| u32::try_from(n).unwrap_or_default();
        let page_kib = u64::from(number(version.pagesize)) / 1024;
        let version = (number(version.xen_version_major), number(version.xen_version_minor));
        let mut info = MaybeUninit::<xl::libxl_physinfo>::zeroed();
        // SAFETY: `init` makes all of the structure valid, `dispose` frees what the call put in it.
        unsafe {
            lib.libxl_physinfo_init(info.as_mut_ptr());
            let rc = lib.libxl_get_physinfo(ctx, info.as_mut_ptr());
            let told = (rc == 0).then(|| HostInfo::new(version, page_kib, info.assume_init_ref()));
            lib.libxl_physinfo_dispose(info.as_mut_ptr());
            told.ok_or_else(|| self.failed(mark, "cannot ask the hypervisor what it can do"))
        }
    }

    pub(super) fn list(&self) -> Result<Vec<Info>> {
        let mark = self.log.mark();
        let mut count = 0;
        // SAFETY: the list has `count` entries and is given back to libxl once it is read.
        unsafe {
            let list = self.lib.libxl_list_domain(self.ctx, &raw mut count);
            if list.is_null() {
                return Err(self.failed(mark, "cannot list the domains"));
            }
            let entries = std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0));
            let infos = entries.iter().map(Info::from).filter(|info| info.id != 0).collect();
            self.lib.libxl_dominfo_list_free(list, count);
            Ok(infos)
        }
    }

    pub(super) fn info(&self, id: u32) -> Result<Option<Info>> {
        let mark = self.log.mark();
        let mut info = MaybeUninit::<xl::libxl_dominfo>::zeroed();
        // SAFETY: as in `host_info`.
        unsafe {
            self.lib.libxl_dominfo_init(info.as_mut_ptr());
            let rc = self.lib.libxl_domain_info(self.ctx, info.as_mut_ptr(), id);
            let told = (rc == 0).then(|| Info::from(info.assume_init_ref()));
            self.lib.libxl_dominfo_dispose(info.as_mut_ptr());
            match rc {
                0 | xl::ERROR_DOMAIN_NOTFOUND => Ok(told),
                _ => Err(self.failed(mark, &format!("cannot ask for domain {id}"))),
            }
        }
    }

    pub(super) fn vcpus(&self, id: u32) -> Result<Vec<VcpuTime>> {
        let mark = self.log.mark();
        let (mut count, mut host) = (0, 0);
        // SAFETY: the list has `count` entries, whose maps are as long as they say, and is given
        // back to libxl once it is read.
        unsafe {
            let list = self.lib.libxl_list_vcpu(self.ctx, id, &raw mut count, &raw mut host);
            if list.is_null() {
                return Err(self.failed(mark, &format!("cannot list the vCPUs of domain {id}")));
            }
            let entries = std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0));
            let vcpus = entries.iter().map(|entry| {
                let xl::libxl_bitmap { size, map } = entry.cpumap;
                let size = usize::try_from(size).unwrap_or(0);
                let map = (!map.is_null()).then(|| std::slice::from_raw_parts(map, size).to_vec());
                vcpu(entry, map)
            });
            let vcpus = vcpus.collect();
            self.lib.libxl_vcpuinfo_list_free(list, count);
            Ok(vcpus)
        }
    }

    pub(super) fn name(&self, id: u32) -> Option<String> {
        // SAFETY: what is given is a string of ours to free, or null.
        unsafe { taken(self.lib.libxl_domid_to_name(self.ctx, id)) }
    }

    pub(super) fn console(&self, id: u32) -> Option<String> {
        let mut path = ptr::null_mut();
        // SAFETY: on success `path` is a string of ours to free.
        unsafe {
            let rc = self.lib.libxl_primary_console_get_tty(self.ctx, id, &raw mut path);
            if rc == 0 { taken(path) } else { None }
        }
    }

    /// In JSON; none where libxl cannot write it.
    pub(super) fn configuration(&self, id: u32) -> Result<Option<String>> {
        // SAFETY: they are a pair, and nothing of it is ever freed.
        let mut config = unsafe { Config::new(&self.lib, self.ctx) };
        let about = "its configuration cannot be read";
        self.operate(SHORT, Some(id), about, |lib, ctx, how| {
            // SAFETY: `config` lives until the operation has ended.
            unsafe { lib.libxl_retrieve_domain_configuration(ctx, id, config.as_mut(), how) }
        })?;
        Ok(config.write())
    }

    pub(super) fn stored_configuration(&self, id: u32) -> Result<Option<Vec<u8>>> {
        let (mut data, mut length) = (ptr::null_mut(), 0);
        let (name, to, size) = (CONFIGURATION.as_ptr(), &raw mut data, &raw mut length);
        self.at_once(id, "what is stored of it cannot be read", || {
            // SAFETY: `data` and `length` outlive the call.
            unsafe { self.lib.libxl_userdata_retrieve(self.ctx, id, name, to, size) }
        })?;
        if data.is_null() {
            return Ok(None);
        }
        let length = usize::try_from(length).unwrap_or(0);
        // SAFETY: `data` is `length` bytes from malloc that nobody else uses.
        unsafe {
            let bytes = std::slice::from_raw_parts(data, length.min(MAX_STORED)).to_vec();
            libc::free(data.cast());
            Ok(Some(bytes))
        }
    }

    pub(super) fn store_configuration(&self, id: u32, text: &CStr) -> Result<()> {
        let bytes = text.to_bytes_with_nul();
        let length = c_int::try_from(bytes.len()).unwrap_or_default();
        let (name, data) = (CONFIGURATION.as_ptr(), bytes.as_ptr());
        self.at_once(id, "its configuration cannot be stored", || {
            // SAFETY: `data` is `length` bytes, and libxl copies them to a file of its own.
            unsafe { self.lib.libxl_userdata_store(self.ctx, id, name, data, length) }
        })
    }

    // -- acting --------------------------------------------------------------------------------

    /// With the memory that the file is at, if there is one. On failure nothing is left.
    pub(super) fn build(&self, json: &CStr, from: Option<&OwnedFd>) -> Result<u32> {
        // SAFETY: they are a pair, and nothing of it is ever freed.
        let mut config = unsafe { Config::new(&self.lib, self.ctx) };
        let mark = self.log.mark();
        let rc = config.read(json);
        if rc != 0 {
            let refusal = "libxl does not take the configuration";
            return Err(self.log.error(rc, mark, None, refusal));
        }
        let mut id = u32::MAX;
        let (place, config) = (&raw mut id, config.as_mut());
        let built = match from {
            None => self.operate(LONG, None, "libxl cannot make the domain", |lib, ctx, how| {
                // SAFETY: `config` and `id` live until the operation has ended.
                unsafe { lib.libxl_domain_create_new(ctx, config, place, how, ptr::null()) }
            }),
            Some(from) => self.restore(config, place, from),
        };
        // SAFETY: `id` is ours, and the operation has ended.
        let id = unsafe { place.read() };
        if built.is_err() && id != u32::MAX {
            // One that failed after it was made is still there.
            let _ = self.destroy(id).and_then(|()| wait_for_end(id));
        }
        built.map(|()| id)
    }

    fn restore(
        &self,
        config: *mut xl::libxl_domain_config,
        id: *mut u32,
        from: &OwnedFd,
    ) -> Result<()> {
        let mut params = MaybeUninit::<xl::libxl_domain_restore_params>::zeroed();
        let fd = from.as_raw_fd();
        // SAFETY: `init` makes all of the structure valid; `dispose` frees what is in it, after
        // the operation has ended. `config`, `id` and `from` are the caller's until then.
        unsafe {
            self.lib.libxl_domain_restore_params_init(params.as_mut_ptr());
            // What `init` leaves there is the format of Xen before 4.6.
            (*params.as_mut_ptr()).stream_version = 2;
            let lent = params.as_ptr();
            let refusal = "libxl cannot restore the domain";
            let restored = self.operate(LONG, None, refusal, |lib, ctx, how| {
                lib.libxl_domain_create_restore(ctx, config, id, fd, -1, lent, how, ptr::null())
            });
            self.lib.libxl_domain_restore_params_dispose(params.as_mut_ptr());
            restored
        }
    }

    pub(super) fn suspend(&self, id: u32, to: &OwnedFd, live: bool) -> Result<()> {
        let flags = if live { xl::LIBXL_SUSPEND_LIVE } else { 0 };
        let flags = c_int::try_from(flags).unwrap_or_default();
        let fd = to.as_raw_fd();
        let channel = channel();
        lock(&self.saves).insert(id, channel.0.clone());
        let refusal = "its memory cannot be saved";
        let saved = self.operate_on(&channel, LONG, Some(id), refusal, |lib, ctx, how| {
            // SAFETY: `to` is open until the operation has ended.
            unsafe { lib.libxl_domain_suspend(ctx, id, fd, flags, how) }
        });
        lock(&self.saves).remove(&id);
        saved
    }

    /// False: no memory of that domain is being saved.
    pub(super) fn stop_suspend(&self, id: u32) -> bool {
        lock(&self.saves).get(&id).is_some_and(|tell| tell.send(Told::Stop).is_ok())
    }

    pub(super) fn resume(&self, id: u32) -> Result<()> {
        self.short(id, "cannot go on after it was suspended", |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_resume(ctx, id, 1, how) }
        })
    }

    pub(super) fn pause(&self, id: u32) -> Result<()> {
        self.short(id, "cannot be paused", |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_pause(ctx, id, how) }
        })
    }

    pub(super) fn unpause(&self, id: u32) -> Result<()> {
        self.short(id, "cannot be unpaused", |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_unpause(ctx, id, how) }
        })
    }

    pub(super) fn shutdown(&self, id: u32) -> Result<()> {
        self.short(id, "cannot be asked to shut down", |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_shutdown(ctx, id, how) }
        })
    }

    pub(super) fn reboot(&self, id: u32) -> Result<()> {
        self.short(id, "cannot be asked to reboot", |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_reboot(ctx, id, how) }
        })
    }

    pub(super) fn destroy(&self, id: u32) -> Result<()> {
        self.short(id, "cannot be destroyed", |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_destroy(ctx, id, how) }
        })
    }

    pub(super) fn trigger(&self, id: u32, trigger: Trigger) -> Result<()> {
        let trigger = match trigger {
            Trigger::Power => xl::LIBXL_TRIGGER_POWER,
            Trigger::Reset => xl::LIBXL_TRIGGER_RESET,
            Trigger::Nmi => xl::LIBXL_TRIGGER_NMI,
        };
        self.short(id, "cannot be sent that signal", |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_send_trigger(ctx, id, trigger, 0, how) }
        })
    }

    pub(super) fn set_memory(&self, id: u32, kib: u64) -> Result<()> {
        let target = i64::try_from(kib).unwrap_or(i64::MAX);
        self.at_once(id, "its memory cannot be changed", || {
            // SAFETY: nothing is lent.
            unsafe { self.lib.libxl_set_memory_target(self.ctx, id, target, 0, 1) }
        })
    }

    fn short(
        &self,
        id: u32,
        refusal: &str,
        begin: impl FnOnce(&xl::Libxl, *mut xl::libxl_ctx, *const xl::libxl_asyncop_how) -> c_int,
    ) -> Result<()> {
        self.operate(SHORT, Some(id), refusal, begin)
    }

    /// Begins an operation and waits for its end.
    fn operate(
        &self,
        deadline: Duration,
        id: Option<u32>,
        refusal: &str,
        begin: impl FnOnce(&xl::Libxl, *mut xl::libxl_ctx, *const xl::libxl_asyncop_how) -> c_int,
    ) -> Result<()> {
        self.operate_on(&channel(), deadline, id, refusal, begin)
    }

    /// The same, where others may tell it to stop.
    fn operate_on(
        &self,
        (tell, told): &(Sender<Told>, Receiver<Told>),
        deadline: Duration,
        id: Option<u32>,
        refusal: &str,
        begin: impl FnOnce(&xl::Libxl, *mut xl::libxl_ctx, *const xl::libxl_asyncop_how) -> c_int,
    ) -> Result<()> {
        let mark = self.log.mark();
        let for_callback = (&raw const *tell).cast_mut().cast();
        let how = xl::libxl_asyncop_how {
            callback: Some(has_ended),
            u: xl::libxl_asyncop_how__bindgen_ty_1 { for_callback },
        };
        let begun = begin(&self.lib, self.ctx, &raw const how);
        if begun != 0 {
            return Err(self.log.error(begun, mark, id, refusal));
        }
        let first = told.recv_timeout(deadline);
        let is_unwanted = matches!(first, Ok(Told::Stop));
        let rc = match first {
            Ok(Told::Ended(rc)) => rc,
            Ok(Told::Stop) | Err(_) => {
                // SAFETY: `how` is as it was given, and `tell`, by which libxl knows the operation,
                // no other's: what comes is the end of this one, or it has just ended.
                unsafe { self.lib.libxl_ao_abort(self.ctx, &raw const how) };
                // What it was lent is lent until it has ended, however long that takes.
                let end = told.iter().find_map(|told| match told {
                    Told::Ended(rc) => Some(rc),
                    Told::Stop => None,
                });
                end.unwrap_or(xl::ERROR_FAIL)
            }
        };
        match rc {
            0 => Ok(()),
            _ if is_unwanted => Err(Error::new(Condition::Aborted, format!("{refusal}: stopped"))),
            _ => Err(self.log.error(rc, mark, id, refusal)),
        }
    }

    /// A call that ends at once.
    fn at_once(&self, id: u32, refusal: &str, call: impl FnOnce() -> c_int) -> Result<()> {
        let mark = self.log.mark();
        let rc = call();
        if rc == 0 { Ok(()) } else { Err(self.log.error(rc, mark, Some(id), refusal)) }
    }

    fn failed(&self, mark: u64, what: &str) -> Error {
        self.log.error(xl::ERROR_FAIL, mark, None, what)
    }

    // -- ends ----------------------------------------------------------------------------------

    pub(super) fn watch(&self, id: u32) -> Result<()> {
        let mut watches = lock(&self.watches);
        self.unwatch(id, &mut watches);
        let mut watch = ptr::null_mut();
        self.at_once(id, "cannot be watched", || {
            // SAFETY: `watch` outlives the call.
            unsafe { self.lib.libxl_evenable_domain_death(self.ctx, id, 0, &raw mut watch) }
        })?;
        watches.insert(id, watch);
        Ok(())
    }

    fn unwatch(&self, id: u32, watches: &mut BTreeMap<u32, *mut xl::libxl_evgen_domain_death>) {
        if let Some(watch) = watches.remove(&id) {
            // SAFETY: libxl gave it, and nobody has it any more.
            unsafe { self.lib.libxl_evdisable_domain_death(self.ctx, watch) };
        }
    }

    /// For as long as the process lives.
    pub(super) fn wait_for_events(&self) {
        loop {
            let mut event = ptr::null_mut();
            // SAFETY: `event` outlives the call; no predicate means any event.
            let rc = unsafe {
                self.lib.libxl_event_wait(self.ctx, &raw mut event, u64::MAX, None, ptr::null_mut())
            };
            // SAFETY: on success `event` is valid until it is freed, which is done once, below.
            let Some(told) = (unsafe { event.as_ref() }).filter(|_| rc == 0) else {
                tracing::error!(rc, "libxl cannot wait for events");
                std::thread::sleep(Duration::from_secs(1));
                continue;
            };
            self.handle(told);
            // SAFETY: it is not used after this.
            unsafe { self.lib.libxl_event_free(self.ctx, event) };
        }
    }

    fn handle(&self, event: &xl::libxl_event) {
        let how = match event.type_ {
            xl::LIBXL_EVENT_TYPE_DOMAIN_SHUTDOWN => {
                // SAFETY: the type says which part of the union holds.
                let reason = unsafe { event.u.domain_shutdown.shutdown_reason };
                End::Shutdown(xl::libxl_shutdown_reason::from(reason).into())
            }
            xl::LIBXL_EVENT_TYPE_DOMAIN_DEATH => {
                self.unwatch(event.domid, &mut lock(&self.watches));
                End::Death
            }
            _ => return,
        };
        // Nobody listens once the driver is gone.
        let _ = self.ended.send(Ended { id: event.domid, how });
    }
}

/// The end of an operation, told once, on whatever thread it came to it.
///
/// SAFETY: called by libxl alone, with what [`Libxl::operate`] gave it.
unsafe extern "C" fn has_ended(_ctx: *mut xl::libxl_ctx, rc: c_int, tell: *mut c_void) {
    // SAFETY: whoever waits there for this call, the only one, keeps it until it is told.
    let tell = unsafe { &*tell.cast::<Sender<Told>>() }.clone();
    // From here on it may be gone.
    let _ = tell.send(Told::Ended(rc));
}
