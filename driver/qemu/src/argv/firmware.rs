//! `<loader>` and `<nvram>`: a BIOS image, or flash as two block nodes that the machine takes.

use std::path::{Path, PathBuf};

use virtsnap_engine::error::Result;

use super::props::Props;
use super::read::View;
use super::{Build, refuse};

impl Build<'_> {
    /// The flash's block nodes; returns what `-machine` says of them.
    pub(super) fn firmware(&mut self) -> Result<Vec<(&'static str, String)>> {
        let Some(loader) = self.domain.at(&["os", "loader"]) else {
            return Ok(Vec::new());
        };
        let mut flash = Vec::new();
        let path = loader.text();
        if loader.attr("type") == Some("pflash") && !path.is_empty() {
            let format = loader.attr("format").unwrap_or("raw");
            let node = self.flash("libvirt-pflash0", &path, format, true)?;
            flash.push(("pflash0", node));
        }
        if let Some(nvram) = self.domain.at(&["os", "nvram"]) {
            let path = nvram_path(nvram)?;
            let format = nvram.attr("format").unwrap_or("raw");
            let node = self.flash("libvirt-pflash1", &path, format, false)?;
            flash.push(("pflash1", node));
        }
        Ok(flash)
    }

    fn flash(&mut self, name: &str, path: &str, format: &str, read_only: bool) -> Result<String> {
        if !matches!(format, "raw" | "qcow2") {
            return refuse(format!("firmware {path}: format '{format}' is neither raw nor qcow2"));
        }
        let (storage, node) = (format!("{name}-storage"), format!("{name}-format"));
        let below = Props::device("file")
            .with("filename", path)
            .with("node-name", storage.as_str())
            .with("auto-read-only", true)
            .with("discard", "unmap");
        let above = Props::device(format)
            .with("node-name", node.as_str())
            .with("read-only", read_only)
            .with("file", storage);
        self.json("-blockdev", below);
        self.json("-blockdev", above);
        self.out.files.push(PathBuf::from(path));
        Ok(node)
    }

    pub(super) fn loader(&mut self) -> Result<()> {
        let Some(loader) = self.domain.at(&["os", "loader"]) else {
            return Ok(());
        };
        let secure = loader.switch("secure")?;
        match loader.attr("type") {
            Some("pflash") if secure == Some(true) => {
                self.arg("-global", "driver=cfi.pflash01,property=secure,value=on");
            }
            Some("pflash") => {}
            Some("rom") | None => {
                // A ROM has no other format than raw.
                if loader.attr("format").is_some_and(|format| format != "raw") {
                    return refuse("a <loader> of type rom has the format raw");
                }
                let path = loader.text();
                if !Path::new(&path).is_absolute() {
                    return refuse(format!("<loader>: '{path}' is not an absolute path"));
                }
                self.out.files.push(PathBuf::from(&path));
                self.arg("-bios", path);
            }
            Some(other) => return refuse(format!("a <loader> of type '{other}' is not supported")),
        }
        Ok(())
    }
}

/// The file, whether written as text or as a `<source>`.
fn nvram_path(nvram: View<'_>) -> Result<String> {
    match (nvram.attr("type"), nvram.child("source")) {
        (None, None) => Ok(nvram.text()),
        (None | Some("file"), Some(source)) => {
            source.attr("index");
            Ok(source.need("file")?.to_owned())
        }
        (Some("file"), None) => Ok(nvram.text()),
        (Some(other), _) => refuse(format!("an <nvram> of type '{other}' is not supported")),
    }
}
