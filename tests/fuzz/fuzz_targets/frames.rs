//! The target `frames` as a program.
#![no_main]

virtsnap_fuzz::program!("frames");
