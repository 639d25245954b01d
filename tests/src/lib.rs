//! The harness of the end-to-end tests: a [`World`] is a private directory with a real daemon in
//! it, driven by the real virsh, with real guests that check themselves.
//!
//! The same scenarios run against virtsnapd and, as the oracle, against libvirt's own daemon
//! (`VIRTSNAP_TEST_DAEMON=libvirtd`): a scenario that libvirtd fails is a wrong scenario.
//!
//! Nothing is written outside the private directory and `target/`; a janitor process ends what a
//! world started even when the test process itself is killed.

#![forbid(unsafe_code)]

pub mod console;
pub mod faults;
pub mod guest;
pub mod host;
pub mod images;
pub mod matrix;
pub mod oracle;
pub mod programs;
pub mod raw;
pub mod trace;
pub mod virsh;
pub mod wire;
pub mod world;
pub mod xen;

pub use console::Console;
pub use guest::{Guest, GuestSpec};
pub use world::{Daemon, World};

/// Says loudly that a test did not run, and why. Where `CI` is set, that is a failure.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        let why = format!($($why)*);
        eprintln!("SKIPPED: {why}");
        assert!(std::env::var_os("CI").is_none(), "a skip is a failure in CI: {why}");
        return;
    }};
}
