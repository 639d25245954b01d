//! The domains of this host: which there are, what holds each, and how they live.
//!
//! - [`table`]: every domain by uuid; what events and records change;
//! - [`life`]: define, start, stop, … with libvirt's rules;
//! - [`save`]: domains that are saved, and come back;
//! - [`strays`]: snapshots that others made;
//! - [`blockjobs`]: block jobs of clients, from start to end;
//! - [`job`]: one modifying job per domain;
//! - [`definition`]: the little the daemon itself reads and changes in a `<domain>`;
//! - [`devices`]: devices of a persistent definition.

pub(crate) mod blockjobs;
pub(crate) mod definition;
pub(crate) mod devices;
pub(crate) mod job;
pub(crate) mod life;
pub(crate) mod save;
pub(crate) mod strays;
pub(crate) mod table;

pub(crate) use definition::View;
pub(crate) use job::{Figures, Operation};
pub(crate) use life::{Domains, Nvram, Tpm, Undefine};
pub(crate) use save::Saving;
pub(crate) use table::{Domain, Table, renamed};
