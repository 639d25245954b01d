//! The target `image_header` as a program.
#![no_main]

virtsnap_fuzz::program!("image_header");
