//! The target `configuration` as a program.
#![no_main]

virtsnap_fuzz::program!("configuration");
