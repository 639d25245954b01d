//! Values of every wire type for the tests: a small generator, so that each struct of the tables
//! can be sent through the codec without a strategy of its own.

use std::fmt::Debug;

use uuid::Uuid;

use crate::xdr::{List, Opaque, Xdr, XdrError};

/// A reproducible source of numbers (SplitMix64).
#[derive(Debug)]
pub(crate) struct Seed(pub(crate) u64);

impl Seed {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

pub(crate) trait Sample {
    fn sample(seed: &mut Seed) -> Self;
}

macro_rules! sample_numbers {
    ($($type:ty),*) => {$(
        impl Sample for $type {
            #[allow(clippy::cast_possible_truncation, reason = "any value will do")]
            fn sample(seed: &mut Seed) -> Self {
                match seed.below(4) {
                    0 => <$type>::MAX,
                    1 => <$type>::MIN,
                    _ => seed.next() as $type,
                }
            }
        }
    )*};
}
sample_numbers!(i8, u8, u16, i32, u32, i64, u64, f64);

impl Sample for () {
    fn sample(_seed: &mut Seed) -> Self {}
}

impl Sample for String {
    fn sample(seed: &mut Seed) -> Self {
        (0..seed.below(7)).map(|_| ['a', 'ü', '\n', '漢', '<'][seed.below(5) as usize]).collect()
    }
}

impl Sample for Uuid {
    fn sample(seed: &mut Seed) -> Self {
        Self::from_u64_pair(seed.next(), seed.next())
    }
}

impl<T: Sample> Sample for Option<T> {
    fn sample(seed: &mut Seed) -> Self {
        (seed.below(2) == 1).then(|| T::sample(seed))
    }
}

impl<const N: usize> Sample for [i8; N] {
    fn sample(seed: &mut Seed) -> Self {
        std::array::from_fn(|_| i8::sample(seed))
    }
}

impl<T: Sample, const MAX: usize> Sample for List<T, MAX> {
    fn sample(seed: &mut Seed) -> Self {
        (0..seed.below(4)).map(|_| T::sample(seed)).collect()
    }
}

impl<const MAX: usize> Sample for Opaque<MAX> {
    fn sample(seed: &mut Seed) -> Self {
        Self((0..seed.below(9)).map(|_| u8::sample(seed)).collect())
    }
}

/// Encodes and decodes many values of one type; then cuts and damages the bytes, which must never
/// panic and never be taken for a longer message.
pub(crate) fn round_trip<T: Sample + Xdr + PartialEq + Debug>(name: &str) {
    let mut seed = Seed(name.len() as u64);
    for _ in 0..20 {
        let value = T::sample(&mut seed);
        let bytes = value.to_bytes().unwrap();
        assert!(bytes.len() >= T::MIN, "{name}: shorter than MIN");
        assert_eq!(bytes.len() % 4, 0, "{name}: not padded");
        assert_eq!(T::from_bytes(&bytes).as_ref(), Ok(&value), "{name}");
        for cut in 0..bytes.len() {
            assert!(T::from_bytes(&bytes[..cut]).is_err(), "{name} cut at {cut}");
        }
        let mut longer = bytes.clone();
        longer.extend([0; 4]);
        assert_eq!(T::from_bytes(&longer), Err(XdrError::TrailingBytes(4)), "{name}");
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= u8::try_from(1 + seed.below(255)).unwrap();
            if let Ok(other) = T::from_bytes(&damaged) {
                assert_eq!(other.to_bytes().as_ref(), Ok(&damaged), "{name} damaged at {at}");
            }
        }
    }
}
