//! What the daemon is made of, and what it needs of durable storage beyond the engine's ports.

use std::sync::Mutex;

use uuid::Uuid;
use virtsnap_engine::book::Book;
use virtsnap_engine::error::Result;
use virtsnap_engine::ports::{Hypervisor, Journals, Records};

/// One choice of backends. The daemon knows no other place where QEMU and Xen could differ.
pub(crate) trait Parts: Send + Sync + 'static {
    type Hypervisor: Hypervisor;
    type Library: Library;
}

/// One domain, as found in storage at start.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) book: Book,
    pub(crate) autostart: bool,
}

/// Definitions, moments and journals of all domains, durable when a call returns.
pub(crate) trait Library: Records + Journals {
    fn load(&self) -> Result<Vec<Stored>>;
    /// A new domain, or the new name of a known one.
    fn set_name(&self, domain: Uuid, name: &str) -> Result<()>;
    fn set_autostart(&self, domain: Uuid, autostart: bool) -> Result<()>;
    /// Takes away the persistent definition and leaves snapshots.
    fn remove_config(&self, domain: Uuid) -> Result<()>;
    /// Takes away everything that is stored of a domain; nothing stored is done.
    fn forget(&self, domain: Uuid) -> Result<()>;
}

/// An empty book.
pub(crate) fn new_book(uuid: Uuid, name: String) -> Mutex<Book> {
    Mutex::new(Book {
        uuid,
        name,
        config: None,
        moments: virtsnap_engine::moment::MomentList::default(),
        owned: std::collections::BTreeSet::new(),
        has_managed_save: false,
    })
}
