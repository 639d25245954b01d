//! Where a user wants an overlay: which running guest uses what is there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use virtsnap_block::place;
use virtsnap_engine::error::Result;
use virtsnap_engine::facts::{DomainFacts, Place};

use crate::hypervisor::Qemu;

impl Qemu {
    pub(crate) async fn overlay_place(
        &self,
        at: &Path,
        below: &Path,
        facts: &DomainFacts,
    ) -> Result<Place> {
        let mut in_use: BTreeMap<PathBuf, String> = BTreeMap::new();
        for instance in self.shared.instances().values() {
            let layers = instance.chains().into_values().flat_map(|chain| chain.layers);
            let guest = || format!("the domain '{}'", instance.name);
            in_use.extend(layers.map(|layer| (layer.image, guest())));
        }
        place::overlay(&self.image_tool(), at, below, facts, in_use).await
    }
}
