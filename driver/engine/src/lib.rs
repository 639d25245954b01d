//! The heart: parse → plan (pure) → execute (journalled: prepare, pivot, finish) → record.
//!
//! Knows neither QEMU nor Xen nor RPC, and does no I/O of its own: what it needs of the world it
//! asks of the [`ports`].
//!
//! - [`domain`]: the words for what a domain is and does, shared by all crates above `xml`;
//! - [`definition`]: what every driver checks and fills in alike when a domain is defined;
//! - [`error`]: the one error type that crosses a port;
//! - [`options`]: what a caller may choose;
//! - [`facts`]: what a backend reports before a plan is made;
//! - [`moment`]: the tree of snapshots of one domain;
//! - [`plan`]: from a request and facts to data; every refusal happens there;
//! - [`book`]: what is known of a domain between operations;
//! - [`snapshots`]: the calls, from a request to a recorded change;
//! - [`merging`]: how far the merges of a deletion are, and the word that stops them;
//! - [`execute`], [`recover`]: the only interpreter of a plan, and the fold over its journal;
//! - `testing`: a simulated world for tests (feature `testing`);
//! - [`unfinished`]: an operation that could not be ended, shown, refused and resumed;
//! - [`blockjob`]: pull, commit and copy as a client asks for them;
//! - [`inspect`]: questions about a running guest that no snapshot needs;
//! - [`ports`]: the traits that backends, the store and the daemon implement.

#![forbid(unsafe_code)]

pub mod blockjob;
pub mod book;
pub mod definition;
pub mod domain;
pub mod error;
pub mod execute;
pub mod facts;
pub mod inspect;
pub mod merging;
pub mod moment;
pub mod options;
pub mod plan;
pub mod ports;
pub mod recover;
pub mod snapshots;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod unfinished;
