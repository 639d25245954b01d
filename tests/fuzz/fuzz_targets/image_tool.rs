//! The target `image_tool` as a program.
#![no_main]

virtsnap_fuzz::program!("image_tool");
