//! The target `xen_domain` as a program.
#![no_main]

virtsnap_fuzz::program!("xen_domain");
