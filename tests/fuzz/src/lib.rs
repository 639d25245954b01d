//! Fuzz targets: each takes any bytes, hands them to a reader of ours, and panics when the reader
//! breaks what it promises.
//!
//! - [`TARGETS`]: all of them; `fuzz_targets/` has each as a program of libFuzzer's (`make fuzz`);
//! - `wire`: frames and XDR; `trees`: XML in every form that we read; `disk`: what stands in files;
//!   `qemu`: what QEMU says; `planner`: what a client may ask of snapshots, in any order;
//! - `session`: whole sessions of clients, the daemon's own code over a simulated hypervisor;
//! - `memory`: what a target may allocate.
//!
//! `fixtures/fuzz/TARGET` has the seeds, and every input that once broke something. `cargo test`
//! sends all of them through their targets, without any fuzzer.

mod disk;
mod memory;
mod planner;
mod qemu;
mod session;
mod trees;
mod wire;

/// One reader and what it is held to.
#[derive(Debug)]
pub struct Target {
    pub name: &'static str,
    /// Panics where a promise is broken. Whether the bytes were taken for what they are to be.
    read: fn(&[u8]) -> bool,
    /// Mebibytes it may allocate whatever it reads; [`PER_BYTE`] more for each byte of input.
    fixed: usize,
}

/// A tree of a short document takes many times its text, and is held several times.
const PER_BYTE: usize = 4096;

/// In the order in which bytes reach us.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", read: wire::frames, fixed: 1 },
    Target { name: "session", read: session::play, fixed: 32 },
    Target { name: "xdr", read: wire::xdr, fixed: 1 },
    Target { name: "xml", read: trees::xml, fixed: 1 },
    Target { name: "snapshot", read: trees::snapshot, fixed: 1 },
    Target { name: "schema", read: trees::schema, fixed: 1 },
    Target { name: "domain", read: trees::domain, fixed: 4 },
    Target { name: "xen_domain", read: trees::xen_domain, fixed: 4 },
    Target { name: "planner", read: planner::play, fixed: 8 },
    Target { name: "journal", read: disk::journal, fixed: 1 },
    Target { name: "image_header", read: disk::image_header, fixed: 1 },
    // The longest definition that is read, a copy of it, and both again when it is written.
    Target { name: "save_image", read: disk::save_image, fixed: 70 },
    // The longest configuration that is read, as text and as a tree.
    Target { name: "xl_files", read: disk::xl_files, fixed: 70 },
    // XZ may take 64 MiB for what it looks back at.
    Target { name: "memory_stream", read: disk::memory_stream, fixed: 80 },
    Target { name: "status", read: disk::status, fixed: 1 },
    Target { name: "monitor", read: qemu::monitor, fixed: 1 },
    Target { name: "configuration", read: virtsnap_xen::fuzzing::configuration, fixed: 4 },
    Target { name: "image_tool", read: qemu::image_tool, fixed: 1 },
];

impl Target {
    /// # Panics
    /// When the reader breaks a promise, or takes more memory than it may.
    pub fn run(&self, input: &[u8]) -> bool {
        let (taken, peak) = memory::peak(|| (self.read)(input));
        let limit = (self.fixed << 20) + PER_BYTE * input.len();
        assert!(peak <= limit, "{}: {peak} bytes for {} of input", self.name, input.len());
        taken
    }
}

/// The target of that name.
///
/// # Panics
/// When there is none.
pub fn target(name: &str) -> &'static Target {
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("there is no fuzz target '{name}'"))
}

/// The program that libFuzzer drives.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(|input: &[u8]| {
            $crate::target($name).run(input);
        });
    };
}
