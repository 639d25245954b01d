//! Block nodes: `-blockdev` on the command line, `blockdev-add` when hot-plugged.

use serde_json::Value;
use virtsnap_xml::domain::{Nbd, Server};

use super::props::Props;
use crate::blocks::Layer;

/// What a disk says of how its images are opened.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiskOptions {
    pub read_only: bool,
    /// `none`, `writethrough`, …; none: QEMU's default.
    pub cache: Option<Cache>,
    /// `threads`, `native` or `io_uring`.
    pub aio: Option<String>,
    /// `unmap` or `ignore`.
    pub discard: Option<String>,
    /// `on`, `off` or `unmap`; for the active layer only.
    pub detect_zeroes: Option<String>,
    pub discard_no_unref: Option<bool>,
    /// Bytes of qcow2 metadata to cache.
    pub metadata_cache: Option<u64>,
}

/// `cache=` of a disk. The images take two parts of it, the device the third (`write-cache`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    None,
    WriteThrough,
    WriteBack,
    DirectSync,
    Unsafe,
}

impl Cache {
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Cache::None,
            "writethrough" => Cache::WriteThrough,
            "writeback" => Cache::WriteBack,
            "directsync" => Cache::DirectSync,
            "unsafe" => Cache::Unsafe,
            _ => return None,
        })
    }

    pub fn direct(self) -> bool {
        matches!(self, Cache::None | Cache::DirectSync)
    }

    pub fn no_flush(self) -> bool {
        self == Cache::Unsafe
    }

    pub fn write_cache(self) -> bool {
        !matches!(self, Cache::WriteThrough | Cache::DirectSync)
    }
}

impl DiskOptions {
    /// The options of a layer below the active one.
    #[must_use]
    pub fn for_backing(&self) -> Self {
        Self { read_only: true, detect_zeroes: None, metadata_cache: None, ..self.clone() }
    }
}

/// The two nodes of one image: storage, then format on top. `backing` names the node of the next
/// layer's format; none says that there is none, whatever the image's header says.
pub fn blockdev(layer: &Layer, options: &DiskOptions, backing: Option<&str>) -> Vec<Value> {
    let cache = options.cache.map(|cache| {
        Props::new().with("direct", cache.direct()).with("no-flush", cache.no_flush()).into_value()
    });
    let storage = match crate::image::network(&layer.image) {
        Some(nbd) => nbd_storage(&nbd),
        None => Props::device(if layer.is_block_device { "host_device" } else { "file" })
            .with("filename", layer.image.to_string_lossy())
            .some("aio", options.aio.as_deref()),
    };
    let storage = storage
        .with("node-name", layer.storage_node())
        .with("auto-read-only", true)
        .with("discard", "unmap")
        .some("cache", cache.clone());
    // Zero detection that unmaps needs discards to reach the image.
    let detect_zeroes = match options.detect_zeroes.as_deref() {
        Some("unmap") if options.discard.as_deref() != Some("unmap") => Some("on"),
        other => other,
    };
    let mut format = Props::device(layer.format.as_str())
        .with("node-name", layer.format_node())
        .with("read-only", options.read_only)
        .some("discard", options.discard.as_deref())
        .some("detect-zeroes", detect_zeroes)
        .some("cache", cache)
        .with("file", layer.storage_node());
    if layer.format == "qcow2" {
        format = format
            .some("discard-no-unref", options.discard_no_unref)
            .positive("cache-size", options.metadata_cache);
    }
    if has_backing(&layer.format) {
        format = format.with("backing", backing.map_or(Value::Null, Value::from));
    }
    vec![storage.into_value(), format.into_value()]
}

fn nbd_storage(nbd: &Nbd) -> Props {
    let server = match &nbd.server {
        Server::Tcp { host, port } => {
            Props::new().with("type", "inet").with("host", &**host).with("port", &**port)
        }
        Server::Unix(path) => Props::new().with("type", "unix").with("path", &**path),
    };
    let export = Some(&*nbd.export).filter(|export| !export.is_empty());
    Props::device("nbd").with("server", server.into_value()).some("export", export)
}

/// Formats whose images can stand on another.
fn has_backing(format: &str) -> bool {
    matches!(format, "qcow2" | "qcow" | "qed" | "vmdk")
}
