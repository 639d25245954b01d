//! The target `xl_files` as a program.
#![no_main]

virtsnap_fuzz::program!("xl_files");
