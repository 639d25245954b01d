//! QEMU behind the engine's port: what is configured, what runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;
pub use virtsnap_block::merge::MergeLimits;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::ports::EventSink;
use virtsnap_xml::element::Element;

use crate::complete::{Devices, Firmware, Host, HostPorts};
use crate::confine::{Owner, failed};
use crate::instance::Instance;
use crate::lent::Ledger;
use crate::probe::{Cache, Probed};
use crate::stray::Stray;

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
    /// How long a guest's agent may take to freeze its file systems.
    pub freeze_deadline: Duration,
    pub merges: MergeLimits,
    /// The bridge of each virtual network that interfaces may name.
    pub network_bridges: BTreeMap<String, String>,
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
            freeze_deadline: Duration::from_secs(60),
            merges: MergeLimits::default(),
            network_bridges: [("default".to_owned(), "virbr0".to_owned())].into(),
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
    /// Domains that are being started.
    starting: Mutex<BTreeSet<Uuid>>,
    probed: Mutex<Cache>,
    ids: Mutex<()>,
    /// TCP ports of guests' graphics.
    pub(crate) ports: HostPorts,
    pub(crate) ledger: Ledger,
    /// QEMUs that run and could not be taken up.
    strays: Mutex<BTreeMap<Uuid, Arc<Stray>>>,
    /// Images that guests were lent which were gone when the daemon started.
    pub(crate) lost: Mutex<Vec<(PathBuf, Owner)>>,
}

impl fmt::Debug for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Qemu").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Qemu {
    pub fn new(config: QemuConfig, events: Arc<dyn EventSink>) -> Self {
        let shared = Shared {
            ledger: Ledger::new(&config.state_dir),
            config,
            events,
            instances: Mutex::default(),
            starting: Mutex::default(),
            probed: Mutex::default(),
            ids: Mutex::default(),
            ports: HostPorts::default(),
            strays: Mutex::default(),
            lost: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    pub fn config(&self) -> &QemuConfig {
        &self.shared.config
    }

    /// Checks a definition and completes it as libvirt would. The first call for an emulator runs
    /// it, and blocks so long.
    pub fn complete_definition(&self, domain: Element) -> Result<Element> {
        let emulator = virtsnap_xml::domain::emulator(&domain).map(PathBuf::from);
        let host = self.shared.host(emulator.as_deref())?;
        crate::complete::complete(domain, &host)
    }

    /// The running QEMU of a domain.
    pub fn instance(&self, domain: Uuid) -> Option<Arc<Instance>> {
        self.shared.instances().get(&domain).cloned()
    }

    /// The same, or the refusal that a shut off domain gets.
    pub fn running(&self, domain: Uuid) -> Result<Arc<Instance>> {
        self.instance(domain).ok_or_else(|| match self.check_known(domain) {
            Ok(()) => Error::new(Condition::OperationInvalid, "domain is not running"),
            Err(unknown) => unknown,
        })
    }
}

impl Shared {
    pub(crate) fn instances(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Instance>>> {
        lock(&self.instances)
    }

    pub(crate) fn strays(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Stray>>> {
        lock(&self.strays)
    }

    pub(crate) fn starting(&self) -> MutexGuard<'_, BTreeSet<Uuid>> {
        lock(&self.starting)
    }

    /// The user that images are given to; none where nothing is to be given.
    pub(crate) fn borrower(&self) -> Option<Owner> {
        self.config.user.filter(|_| self.config.dynamic_ownership)
    }

    /// What an emulator can do. The first call for a binary runs it, and blocks so long.
    pub(crate) fn probe(&self, emulator: Option<&Path>) -> Result<Arc<Probed>> {
        lock(&self.probed).get(emulator.unwrap_or(&self.config.emulator))
    }

    /// What completing a definition with this emulator depends on.
    pub(crate) fn host(&self, emulator: Option<&Path>) -> Result<Host> {
        let probed = self.probe(emulator)?;
        let default = probed.default_machine().map(|machine| machine.name.clone());
        Ok(Host {
            emulator: self.config.emulator.to_string_lossy().into_owned(),
            machine_aliases: probed.aliases(),
            default_machine: default.unwrap_or_else(|| "pc".to_owned()),
            machines: probed.machines.iter().map(|machine| machine.name.clone()).collect(),
            firmware: Firmware::installed(),
            nvram_dir: self.config.state_dir.join("nvram"),
            channel_dirs: vec![self.config.run_dir.clone(), "/run/libvirt/qemu/channel".into()],
            devices: Devices::of(&probed.facts.devices),
        })
    }

    pub(crate) async fn probe_blocking(
        self: &Arc<Self>,
        emulator: Option<PathBuf>,
    ) -> Result<Arc<Probed>> {
        let shared = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || shared.probe(emulator.as_deref()));
        task.await.unwrap_or_else(|err| {
            Err(Error::new(Condition::Internal, "asking QEMU was torn down").caused_by(err))
        })
    }

    /// The next domain id, durably taken.
    pub(crate) fn next_id(&self) -> Result<i32> {
        let _guard = lock(&self.ids);
        let path = self.config.state_dir.join("last-id");
        let last = match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<i32>().unwrap_or(0),
            Err(err) if err.kind() == io::ErrorKind::NotFound => 0,
            Err(err) => return Err(failed("read", &path, err)),
        };
        let in_use = self.instances().values().map(|instance| instance.id).max().unwrap_or(0);
        let id = last.max(in_use).checked_add(1).unwrap_or(1);
        let aside = path.with_extension("new");
        let write = || {
            fs::create_dir_all(&self.config.state_dir)?;
            fs::write(&aside, format!("{id}\n"))?;
            fs::rename(&aside, &path)
        };
        write().map_err(|err| failed("write", &path, err))?;
        Ok(id)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
