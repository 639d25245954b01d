//! What several procedures share: references to objects, typed parameters, list elements.

use uuid::Uuid;

use crate::xdr::{Decoder, List, Opaque, Result, Xdr, XdrError, xdr_struct};

xdr_struct! {
    /// A domain as a client names it. The uuid decides; `id` is -1 when it does not run.
    DomainRef { name: String, uuid: Uuid, id: i32 }

    SnapshotRef { name: String, dom: DomainRef }
    CheckpointRef { name: String, dom: DomainRef }
    NetworkRef { name: String, uuid: Uuid }
    PoolRef { name: String, uuid: Uuid }
    VolumeRef { pool: String, name: String, key: String }
    NodeDeviceRef { name: String }
    SecretRef { uuid: Uuid, usage_type: i32, usage_id: String }
    InterfaceRef { name: String, mac: String }
    NwfilterRef { name: String, uuid: Uuid }

    /// One named value of a variable set of statistics or settings.
    TypedParam { field: String, value: ParamValue }

    VcpuInfo { number: u32, state: i32, cpu_time: u64, cpu: i32 }
    DomainStatsRecord { dom: DomainRef, params: List<TypedParam, 262_144> }
    DomainDiskError { disk: String, error: i32 }
    NodeGetCpuStats { field: String, value: u64 }
    NodeGetMemoryStats { field: String, value: u64 }
    DomainMemoryStat { tag: i32, val: u64 }
    DomainInterface { name: String, hwaddr: Option<String>, addrs: List<DomainIpAddr, 2048> }
    DomainIpAddr { kind: i32, addr: String, prefix: u32 }
    DomainIothreadInfo { iothread_id: u32, cpumap: Opaque<2048> }
    DomainFsinfo {
        mountpoint: String,
        name: String,
        fstype: String,
        dev_aliases: List<String, 256>,
    }
    DomainEventGraphicsIdentity { kind: String, name: String }
    DomainEventGraphicsAddress { family: i32, node: String, service: String }
}

impl TypedParam {
    pub fn new(field: impl Into<String>, value: impl Into<ParamValue>) -> Self {
        Self { field: field.into(), value: value.into() }
    }
}

/// The value of a [`TypedParam`]. A union whose discriminants are libvirt's
/// `virTypedParameterType`.
#[derive(Debug, Clone, PartialEq)]
pub enum ParamValue {
    Int(i32),
    UInt(u32),
    LLong(i64),
    ULLong(u64),
    Double(f64),
    Boolean(bool),
    String(String),
}

impl Xdr for ParamValue {
    const MIN: usize = 8;

    fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        match self {
            Self::Int(value) => {
                1i32.encode(out)?;
                value.encode(out)
            }
            Self::UInt(value) => {
                2i32.encode(out)?;
                value.encode(out)
            }
            Self::LLong(value) => {
                3i32.encode(out)?;
                value.encode(out)
            }
            Self::ULLong(value) => {
                4i32.encode(out)?;
                value.encode(out)
            }
            Self::Double(value) => {
                5i32.encode(out)?;
                value.encode(out)
            }
            Self::Boolean(value) => {
                6i32.encode(out)?;
                i32::from(*value).encode(out)
            }
            Self::String(value) => {
                7i32.encode(out)?;
                value.encode(out)
            }
        }
    }

    fn decode(input: &mut Decoder<'_>) -> Result<Self> {
        Ok(match u32::decode(input)? {
            1 => Self::Int(Xdr::decode(input)?),
            2 => Self::UInt(Xdr::decode(input)?),
            3 => Self::LLong(Xdr::decode(input)?),
            4 => Self::ULLong(Xdr::decode(input)?),
            5 => Self::Double(Xdr::decode(input)?),
            6 => Self::Boolean(match u32::decode(input)? {
                0 => false,
                1 => true,
                other => return Err(XdrError::BadValue(other)),
            }),
            7 => Self::String(Xdr::decode(input)?),
            other => return Err(XdrError::BadValue(other)),
        })
    }
}

macro_rules! from_value {
    ($($type:ty => $variant:ident),*) => {$(
        impl From<$type> for ParamValue {
            fn from(value: $type) -> Self {
                Self::$variant(value.into())
            }
        }
    )*};
}
from_value!(i32 => Int, u32 => UInt, i64 => LLong, u64 => ULLong, f64 => Double, bool => Boolean,
            String => String, &str => String);

#[cfg(test)]
impl crate::sample::Sample for ParamValue {
    fn sample(seed: &mut crate::sample::Seed) -> Self {
        use crate::sample::Sample;
        match seed.below(7) {
            0 => Self::Int(Sample::sample(seed)),
            1 => Self::UInt(Sample::sample(seed)),
            2 => Self::LLong(Sample::sample(seed)),
            3 => Self::ULLong(Sample::sample(seed)),
            4 => Self::Double(Sample::sample(seed)),
            5 => Self::Boolean(seed.below(2) == 1),
            _ => Self::String(Sample::sample(seed)),
        }
    }
}
