//! The message around a payload: length, header, and the error struct of a failed call.
//!
//! All fields are big endian. The length counts itself; the dummy bytes that carry descriptors
//! come after the message and are not counted.

use crate::remote::{DomainRef, NetworkRef};
use crate::xdr::{Xdr, XdrError, xdr_struct};

/// The length field and the header.
pub const HEADER_LEN: usize = 28;
/// The longest message, length field included.
pub const MESSAGE_MAX: usize = 4 + 33_554_432;
/// The longest piece of stream data that libvirt's own daemon sends.
pub const STREAM_CHUNK: usize = 262_120;
/// The most descriptors one message may announce.
pub const FDS_MAX: usize = 32;

/// Every program has version 1.
pub const VERSION: u32 = 1;
pub const PROGRAM_REMOTE: u32 = 0x2000_8086;
pub const PROGRAM_QEMU: u32 = 0x2000_8087;
pub const PROGRAM_KEEPALIVE: u32 = 0x6b65_6570;

macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $number:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name {
            $($(#[$vmeta])* $variant = $number,)*
        }

        impl TryFrom<u32> for $name {
            type Error = XdrError;

            fn try_from(number: u32) -> Result<Self, XdrError> {
                match number {
                    $($number => Ok(Self::$variant),)*
                    other => Err(XdrError::BadValue(other)),
                }
            }
        }
    };
}

wire_enum! {
    /// The header's `type`.
    MessageType {
        Call = 0,
        Reply = 1,
        /// An event, or a keepalive message.
        Message = 2,
        Stream = 3,
        CallWithFds = 4,
        ReplyWithFds = 5,
        StreamHole = 6,
    }
}

wire_enum! {
    Status {
        Ok = 0,
        Error = 1,
        Continue = 2,
    }
}

/// The header as it stood in the frame. `kind` and `status` may hold numbers that mean nothing:
/// the session answers those, the codec does not drop them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    pub kind: u32,
    pub serial: u32,
    pub status: u32,
}

impl Header {
    pub fn kind(&self) -> Result<MessageType, XdrError> {
        MessageType::try_from(self.kind)
    }

    pub fn status(&self) -> Result<Status, XdrError> {
        Status::try_from(self.status)
    }

    /// The same call's answer: program, version, procedure and serial are echoed.
    #[must_use]
    pub fn answer(&self, kind: MessageType, status: Status) -> Self {
        Self { kind: kind as u32, status: status as u32, ..*self }
    }

    /// An event message. libvirtd numbers them 1 and clients do not look.
    pub fn event(program: u32, procedure: u32) -> Self {
        Self {
            program,
            version: VERSION,
            procedure,
            kind: MessageType::Message as u32,
            serial: 1,
            status: Status::Ok as u32,
        }
    }

    pub fn keepalive(procedure: u32) -> Self {
        Self { serial: 0, ..Self::event(PROGRAM_KEEPALIVE, procedure) }
    }

    /// The bytes of a whole message without descriptors.
    pub fn frame(&self, payload: &[u8]) -> Result<Vec<u8>, XdrError> {
        self.frame_with_prefix(&[], payload)
    }

    /// The bytes of a message that announces `fds` descriptors, which follow it one by one.
    pub fn frame_with_fds(&self, fds: usize, payload: &[u8]) -> Result<Vec<u8>, XdrError> {
        let count = u32::try_from(fds)
            .ok()
            .filter(|_| fds <= FDS_MAX)
            .ok_or(XdrError::TooLong { count: fds, limit: FDS_MAX })?;
        self.frame_with_prefix(&count.to_be_bytes(), payload)
    }

    fn frame_with_prefix(&self, prefix: &[u8], payload: &[u8]) -> Result<Vec<u8>, XdrError> {
        let len = HEADER_LEN.saturating_add(prefix.len()).saturating_add(payload.len());
        let wire_len = u32::try_from(len)
            .ok()
            .filter(|_| len <= MESSAGE_MAX)
            .ok_or(XdrError::TooLong { count: len, limit: MESSAGE_MAX })?;
        let mut out = Vec::with_capacity(len);
        wire_len.encode(&mut out)?;
        self.encode(&mut out)?;
        out.extend_from_slice(prefix);
        out.extend_from_slice(payload);
        Ok(out)
    }
}

impl Xdr for Header {
    const MIN: usize = 24;

    fn encode(&self, out: &mut Vec<u8>) -> Result<(), XdrError> {
        [self.program, self.version, self.procedure, self.kind, self.serial, self.status]
            .iter()
            .try_for_each(|field| field.encode(out))
    }

    fn decode(input: &mut crate::xdr::Decoder<'_>) -> Result<Self, XdrError> {
        Ok(Self {
            program: u32::decode(input)?,
            version: u32::decode(input)?,
            procedure: u32::decode(input)?,
            kind: u32::decode(input)?,
            serial: u32::decode(input)?,
            status: u32::decode(input)?,
        })
    }
}

xdr_struct! {
    /// The payload of a failed reply, and of a stream that broke. Clients show only `message`.
    WireError {
        code: i32,
        domain: i32,
        message: Option<String>,
        level: i32,
        dom: Option<DomainRef>,
        str1: Option<String>,
        str2: Option<String>,
        str3: Option<String>,
        int1: i32,
        int2: i32,
        net: Option<NetworkRef>,
    }
}
