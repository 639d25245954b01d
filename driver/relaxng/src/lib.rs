//! What VIR_DOMAIN_SNAPSHOT_CREATE_VALIDATE asks for: a document held against a RELAX NG grammar.
//!
//! The grammar for `<domainsnapshot>` is ours, `schemas/domainsnapshot.rng`, and part of the
//! binary. libxml2 applies it, because libvirt uses it too: clients see the complaints they know,
//! and libvirt's own grammars work here for comparison (the tests do so).
//!
//! Invariant: libxml2 sees only what our own reader (`virtsnap_xml::element`) accepted, which
//! bounds depth, attributes and size and lets no DTD pass. The caller sees to that, and leaves out
//! what may be anything: libxml2 takes a third of a second for an element of 256 attributes there.

mod libxml2;

use std::sync::LazyLock;

use libxml2::Grammar;

/// A document that does not follow the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// What does not fit, in libxml2's words.
    pub message: String,
}

/// A grammar, read once, for documents from any thread.
#[derive(Debug)]
pub struct Schema {
    grammar: Grammar,
}

impl Schema {
    /// Ours for `<domainsnapshot>`.
    pub fn domain_snapshot() -> Result<&'static Self, Invalid> {
        static OURS: LazyLock<Result<Schema, Invalid>> =
            LazyLock::new(|| Schema::parse(include_str!("../../../schemas/domainsnapshot.rng")));
        OURS.as_ref().map_err(Clone::clone)
    }

    /// `grammar` may include others from files: it is never foreign.
    fn parse(grammar: &str) -> Result<Self, Invalid> {
        match Grammar::parse(grammar) {
            Ok(grammar) => Ok(Self { grammar }),
            Err(complaints) => {
                let reason = complaints.said("libxml2 gave no reason");
                Err(Invalid { message: format!("the grammar itself cannot be read: {reason}") })
            }
        }
    }

    pub fn validate(&self, document: &str) -> Result<(), Invalid> {
        self.grammar.validate(document).map_err(|complaints| Invalid {
            message: complaints.said("the document does not follow its grammar"),
        })
    }
}

#[cfg(test)]
mod tests;
