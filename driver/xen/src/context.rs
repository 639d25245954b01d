//! libxl: the one owner of its context, and the only unsafe code of this crate.
//!
//! libxl allows any thread to call it at any time. The end of a long operation is told by a callback
//! (`libxl_asyncop_how`); one thread waits for events for as long as the process lives
//! (`libxl_event_wait`), and runs libxl's own loop thereby. An end that came as an event would not do:
//! that thread sleeps on when another one's call makes an event, as a pause does, which has ended
//! before the call that began it returns. Whoever began an operation waits on a thread of its own,
//! whose stack holds what libxl was lent for it: a caller that goes away takes nothing from under it.
//! At its deadline an operation is told to end (`libxl_ao_abort`), and a caller waits no longer than a
//! while beyond.
//!
//! Children: libxl reaps its own and no others, by a handler of SIGCHLD of its own
//! (`always_selective_reap`). So the context is made before anybody else installs one.
//!
//! Errors of libxl are numbers; what it says beside them goes to a logger. Ours keeps the last lines,
//! so that an error tells them.

#![expect(unsafe_code, reason = "libxl is a C library")]

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{CStr, CString, c_char, c_int, c_ulong, c_void};
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::{Node, VcpuState, VcpuTime};
use virtsnap_xen_sys::v4_17 as xl;

use crate::guest::Guest;

/// What a guest of whatever size may take to be built, saved or restored.
const LONG: Duration = Duration::from_secs(4 * 3600);
/// What everything else may take: libxl's own limits are below.
const SHORT: Duration = Duration::from_secs(180);
/// An operation that was told to end has so long before nobody waits for it any more.
const GRACE: Duration = Duration::from_secs(30);
/// Configurations are some KiB.
const MAX_STORED: usize = 4 << 20;
/// Lines that the logger keeps, and the length of each.
const MAX_LINES: usize = 200;
const MAX_LINE: usize = 1024;

const UNSAVED: &str = "its memory cannot be saved";
/// libxl's own words of a guest that did nothing speak of its inner working.
const TOOK_NO_PART: &str = "the guest was asked to stand still for it and did not within a minute: \
    it hangs, is just booting or going down, or has no driver of Xen's. It goes on as before; try \
    again, take a snapshot of its disks alone (DISK_ONLY), or shut it down";

/// The userdata that xl and libxl start a guest from again.
const CONFIGURATION: &CStr = c"libxl-json";

/// A connection to libxl. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Context {
    inner: Arc<Inner>,
}

struct Inner {
    lib: xl::Libxl,
    ctx: *mut xl::libxl_ctx,
    log: &'static Log,
    watches: Mutex<BTreeMap<u32, *mut xl::libxl_evgen_domain_death>>,
    ended: UnboundedSender<Ended>,
}

// SAFETY: libxl locks its context itself and may be called from any thread (`libxl.h`, "Some libxl
// functions may be called from any thread"), and what it gave us belongs to it; the rest of `Inner` is `Send` and `Sync` by itself.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// A domain has come to an end, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub id: u32,
    pub how: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The guest has stopped and what belonged to it is still there.
    Shutdown(ShutdownReason),
    /// The domain is gone.
    Death,
}

/// `libxl_shutdown_reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownReason {
    PowerOff,
    Reboot,
    /// It stands still for its memory to be saved.
    Suspend,
    Crash,
    Other,
}

impl From<xl::libxl_shutdown_reason> for ShutdownReason {
    fn from(reason: xl::libxl_shutdown_reason) -> Self {
        match reason {
            xl::LIBXL_SHUTDOWN_REASON_POWEROFF => Self::PowerOff,
            xl::LIBXL_SHUTDOWN_REASON_REBOOT => Self::Reboot,
            xl::LIBXL_SHUTDOWN_REASON_SUSPEND => Self::Suspend,
            xl::LIBXL_SHUTDOWN_REASON_CRASH | xl::LIBXL_SHUTDOWN_REASON_WATCHDOG => Self::Crash,
            _ => Self::Other,
        }
    }
}

/// `libxl_dominfo`. Memory in KiB, processor time in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub id: u32,
    pub uuid: Uuid,
    pub is_paused: bool,
    /// It has stopped, and is still there.
    pub shutdown: Option<ShutdownReason>,
    pub is_dying: bool,
    pub memory: u64,
    pub max_memory: u64,
    pub cpu_time: u64,
    pub vcpus: u32,
    pub guest: Option<Guest>,
}

/// `libxl_version_info` and `libxl_physinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    pub version: (u32, u32),
    pub can_hvm: bool,
    pub can_pv: bool,
    pub can_hap: bool,
    pub node: Node,
}

impl Context {
    /// Loads libxl and connects to the hypervisor. The second of a process is a mistake: nothing
    /// is ever freed.
    pub fn open() -> Result<(Self, UnboundedReceiver<Ended>)> {
        let lib = virtsnap_xen_sys::load()
            .map_err(|err| Error::new(Condition::Internal, "cannot use libxl").caused_by(err))?;
        let log: &'static Log = Box::leak(Box::default());
        let mut ctx = ptr::null_mut();
        let version = c_int::try_from(xl::LIBXL_VERSION).unwrap_or_default();
        // SAFETY: `ctx` outlives the call; the logger is never freed, has the layout that libxl
        // expects as its first field, and its functions have the types of the headers.
        let rc = unsafe { lib.libxl_ctx_alloc(&raw mut ctx, version, 0, log.as_logger()) };
        if rc != 0 {
            return Err(log.error(
                rc,
                0,
                None,
                "cannot connect to the hypervisor; is this a Xen host?",
            ));
        }
        let hooks: &'static _ = Box::leak(Box::new(xl::libxl_childproc_hooks {
            chldowner: xl::libxl_sigchld_owner_libxl_always_selective_reap,
            fork_replacement: None,
            reaped_callback: None,
        }));
        // SAFETY: the context was just made and has no children; the hooks are never freed.
        unsafe { lib.libxl_childproc_setmode(ctx, hooks, ptr::null_mut()) };
        let (ended, told) = unbounded_channel();
        let inner = Arc::new(Inner { lib, ctx, log, watches: Mutex::default(), ended });
        let waiting = Arc::clone(&inner);
        let thread = std::thread::Builder::new().name("libxl".to_owned());
        thread.spawn(move || waiting.wait_for_events()).map_err(|err| {
            Error::new(Condition::Internal, "cannot start the thread of libxl").caused_by(err)
        })?;
        Ok((Self { inner }, told))
    }

    /// Blocks shortly.
    pub fn host_info(&self) -> Result<HostInfo> {
        let (lib, ctx, mark) = (&self.inner.lib, self.inner.ctx, self.inner.log.mark());
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
            let told = (rc == 0).then(|| {
                let info = info.assume_init_ref();
                HostInfo {
                    version,
                    can_hvm: info.cap_hvm,
                    can_pv: info.cap_pv,
                    can_hap: info.cap_hap,
                    node: Node {
                        memory_kib: info.total_pages.saturating_mul(page_kib),
                        free_kib: info.free_pages.saturating_mul(page_kib),
                        cpus: info.nr_cpus,
                        mhz: info.cpu_khz / 1000,
                        nodes: info.nr_nodes,
                        cores_per_socket: info.cores_per_socket,
                        threads_per_core: info.threads_per_core,
                        max_vcpus: info.max_cpu_id.saturating_add(1),
                    },
                }
            });
            lib.libxl_physinfo_dispose(info.as_mut_ptr());
            told.ok_or_else(|| self.failed(mark, "cannot ask the hypervisor what it can do"))
        }
    }

    /// Every domain but dom0. Blocks shortly.
    pub fn list(&self) -> Result<Vec<Info>> {
        let (lib, ctx, mark) = (&self.inner.lib, self.inner.ctx, self.inner.log.mark());
        let mut count = 0;
        // SAFETY: the list has `count` entries and is given back to libxl once it is read.
        unsafe {
            let list = lib.libxl_list_domain(ctx, &raw mut count);
            if list.is_null() {
                return Err(self.failed(mark, "cannot list the domains"));
            }
            let entries = std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0));
            let infos = entries.iter().map(info_of).filter(|info| info.id != 0).collect();
            lib.libxl_dominfo_list_free(list, count);
            Ok(infos)
        }
    }

    /// None: there is no such domain. Blocks shortly.
    pub fn info(&self, id: u32) -> Result<Option<Info>> {
        let (lib, ctx, mark) = (&self.inner.lib, self.inner.ctx, self.inner.log.mark());
        let mut info = MaybeUninit::<xl::libxl_dominfo>::zeroed();
        // SAFETY: as in `host_info`.
        unsafe {
            lib.libxl_dominfo_init(info.as_mut_ptr());
            let rc = lib.libxl_domain_info(ctx, info.as_mut_ptr(), id);
            let told = (rc == 0).then(|| info_of(info.assume_init_ref()));
            lib.libxl_dominfo_dispose(info.as_mut_ptr());
            match rc {
                0 | xl::ERROR_DOMAIN_NOTFOUND => Ok(told),
                _ => Err(self.failed(mark, &format!("cannot ask for domain {id}"))),
            }
        }
    }

    /// Those that the guest has, also the ones it has not brought up. Blocks shortly.
    pub fn vcpus(&self, id: u32) -> Result<Vec<VcpuTime>> {
        let (lib, ctx, mark) = (&self.inner.lib, self.inner.ctx, self.inner.log.mark());
        let (mut count, mut host) = (0, 0);
        // SAFETY: the list has `count` entries, whose maps are as long as they say, and is given
        // back to libxl once it is read.
        unsafe {
            let list = lib.libxl_list_vcpu(ctx, id, &raw mut count, &raw mut host);
            if list.is_null() {
                return Err(self.failed(mark, &format!("cannot list the vCPUs of domain {id}")));
            }
            let entries = std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0));
            let vcpus = entries.iter().map(|vcpu| vcpu_of(vcpu)).collect();
            lib.libxl_vcpuinfo_list_free(list, count);
            Ok(vcpus)
        }
    }

    /// The name that xenstore has. Blocks shortly.
    pub fn name(&self, id: u32) -> Option<String> {
        // SAFETY: what is given is a string of ours to free, or null.
        unsafe { taken(self.inner.lib.libxl_domid_to_name(self.inner.ctx, id)) }
    }

    /// The terminal of the guest's first console. Blocks shortly.
    pub fn console(&self, id: u32) -> Option<String> {
        let mut path = ptr::null_mut();
        let ctx = self.inner.ctx;
        // SAFETY: on success `path` is a string of ours to free.
        unsafe {
            let rc = self.inner.lib.libxl_primary_console_get_tty(ctx, id, &raw mut path);
            if rc == 0 { taken(path) } else { None }
        }
    }

    /// Tells of the end of that domain, from now on.
    pub async fn watch(&self, id: u32) -> Result<()> {
        self.call(move |inner| inner.watch(id)).await
    }

    /// Builds a domain, whose vCPUs do not run yet. On failure nothing of it is left.
    pub async fn create(&self, config: &Value) -> Result<u32> {
        let config = text_of(config)?;
        self.long(move |inner| inner.build(&config, None)).await
    }

    /// The same with the memory of a saved guest, from the stream that the file is at.
    pub async fn restore(&self, config: &Value, from: OwnedFd) -> Result<u32> {
        let config = text_of(config)?;
        self.long(move |inner| inner.build(&config, Some(&from))).await
    }

    /// Writes the guest's memory to the file from where that is. The guest stands still when this
    /// returns, well or not: [`Self::resume`] lets it go on.
    pub async fn suspend(&self, id: u32, to: OwnedFd, live: bool) -> Result<()> {
        self.long(move |inner| {
            let flags = if live { xl::LIBXL_SUSPEND_LIVE } else { 0 };
            let flags = c_int::try_from(flags).unwrap_or_default();
            let fd = to.as_raw_fd();
            inner.operate(LONG, Some(id), UNSAVED, |lib, ctx, how| {
                // SAFETY: `to` is open until the operation has ended.
                unsafe { lib.libxl_domain_suspend(ctx, id, fd, flags, how) }
            })
        })
        .await
    }

    /// Lets a guest go on that [`Self::suspend`] has left standing, in the same domain.
    pub async fn resume(&self, id: u32) -> Result<()> {
        self.operate(id, "cannot go on after it was suspended", move |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_resume(ctx, id, 1, how) }
        })
        .await?;
        // A watch tells of one shutdown, and standing still for its memory was one.
        self.watch(id).await
    }

    pub async fn pause(&self, id: u32) -> Result<()> {
        self.operate(id, "cannot be paused", move |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_pause(ctx, id, how) }
        })
        .await
    }

    pub async fn unpause(&self, id: u32) -> Result<()> {
        self.operate(id, "cannot be unpaused", move |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_unpause(ctx, id, how) }
        })
        .await
    }

    /// Asks the guest to shut down: by its own driver, by ACPI where it has none.
    pub async fn shutdown(&self, id: u32) -> Result<()> {
        let asked = self
            .operate(id, "cannot be asked to shut down", move |lib, ctx, how| {
                // SAFETY: nothing is lent.
                unsafe { lib.libxl_domain_shutdown(ctx, id, how) }
            })
            .await;
        match asked {
            Ok(()) => Ok(()),
            Err(err) => self.trigger(id, xl::LIBXL_TRIGGER_POWER).await.map_err(|_| err),
        }
    }

    pub async fn reboot(&self, id: u32) -> Result<()> {
        let asked = self
            .operate(id, "cannot be asked to reboot", move |lib, ctx, how| {
                // SAFETY: nothing is lent.
                unsafe { lib.libxl_domain_reboot(ctx, id, how) }
            })
            .await;
        match asked {
            Ok(()) => Ok(()),
            Err(err) => self.trigger(id, xl::LIBXL_TRIGGER_RESET).await.map_err(|_| err),
        }
    }

    /// Takes the domain and all that belongs to it away. Gone is done.
    pub async fn destroy(&self, id: u32) -> Result<()> {
        let destroyed = self.operate(id, "cannot be destroyed", move |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_domain_destroy(ctx, id, how) }
        });
        match destroyed.await {
            Err(_) if matches!(self.info(id), Ok(None)) => Ok(()),
            outcome => outcome,
        }
    }

    pub async fn inject_nmi(&self, id: u32) -> Result<()> {
        self.trigger(id, xl::LIBXL_TRIGGER_NMI).await
    }

    async fn trigger(&self, id: u32, trigger: xl::libxl_trigger) -> Result<()> {
        self.operate(id, "cannot be sent that signal", move |lib, ctx, how| {
            // SAFETY: nothing is lent.
            unsafe { lib.libxl_send_trigger(ctx, id, trigger, 0, how) }
        })
        .await
    }

    /// In KiB.
    pub async fn set_memory(&self, id: u32, kib: u64) -> Result<()> {
        self.call(move |inner| {
            let target = i64::try_from(kib).unwrap_or(i64::MAX);
            inner.at_once(id, "its memory cannot be changed", || {
                // SAFETY: nothing is lent.
                unsafe { inner.lib.libxl_set_memory_target(inner.ctx, id, target, 0, 1) }
            })
        })
        .await
    }

    /// What a running domain is made of, as its next start would have it
    /// (`libxl_retrieve_domain_configuration`).
    pub async fn configuration(&self, id: u32) -> Result<Value> {
        self.call(move |inner| {
            let mut config = Config::new(&inner.lib);
            let about = "its configuration cannot be read";
            inner.operate(SHORT, Some(id), about, |lib, ctx, how| {
                // SAFETY: `config` lives until the operation has ended.
                unsafe { lib.libxl_retrieve_domain_configuration(ctx, id, config.as_mut(), how) }
            })?;
            config.write(inner, id)
        })
        .await
    }

    /// What libxl starts this domain from after a reboot, as it is kept.
    pub async fn stored_configuration(&self, id: u32) -> Result<Option<Value>> {
        self.call(move |inner| {
            let (mut data, mut length) = (ptr::null_mut(), 0);
            let (name, to, size) = (CONFIGURATION.as_ptr(), &raw mut data, &raw mut length);
            inner.at_once(id, "what is stored of it cannot be read", || {
                // SAFETY: `data` and `length` outlive the call.
                unsafe { inner.lib.libxl_userdata_retrieve(inner.ctx, id, name, to, size) }
            })?;
            if data.is_null() {
                return Ok(None);
            }
            let length = usize::try_from(length).unwrap_or(0);
            // SAFETY: `data` is `length` bytes from malloc that nobody else uses.
            let bytes = unsafe {
                let bytes = std::slice::from_raw_parts(data, length.min(MAX_STORED)).to_vec();
                libc::free(data.cast());
                bytes
            };
            // It ends with a zero byte, which counts.
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            serde_json::from_slice(text).map(Some).map_err(|err| {
                let what = format!("domain {id}: its stored configuration cannot be read");
                Error::new(Condition::Internal, what).caused_by(err)
            })
        })
        .await
    }

    pub async fn store_configuration(&self, id: u32, config: &Value) -> Result<()> {
        let text = text_of(config)?;
        self.call(move |inner| {
            let bytes = text.as_bytes_with_nul();
            let length = c_int::try_from(bytes.len()).unwrap_or_default();
            let (name, data) = (CONFIGURATION.as_ptr(), bytes.as_ptr());
            inner.at_once(id, "its configuration cannot be stored", || {
                // SAFETY: `data` is `length` bytes, and libxl copies them to a file of its own.
                unsafe { inner.lib.libxl_userdata_store(inner.ctx, id, name, data, length) }
            })
        })
        .await
    }

    async fn operate(
        &self,
        id: u32,
        refusal: &'static str,
        begin: impl FnOnce(&xl::Libxl, *mut xl::libxl_ctx, *const xl::libxl_asyncop_how) -> c_int
        + Send
        + 'static,
    ) -> Result<()> {
        self.call(move |inner| inner.operate(SHORT, Some(id), refusal, begin)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.on_thread(SHORT + GRACE, work).await
    }

    async fn long<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.on_thread(LONG + GRACE, work).await
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce(&Inner) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        let work = tokio::task::spawn_blocking(move || work(&inner));
        match tokio::time::timeout(patience, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(err)) => {
                Err(Error::new(Condition::Internal, "a call of libxl was torn down").caused_by(err))
            }
            Err(_) => Err(Error::new(Condition::Timeout, "libxl does not answer")),
        }
    }

    fn failed(&self, mark: u64, what: &str) -> Error {
        self.inner.log.error(xl::ERROR_FAIL, mark, None, what)
    }
}

impl Inner {
    /// For as long as the process lives.
    fn wait_for_events(&self) {
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

    /// Begins an operation and waits for its end, on a thread that may block.
    fn operate(
        &self,
        deadline: Duration,
        id: Option<u32>,
        refusal: &str,
        begin: impl FnOnce(&xl::Libxl, *mut xl::libxl_ctx, *const xl::libxl_asyncop_how) -> c_int,
    ) -> Result<()> {
        let mark = self.log.mark();
        let (tell, told) = sync_channel(1);
        let tell = Box::into_raw(Box::new(tell));
        let how = xl::libxl_asyncop_how {
            callback: Some(has_ended),
            u: xl::libxl_asyncop_how__bindgen_ty_1 { for_callback: tell.cast() },
        };
        let begun = begin(&self.lib, self.ctx, &raw const how);
        if begun != 0 {
            // SAFETY: of what has not begun no end is told: it is still ours alone.
            drop(unsafe { Box::from_raw(tell) });
            return Err(self.log.error(begun, mark, id, refusal));
        }
        let rc = match told.recv_timeout(deadline) {
            Ok(rc) => rc,
            Err(RecvTimeoutError::Timeout) => {
                // SAFETY: `how` is as it was given. What comes is the end of the operation, or it
                // has just ended.
                unsafe { self.lib.libxl_ao_abort(self.ctx, &raw const how) };
                // What it was lent is lent until it has ended, however long that takes.
                told.recv().unwrap_or(xl::ERROR_TIMEDOUT)
            }
            Err(RecvTimeoutError::Disconnected) => xl::ERROR_FAIL,
        };
        if rc == 0 { Ok(()) } else { Err(self.log.error(rc, mark, id, refusal)) }
    }

    fn build(&self, json: &CStr, from: Option<&OwnedFd>) -> Result<u32> {
        let mut config = Config::new(&self.lib);
        config.read(self, json)?;
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
        match built {
            Ok(()) => Ok(id),
            Err(err) => {
                // One that failed after it was made is still there.
                if id != u32::MAX {
                    let _ =
                        self.operate(SHORT, Some(id), "cannot be destroyed", |lib, ctx, how| {
                            // SAFETY: nothing is lent.
                            unsafe { lib.libxl_domain_destroy(ctx, id, how) }
                        });
                }
                Err(err)
            }
        }
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

    fn watch(&self, id: u32) -> Result<()> {
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

    /// A call that ends at once.
    fn at_once(&self, id: u32, refusal: &str, call: impl FnOnce() -> c_int) -> Result<()> {
        let mark = self.log.mark();
        let rc = call();
        if rc == 0 { Ok(()) } else { Err(self.log.error(rc, mark, Some(id), refusal)) }
    }
}

/// The end of an operation, told once, on whatever thread it came to it.
///
/// SAFETY: called by libxl alone, with what [`Inner::operate`] gave it.
unsafe extern "C" fn has_ended(_ctx: *mut xl::libxl_ctx, rc: c_int, tell: *mut c_void) {
    // SAFETY: it was made there for this call, which is the only one.
    let tell = unsafe { Box::from_raw(tell.cast::<SyncSender<c_int>>()) };
    // Who waited may have been torn down.
    let _ = tell.send(rc);
}

/// A `libxl_domain_config`, at one address until it is freed.
struct Config<'a> {
    lib: &'a xl::Libxl,
    raw: Box<MaybeUninit<xl::libxl_domain_config>>,
}

impl<'a> Config<'a> {
    fn new(lib: &'a xl::Libxl) -> Self {
        let mut raw = Box::new(MaybeUninit::zeroed());
        // SAFETY: `init` makes all of the structure valid.
        unsafe { lib.libxl_domain_config_init(raw.as_mut_ptr()) };
        Self { lib, raw }
    }

    fn as_mut(&mut self) -> *mut xl::libxl_domain_config {
        self.raw.as_mut_ptr()
    }

    fn read(&mut self, inner: &Inner, json: &CStr) -> Result<()> {
        let mark = inner.log.mark();
        // SAFETY: both are valid for the call.
        let rc = unsafe {
            self.lib.libxl_domain_config_from_json(inner.ctx, self.as_mut(), json.as_ptr())
        };
        if rc == 0 {
            return Ok(());
        }
        Err(inner.log.error(rc, mark, None, "libxl does not take the configuration"))
    }

    fn write(&mut self, inner: &Inner, id: u32) -> Result<Value> {
        // SAFETY: what is given is a string of ours to free, or null.
        let text = unsafe { taken(self.lib.libxl_domain_config_to_json(inner.ctx, self.as_mut())) };
        text.and_then(|text| serde_json::from_str(&text).ok()).ok_or_else(|| {
            let what = format!("domain {id}: its configuration cannot be written as JSON");
            Error::new(Condition::Internal, what)
        })
    }
}

impl Drop for Config<'_> {
    fn drop(&mut self) {
        // SAFETY: it was initialised, and is not used after this.
        unsafe { self.lib.libxl_domain_config_dispose(self.raw.as_mut_ptr()) };
    }
}

/// A `xentoollog_logger`: what libxl says, in our log, and the last of its errors kept.
#[repr(C)]
struct Log {
    logger: xl::xentoollog_logger,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    count: u64,
    errors: VecDeque<(u64, String)>,
}

impl Default for Log {
    fn default() -> Self {
        let logger = xl::xentoollog_logger {
            vmessage: Some(hear),
            progress: Some(hear_progress),
            destroy: Some(forget),
        };
        Self { logger, said: Mutex::default() }
    }
}

impl Log {
    fn as_logger(&'static self) -> *mut xl::xentoollog_logger {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// What is said from here on comes after this.
    fn mark(&self) -> u64 {
        lock(&self.said).count
    }

    fn keep(&self, line: String) {
        let mut said = lock(&self.said);
        said.count += 1;
        let count = said.count;
        said.errors.push_back((count, line));
        if said.errors.len() > MAX_LINES {
            said.errors.pop_front();
        }
    }

    /// What libxl said since, of that domain where it names one.
    fn error(&self, rc: c_int, mark: u64, id: Option<u32>, refusal: &str) -> Error {
        let condition = match rc {
            xl::ERROR_TIMEDOUT | xl::ERROR_GUEST_TIMEDOUT => Condition::Timeout,
            xl::ERROR_ABORTED => Condition::Aborted,
            xl::ERROR_DOMAIN_NOTFOUND | xl::ERROR_DOMAIN_DESTROYED => Condition::OperationInvalid,
            _ => Condition::OperationFailed,
        };
        let said = lock(&self.said);
        let since = said.errors.iter().filter(|(number, _)| *number > mark);
        let about = since.map(|(_, line)| line.as_str()).filter(|line| concerns(line, id));
        let lines: Vec<&str> = about.take(4).collect();
        let why = match lines.as_slice() {
            _ if rc == xl::ERROR_GUEST_TIMEDOUT => TOOK_NO_PART.to_owned(),
            [] => format!("libxl's error {rc}"),
            lines => lines.join("; "),
        };
        let what = match id {
            Some(id) => format!("domain {id}: {refusal}"),
            None => refusal.to_owned(),
        };
        Error::new(condition, what).caused_by(std::io::Error::other(why))
    }
}

/// `libxl: error: FILE:LINE:FUNCTION: Domain 5:why`: of no domain, or of this one.
fn concerns(line: &str, id: Option<u32>) -> bool {
    let Some((_, rest)) = line.split_once("Domain ") else { return true };
    let Some((number, _)) = rest.split_once(':') else { return true };
    let (number, Some(id)) = (number.parse::<u32>(), id) else { return true };
    number.is_ok_and(|number| number == id)
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
    let line = with_cause(said, errno);
    match level {
        xl::XTL_ERROR.. => {
            tracing::warn!("libxl: {line}");
            // SAFETY: it is the `Log` that this logger is the first field of, and never freed.
            unsafe { &*logger.cast::<Log>() }.keep(line);
        }
        xl::XTL_NOTICE | xl::XTL_WARN => tracing::info!("libxl: {line}"),
        _ => tracing::debug!("libxl: {line}"),
    }
}

/// Where nothing of the system failed, `errno` is negative or zero.
fn with_cause(said: &str, errno: c_int) -> String {
    match errno {
        1.. => format!("{said}: {}", std::io::Error::from_raw_os_error(errno)),
        _ => said.to_owned(),
    }
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

fn info_of(info: &xl::libxl_dominfo) -> Info {
    Info {
        id: info.domid,
        uuid: Uuid::from_bytes(info.uuid.uuid),
        is_paused: info.paused,
        shutdown: info.shutdown.then(|| info.shutdown_reason.into()),
        is_dying: info.dying,
        memory: info.current_memkb,
        max_memory: info.max_memkb,
        cpu_time: info.cpu_time,
        vcpus: info.vcpu_online,
        guest: match info.domain_type {
            xl::LIBXL_DOMAIN_TYPE_PV => Some(Guest::Pv),
            xl::LIBXL_DOMAIN_TYPE_PVH => Some(Guest::Pvh),
            xl::LIBXL_DOMAIN_TYPE_HVM => Some(Guest::Hvm),
            _ => None,
        },
    }
}

/// SAFETY: its map has as many bytes as it says.
unsafe fn vcpu_of(vcpu: &xl::libxl_vcpuinfo) -> VcpuTime {
    let map = &vcpu.cpumap;
    let affinity = (!map.map.is_null()).then(|| {
        // SAFETY: as the caller promises.
        unsafe { std::slice::from_raw_parts(map.map, usize::try_from(map.size).unwrap_or(0)) }
            .to_vec()
    });
    let state = match (vcpu.online, vcpu.running, vcpu.blocked) {
        (false, ..) => VcpuState::Offline,
        (true, false, true) => VcpuState::Blocked,
        // What is neither waits for a processor, or for its guest to be unpaused.
        (true, ..) => VcpuState::Running,
    };
    VcpuTime {
        number: vcpu.vcpuid,
        state,
        nanoseconds: vcpu.vcpu_time,
        host_cpu: (state != VcpuState::Offline).then_some(vcpu.cpu),
        affinity,
    }
}

/// SAFETY: `text` is null, or a string from malloc that nobody else uses.
unsafe fn taken(text: *mut c_char) -> Option<String> {
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

fn text_of(config: &Value) -> Result<CString> {
    // A zero byte in JSON is escaped.
    CString::new(config.to_string())
        .map_err(|err| Error::new(Condition::InvalidArgument, "a zero byte").caused_by(err))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_tells_what_libxl_said_of_that_domain() {
        let log: &'static Log = Box::leak(Box::default());
        log.keep("Domain 5:before".to_owned());
        let mark = log.mark();
        for line in ["Domain 5:no memory", "Domain 51:another", "of no domain"] {
            log.keep(line.to_owned());
        }
        let told = log.error(xl::ERROR_NOMEM, mark, Some(5), "cannot be made").chain();
        assert_eq!(told, "domain 5: cannot be made: Domain 5:no memory; of no domain");
        let bare = log.error(xl::ERROR_TIMEDOUT, log.mark(), None, "cannot");
        assert_eq!(
            (bare.condition, bare.chain().as_str()),
            (Condition::Timeout, "cannot: libxl's error -9")
        );
    }

    #[test]
    fn a_guest_that_takes_no_part_is_told_of_in_our_words() {
        let log: &'static Log = Box::leak(Box::default());
        log.keep(with_cause("Domain 5:saving domain: domain did not respond", 0));
        assert!(with_cause("cannot open", 2).contains("No such file"));
        assert_eq!(with_cause("cannot open", -1), "cannot open");
        let told = log.error(xl::ERROR_GUEST_TIMEDOUT, 0, Some(5), UNSAVED);
        assert_eq!(told.condition, Condition::Timeout);
        let told = told.chain();
        assert!(told.starts_with("domain 5: its memory cannot be saved: the guest was asked"));
        assert!(told.contains("DISK_ONLY") && !told.contains("os error"), "{told}");
    }

    #[test]
    fn a_host_without_xen_is_told_so() {
        // Where there is libxl, there may be a hypervisor, too.
        if let Err(err) = Context::open() {
            assert!(err.chain().contains("lib"), "{}", err.chain());
        }
    }
}
