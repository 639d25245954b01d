//! The target `status` as a program.
#![no_main]

virtsnap_fuzz::program!("status");
