//! The target `planner` as a program.
#![no_main]

virtsnap_fuzz::program!("planner");
