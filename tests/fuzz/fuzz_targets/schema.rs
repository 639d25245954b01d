//! The target `schema` as a program.
#![no_main]

virtsnap_fuzz::program!("schema");
