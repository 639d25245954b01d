//! The target `memory_stream` as a program.
#![no_main]

virtsnap_fuzz::program!("memory_stream");
