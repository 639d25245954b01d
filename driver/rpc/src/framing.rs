//! Bytes and descriptors in, whole messages out. No socket: the caller owns the reading.
//!
//! A message that announces descriptors is followed by one dummy byte for each, and the kernel
//! hands the descriptor over together with that byte. So a message is whole only when its dummy
//! bytes have come too, and bytes without a descriptor in their place are a broken peer.
//! Descriptors nobody announced are closed with the connection.
//!
//! The buffer grows with what has arrived, never with what a length field promises.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::message::{FDS_MAX, HEADER_LEN, Header, MESSAGE_MAX, MessageType};
use crate::xdr::Xdr;

/// Why a peer cannot be understood any more. There is no way to find the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("a message of {0} bytes: shorter than its header or longer than the limit")]
    Length(u32),
    #[error("{0} descriptors announced, at most 32 are allowed")]
    TooManyFds(u32),
    #[error("a message announces descriptors and ends before their number")]
    NoFdCount,
    #[error("descriptors were announced and not sent")]
    MissingFds,
    #[error("descriptors were sent and not announced")]
    UnexpectedFds,
}

/// One message as it came.
#[derive(Debug)]
pub struct Frame {
    pub header: Header,
    /// What follows the header, without the count of descriptors.
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

#[derive(Debug)]
pub struct FrameReader {
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
    limit: usize,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self { bytes: Vec::new(), fds: VecDeque::new(), limit: MESSAGE_MAX }
    }
}

impl FrameReader {
    /// Messages longer than this are refused from now on; the protocol's own limit stays.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(MESSAGE_MAX);
    }

    /// Takes what one `recvmsg` gave.
    pub fn push(
        &mut self,
        bytes: &[u8],
        fds: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<(), FramingError> {
        self.bytes.extend_from_slice(bytes);
        self.fds.extend(fds);
        if self.fds.len() > FDS_MAX { Err(FramingError::UnexpectedFds) } else { Ok(()) }
    }

    /// The next whole message, if it is there.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FramingError> {
        let Some(length) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let wire_length = u32::from_be_bytes(*length);
        let length = usize::try_from(wire_length)
            .ok()
            .filter(|length| (HEADER_LEN..=self.limit).contains(length))
            .ok_or(FramingError::Length(wire_length))?;
        let Some(message) = self.bytes.get(..length) else { return Ok(None) };
        let Some((head, payload)) = message.split_at_checked(HEADER_LEN) else { return Ok(None) };
        let header = head
            .get(4..)
            .and_then(|head| Header::from_bytes(head).ok())
            .ok_or(FramingError::Length(wire_length))?;

        let (count, payload) = match header.kind() {
            Ok(MessageType::CallWithFds | MessageType::ReplyWithFds) => split_fd_count(payload)?,
            _ => (0, payload),
        };
        let Some(end) = length.checked_add(count).filter(|&end| end <= self.bytes.len()) else {
            return Ok(None);
        };
        if self.fds.len() < count {
            return Err(FramingError::MissingFds);
        }
        let payload = payload.to_vec();
        let fds = self.fds.drain(..count).collect();
        self.bytes.drain(..end);
        if self.bytes.is_empty() {
            // A large message must not leave its buffer behind for the life of the connection.
            self.bytes.shrink_to(64 * 1024);
            if !self.fds.is_empty() {
                return Err(FramingError::UnexpectedFds);
            }
        }
        Ok(Some(Frame { header, payload, fds }))
    }
}

fn split_fd_count(payload: &[u8]) -> Result<(usize, &[u8]), FramingError> {
    let (count, rest) = payload.split_first_chunk::<4>().ok_or(FramingError::NoFdCount)?;
    let wire_count = u32::from_be_bytes(*count);
    match usize::try_from(wire_count) {
        Ok(count) if count <= FDS_MAX => Ok((count, rest)),
        _ => Err(FramingError::TooManyFds(wire_count)),
    }
}
