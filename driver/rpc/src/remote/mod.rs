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

        #[cfg(test)]
        pub(crate) mod samples {
            use super::*;

            /// Decodes and encodes the payload of a call, or of its reply, by number.
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
                            $crate::sample::recode::<<$args as $crate::remote::Call>::Ret>(payload)
                        } else {
                            $crate::sample::recode::<$args>(payload)
                        });
                    }
                )*
                None
            }

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

        #[cfg(test)]
        pub(crate) mod event_samples {
            use super::*;

            /// Decodes and encodes the payload of an event by number.
            pub(crate) fn recode(
                program: u32,
                procedure: u32,
                payload: &[u8],
            ) -> Option<$crate::xdr::Result<Vec<u8>>> {
                $(
                    if (program, procedure)
                        == (<$name as $crate::remote::Event>::PROGRAM, <$name as $crate::remote::Event>::PROCEDURE)
                    {
                        return Some($crate::sample::recode::<$name>(payload));
                    }
                )*
                None
            }

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
