//! An operation that was begun and is not finished: how it is told, shown, refused and resumed.
//!
//! The journal is the truth. What is here is read off it when an operation ends before its end,
//! and goes when it was settled.
//!
//! Any call that changes the domain tries to settle it first, and is refused while that fails;
//! repeating the same call resumes it, and gets what was begun.
//!
//! libvirt has a word for a deletion, `<snapshotDeleteInProgress/>` on a disk, and puts it into the
//! snapshot whose overlay is being written to: so do we, beside the mark of those that go. Of the
//! other operations only our own element tells, `<unfinished operation='…'>cause</unfinished>`.
//! A creation that took effect is listed before its record could be written: the disks have gone on.
//! A deletion that was put aside between two merges is none of these: its journal is closed, and
//! its moments are marked in their records (docs/decisions/0012).

use std::path::PathBuf;

use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::Definition;

use crate::error::{Condition, Error};
use crate::plan::{Finish, MomentChange, Operation, disk_overlay};
use crate::ports::Unfinished;
use crate::recover::{Verdict, verdict};

/// Ours; libvirt ignores it.
pub(crate) const ELEMENT: &str = "unfinished";

/// What is left of an operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Left {
    pub operation: Operation,
    /// Why it could not be finished.
    pub cause: String,
    /// Images that merges which have not ended write to.
    half: Vec<PathBuf>,
    /// What a creation that took effect has yet to record.
    unrecorded: Option<MomentChange>,
}

/// The call that would go on with an operation; a deletion finds its own.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call<'a> {
    Create(Option<&'a str>),
    Revert(&'a str),
    Other,
}

impl Call<'_> {
    pub(crate) fn began(self, operation: &Operation) -> bool {
        match (self, operation) {
            (Call::Create(name), Operation::Create { moment }) => name == Some(moment.as_str()),
            (Call::Revert(name), Operation::Revert { moment }) => name == moment,
            _ => false,
        }
    }
}

impl Left {
    pub(crate) fn of(unfinished: &Unfinished, cause: String) -> Self {
        let plan = &unfinished.plan;
        let left: Vec<&Finish> = match verdict(&unfinished.entries) {
            Verdict::Complete { finished, .. } => {
                let all = plan.finish.iter().enumerate();
                all.filter(|(n, _)| !finished.contains(n)).map(|(_, finish)| finish).collect()
            }
            Verdict::Unwind(_) | Verdict::Ask(_) => Vec::new(),
        };
        let half = left.iter().filter_map(|finish| match finish {
            Finish::Commit { base, .. } => Some(base.clone()),
            Finish::Stream { top, .. } => Some(top.clone()),
            _ => None,
        });
        let creates = matches!(plan.operation, Operation::Create { .. });
        let unrecorded = left.iter().find_map(|finish| match finish {
            Finish::Record(change) if creates => Some(change.clone()),
            _ => None,
        });
        Self { operation: plan.operation.clone(), cause, half: half.collect(), unrecorded }
    }

    pub(crate) fn unrecorded(&self) -> Option<&MomentChange> {
        self.unrecorded.as_ref()
    }

    /// What another call is told.
    pub(crate) fn refusal(&self) -> Error {
        Error::new(
            Condition::OperationFailed,
            format!(
                "an earlier operation is unfinished: {} could not be completed. When the cause is \
                 mended, repeat that call to go on with it",
                self.operation
            ),
        )
    }

    /// A moment as a client is shown it while this is left.
    pub(crate) fn mark(&self, moment: &mut Definition) {
        let goes = match &self.operation {
            Operation::Delete { moments } => moments.contains(&moment.name),
            Operation::Create { .. } | Operation::Revert { .. } => false,
        };
        for disk in &mut moment.disks {
            let is_written = disk_overlay(disk).is_some_and(|overlay| self.half.contains(&overlay));
            disk.delete_in_progress |= is_written;
        }
        moment.delete_in_progress |= goes;
        let (word, is_meant) = match &self.operation {
            Operation::Create { moment: name } => ("create", *name == moment.name),
            Operation::Revert { moment: name } => ("revert", *name == moment.name),
            Operation::Delete { .. } => ("delete", goes),
        };
        if is_meant {
            let mark = Element::new(ELEMENT).with_attr("operation", word).with_text(&self.cause);
            moment.extra.push(mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_knows_its_own_operation() {
        let gone = Operation::Delete { moments: vec!["a".to_owned(), "b".to_owned()] };
        assert!(!Call::Revert("a").began(&gone) && !Call::Other.began(&gone));
        let made = Operation::Create { moment: "a".to_owned() };
        assert!(Call::Create(Some("a")).began(&made) && !Call::Create(None).began(&made));
    }
}
