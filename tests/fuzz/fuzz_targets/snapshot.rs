//! The target `snapshot` as a program.
#![no_main]

virtsnap_fuzz::program!("snapshot");
