//! Memory in a file, in libvirt's format: what `virsh save`, managed save and external memory of a
//! snapshot are made of, so that either side restores what the other one saved.
//!
//! - [`head`]: what stands before the stream: state, definition, cookie;
//! - [`codec`]: the compressions that libvirt knows;
//! - [`carry`]: the stream between QEMU's pipe and the file;
//! - [`transfer`]: the whole way of a guest's memory, out and back.
//!
//! ```text
//!   0        16 bytes  LibvirtQemudSave, or LibvirtQemudPart while it is being written
//!   16       u32       version, 2; in the byte order of the host that wrote it
//!   20       u32       room: bytes from 92 to the stream
//!   24       u32       1: the guest ran
//!   28       u32       format of the stream: 0 raw, 1 gzip, 2 bzip2, 3 xz, 4 lzop, 5 zstd, 6 sparse
//!   32       u32       where the cookie begins after 92; 0: there is none
//!   36       56 bytes  0
//!   92                 the definition as XML and a zero byte; the cookie likewise; zeroes
//!   92+room            QEMU's migration stream
//! ```
//!
//! Source of facts: libvirt's `qemu_saveimage.[ch]`, as of 11.3.

pub(crate) mod carry;
pub(crate) mod codec;
pub(crate) mod head;
mod transfer;

pub(crate) use codec::Format;
pub(crate) use head::{Damage, Head};
pub(crate) use transfer::{Saved, save};

/// What libvirt writes beside a definition whose `<cpu>` says all.
pub(crate) const COOKIE: &str = "<cookie>\n</cookie>\n";
