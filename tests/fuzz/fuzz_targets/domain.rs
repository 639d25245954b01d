//! The target `domain` as a program.
#![no_main]

virtsnap_fuzz::program!("domain");
