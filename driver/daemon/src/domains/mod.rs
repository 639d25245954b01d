//! The domains of this host: which there are, what holds each, and how they live.
//!
//! - [`table`]: every domain by uuid; what events and records change;
//! - [`life`]: define, start, stop, … with libvirt's rules;
//! - [`job`]: one modifying job per domain;
//! - [`definition`]: the little the daemon itself reads and changes in a `<domain>`;
//! - [`library`]: what the daemon is made of, and what it asks of durable storage.

pub(crate) mod definition;
pub(crate) mod job;
pub(crate) mod library;
pub(crate) mod life;
pub(crate) mod table;

pub(crate) use definition::View;
pub(crate) use job::Operation;
pub(crate) use library::Parts;
pub(crate) use life::{Domains, Nvram, Undefine};
pub(crate) use table::{Domain, Table};
