//! The written form of what virtsnap handles: `<domainsnapshot>` and `<domain>`.
//!
//! Everything here is pure: text in, values out, and back. No file, no clock, no async.
//!
//! - [`element`]: a faithful tree. What we do not know survives, in the order it was read.
//! - [`snapshot`]: `<domainsnapshot>`, as a request (asked) and as a definition (recorded).
//! - [`domain`]: typed views over a `<domain>` tree; never a re-serialisation of it.
//! - [`policy`]: our own element in a domain's `<metadata>`.
//! - [`visible`]: what differs between two definitions to a guest.
//! - [`vocabulary`]: what a driver understands of a `<domain>`, as a table.

#![forbid(unsafe_code)]

pub mod domain;
pub mod element;
pub mod policy;
pub mod snapshot;
pub mod visible;
pub mod vocabulary;
