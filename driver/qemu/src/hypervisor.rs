//! QEMU behind the engine's port: what is configured, what runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::ports::EventSink;

use crate::confine::Owner;
use crate::instance::Instance;

#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// Of this boot: status files, monitors' sockets.
    pub run_dir: PathBuf,
    /// Kept over boots: the last id given, NVRAM, TPM state.
    pub state_dir: PathBuf,
    /// One log for each domain.
    pub log_dir: PathBuf,
    /// Who QEMU runs as; none: who we are.
    pub user: Option<Owner>,
    /// Give images to QEMU's user while it runs.
    pub dynamic_ownership: bool,
    /// `-sandbox`.
    pub sandbox: bool,
    /// The emulator of domains that name none.
    pub emulator: PathBuf,
    pub qemu_img: PathBuf,
    pub swtpm: PathBuf,
}

impl QemuConfig {
    /// Debian's programs, QEMU as who we are.
    pub fn new(run_dir: PathBuf, state_dir: PathBuf, log_dir: PathBuf) -> Self {
        Self {
            run_dir,
            state_dir,
            log_dir,
            user: None,
            dynamic_ownership: true,
            sandbox: true,
            emulator: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            qemu_img: PathBuf::from("/usr/bin/qemu-img"),
            swtpm: PathBuf::from("/usr/bin/swtpm"),
        }
    }

    /// Who QEMU runs as.
    pub fn owner(&self) -> Owner {
        self.user.unwrap_or_else(Owner::ours)
    }
}

/// The QEMU driver. Cheap to clone: all clones are one driver.
#[derive(Clone)]
pub struct Qemu {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: QemuConfig,
    pub(crate) events: Arc<dyn EventSink>,
    instances: Mutex<BTreeMap<Uuid, Arc<Instance>>>,
}

impl fmt::Debug for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qemu").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Qemu {
    pub fn new(config: QemuConfig, events: Arc<dyn EventSink>) -> Self {
        Self { shared: Arc::new(Shared { config, events, instances: Mutex::default() }) }
    }

    pub fn config(&self) -> &QemuConfig {
        &self.shared.config
    }

    /// The running QEMU of a domain.
    pub fn instance(&self, domain: Uuid) -> Option<Arc<Instance>> {
        self.shared.instances().get(&domain).cloned()
    }

    /// The same, or the refusal that a shut off domain gets.
    pub fn running(&self, domain: Uuid) -> Result<Arc<Instance>> {
        self.instance(domain).ok_or_else(|| {
            Error::new(
                Condition::OperationInvalid,
                "Requested operation is not valid: domain is not running",
            )
        })
    }
}

impl Shared {
    pub(crate) fn instances(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Instance>>> {
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
