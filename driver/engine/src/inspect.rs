//! Questions about a running guest, and small acts on it, that no snapshot needs.
//!
//! Apart from [`Hypervisor`] so that a new backend may begin without: everything here is refused
//! by default, in a way that clients know how to live with.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;
use virtsnap_xml::element::Element;

use crate::blockjob::{Ended, Ending, Move, NewBlockJob, Stage};
use crate::error::{Condition, Error, Result};
use crate::facts::{Format, InternalSnapshot, Target};
use crate::ports::Hypervisor;

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::new(Condition::NoSupport, format!("this hypervisor driver does not support {what}")))
}

/// What a client wants to know domain capabilities for; what is not said is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Platform {
    pub emulator: Option<String>,
    pub arch: Option<String>,
    pub machine: Option<String>,
    pub virt_type: Option<String>,
}

/// Requests and bytes since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockStats {
    pub read_requests: u64,
    pub read_bytes: u64,
    pub read_nanoseconds: u64,
    pub write_requests: u64,
    pub write_bytes: u64,
    pub write_nanoseconds: u64,
    pub flush_requests: u64,
    pub flush_nanoseconds: u64,
}

/// The host as its hypervisor knows it, who may own more of it than the daemon's kernel sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub memory_kib: u64,
    pub free_kib: u64,
    pub cpus: u32,
    pub mhz: u32,
    pub nodes: u32,
    pub cores_per_socket: u32,
    pub threads_per_core: u32,
    /// The most that a guest may have.
    pub max_vcpus: u32,
}

/// One disk of a running guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStats {
    pub target: Target,
    pub stats: BlockStats,
}

/// Sizes of an image in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    pub virtual_size: u64,
    /// The highest offset in use.
    pub allocation: u64,
    /// On the host's storage.
    pub physical: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockJob {
    pub kind: crate::domain::BlockJobKind,
    /// Bytes a second; 0: no limit.
    pub bandwidth: u64,
    pub done: u64,
    pub total: u64,
}

/// A guest's memory on its way to a file. Sizes in bytes, times in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemoryJob {
    pub elapsed: u64,
    pub setup: Option<u64>,
    /// How long the guest stood still; what is expected, before it is known.
    pub downtime: Option<u64>,
    pub total: u64,
    pub processed: u64,
    pub remaining: u64,
    /// Pages of one repeated byte, and others.
    pub constant_pages: u64,
    pub normal_pages: u64,
    pub normal_bytes: u64,
    pub page_size: u64,
    pub bytes_per_second: u64,
    /// Pages that the guest writes to in a second.
    pub dirty_rate: u64,
    /// How often all of its memory was looked through.
    pub iteration: u64,
}

/// How often and how long a running guest was made to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pauses {
    /// All that are over, together.
    pub over: Duration,
    /// It stands still just now.
    pub is_on: bool,
}

impl Pauses {
    /// What came since; none while the last one is not over.
    pub fn since(self, before: Self) -> Option<Duration> {
        (self.is_on == before.is_on).then(|| self.over.saturating_sub(before.over))
    }
}

/// Processor time of a guest, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CpuTimes {
    pub total: u64,
    /// How the host's kernel parts it, where that is what runs the guest.
    pub parts: Option<CpuParts>,
    /// Of each vCPU, where it can be told apart.
    pub vcpus: Vec<VcpuTime>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuParts {
    pub user: u64,
    pub system: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VcpuTime {
    pub number: u32,
    pub state: VcpuState,
    pub nanoseconds: u64,
    /// The host's processor it last ran on.
    pub host_cpu: Option<u32>,
    /// A bit for each of the host's processors it may run on, the lowest first; none: on all.
    pub affinity: Option<Vec<u8>>,
}

/// virVcpuState.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VcpuState {
    Offline,
    Running,
    /// It waits for something to do.
    Blocked,
}

/// virDomainMemoryStatTags that a balloon driver fills; sizes in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryStat {
    SwapIn,
    SwapOut,
    MajorFaults,
    MinorFaults,
    Unused,
    Available,
    ActualBalloon,
    ResidentSet,
    Usable,
    /// Seconds since the epoch.
    LastUpdate,
    DiskCaches,
    HugetlbAllocations,
    HugetlbFailures,
}

#[derive(Debug)]
pub struct Screenshot {
    pub mime: &'static str,
    /// Open for reading, at its start; nobody else has a name for it.
    pub image: OwnedFd,
}

/// See the module.
pub trait Inspect: Hypervisor {
    /// What virConnectGetType says, and the number of the driver's error domain.
    const NAME: &'static str;
    const ERROR_DOMAIN: i32;
    /// How the names of libvirt's own functions for it begin, which refusals of flags tell.
    const FUNCTIONS: &'static str;
    /// The paths of URIs that are opened, the first for whoever names none.
    const PATHS: &'static [&'static str];
    /// Others start domains on it too, which come and go by events ([`EventSink`]). What is known of
    /// a domain's snapshots then outlives its guest, also without a persistent definition: whoever
    /// started it may do so again.
    ///
    /// [`EventSink`]: crate::ports::EventSink
    const IS_SHARED: bool = false;

    /// Of the hypervisor: major * 1000000 + minor * 1000 + micro.
    fn version(&self) -> impl Future<Output = Result<u64>> + Send {
        async { unsupported("asking for its version") }
    }

    /// None: the daemon's kernel sees all of the host.
    fn node(&self) -> impl Future<Output = Result<Option<Node>>> + Send {
        async { Ok(None) }
    }

    fn domain_capabilities(
        &self,
        platform: &Platform,
    ) -> impl Future<Output = Result<Element>> + Send {
        let _ = platform;
        async { unsupported("domain capabilities") }
    }

    fn cpu_times(&self, domain: Uuid) -> Result<CpuTimes> {
        let _ = domain;
        unsupported("processor times")
    }

    /// Resident memory of the guest's process in KiB.
    fn resident_memory(&self, domain: Uuid) -> Result<u64> {
        let _ = domain;
        unsupported("resident memory")
    }

    /// What the guest has now, in KiB; none without a balloon.
    fn balloon(&self, domain: Uuid) -> impl Future<Output = Result<Option<u64>>> + Send {
        let _ = domain;
        async { Ok(None) }
    }

    fn set_balloon(&self, domain: Uuid, kib: u64) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, kib);
        async { unsupported("a memory balloon") }
    }

    fn disk_stats(&self, domain: Uuid) -> impl Future<Output = Result<Vec<DiskStats>>> + Send {
        let _ = domain;
        async { unsupported("disk statistics") }
    }

    /// Of the active layer, running or not.
    fn image_size(
        &self,
        domain: &Element,
        target: &str,
    ) -> impl Future<Output = Result<ImageSize>> + Send {
        let _ = (domain, target);
        async { unsupported("image sizes") }
    }

    /// The internal snapshots in the images of a definition's disks, in those below, and in
    /// `named`; images without any are left out.
    fn image_snapshots(
        &self,
        domain: Uuid,
        definition: &Element,
        named: &BTreeMap<PathBuf, Format>,
    ) -> impl Future<Output = Result<BTreeMap<PathBuf, Vec<InternalSnapshot>>>> + Send {
        let _ = (domain, definition, named);
        async { Ok(BTreeMap::new()) }
    }

    /// In this life of the guest, by the hypervisor's clock; none where nobody keeps count.
    fn pauses(&self, domain: Uuid) -> Option<Pauses> {
        let _ = domain;
        None
    }

    /// How far the memory is that is being saved just now; none: none is.
    fn memory_job(&self, domain: Uuid) -> impl Future<Output = Result<Option<MemoryJob>>> + Send {
        let _ = domain;
        async { Ok(None) }
    }

    /// What the last save of memory in this life of the guest came to.
    fn saved_memory(&self, domain: Uuid) -> impl Future<Output = Result<Option<MemoryJob>>> + Send {
        let _ = domain;
        async { Ok(None) }
    }

    /// Ends that; the operation it belongs to fails as aborted and undoes what it did.
    fn abort_memory_job(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send {
        let _ = domain;
        async { unsupported("aborting a save") }
    }

    fn block_job(
        &self,
        domain: Uuid,
        target: &str,
    ) -> impl Future<Output = Result<Option<BlockJob>>> + Send {
        let _ = (domain, target);
        async { Ok(None) }
    }

    /// Starts a job of the client's, which outlives daemon and client.
    fn start_block_job(
        &self,
        domain: Uuid,
        job: &NewBlockJob,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, job);
        async { unsupported("block jobs") }
    }

    /// The disks on which a job of a client's runs, or is over and not yet concluded.
    fn client_block_jobs(&self, domain: Uuid) -> Vec<Target> {
        let _ = domain;
        Vec::new()
    }

    /// Bytes a second; 0: no limit.
    fn set_block_job_speed(
        &self,
        domain: Uuid,
        target: &str,
        speed: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, target, speed);
        async { unsupported("block jobs") }
    }

    /// Tells a job to end. It goes on from there; see [`Inspect::block_job_beyond`].
    fn end_block_job(
        &self,
        domain: Uuid,
        target: &str,
        how: Ending,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, target, how);
        async { unsupported("block jobs") }
    }

    /// Waits until a client's job is further than that; none when there is none (any more).
    fn block_job_beyond(
        &self,
        domain: Uuid,
        target: &str,
        stage: Stage,
    ) -> impl Future<Output = Result<Option<Stage>>> + Send {
        let _ = (domain, target, stage);
        async { Ok(None) }
    }

    /// Where the last word on a pending job moves the disk to.
    fn block_job_moves(&self, domain: Uuid, target: &str) -> Result<Option<Move>> {
        let _ = (domain, target);
        Ok(None)
    }

    /// The last word: the guest goes on, on the image that the job leaves it.
    fn finalize_block_job(
        &self,
        domain: Uuid,
        target: &str,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, target);
        async { unsupported("block jobs") }
    }

    /// Notes what a concluded job changed, and forgets it. None: it was done before.
    fn conclude_block_job(
        &self,
        domain: Uuid,
        target: &str,
    ) -> impl Future<Output = Result<Option<Ended>>> + Send {
        let _ = (domain, target);
        async { Ok(None) }
    }

    /// Removes an image file that no chain of the domain has; absent is done.
    fn remove_image(&self, domain: Uuid, image: &Path) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, image);
        async { unsupported("removing images") }
    }

    fn screenshot(
        &self,
        domain: Uuid,
        screen: u32,
    ) -> impl Future<Output = Result<Screenshot>> + Send {
        let _ = (domain, screen);
        async { unsupported("screenshots") }
    }

    /// Key codes of Linux' `input-event-codes.h`, held for that many milliseconds.
    fn send_keys(
        &self,
        domain: Uuid,
        codes: &[u32],
        hold: u32,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, codes, hold);
        async { unsupported("sending keys") }
    }

    fn inject_nmi(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send {
        let _ = domain;
        async { unsupported("injecting an NMI") }
    }

    /// Ends a suspension that the guest went into by itself.
    fn wake_up(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send {
        let _ = domain;
        async { unsupported("waking up a guest") }
    }

    /// Makes the active layer of a running domain's disk larger, in bytes; the guest is told.
    fn resize_disk(
        &self,
        domain: Uuid,
        target: &str,
        size: u64,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, target, size);
        async { unsupported("resizing disks") }
    }

    /// What the guest's balloon driver tells of its memory.
    fn memory_stats(
        &self,
        domain: Uuid,
    ) -> impl Future<Output = Result<Vec<(MemoryStat, u64)>>> + Send {
        let _ = domain;
        async { unsupported("memory statistics") }
    }

    /// Puts what `disk` names into a drive for removable media, or takes out what is in it.
    /// `force` does so though the guest has locked the tray.
    fn change_medium(
        &self,
        domain: Uuid,
        disk: &Element,
        force: bool,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, disk, force);
        async { unsupported("changing media") }
    }

    /// Adds a device to a running guest.
    fn attach_device(
        &self,
        domain: Uuid,
        device: &Element,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, device);
        async { unsupported("attaching devices") }
    }

    /// Asks a running guest to let the device of that alias go. Returns when it has, or when it
    /// takes its time.
    fn detach_device(&self, domain: Uuid, alias: &str) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, alias);
        async { unsupported("detaching devices") }
    }

    /// A new connection to the display server, as a socket for the client.
    fn open_graphics(
        &self,
        domain: Uuid,
        index: u32,
    ) -> impl Future<Output = Result<OwnedFd>> + Send {
        let _ = (domain, index);
        async { unsupported("opening the display") }
    }

    /// A raw command for the guest's agent.
    fn agent_command(
        &self,
        domain: Uuid,
        command: &str,
        seconds: Option<u32>,
    ) -> impl Future<Output = Result<String>> + Send {
        let _ = (domain, command, seconds);
        async { unsupported("commands for the guest's agent") }
    }
}
