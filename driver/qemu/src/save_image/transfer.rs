//! A guest's memory into a save image and out of it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;
use virtsnap_engine::error::{Condition, Error, Result};

use super::carry::{self, Passed};
use super::{Damage, Format, Head};
use crate::image::claim::Writing;
use crate::image::{blocking, failure, system};
use crate::instance::Instance;
use crate::migration::{self, Guest, Incoming, Room};

/// How long the last bytes may take into or out of a file when QEMU has failed.
const LAST_BYTES: Duration = Duration::from_secs(60);

/// Saves memory and device state; durable, under its name when done. The guest is stopped then.
///
/// A failure leaves what was written to the undo of the target.
pub(crate) async fn save(
    instance: &Instance,
    target: Writing,
    head: Head,
    live: bool,
) -> Result<()> {
    let path = target.path().to_owned();
    let wrong = move |err| system("write", &path, err);
    let mut file = target.file().try_clone().map_err(&wrong)?;
    let guest = match live {
        true => Guest::GoesOn(room(&file, &head).map_err(&wrong)?),
        false => Guest::Stands,
    };
    let (read, write) = carry::pipe().map_err(&wrong)?;
    let passed = Passed::default();
    let copy = {
        let (passed, format, partial) = (passed.clone(), head.format, head.to_bytes(false));
        tokio::task::spawn_blocking(move || {
            file.write_all(&partial)?;
            carry::into_file(format, read, &file, &passed)
        })
    };
    let saved = migration::save(instance, write, guest, &passed).await;
    if saved.is_err() {
        // Otherwise QEMU keeps its end open, and there is no end to wait for.
        let _ = migration::end(instance).await;
    }
    let copied = match timeout(LAST_BYTES, copy).await {
        Ok(Ok(copied)) => copied.map_err(&wrong),
        Ok(Err(err)) => Err(torn(err)),
        Err(_) => Err(failure(Condition::Timeout, "the saved memory does not reach its file")),
    };
    // Where the file failed, QEMU only says that its pipe broke.
    copied.and(saved)?;
    blocking(move || {
        target.file().write_all_at(&head.to_bytes(true), 0).map_err(wrong)?;
        target.publish()
    })
    .await
}

/// What there is for the stream: of a device all that is behind the head, whatever it holds now.
fn room(file: &File, head: &Head) -> io::Result<Room> {
    if file.metadata()?.is_file() {
        return Ok(Room::FileSystemOf(file.try_clone()?));
    }
    let mut device = file;
    let length = device.seek(SeekFrom::End(0))?;
    device.rewind()?;
    Ok(Room::Bytes(length.saturating_sub(head.stream_at())))
}

fn torn(err: tokio::task::JoinError) -> Error {
    failure(Condition::Internal, "copying memory was torn down").caused_by(err)
}

/// QEMU ends its stream with a description of it in JSON; nothing says before how long it will be.
fn is_whole(file: &File, length: u64) -> io::Result<bool> {
    let mut end = [0; 4096];
    let at = length.saturating_sub(end.len() as u64);
    let read = file.read_at(&mut end, at)?;
    let last = end.iter().take(read).rev().find(|byte| **byte != 0);
    Ok(last == Some(&b'}'))
}

/// A save image, open where its stream begins.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) head: Head,
    file: File,
}

impl Saved {
    /// An image whose stream we can read.
    pub(crate) fn open(path: &Path) -> Result<Self, Damage> {
        let mut file = File::open(path)?;
        let head = Head::read(&file)?;
        if head.format == Format::Lzop {
            return Err(Damage::NoCodec(head.format.name()));
        }
        let length = file.seek(SeekFrom::End(0))?;
        if length <= head.stream_at() || (head.format == Format::Raw && !is_whole(&file, length)?) {
            return Err(Damage::Short);
        }
        file.seek(SeekFrom::Start(head.stream_at()))?;
        Ok(Self { head, file })
    }

    /// Into a QEMU that waits for it, with its vCPUs stopped.
    pub(crate) async fn load(self, instance: &Instance) -> Result<()> {
        let passed = Passed::default();
        if self.head.format == Format::Sparse {
            let offset = self.head.stream_at();
            let from = Incoming::Pages { file: self.file.into(), offset };
            return migration::load(instance, from, &passed).await;
        }
        let broken =
            |err| failure(Condition::OperationFailed, "cannot read the memory").caused_by(err);
        let (read, write) = carry::pipe().map_err(broken)?;
        let copy = {
            let (passed, format) = (passed.clone(), self.head.format);
            tokio::task::spawn_blocking(move || carry::from_file(format, self.file, write, &passed))
        };
        // The monitor closes when QEMU ends: a stream that it cannot read ends it.
        let loaded = migration::load(instance, Incoming::Pipe(read), &passed).await;
        let loaded = loaded.map_err(|err| match instance.qmp.is_closed() {
            true => failure(Condition::OperationFailed, "QEMU ended while it loaded the memory"),
            false => err,
        });
        // QEMU has closed its end, or is about to be ended; what our end has to say matters more.
        let patience = if loaded.is_ok() { LAST_BYTES } else { Duration::from_secs(1) };
        match (loaded, timeout(patience, copy).await) {
            (_, Ok(Ok(Err(err)))) => Err(broken(err)),
            (loaded, _) => loaded,
        }
    }
}
