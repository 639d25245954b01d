//! XDR (RFC 4506) as libvirt speaks it: big endian, everything padded to four bytes.
//!
//! Two things differ from what one expects. A `char`, `unsigned char` or `unsigned short` takes
//! four bytes each, also inside arrays: that is [`Xdr`] for `i8`, `u8` and `u16`. Bytes that lie
//! packed are [`Opaque`].
//!
//! Decoding is strict where libvirt is lax: padding must be zero, an optional's discriminant 0 or
//! 1, a string UTF-8 without NUL, and nothing may be left over. The clients we know send nothing
//! else, and what decodes also encodes back to the same bytes.

use std::ops::Deref;

use uuid::Uuid;

/// The longest string (REMOTE_STRING_MAX).
pub const STRING_MAX: usize = 4_194_304;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum XdrError {
    #[error("the message ends in the middle of a field")]
    Truncated,
    #[error("{0} bytes follow the last field")]
    TrailingBytes(usize),
    #[error("{count} elements where at most {limit} are allowed")]
    TooLong { count: usize, limit: usize },
    #[error("a string is not UTF-8 or contains a NUL")]
    BadString,
    #[error("{0} is not a value of this field")]
    BadValue(u32),
    #[error("padding is not zero")]
    BadPadding,
}

pub type Result<T, E = XdrError> = std::result::Result<T, E>;

/// A type with a wire form.
pub trait Xdr: Sized {
    /// The fewest bytes one value takes: what a count is checked against before allocation.
    const MIN: usize;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()>;

    fn decode(input: &mut Decoder<'_>) -> Result<Self>;

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        self.encode(&mut out)?;
        Ok(out)
    }

    /// Decodes a whole payload; nothing may be left over.
    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let mut input = Decoder { rest: bytes };
        let value = Self::decode(&mut input)?;
        match input.rest.len() {
            0 => Ok(value),
            left => Err(XdrError::TrailingBytes(left)),
        }
    }
}

/// The bytes of a payload not yet read.
#[derive(Debug)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len).ok_or(XdrError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(XdrError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// Packed bytes with their padding.
    fn packed(&mut self, limit: usize) -> Result<&'a [u8]> {
        let len = self.count(limit, 1)?;
        let bytes = self.take(len)?;
        let padding = self.take(padding(len))?;
        if padding.iter().any(|&byte| byte != 0) {
            return Err(XdrError::BadPadding);
        }
        Ok(bytes)
    }

    /// A count that is within `limit` and whose elements can still be there.
    fn count(&mut self, limit: usize, min_element: usize) -> Result<usize> {
        let count = usize::try_from(u32::decode(self)?).map_err(|_| XdrError::Truncated)?;
        if count > limit {
            return Err(XdrError::TooLong { count, limit });
        }
        match count.checked_mul(min_element) {
            Some(bytes) if bytes <= self.rest.len() => Ok(count),
            _ => Err(XdrError::Truncated),
        }
    }
}

const fn padding(len: usize) -> usize {
    len.wrapping_neg() % 4
}

fn encode_count(count: usize, limit: usize, out: &mut Vec<u8>) -> Result<()> {
    match u32::try_from(count) {
        Ok(wire) if count <= limit => wire.encode(out),
        _ => Err(XdrError::TooLong { count, limit }),
    }
}

fn encode_packed(bytes: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<()> {
    encode_count(bytes.len(), limit, out)?;
    out.extend_from_slice(bytes);
    out.resize(out.len() + padding(bytes.len()), 0);
    Ok(())
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Xdr for $type {
            const MIN: usize = size_of::<$type>();

            fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
                out.extend_from_slice(&self.to_be_bytes());
                Ok(())
            }

            fn decode(input: &mut Decoder<'_>) -> Result<Self> {
                Ok(Self::from_be_bytes(input.array()?))
            }
        }
    )*};
}
numbers!(i32, u32, i64, u64, f64);

/// The small integers, which travel as four bytes.
macro_rules! widened {
    ($($type:ty as $wire:ty),*) => {$(
        impl Xdr for $type {
            const MIN: usize = 4;

            fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
                <$wire>::from(*self).encode(out)
            }

            fn decode(input: &mut Decoder<'_>) -> Result<Self> {
                let wire = <$wire>::decode(input)?;
                Self::try_from(wire).map_err(|_| XdrError::BadValue(wire.cast_unsigned()))
            }
        }
    )*};
}
widened!(i8 as i32, u8 as i32, u16 as i32);

impl Xdr for String {
    const MIN: usize = 4;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        if self.contains('\0') {
            return Err(XdrError::BadString);
        }
        encode_packed(self.as_bytes(), STRING_MAX, out)
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        let text = str::from_utf8(input.packed(STRING_MAX)?).map_err(|_| XdrError::BadString)?;
        if text.contains('\0') {
            return Err(XdrError::BadString);
        }
        Ok(text.to_owned())
    }
}

impl Xdr for Uuid {
    const MIN: usize = 16;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(self.as_bytes());
        Ok(())
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self::from_bytes(input.array()?))
    }
}

impl<T: Xdr> Xdr for Option<T> {
    const MIN: usize = 4;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            None => 0u32.encode(out),
            Some(value) => {
                1u32.encode(out)?;
                value.encode(out)
            }
        }
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        match u32::decode(input)? {
            0 => Ok(None),
            1 => T::decode(input).map(Some),
            other => Err(XdrError::BadValue(other)),
        }
    }
}

/// No fields.
impl Xdr for () {
    const MIN: usize = 0;

    fn encode(&self, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn decode(_input: &mut Decoder<'_>) -> Result<Self> {
        Ok(())
    }
}

/// A fixed array of small integers; only `char name[N]` occurs.
impl<const N: usize> Xdr for [i8; N] {
    const MIN: usize = 4 * N;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        self.iter().try_for_each(|value| value.encode(out))
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        let mut array = [0; N];
        for value in &mut array {
            *value = i8::decode(input)?;
        }
        Ok(array)
    }
}

/// A counted array of at most `MAX` elements. The limit holds in both directions.
#[derive(Debug, Clone, PartialEq)]
pub struct List<T, const MAX: usize>(pub Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> From<Vec<T>> for List<T, MAX> {
    fn from(elements: Vec<T>) -> Self {
        Self(elements)
    }
}

impl<T, const MAX: usize> FromIterator<T> for List<T, MAX> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Self(elements.into_iter().collect())
    }
}

impl<T, const MAX: usize> Deref for List<T, MAX> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Xdr, const MAX: usize> Xdr for List<T, MAX> {
    const MIN: usize = 4;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        encode_count(self.0.len(), MAX, out)?;
        self.0.iter().try_for_each(|element| element.encode(out))
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        let count = input.count(MAX, T::MIN)?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(T::decode(input)?);
        }
        Ok(Self(elements))
    }
}

/// At most `MAX` packed bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opaque<const MAX: usize>(pub Vec<u8>);

impl<const MAX: usize> Xdr for Opaque<MAX> {
    const MIN: usize = 4;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        encode_packed(&self.0, MAX, out)
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        Ok(Self(input.packed(MAX)?.to_vec()))
    }
}

/// Structs whose wire form is their fields in order.
macro_rules! xdr_struct {
    ($(
        $(#[$meta:meta])*
        $name:ident { $($field:ident: $type:ty),* $(,)? }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name {
            $(pub $field: $type,)*
        }

        impl $crate::xdr::Xdr for $name {
            const MIN: usize = 0 $(+ <$type as $crate::xdr::Xdr>::MIN)*;

            #[allow(unused_variables, reason = "some structs are empty")]
            fn encode(&self, out: &mut Vec<u8>) -> $crate::xdr::Result<()> {
                $($crate::xdr::Xdr::encode(&self.$field, out)?;)*
                Ok(())
            }

            #[allow(unused_variables, reason = "some structs are empty")]
            fn decode(input: &mut $crate::xdr::Decoder<'_>) -> $crate::xdr::Result<Self> {
                Ok(Self { $($field: $crate::xdr::Xdr::decode(input)?,)* })
            }
        }

        #[cfg(test)]
        impl $crate::sample::Sample for $name {
            #[allow(unused_variables, reason = "some structs are empty")]
            fn sample(seed: &mut $crate::sample::Seed) -> Self {
                Self { $($field: $crate::sample::Sample::sample(seed),)* }
            }
        }
    )*};
}
pub(crate) use xdr_struct;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::WireError;
    use crate::remote::{
        ConnectGetAllDomainStatsArgs, DomainRef, DomainSnapshotListNamesArgs,
        DomainSnapshotListNamesRet, NodeGetInfoRet, ParamValue, TypedParam,
    };

    #[test]
    fn known_bytes() {
        let args = DomainSnapshotListNamesArgs {
            dom: DomainRef { name: "vm".to_owned(), uuid: Uuid::from_bytes([0x11; 16]), id: -1 },
            max_names: 10,
            flags: 1,
        };
        let mut expected = vec![0, 0, 0, 2, b'v', b'm', 0, 0];
        expected.extend([0x11; 16]);
        expected.extend([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 10, 0, 0, 0, 1]);
        assert_eq!(args.to_bytes().unwrap(), expected);

        let param = TypedParam::new("disk.0.allocation", 42u64);
        let mut expected = vec![0, 0, 0, 17];
        expected.extend(b"disk.0.allocation\0\0\0");
        expected.extend([0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 42]);
        assert_eq!(param.to_bytes().unwrap(), expected);
    }

    #[test]
    fn characters_take_four_bytes() {
        let info = NodeGetInfoRet {
            model: [-1; 32],
            memory: 1,
            cpus: 2,
            mhz: 3,
            nodes: 4,
            sockets: 5,
            cores: 6,
            threads: 7,
        };
        let bytes = info.to_bytes().unwrap();
        assert_eq!(bytes.len(), 188 - crate::message::HEADER_LEN);
        assert_eq!(bytes[..4], [0xff; 4]);
    }

    #[test]
    fn strings_are_bounded_text() {
        let string =
            |len: u32, bytes: &[u8]| String::from_bytes(&[&len.to_be_bytes()[..], bytes].concat());
        assert_eq!(string(3, b"abc\0").as_deref(), Ok("abc"));
        assert_eq!(string(3, b"abcx"), Err(XdrError::BadPadding));
        assert_eq!(string(4, b"a\0bc"), Err(XdrError::BadString));
        assert_eq!(string(4, b"\xff\xfe\xfd\xfc"), Err(XdrError::BadString));
        assert_eq!(string(u32::MAX, b"abc\0"), too_long(u32::MAX as usize, STRING_MAX));
        assert_eq!(string(STRING_MAX as u32, b"abc\0"), Err(XdrError::Truncated));
        assert_eq!("a\0b".to_owned().to_bytes(), Err(XdrError::BadString));
        assert!("a".repeat(STRING_MAX).to_bytes().is_ok());
        assert!("a".repeat(STRING_MAX + 1).to_bytes().is_err());
    }

    fn too_long<T>(count: usize, limit: usize) -> Result<T> {
        Err(XdrError::TooLong { count, limit })
    }

    #[test]
    fn a_count_is_checked_before_it_is_believed() {
        for (count, expected) in [
            (u32::MAX, too_long(u32::MAX as usize, 16384)),
            (16385, too_long(16385, 16384)),
            (16384, Err(XdrError::Truncated)),
            (3, Err(XdrError::Truncated)),
        ] {
            let bytes = [&count.to_be_bytes()[..], &[0; 8]].concat();
            assert_eq!(DomainSnapshotListNamesRet::from_bytes(&bytes), expected);
            assert!(ConnectGetAllDomainStatsArgs::from_bytes(&bytes).is_err());
        }
        assert!(List::<i32, 2>(vec![1, 2, 3]).to_bytes().is_err());
        assert!(Opaque::<2>(vec![1, 2, 3]).to_bytes().is_err());
    }

    #[test]
    fn discriminants_nobody_defined_are_refused() {
        assert_eq!(Option::<u32>::from_bytes(&[0, 0, 0, 2]), Err(XdrError::BadValue(2)));
        for number in [0u32, 8, u32::MAX] {
            let bytes = [&number.to_be_bytes()[..], &[0; 8]].concat();
            assert_eq!(ParamValue::from_bytes(&bytes), Err(XdrError::BadValue(number)));
        }
        assert_eq!(u8::from_bytes(&[0, 0, 1, 0]), Err(XdrError::BadValue(256)));
        assert_eq!(i8::from_bytes(&[0, 0, 0, 128]), Err(XdrError::BadValue(128)));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            bytes in prop::collection::vec(prop_oneof![Just(0u8), 0..8u8, any::<u8>()], 0..120),
        ) {
            if let Ok(error) = WireError::from_bytes(&bytes) {
                prop_assert_eq!(error.to_bytes().unwrap(), bytes.clone());
            }
            if let Ok(params) = List::<TypedParam, 16>::from_bytes(&bytes) {
                prop_assert_eq!(params.to_bytes().unwrap(), bytes);
            }
        }
    }
}
