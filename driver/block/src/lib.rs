//! QEMU's block layer without a guest: what every hypervisor needs whose disks QEMU serves.
//!
//! - [`image`]: the one door to `qemu-img`, and what it tells of images;
//! - [`survey`], [`place`]: what plans are made from;
//! - [`merge`]: layers merged, in files and under a running guest;
//! - [`note`]: what one act of a running QEMU changes together;
//! - [`qmp`]: the monitor connection;
//! - [`job`], [`nodes`], [`graph`]: a running QEMU's jobs, its block nodes, how they stand on each
//!   other;
//! - [`drives`]: the disks of a device model, found by their files; [`throttle`]: writes held back;
//! - [`child`]: tools that read what a guest may have written reach files and no more.

pub mod child;
pub mod drives;
pub mod graph;
pub mod image;
pub mod job;
pub mod merge;
pub mod nodes;
pub mod note;
pub mod place;
pub mod qmp;
pub mod survey;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod throttle;
