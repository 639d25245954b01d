//! Xen as a hypervisor, through libxl and without xl.
//!
//! - [`complete`]: from what a client wrote to what libvirt's Xen driver would have made of it; pure;
//! - [`config`]: a definition as the JSON that libxl starts a domain from, and back; pure;
//! - [`context`]: libxl itself;
//! - [`hypervisor`]: the driver behind the engine's port; [`instance`]: one running domain;
//! - `facts`: what a plan is made from; `merge`: layers merged and snapshots deleted;
//! - `device_model`, `capabilities`: what guests can have here;
//! - `start`, `life`, `reconnect`: a domain's way from its definition to its end;
//! - `save_image`: memory in a file, in xl's format; `saving`: on its way there;
//! - `steps`: the acts of a plan.

#![deny(unsafe_code)]

mod capabilities;
pub mod complete;
pub mod config;
pub mod context;
mod device_model;
mod facts;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod guest;
mod host;
pub mod hypervisor;
pub mod instance;
mod life;
mod memory;
mod merge;
mod port;
mod reconnect;
mod save_image;
mod saving;
mod start;
mod steps;

pub use guest::Guest;
pub use host::Host;
