//! The arguments and results of the procedures, as tables.
//!
//! A row reads `PROCEDURE: Args { … } -> Ret { … };`. The `Args` type implements [`Call`], which
//! ties it to its number and its result; a message type implements [`Event`]. Field names are the
//! protocol's, in snake case, with `kind` for `type`.

mod connect;
mod domain;
mod event;
mod other;
mod qemu;
mod snapshot;
mod types;

pub use self::connect::*;
pub use self::domain::*;
pub use self::event::*;
pub use self::other::*;
pub use self::qemu::*;
pub use self::snapshot::*;
pub use self::types::*;

use crate::xdr::Xdr;

/// The arguments of a procedure.
pub trait Call: Xdr {
    const PROGRAM: u32;
    const PROCEDURE: u32;
    type Ret: Xdr;
}

/// A message that the server sends unasked.
pub trait Event: Xdr {
    const PROGRAM: u32;
    const PROCEDURE: u32;
}

/// What a payload is the payload of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Arguments,
    Result,
    Event,
}

/// Decodes a payload by its procedure's number and encodes it again, which has to give the same
/// bytes. None where the procedure has no struct here. For tests and fuzz targets.
#[doc(hidden)]
pub fn recode(program: u32, procedure: u32, part: Part, payload: &[u8]) -> Option<Recoded> {
    if part == Part::Event {
        return event::events_by_number::recode(program, procedure, payload)
            .or_else(|| qemu::events_by_number::recode(program, procedure, payload));
    }
    let tables = [
        connect::by_number::recode,
        domain::by_number::recode,
        event::by_number::recode,
        other::by_number::recode,
        qemu::by_number::recode,
        snapshot::by_number::recode,
    ];
    let reply = part == Part::Result;
    tables.iter().find_map(|recode| recode(program, procedure, reply, payload))
}

type Recoded = crate::xdr::Result<Vec<u8>>;

fn recoded<T: Xdr>(payload: &[u8]) -> Recoded {
    T::from_bytes(payload)?.to_bytes()
}

/// Rows of calls. The number is that of the enum named after `in`, of program REMOTE without it.
macro_rules! calls {
    (in $program:ident;
     $($procedure:ident: $args:ident { $($field:ident: $type:ty),* $(,)? }
        -> $ret:tt $({ $($ret_field:ident: $ret_type:ty),* $(,)? })?;)*) => {
        $(
            $crate::xdr::xdr_struct! { $args { $($field: $type),* } }
            $($crate::xdr::xdr_struct! { $ret { $($ret_field: $ret_type),* } })?

            impl super::Call for $args {
                const PROGRAM: u32 = $crate::procedure::$program::PROGRAM;
                const PROCEDURE: u32 = $crate::procedure::$program::$procedure as u32;
                type Ret = $ret;
            }
        )*

        pub(super) mod by_number {
            use super::*;

            pub(crate) fn recode(
                program: u32,
                procedure: u32,
                reply: bool,
                payload: &[u8],
            ) -> Option<$crate::xdr::Result<Vec<u8>>> {
                $(
                    if (program, procedure)
                        == (<$args as $crate::remote::Call>::PROGRAM, <$args as $crate::remote::Call>::PROCEDURE)
                    {
                        return Some(if reply {
                            super::super::recoded::<<$args as $crate::remote::Call>::Ret>(payload)
                        } else {
                            super::super::recoded::<$args>(payload)
                        });
                    }
                )*
                None
            }
        }

        #[cfg(test)]
        mod samples {
            use super::*;

            #[test]
            fn every_call_survives_the_wire() {
                $(
                    $crate::sample::round_trip::<$args>(stringify!($args));
                    $crate::sample::round_trip::<<$args as $crate::remote::Call>::Ret>(stringify!($procedure));
                )*
            }
        }
    };
    ($($rows:tt)*) => { calls! { in Procedure; $($rows)* } };
}
use calls;

/// Rows of messages.
macro_rules! events {
    (in $program:ident;
     $($procedure:ident: $name:ident { $($field:ident: $type:ty),* $(,)? };)*) => {
        $(
            $crate::xdr::xdr_struct! { $name { $($field: $type),* } }

            impl super::Event for $name {
                const PROGRAM: u32 = $crate::procedure::$program::PROGRAM;
                const PROCEDURE: u32 = $crate::procedure::$program::$procedure as u32;
            }
        )*

        pub(super) mod events_by_number {
            use super::*;

            pub(crate) fn recode(
                program: u32,
                procedure: u32,
                payload: &[u8],
            ) -> Option<$crate::xdr::Result<Vec<u8>>> {
                $(
                    if (program, procedure)
                        == (<$name as $crate::remote::Event>::PROGRAM, <$name as $crate::remote::Event>::PROCEDURE)
                    {
                        return Some(super::super::recoded::<$name>(payload));
                    }
                )*
                None
            }
        }

        #[cfg(test)]
        mod event_samples {
            use super::*;

            #[test]
            fn every_event_survives_the_wire() {
                $($crate::sample::round_trip::<$name>(stringify!($procedure));)*
            }
        }
    };
    ($($rows:tt)*) => { events! { in Procedure; $($rows)* } };
}
use events;

#[cfg(test)]
mod captured;
