//! The target `xdr` as a program.
#![no_main]

virtsnap_fuzz::program!("xdr");
