//! Xen behind the engine's port: what is configured, what runs.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;
use virtsnap_block::image::{QemuImg, is_same, system};
pub use virtsnap_block::merge::MergeLimits;
use virtsnap_engine::domain::Event;
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::ports::EventSink;
use virtsnap_xml::domain::{self, DiskView};
use virtsnap_xml::element::Element;

use crate::context::{Context, Ended};
use crate::device_model::OfHost;
use crate::facts::make_directory;
use crate::host::Host;
use crate::instance::Instance;

#[derive(Debug, Clone)]
pub struct XenConfig {
    /// Of this boot: status files, sockets of channels.
    pub run_dir: PathBuf,
    /// Kept over boots.
    pub state_dir: PathBuf,
    /// Has a directory for each domain all disks of which are on devices: for memory and overlays.
    pub snapshot_dir: PathBuf,
    pub log_dir: PathBuf,
    pub qemu_img: PathBuf,
    pub merges: MergeLimits,
    /// The bridge of each virtual network that interfaces may name.
    pub network_bridges: BTreeMap<String, String>,
}

impl XenConfig {
    pub fn new(run_dir: PathBuf, state_dir: PathBuf, log_dir: PathBuf) -> Self {
        Self {
            run_dir,
            state_dir,
            snapshot_dir: SNAPSHOTS.into(),
            log_dir,
            qemu_img: PathBuf::from("/usr/bin/qemu-img"),
            merges: MergeLimits::default(),
            network_bridges: [("default".to_owned(), "virbr0".to_owned())].into(),
        }
    }
}

/// Where Xen's users have what they keep of snapshots, when nobody says otherwise.
pub const SNAPSHOTS: &str = "/var/lib/xen/snapshots";

/// Where libvirt's Xen driver has the sockets of channels that it named for one run of a guest.
pub const LIBVIRTS_CHANNELS: &str = "/var/lib/libvirt/libxl/channel";

/// The Xen driver. Cheap to clone: all clones are one driver.
#[derive(Clone)]
pub struct Xen {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: XenConfig,
    pub(crate) context: Context,
    pub(crate) host: Host,
    pub(crate) device_model: OfHost,
    pub(crate) events: Arc<dyn EventSink>,
    instances: Mutex<BTreeMap<Uuid, Arc<Instance>>>,
    /// Domains that are being started, the first one first.
    starting: Mutex<Vec<Starting>>,
    /// Until somebody listens.
    pub(crate) ended: Mutex<Option<UnboundedReceiver<Ended>>>,
}

#[derive(Clone)]
pub(crate) struct Starting {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) definition: Element,
}

impl fmt::Debug for Xen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Xen").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

impl Xen {
    /// Connects to the hypervisor of this host, once in the life of a process.
    pub fn new(config: XenConfig, events: Arc<dyn EventSink>) -> Result<Self> {
        let (context, ended) = Context::open()?;
        // What stands beside an image elsewhere is kept here of one on a device.
        let directory = &config.state_dir;
        make_directory(directory).map_err(|err| system("make", directory, err))?;
        let host = Host {
            bridges: config.network_bridges.clone(),
            channel_dirs: vec![config.run_dir.clone(), LIBVIRTS_CHANNELS.into()],
        };
        let shared = Shared {
            config,
            context,
            host,
            device_model: OfHost::default(),
            events,
            instances: Mutex::default(),
            starting: Mutex::default(),
            ended: Mutex::new(Some(ended)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    pub fn config(&self) -> &XenConfig {
        &self.shared.config
    }

    /// The running domain.
    pub fn instance(&self, domain: Uuid) -> Option<Arc<Instance>> {
        self.shared.instances().get(&domain).cloned()
    }

    /// The same, or the refusal that a shut off domain gets.
    pub fn running(&self, domain: Uuid) -> Result<Arc<Instance>> {
        let refusal = || Error::new(Condition::OperationInvalid, "domain is not running");
        self.instance(domain).ok_or_else(refusal)
    }

    pub(crate) fn image_tool(&self) -> QemuImg {
        QemuImg::new(&self.config().qemu_img)
    }

    /// Says to libxl which files the disks of that domain are from now on.
    pub(crate) async fn store_disks(&self, instance: &Instance) -> Result<()> {
        instance.store_disks(&self.shared.context, &self.shared.host).await
    }
}

impl Shared {
    pub(crate) fn instances(&self) -> MutexGuard<'_, BTreeMap<Uuid, Arc<Instance>>> {
        lock(&self.instances)
    }

    pub(crate) fn starting(&self) -> MutexGuard<'_, Vec<Starting>> {
        lock(&self.starting)
    }

    /// QEMU locks no images of Xen's disks: what another running domain uses is ours to refuse.
    /// Of two that start at a time the first one has it.
    pub(crate) fn refuse_elsewhere(&self, domain: Uuid, image: &Path, what: &str) -> Result<()> {
        // First these: one that is up meanwhile is among the others then.
        let starting = self.starting().clone().into_iter();
        let instances: Vec<_> = self.instances().values().cloned().collect();
        let running = instances.iter().filter(|other| other.uuid != domain);
        let others = starting
            .take_while(|other| other.uuid != domain)
            .map(|other| (other.name, other.definition))
            .chain(running.map(|other| (other.name.clone(), other.live())));
        for (name, definition) in others {
            let uses = |disk: &DiskView<'_>| {
                disk.path().is_some_and(|path| is_same(Path::new(path), image))
            };
            if let Some(disk) = domain::disks(&definition).find(uses) {
                let message = format!(
                    "image '{}' cannot be {what} while disk '{}' of the running domain '{name}' uses \
                     it; shut that domain down first",
                    image.display(),
                    disk.target(),
                );
                return Err(Error::new(Condition::OperationInvalid, message));
            }
        }
        Ok(())
    }

    pub(crate) fn tell(&self, instance: &Instance, event: Event) {
        let id = i32::try_from(instance.id).unwrap_or(i32::MAX);
        self.events.emit(instance.uuid, &instance.name, id, event);
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
