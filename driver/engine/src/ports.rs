//! What the engine and the daemon need of the world, as traits. Nothing here is specific to QEMU
//! or Xen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use virtsnap_xml::element::Element;

use crate::domain::{Active, Event, Restore, Save, SaveImage, Start};
use crate::error::{Condition, Error, Result};
use crate::facts::{DomainFacts, Format, PathKind, Place, Room, StateFile};
use crate::merging::Merging;
use crate::plan::access::Access;
use crate::plan::{Conclude, Finish, MomentChange, Pivot, Plan, Step};

/// Where a hypervisor tells what happened, in the order it happened. Must not block for long.
///
/// [`Event::Started`] of a domain that nobody here has started is how one is told of that another
/// program started: from then on it is listed, without a persistent definition, and
/// [`Hypervisor::active`] answers for it. It ends by [`Event::Stopped`], as any other does.
pub trait EventSink: Send + Sync + 'static {
    /// `id` is the domain's id at the time, -1 when it has stopped.
    fn emit(&self, domain: Uuid, name: &str, id: i32, event: Event);
}

/// What a domain is asked about for facts.
#[derive(Debug, Clone)]
pub struct Subject {
    pub uuid: Uuid,
    pub name: String,
    pub config: Option<Element>,
    /// Images beyond the disks' own chains: layers and overlays that moments name, and the format
    /// that those say they have.
    pub images: BTreeMap<PathBuf, Format>,
    /// Save images that moments name, and the managed save.
    pub memory_files: BTreeSet<PathBuf>,
    /// Files virtsnap created for this domain.
    pub owned: BTreeSet<PathBuf>,
    /// Images that other domains need as they are.
    pub others: BTreeMap<PathBuf, Needed>,
}

/// An image as a domain has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needed {
    pub format: Format,
    /// The domain's name.
    pub by: String,
}

/// The domains beside the one that something is done to.
pub trait Neighbours: fmt::Debug + Send + Sync + 'static {
    /// The images of their definitions and those that their moments have frozen, of all but this one.
    fn images(&self, but: Uuid) -> BTreeMap<PathBuf, Needed>;
}

/// There are none.
impl Neighbours for () {
    fn images(&self, _but: Uuid) -> BTreeMap<PathBuf, Needed> {
        BTreeMap::new()
    }
}

/// The outcome of a pivot that did not succeed.
#[derive(Debug)]
pub enum PivotError {
    /// It certainly did not happen.
    Refused(Error),
    /// It may have happened: the connection was lost while the hypervisor may have acted.
    InDoubt(Error),
}

/// The outcome of a merge that did not end well.
#[derive(Debug)]
pub enum MergeError {
    /// It certainly did not happen and is not going on: each reader reads what it read before, and
    /// of what was to be written into, nothing but the content that was given up has changed.
    NotMerged(Error),
    /// It may have happened, or go on: the connection was lost, or nothing answered.
    InDoubt(Error),
}

impl From<MergeError> for Error {
    fn from(err: MergeError) -> Self {
        match err {
            MergeError::NotMerged(err) | MergeError::InDoubt(err) => err,
        }
    }
}

fn unsupported<T>(what: &str) -> Result<T> {
    Err(Error::new(Condition::NoSupport, format!("this hypervisor driver does not support {what}")))
}

/// A hypervisor: life of domains, and the acts of a plan.
///
/// `undo` must be idempotent and must succeed for a step that never ran: the intent is journalled
/// before the act, so after a crash we cannot tell. `finish` likewise.
pub trait Hypervisor: Send + Sync + 'static {
    // -- definitions -------------------------------------------------------------------------

    /// Checks a definition and completes it as libvirt would: defaults, controllers, addresses.
    /// An element that is not understood is refused with `ConfigUnsupported` and its name.
    fn complete(&self, domain: Element) -> Result<Element>;

    /// What a guest would see differ between two completed definitions, in words.
    fn abi_difference(&self, a: &Element, b: &Element) -> Option<String> {
        let _ = (a, b);
        None
    }

    /// `<capabilities>` of the host.
    fn capabilities(&self) -> impl Future<Output = Result<Element>> + Send;

    // -- life --------------------------------------------------------------------------------

    /// Finds the domains that outlived the daemon, and connects to them again; those of other
    /// programs too, where there are any.
    fn reconnect(&self) -> impl Future<Output = Result<Vec<Active>>> + Send;

    /// Brings up a completed definition. On failure nothing is left behind.
    fn start(&self, domain: Element, start: Start) -> impl Future<Output = Result<Active>> + Send;

    /// The domain as it is now, if it is up. Cheap: no call to the hypervisor.
    fn active(&self, domain: Uuid) -> Option<Active>;
    fn all_active(&self) -> Vec<Active>;

    /// Replaces the live definition, durably for a restart of the daemon.
    fn set_live(&self, domain: Uuid, live: Element) -> Result<()>;

    fn suspend(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send;
    fn resume(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send;
    /// Asks the guest to shut down (ACPI).
    fn shutdown(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send;
    /// Asks the guest to shut down and starts it again in the same process.
    fn reboot(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send;
    fn reset(&self, domain: Uuid) -> impl Future<Output = Result<()>> + Send;
    /// Ends the domain. Returns when its process is gone. Stopped already is done.
    fn destroy(
        &self,
        domain: Uuid,
        reason: crate::domain::ShutOffReason,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Saves the guest's memory and ends the domain, as saved. On failure it goes on as it was,
    /// and the file is gone or, if it was there before, empty.
    fn save(&self, domain: Uuid, save: Save) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, save);
        async { unsupported("saving a domain") }
    }

    fn save_image(&self, file: &Path) -> impl Future<Output = Result<SaveImage>> + Send {
        let _ = file;
        async { unsupported("save images") }
    }

    /// Changes what stands in a save image: the definition, and whether the guest is to run.
    fn edit_save_image(
        &self,
        file: &Path,
        definition: &Element,
        running: Option<bool>,
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (file, definition, running);
        async { unsupported("save images") }
    }

    /// Brings up a saved guest with a completed definition. On failure nothing is left behind, and
    /// the image is as it was.
    fn restore(
        &self,
        domain: Element,
        restore: Restore,
    ) -> impl Future<Output = Result<Active>> + Send {
        let _ = (domain, restore);
        async { unsupported("restoring a saved domain") }
    }

    /// A raw monitor command (the QEMU program, procedure 1).
    fn monitor_command(
        &self,
        domain: Uuid,
        command: &str,
        human: bool,
    ) -> impl Future<Output = Result<String>> + Send {
        let _ = (domain, command, human);
        async { unsupported("monitor commands") }
    }

    // -- acts of a plan ------------------------------------------------------------------------

    fn facts(&self, subject: &Subject) -> impl Future<Output = Result<DomainFacts>> + Send;
    /// What is at that path now; a planner asks before it names a new file.
    fn probe(&self, path: &Path) -> impl Future<Output = Result<PathKind>> + Send;
    /// Where the machine of this definition keeps state outside of its disks.
    fn state_files(&self, domain: Uuid, definition: &Element) -> Result<Vec<StateFile>> {
        let _ = (domain, definition);
        Ok(Vec::new())
    }
    /// There is a copy of that state file, of which nothing is missing.
    fn is_whole_copy(
        &self,
        file: &StateFile,
        copy: &Path,
    ) -> impl Future<Output = Result<bool>> + Send {
        let _ = file;
        async { Ok(matches!(self.probe(copy).await?, PathKind::Regular(1..))) }
    }
    /// How much can be written into a directory; none: that cannot be known.
    fn room(&self, directory: &Path) -> impl Future<Output = Option<Room>> + Send {
        let _ = directory;
        async { None }
    }
    /// Refuses what the host does not let its processes open, and names the file, what denies it, and
    /// what to do. Nothing is opened or changed; what cannot be told is not refused.
    fn check_access(
        &self,
        domain: Uuid,
        needs: &[Access],
    ) -> impl Future<Output = Result<()>> + Send {
        let _ = (domain, needs);
        async { Ok(()) }
    }
    /// What is where an overlay on `below` is to be; nothing is changed.
    fn place(
        &self,
        at: &Path,
        below: &Path,
        facts: &DomainFacts,
    ) -> impl Future<Output = Result<Place>> + Send {
        let _ = (below, facts);
        async { self.probe(at).await.map(Place::from) }
    }
    /// The directory of what emulated TPMs of the domain keep, and nothing else, if they do; it need
    /// not be there.
    fn tpm_state(&self, domain: Uuid) -> Option<PathBuf> {
        let _ = domain;
        None
    }
    fn act(&self, domain: Uuid, step: &Step) -> impl Future<Output = Result<()>> + Send;
    fn undo(&self, domain: Uuid, step: &Step) -> impl Future<Output = Result<()>> + Send;
    fn pivot(
        &self,
        domain: Uuid,
        pivot: &Pivot,
    ) -> impl Future<Output = Result<(), PivotError>> + Send;
    /// After a crash: did this pivot happen?
    fn pivoted(&self, domain: Uuid, pivot: &Pivot) -> impl Future<Output = Result<bool>> + Send;
    /// `SetConfig` and `Record` go to [`Records`], never here.
    fn finish(&self, domain: Uuid, finish: &Finish) -> impl Future<Output = Result<()>> + Send;
    /// `Commit` and `Stream`, which may take hours: it ends when `merging` is stopped, when nothing
    /// moves any more, and when a guest writes faster than can be merged.
    fn merge(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> impl Future<Output = Result<(), MergeError>> + Send {
        let _ = merging;
        async move { self.finish(domain, merge).await.map_err(MergeError::InDoubt) }
    }
    /// About how many bytes a merge moves; 0: that is not known.
    fn weigh(&self, domain: Uuid, merge: &Finish) -> impl Future<Output = u64> + Send {
        let _ = (domain, merge);
        async { 0 }
    }
    /// All of it but the last: the domain is up, and its vCPUs are still stopped. Done before is
    /// done; on failure nothing is left behind.
    fn conclude(
        &self,
        domain: Uuid,
        conclude: &Conclude,
    ) -> impl Future<Output = Result<()>> + Send;
    /// The last: what came up runs, if it is to. Done before is done; fails if it is down.
    fn release(&self, domain: Uuid, conclude: &Conclude)
    -> impl Future<Output = Result<()>> + Send;
}

/// Definitions and moments of domains, durable when a call returns.
pub trait Records: Send + Sync + 'static {
    fn set_config(&self, domain: Uuid, config: &Element) -> Result<()>;
    fn record(&self, domain: Uuid, change: &MomentChange) -> Result<()>;
    /// The set of files virtsnap created for a domain.
    fn set_owned(&self, domain: Uuid, owned: &BTreeSet<PathBuf>) -> Result<()>;
    /// Where a managed save of the domain is, if there is one.
    fn managed_save(&self, domain: Uuid) -> Result<PathBuf>;
}

/// The intent log of one running operation. An entry is durable when the call returns.
///
/// The file is gone when nothing is going on.
pub trait Journal: Send {
    fn record(&mut self, entry: Entry) -> Result<()>;
    /// Nothing is left to do: the journal is removed.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Opens journals; finds those that a crash left.
pub trait Journals: Send + Sync + 'static {
    /// Durable with the whole plan in it, before the first step.
    fn begin(&self, domain: Uuid, plan: &Plan) -> Result<Box<dyn Journal>>;
    fn unfinished(&self) -> Result<Vec<Unfinished>>;
    /// Opens again the journal of an unfinished operation, to append to it.
    fn resume(&self, domain: Uuid) -> Result<Box<dyn Journal>>;
}

#[derive(Debug, Clone, PartialEq)]
pub struct Unfinished {
    pub domain: Uuid,
    pub plan: Plan,
    pub entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// `prepare[n]` is about to be acted.
    Acting(usize),
    /// `prepare[n]` was undone.
    Undone(usize),
    Pivoting,
    Pivoted,
    /// `finish[n]` is done.
    Finished(usize),
    /// By `conclude[n]` the domain is up, and is about to run: it is not started a second time.
    Up(usize),
}

impl<T: EventSink> EventSink for Arc<T> {
    fn emit(&self, domain: Uuid, name: &str, id: i32, event: Event) {
        T::emit(self, domain, name, id, event);
    }
}
