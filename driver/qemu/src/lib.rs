//! QEMU as a hypervisor.
//!
//! - [`complete`]: define-time: refuse what is not understood, fill in what libvirt fills in;
//!   and the live form of a definition (aliases, run-time paths and ports);
//! - [`argv`]: from a live definition to QEMU's command line; pure;
//! - [`hypervisor`]: the driver behind the engine's port; [`instance`]: one running QEMU;
//! - `start`, `setup`, `life`, `events`, `reconnect`: a domain's way from its definition to its end;
//! - [`process`], `status`, [`confine`]: its process, what outlives the daemon, its limits;
//!   `apparmor`: what an administrator's profile denies it;
//! - [`probe`]: what a QEMU binary can do; `network`, [`tpm`], `log`: what stands around a process;
//! - [`blocks`]: block nodes and backing chains of a running QEMU; [`backing`]: chains in XML;
//! - `hotplug`: devices that come to a running guest, and go;
//! - `client_jobs`: pull, commit and copy as a client asks for them;
//! - `save_image`: memory in a file, in libvirt's format; `migration`: QEMU's side of that;
//!   `saving`: guests that end with a save;
//! - `facts`, `steps`: what a plan is made from, and its acts;
//! - `fuzzing`: a door to the readers above for the fuzz targets.

mod agent;
mod apparmor;
pub mod argv;
pub mod backing;
pub mod blocks;
mod capabilities;
mod client_jobs;
pub mod complete;
pub mod confine;
mod events;
mod facts;
#[doc(hidden)]
pub mod fuzzing;
mod hotplug;
pub mod hypervisor;
mod inspect;
pub mod instance;
mod launch;
mod lent;
mod life;
mod log;
mod media;
mod migration;
mod network;
mod place;
mod port;
pub mod probe;
pub mod process;
#[cfg(test)]
mod real;
mod reconnect;
mod save_image;
mod saving;
mod setup;
mod start;
mod status;
mod steps;
mod stray;
mod system;
pub mod tpm;
mod transient;
mod unapplied;

pub(crate) use virtsnap_block::{image, qmp};
