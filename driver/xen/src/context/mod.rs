//! libxl's calls as the driver makes them: on threads that may block, each with a deadline.
//!
//! - `libxl`: the library, its context, the calls; `lent`: what goes to and fro in them. Both are the only
//!   unsafe code of this crate
//! - `log`: what it says beside its numbers
//! - `told`: what it tells of domains and of the host
//!
//! Whoever began an operation waits on a thread of its own, whose stack holds what libxl was lent for
//! it: a caller that goes away takes nothing from under it. At its deadline an operation is told to
//! end, and a caller waits no longer than a while beyond.

mod lent;
mod libxl;
mod log;
mod told;

use std::ffi::CString;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::inspect::VcpuTime;

use libxl::{Libxl, Trigger};

use crate::device_model;

pub use told::{End, Ended, HostInfo, Info, ShutdownReason};

/// What a guest of whatever size may take to be built, saved or restored.
const LONG: Duration = Duration::from_secs(4 * 3600);
/// What everything else may take: libxl's own limits are below.
const SHORT: Duration = Duration::from_secs(180);
/// An operation that was told to end has so long before nobody waits for it any more.
const GRACE: Duration = Duration::from_secs(30);

/// A connection to libxl. Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Context {
    libxl: Arc<Libxl>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    /// Loads libxl and connects to the hypervisor. The second of a process is a mistake: nothing
    /// is ever freed.
    pub fn open() -> Result<(Self, UnboundedReceiver<Ended>)> {
        let (ended, told) = unbounded_channel();
        let libxl = Arc::new(Libxl::open(ended)?);
        let waiting = Arc::clone(&libxl);
        let thread = std::thread::Builder::new().name("libxl".to_owned());
        thread.spawn(move || waiting.wait_for_events()).map_err(|err| {
            Error::new(Condition::Internal, "cannot start the thread of libxl").caused_by(err)
        })?;
        Ok((Self { libxl }, told))
    }

    /// Blocks shortly.
    pub fn host_info(&self) -> Result<HostInfo> {
        self.libxl.host_info()
    }

    /// Every domain but dom0. Blocks shortly.
    pub fn list(&self) -> Result<Vec<Info>> {
        self.libxl.list()
    }

    /// None: there is no such domain. Blocks shortly.
    pub fn info(&self, id: u32) -> Result<Option<Info>> {
        self.libxl.info(id)
    }

    /// Those that the guest has, also the ones it has not brought up. Blocks shortly.
    pub fn vcpus(&self, id: u32) -> Result<Vec<VcpuTime>> {
        self.libxl.vcpus(id)
    }

    /// The name that xenstore has. Blocks shortly.
    pub fn name(&self, id: u32) -> Option<String> {
        self.libxl.name(id)
    }

    /// The terminal of the guest's first console. Blocks shortly.
    pub fn console(&self, id: u32) -> Option<String> {
        self.libxl.console(id)
    }

    /// Tells of the end of that domain, from now on.
    pub async fn watch(&self, id: u32) -> Result<()> {
        self.call(move |libxl| libxl.watch(id)).await
    }

    /// Builds a domain, whose vCPUs do not run yet. On failure nothing of it is left.
    pub async fn create(&self, config: &Value) -> Result<u32> {
        let config = text_of(config)?;
        self.long(move |libxl| libxl.build(&config, None)).await
    }

    /// The same with the memory of a saved guest, from the stream that the file is at.
    pub async fn restore(&self, config: &Value, from: OwnedFd) -> Result<u32> {
        let config = text_of(config)?;
        self.long(move |libxl| libxl.build(&config, Some(&from))).await
    }

    /// Writes the guest's memory to the file from where that is. The guest stands still when this
    /// returns, well or not: [`Self::resume`] lets it go on.
    pub async fn suspend(&self, id: u32, to: OwnedFd, live: bool) -> Result<()> {
        self.long(move |libxl| libxl.suspend(id, &to, live)).await
    }

    /// Ends a [`Self::suspend`] that has not, which then fails as aborted. False: there is none.
    pub fn stop_suspend(&self, id: u32) -> bool {
        self.libxl.stop_suspend(id)
    }

    /// Lets a guest go on that [`Self::suspend`] has left standing, in the same domain.
    pub async fn resume(&self, id: u32) -> Result<()> {
        self.call(move |libxl| libxl.resume(id)).await?;
        // A watch tells of one shutdown, and standing still for its memory was one.
        self.watch(id).await
    }

    pub async fn pause(&self, id: u32) -> Result<()> {
        self.call(move |libxl| libxl.pause(id)).await
    }

    pub async fn unpause(&self, id: u32) -> Result<()> {
        self.call(move |libxl| libxl.unpause(id)).await
    }

    /// Asks the guest to shut down: by its own driver, by ACPI where it has none.
    pub async fn shutdown(&self, id: u32) -> Result<()> {
        match self.call(move |libxl| libxl.shutdown(id)).await {
            Ok(()) => Ok(()),
            Err(err) => self.trigger(id, Trigger::Power).await.map_err(|_| err),
        }
    }

    pub async fn reboot(&self, id: u32) -> Result<()> {
        match self.call(move |libxl| libxl.reboot(id)).await {
            Ok(()) => Ok(()),
            Err(err) => self.trigger(id, Trigger::Reset).await.map_err(|_| err),
        }
    }

    /// Takes the domain and all that belongs to it away. Gone is done.
    pub async fn destroy(&self, id: u32) -> Result<()> {
        match self.call(move |libxl| libxl.destroy(id)).await {
            Err(_) if matches!(self.info(id), Ok(None)) => {}
            outcome => outcome?,
        }
        self.device_model_ends(id).await
    }

    /// The domain has ended, whoever ended it. Whatever it had open is closed when this returns.
    pub async fn device_model_ends(&self, id: u32) -> Result<()> {
        self.call(move |_| device_model::wait_for_end(id)).await
    }

    pub async fn inject_nmi(&self, id: u32) -> Result<()> {
        self.trigger(id, Trigger::Nmi).await
    }

    async fn trigger(&self, id: u32, trigger: Trigger) -> Result<()> {
        self.call(move |libxl| libxl.trigger(id, trigger)).await
    }

    /// In KiB.
    pub async fn set_memory(&self, id: u32, kib: u64) -> Result<()> {
        self.call(move |libxl| libxl.set_memory(id, kib)).await
    }

    /// What a running domain is made of, as its next start would have it
    /// (`libxl_retrieve_domain_configuration`).
    pub async fn configuration(&self, id: u32) -> Result<Value> {
        let text = self.call(move |libxl| libxl.configuration(id)).await?;
        text.and_then(|text| serde_json::from_str(&text).ok()).ok_or_else(|| {
            let what = format!("domain {id}: its configuration cannot be written as JSON");
            Error::new(Condition::Internal, what)
        })
    }

    /// What libxl starts this domain from after a reboot, as it is kept.
    pub async fn stored_configuration(&self, id: u32) -> Result<Option<Value>> {
        let Some(bytes) = self.call(move |libxl| libxl.stored_configuration(id)).await? else {
            return Ok(None);
        };
        // It ends with a zero byte, which counts.
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        serde_json::from_slice(text).map(Some).map_err(|err| {
            let what = format!("domain {id}: its stored configuration cannot be read");
            Error::new(Condition::Internal, what).caused_by(err)
        })
    }

    pub async fn store_configuration(&self, id: u32, config: &Value) -> Result<()> {
        let text = text_of(config)?;
        self.call(move |libxl| libxl.store_configuration(id, &text)).await
    }

    async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Libxl) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.on_thread(SHORT + GRACE, work).await
    }

    async fn long<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Libxl) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.on_thread(LONG + GRACE, work).await
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce(&Libxl) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let libxl = Arc::clone(&self.libxl);
        let work = tokio::task::spawn_blocking(move || work(&libxl));
        match tokio::time::timeout(patience, work).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(err)) => {
                Err(Error::new(Condition::Internal, "a call of libxl was torn down").caused_by(err))
            }
            Err(_) => Err(Error::new(Condition::Timeout, "libxl does not answer")),
        }
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
    fn a_host_without_xen_is_told_so() {
        // Where there is libxl, there may be a hypervisor, too.
        if let Err(err) = Context::open() {
            assert!(err.chain().contains("lib"), "{}", err.chain());
        }
    }
}
