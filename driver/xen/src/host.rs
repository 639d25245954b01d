//! What definitions depend on of the host they are of.

use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Debug, Clone, Default)]
pub struct Host {
    /// The bridge of each network that interfaces name.
    pub bridges: BTreeMap<String, String>,
    /// Where sockets of channels are that we named for one run of a guest.
    pub channel_dirs: Vec<PathBuf>,
}

impl Host {
    /// A socket there was named for one run of a guest.
    pub(crate) fn is_generated(&self, path: &str) -> bool {
        self.channel_dirs.iter().any(|dir| std::path::Path::new(path).starts_with(dir))
    }
}
