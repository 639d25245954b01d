//! The target `journal` as a program.
#![no_main]

virtsnap_fuzz::program!("journal");
