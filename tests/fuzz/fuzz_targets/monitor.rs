//! The target `monitor` as a program.
#![no_main]

virtsnap_fuzz::program!("monitor");
