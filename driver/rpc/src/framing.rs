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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::Status;

    fn header(kind: MessageType) -> Header {
        Header {
            program: 1,
            version: 1,
            procedure: 3,
            kind: kind as u32,
            serial: 9,
            status: Status::Ok as u32,
        }
    }

    fn pipe() -> OwnedFd {
        std::io::pipe().unwrap().0.into()
    }

    #[test]
    fn lengths_outside_the_limits_are_refused_before_the_message_comes() {
        for length in [0, 3, 4, 20, 27, MESSAGE_MAX as u32 + 1, 0x7fff_ffff, u32::MAX] {
            let mut reader = FrameReader::default();
            reader.push(&length.to_be_bytes(), []).unwrap();
            assert_eq!(reader.next_frame().unwrap_err(), FramingError::Length(length));
        }
        let mut reader = FrameReader::default();
        reader.push(&(MESSAGE_MAX as u32).to_be_bytes(), []).unwrap();
        assert!(reader.next_frame().unwrap().is_none());
        assert!(reader.bytes.capacity() < 1024, "allocated for a promise");
        reader.set_limit(100);
        assert!(reader.next_frame().is_err());
    }

    #[test]
    fn dummy_bytes_belong_to_the_message_before_them() {
        let first = header(MessageType::CallWithFds).frame_with_fds(2, b"args").unwrap();
        let second = header(MessageType::Call).frame(&[]).unwrap();
        let mut reader = FrameReader::default();
        reader.push(&first, []).unwrap();
        assert!(reader.next_frame().unwrap().is_none());
        reader.push(&[0], [pipe()]).unwrap();
        assert!(reader.next_frame().unwrap().is_none());
        reader.push(&[0], [pipe()]).unwrap();
        reader.push(&second, []).unwrap();
        let frame = reader.next_frame().unwrap().unwrap();
        assert_eq!((frame.payload.as_slice(), frame.fds.len()), (&b"args"[..], 2));
        assert!(reader.next_frame().unwrap().unwrap().fds.is_empty());
    }

    #[test]
    fn descriptors_and_their_number_must_agree() {
        let announced = header(MessageType::CallWithFds).frame_with_fds(1, &[]).unwrap();
        let mut reader = FrameReader::default();
        reader.push(&announced, []).unwrap();
        reader.push(&[0], []).unwrap();
        assert_eq!(reader.next_frame().unwrap_err(), FramingError::MissingFds);

        let mut reader = FrameReader::default();
        reader.push(&header(MessageType::Call).frame(&[]).unwrap(), [pipe()]).unwrap();
        assert_eq!(reader.next_frame().unwrap_err(), FramingError::UnexpectedFds);

        for count in [33, u32::MAX] {
            let many = header(MessageType::CallWithFds).frame(&count.to_be_bytes()).unwrap();
            let mut reader = FrameReader::default();
            reader.push(&many, []).unwrap();
            assert_eq!(reader.next_frame().unwrap_err(), FramingError::TooManyFds(count));
        }
        assert!(header(MessageType::ReplyWithFds).frame_with_fds(33, &[]).is_err());
    }

    #[test]
    fn too_long_a_message_is_not_sent() {
        let longest = vec![0; MESSAGE_MAX - HEADER_LEN];
        assert!(header(MessageType::Reply).frame(&longest).is_ok());
        let longer = vec![0; MESSAGE_MAX - HEADER_LEN + 1];
        assert!(header(MessageType::Reply).frame(&longer).is_err());
    }

    proptest! {
        #[test]
        fn messages_are_the_same_however_they_are_cut(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 1..5),
            piece in 1usize..40,
        ) {
            let mut wire = Vec::new();
            for payload in &payloads {
                wire.extend(header(MessageType::Stream).frame(payload).unwrap());
            }
            let mut reader = FrameReader::default();
            let mut got = Vec::new();
            for bytes in wire.chunks(piece) {
                reader.push(bytes, []).unwrap();
                while let Some(frame) = reader.next_frame().unwrap() {
                    got.push(frame.payload);
                }
            }
            prop_assert_eq!(got, payloads);
        }

        #[test]
        fn noise_does_no_harm(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = FrameReader::default();
            reader.push(&noise, []).unwrap();
            while let Ok(Some(_)) = reader.next_frame() {}
        }
    }
}
