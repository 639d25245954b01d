//! From a live definition to QEMU's command line. Pure: no file is opened, no process asked.
//!
//! The guest sees what libvirt's driver would show it: the same machine, controllers, addresses,
//! ids and names of RAM blocks, so that memory saved under the one loads under the other. The
//! order of the arguments is libvirt's too, since QEMU numbers some things in the order they come.
//!
//! What needs a file descriptor (a tap device, vhost-vsock) is returned as data: the runtime opens
//! it and passes it under the number that the command line names.
//!
//! - `read`: reading so that nothing is overlooked: what is not rendered is refused;
//! - `props`: JSON of one `-device`, `-object` or `-blockdev`; options of the older form;
//! - `address`: the bus a device sits on;
//! - the other modules follow the sections of a definition.

mod address;
mod audio;
mod block;
mod character;
mod chardev;
mod clock;
mod controllers;
mod cpu;
mod disk;
mod display;
mod firmware;
mod machine;
mod memory;
mod misc;
mod net;
mod props;
mod read;
mod smbios;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::Target;
use virtsnap_xml::element::Element;

pub use block::{Cache, DiskOptions, blockdev};

use crate::blocks::Chain;
use address::Topology;
use props::Props;
use read::{Ledger, View};

/// What the command line depends on beside the definition.
#[derive(Debug, Clone)]
pub struct LaunchContext {
    /// The QMP socket that QEMU listens on.
    pub monitor: PathBuf,
    /// Where files that back guest memory are made (`memoryBacking/source type='file'`).
    pub memory_dir: PathBuf,
    /// The host's hugetlbfs mounts with a directory for this domain: page size in KiB to path;
    /// the first is the default one.
    pub hugepages: Vec<(u64, PathBuf)>,
    /// Sockets of running swtpm processes, by the TPM's alias.
    pub tpm_sockets: BTreeMap<String, PathBuf>,
    /// The bridge of each network.
    pub network_bridges: BTreeMap<String, String>,
    /// Wait for `migrate-incoming` instead of starting.
    pub incoming: bool,
    /// QEMU's seccomp filter.
    pub sandbox: bool,
    /// Seconds since the epoch, and the local time's distance from UTC: for a guest clock with a
    /// variable offset.
    pub now: i64,
    pub local_offset: i64,
    /// Passed descriptors are numbered from here.
    pub first_fd: i32,
    pub qemu: QemuFacts,
}

/// What was probed of the QEMU binary.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QemuFacts {
    pub version: (u32, u32, u32),
    /// Names of devices (`qom-list-types`); empty if they were not probed: then all are assumed.
    pub devices: BTreeSet<String>,
    /// CPU properties that can be turned off; empty if not probed. libvirt's definitions name
    /// features that QEMU has never heard of, with policy `disable`.
    pub cpu_features: BTreeSet<String>,
}

impl QemuFacts {
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.version.0, self.version.1) >= (major, minor)
    }

    pub fn has_device(&self, name: &str) -> bool {
        self.devices.is_empty() || self.devices.contains(name)
    }
}

/// A process to start, with what has to be there before it starts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    pub program: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub taps: Vec<TapRequest>,
    pub vsock: Option<VsockRequest>,
    pub swtpm: Vec<Swtpm>,
    /// Files beside the disks that QEMU opens: kernel, firmware, …
    pub files: Vec<PathBuf>,
    /// UNIX sockets that QEMU makes, logs that it writes: their directories must exist.
    pub creates: Vec<PathBuf>,
    /// To be set through QMP (`set_password`) before anybody can connect.
    pub passwords: Vec<Password>,
}

/// A tap device to open and attach to a bridge, and to pass to QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapRequest {
    /// The interface's alias.
    pub alias: String,
    /// None: the device is not put on a bridge (`type='ethernet'`).
    pub bridge: Option<String>,
    pub mac: String,
    /// The name it shall have on the host, possibly with a `%d`.
    pub target: Option<String>,
    /// False: the device exists (`managed='no'`) and is only opened.
    pub managed: bool,
    pub mtu: Option<u64>,
    /// The guest's side has virtio headers (IFF_VNET_HDR).
    pub vnet_header: bool,
    /// One descriptor a queue, under these numbers.
    pub fds: Vec<i32>,
    /// Descriptors of /dev/vhost-net; empty unless asked for.
    pub vhost_fds: Vec<i32>,
}

/// A descriptor of /dev/vhost-vsock with this guest CID set, passed under this number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockRequest {
    pub cid: u64,
    pub fd: i32,
}

/// A swtpm process whose control socket stands in [`LaunchContext::tpm_sockets`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swtpm {
    pub alias: String,
    /// `1.2` or `2.0`.
    pub version: String,
    pub persistent_state: bool,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Password {
    /// `vnc` or `spice`.
    pub protocol: &'static str,
    pub secret: String,
    /// `connected=`: `keep`, `disconnect` or `fail`.
    pub connected: Option<String>,
    /// `passwdValidTo=`, as written.
    pub valid_to: Option<String>,
}

impl std::fmt::Debug for Password {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Password").field("protocol", &self.protocol).finish_non_exhaustive()
    }
}

/// Renders a live definition. `chains` holds one chain for each disk that has a source.
///
/// # Errors
///
/// `ConfigUnsupported` with the name of what is not rendered; `XmlError` for what makes no sense.
pub fn command_line(
    live: &Element,
    chains: &BTreeMap<Target, Chain>,
    context: &LaunchContext,
) -> Result<CommandLine> {
    let ledger = Ledger::default();
    let domain = View::root(live, &ledger);
    let mut build = Build::new(domain, chains, context)?;
    build.whole()?;
    ledger.unread(live)?;
    Ok(build.out)
}

/// The command line in the making.
struct Build<'a> {
    domain: View<'a>,
    devices: View<'a>,
    chains: &'a BTreeMap<Target, Chain>,
    context: &'a LaunchContext,
    topology: Topology,
    next_fd: i32,
    out: CommandLine,
}

impl<'a> Build<'a> {
    fn new(
        domain: View<'a>,
        chains: &'a BTreeMap<Target, Chain>,
        context: &'a LaunchContext,
    ) -> Result<Self> {
        let devices = domain.child("devices").ok_or_else(|| lacks("<devices>"))?;
        let emulator = devices.child_text("emulator").ok_or_else(|| lacks("<emulator>"))?;
        let topology = Topology::read(domain, devices)?;
        let out = CommandLine { program: emulator, ..CommandLine::default() };
        let next_fd = context.first_fd;
        Ok(Self { domain, devices, chains, context, topology, next_fd, out })
    }

    fn whole(&mut self) -> Result<()> {
        self.machine_part()?;
        self.memory_part()?;
        self.identity()?;
        if self.devices.child("graphics").is_none() {
            self.arg("-display", "none");
        }
        self.out.args.extend(["-no-user-config".to_owned(), "-nodefaults".to_owned()]);
        self.monitor();
        self.clock()?;
        self.power_management()?;
        self.boot()?;
        self.iommu()?;
        self.controllers()?;
        self.memory_devices()?;
        self.hubs()?;
        self.smartcard_controllers()?;
        self.disks()?;
        self.filesystems()?;
        self.interfaces()?;
        self.smartcards()?;
        self.character_devices()?;
        self.tpms()?;
        self.inputs()?;
        self.audiodevs()?;
        self.graphics()?;
        self.videos()?;
        self.sounds()?;
        self.watchdogs()?;
        self.redirected_devices()?;
        self.host_devices()?;
        if self.context.incoming {
            self.arg("-incoming", "defer");
        }
        self.balloon()?;
        self.random_generators()?;
        self.features_as_devices()?;
        self.passthrough_arguments()?;
        self.sandbox();
        self.panics()?;
        self.shared_memory()?;
        self.vsock()?;
        self.crypto()?;
        self.arg("-msg", "timestamp=on");
        self.unknown_devices()
    }

    fn arg(&mut self, option: &str, value: impl Into<String>) {
        self.out.args.push(option.to_owned());
        self.out.args.push(value.into());
    }

    fn json(&mut self, option: &str, props: Props) {
        self.arg(option, props.to_string());
    }

    fn device(&mut self, props: Props) {
        self.json("-device", props);
    }

    /// The next number under which the runtime passes a descriptor.
    fn pass_fd(&mut self) -> i32 {
        let fd = self.next_fd;
        self.next_fd = self.next_fd.saturating_add(1);
        fd
    }

    fn monitor(&mut self) {
        let path = self.context.monitor.to_string_lossy();
        let socket =
            format!("socket,id=charmonitor,path={},server=on,wait=off", props::escape_comma(&path));
        self.arg("-chardev", socket);
        self.arg("-mon", "chardev=charmonitor,id=monitor,mode=control");
        self.out.creates.push(self.context.monitor.clone());
    }

    fn sandbox(&mut self) {
        let filter = if self.context.sandbox {
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        } else {
            "off"
        };
        self.arg("-sandbox", filter);
    }
}

fn refuse<T>(message: impl Into<String>) -> Result<T> {
    Err(Error::new(Condition::ConfigUnsupported, message))
}

fn lacks(what: &str) -> Error {
    Error::new(Condition::XmlError, format!("the domain lacks {what}"))
}

#[cfg(test)]
mod guests;
#[cfg(test)]
mod launch;
#[cfg(test)]
mod tests;
