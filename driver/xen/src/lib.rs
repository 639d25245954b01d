//! Xen as a hypervisor, through libxl and without xl.
//!
//! - [`complete`]: from what a client wrote to what libvirt's Xen driver would have made of it
//! - [`config`]: a definition as the JSON that libxl starts a domain from, and back
//!
//! Both are pure.

#![deny(unsafe_code)]

pub mod complete;
pub mod config;
pub mod context;
#[cfg(test)]
mod golden;
mod guest;
mod host;

pub use guest::Guest;
pub use host::Host;
