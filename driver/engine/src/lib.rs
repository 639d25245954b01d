//! The heart: parse → plan (pure) → execute (journalled: prepare, pivot, finish) → record.
//!
//! Knows neither QEMU nor Xen nor RPC, and does no I/O of its own: what it needs of the world it
//! asks of the [`ports`].
//!
//! - [`domain`]: the words for what a domain is and does, shared by all crates above `xml`;
//! - [`error`]: the one error type that crosses a port;
//! - [`options`]: what a caller may choose;
//! - [`facts`]: what a backend reports before a plan is made;
//! - [`moment`]: the tree of snapshots of one domain;
//! - [`plan`]: from a request and facts to data; every refusal happens there;
//! - [`execute`], [`recover`]: the only interpreter of a plan, and the fold over its journal;
//! - [`ports`]: the traits that backends, the store and the daemon implement.

#![forbid(unsafe_code)]

pub mod domain;
pub mod error;
pub mod facts;
pub mod options;
pub mod plan;
pub mod ports;
