//! libvirt's remote protocol, the part that knows nothing of this daemon: XDR, framing,
//! procedures and their arguments.
//!
//! - [`xdr`]: the codec. Limits live in the types; nothing is allocated for a count before the
//!   bytes that could hold it have arrived.
//! - [`message`]: header, message types, the error struct, frames.
//! - [`framing`]: bytes and descriptors in, whole messages out; no socket.
//! - [`procedure`]: every number of the REMOTE, QEMU and KEEPALIVE programs, with its name and
//!   whether a read-only client may call it.
//! - [`remote`]: the argument and return struct of each procedure, and the event messages.
//!
//! The facts are those of libvirt's protocol definition (number, field order, limits); the wire
//! bytes under `fixtures/rpc` were taken from unmodified clients and keep this crate honest.

#![forbid(unsafe_code)]

pub mod framing;
pub mod message;
pub mod procedure;
pub mod remote;
pub mod xdr;

#[cfg(test)]
mod sample;
