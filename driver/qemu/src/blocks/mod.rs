//! Block nodes and backing chains of a running QEMU.
//!
//! - `nodes`: nodes added, found, reopened, deleted; a chain as QEMU has it;
//! - `throttle`: a guest's writes to one disk, held back for a while;
//! - `graph`, `job`: of [`virtsnap_block`].

pub(crate) mod nodes;
pub(crate) mod throttle;

pub(crate) use virtsnap_block::{graph, job};

use std::path::{Path, PathBuf};

use virtsnap_block::nodes::Open;
use virtsnap_engine::facts::{Format, Target};

/// One image of a chain with the names of its two nodes.
///
/// Names are `libvirt-N-format` and `libvirt-N-storage`, N unique in the life of one QEMU.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Layer {
    pub image: PathBuf,
    /// `raw`, `qcow2`, …
    pub format: String,
    pub is_block_device: bool,
    pub number: u32,
}

impl From<&Layer> for Open {
    fn from(layer: &Layer) -> Self {
        Self { image: layer.image.clone(), node: layer.format_node() }
    }
}

/// The number of a variable store, whose nodes are `libvirt-pflash1-format` and `…-storage`.
pub(crate) const FLASH: u32 = 0;

impl Layer {
    pub fn format_node(&self) -> String {
        self.node("format")
    }

    pub fn storage_node(&self) -> String {
        self.node("storage")
    }

    fn node(&self, kind: &str) -> String {
        match self.number {
            FLASH => format!("libvirt-pflash1-{kind}"),
            number => format!("libvirt-{number}-{kind}"),
        }
    }

    /// Is this the layer's image, by whatever name?
    pub fn is(&self, image: &Path) -> bool {
        self.image == image || crate::image::is_same(&self.image, image)
    }

    pub fn format(&self) -> Format {
        Format::from(self.format.as_str())
    }
}

/// A disk's chain, active layer first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Chain {
    pub target: Target,
    pub layers: Vec<Layer>,
}
