//! QEMU as a hypervisor.
//!
//! - [`complete`]: define-time: refuse what is not understood, fill in what libvirt fills in;
//!   and the live form of a definition (aliases, run-time paths and ports);
//! - [`argv`]: from a live definition to QEMU's command line; pure;
//! - [`hypervisor`]: the driver behind the engine's port; [`instance`]: one running QEMU;
//! - [`process`], [`status`], [`confine`]: its process, what outlives the daemon, its limits;
//! - [`qmp`]: the monitor connection;
//! - [`image`]: the one door to `qemu-img`, and what it tells of images;
//! - [`blocks`]: block nodes and backing chains of a running QEMU.

pub mod argv;
pub mod blocks;
pub mod complete;
pub mod confine;
mod events;
pub mod hypervisor;
pub mod image;
pub mod instance;
pub mod process;
pub mod qmp;
mod status;
mod system;
