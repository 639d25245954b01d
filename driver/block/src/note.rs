//! A note of the images that one act of a running QEMU changes together, beside what we keep.
//!
//! It is written before the act, for the case that QEMU dies in it: then the files are all that can
//! be asked. It stays until the operation is over.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::Format::Qcow2;

use crate::image::{QemuImg, failure, system, tag};
use crate::nodes::{self, Open};
use crate::qmp::Qmp;

#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    tag: String,
    pub images: Vec<PathBuf>,
}

impl Note {
    pub fn from_bytes(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

/// `STATE/UUID.vmstate`.
#[derive(Debug)]
pub struct NoteFile {
    path: PathBuf,
}

impl NoteFile {
    pub fn of(state_dir: &Path, domain: Uuid) -> Self {
        Self { path: state_dir.join(format!("{domain}.vmstate")) }
    }

    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Before these images get an internal snapshot: none of them has one of that tag.
    pub async fn begin(&self, qmp: &Qmp, tag: &str, images: &[Open]) -> Result<()> {
        tag::check(tag)?;
        let taken = nodes::tagged(qmp, tag).await?;
        if let Some(open) = images.iter().find(|open| taken.contains(&open.node)) {
            let image = open.image.display();
            let what = format!("image '{image}' already has an internal snapshot '{tag}'");
            return Err(failure(Condition::OperationInvalid, what));
        }
        self.write(tag, images)
    }

    pub fn write(&self, tag: &str, images: &[Open]) -> Result<()> {
        let images = images.iter().map(|open| open.image.clone()).collect();
        let written = serde_json::to_vec(&Note { tag: tag.to_owned(), images })
            .map_err(io::Error::from)
            .and_then(|bytes| write_durably(&self.path, &bytes));
        written.map_err(|err| system("write", &self.path, err))
    }

    /// None: no act of that tag was under way.
    pub fn read(&self, tag: &str) -> Result<Option<Note>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(system("read", &self.path, err)),
        };
        let note = Note::from_bytes(&bytes).map_err(|err| {
            let what = format!("'{}' is damaged", self.path.display());
            failure(Condition::Internal, what).caused_by(err)
        })?;
        Ok(Some(note).filter(|note| note.tag == tag))
    }

    /// Of a QEMU that is gone: have all of the images their internal snapshot? It takes all of an
    /// act back if one part fails; but if it died in it, some may have it and others not. These
    /// have none then.
    pub async fn settle(&self, tool: &QemuImg, tag: &str) -> Result<bool> {
        let Some(note) = self.read(tag)? else { return Ok(false) };
        for image in &note.images {
            if tool.tagged(image, &Qcow2, tag).await?.is_none() {
                self.take_back(tool, tag).await?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Of a QEMU that is gone: none of the images keeps its internal snapshot.
    pub async fn take_back(&self, tool: &QemuImg, tag: &str) -> Result<()> {
        for image in self.read(tag)?.map(|note| note.images).unwrap_or_default() {
            tool.delete_snapshot(&image, &Qcow2, tag).await?;
        }
        Ok(())
    }

    pub fn forget(&self) {
        forget(&self.path);
    }
}

/// Removes a note, durably; none is done.
pub fn forget(path: &Path) {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match fs::remove_file(path).and_then(|()| fs::File::open(directory)?.sync_all()) {
        Ok(()) => {}
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => tracing::warn!(file = %path.display(), %err, "a note stays behind"),
    }
}

/// Writes a whole file: after a crash it has its old content or the new one.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|err| err.error)?;
    fs::File::open(directory)?.sync_all()
}
