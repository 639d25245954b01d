//! The target `save_image` as a program.
#![no_main]

virtsnap_fuzz::program!("save_image");
