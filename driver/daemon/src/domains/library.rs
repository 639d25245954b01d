//! What the daemon needs of durable storage beyond the engine's [`Records`].

use uuid::Uuid;
use virtsnap_engine::error::Result;
use virtsnap_engine::ports::Records;
use virtsnap_xml::element::Element;

/// One domain, as found in storage at start.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) uuid: Uuid,
    /// For a transient domain with snapshots, which has no definition to name it.
    pub(crate) name: Option<String>,
    pub(crate) config: Option<Element>,
    pub(crate) autostart: bool,
}

pub(crate) trait Library: Records {
    fn load(&self) -> Result<Vec<Stored>>;
    fn set_autostart(&self, domain: Uuid, autostart: bool) -> Result<()>;
    /// Takes away the persistent definition and leaves snapshots.
    fn remove_config(&self, domain: Uuid) -> Result<()>;
    /// How many snapshots are recorded of it.
    fn snapshot_count(&self, domain: Uuid) -> usize;
    /// Takes away everything that is stored of a domain; nothing stored is done.
    fn forget(&self, domain: Uuid) -> Result<()>;
}
