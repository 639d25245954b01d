//! The target `session` as a program.
#![no_main]

virtsnap_fuzz::program!("session");
