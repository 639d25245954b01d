//! End to end: real clients, a real daemon, real QEMU, guests that check themselves.
//!
//! Each module is a promise; its tests read like the session of somebody at a terminal.

mod access;
mod blockers;
mod blockjobs;
mod clients;
mod cockpit;
mod confined;
mod consumers;
mod damaged;
mod defects;
mod definitions;
mod domain;
mod durability;
mod escape;
mod events;
mod exchange;
mod extensions;
mod external;
mod firmware;
mod full;
mod generation;
mod guests;
mod hazards;
mod hostile;
mod hotplug;
mod internal;
mod jobs;
mod killed;
mod live;
mod merges;
mod metadata;
mod mixes;
mod network;
mod perished;
mod places;
mod quiesce;
mod refusals;
mod save;
mod stalls;
mod survive;
mod tools;
mod transient;
mod unfinished;
mod vanished;
mod versions;
