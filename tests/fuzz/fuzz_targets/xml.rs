//! The target `xml` as a program.
#![no_main]

virtsnap_fuzz::program!("xml");
