//! Guests that end with their memory in a save image, and come back from it.
//!
//! A note in the state directory, `UUID.save`, names the file from before the guest is stopped
//! until its process is gone. If the daemon dies in between, the next one goes by it: a QEMU that
//! still runs gets its guest back and the file goes; if it is gone, the image is whole and stays.

use std::fs::{self, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use virtsnap_block::note;
use virtsnap_engine::domain::{
    Active, PausedReason, Restore, RunningReason, Save, SaveImage, ShutOffReason, State,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::plan::saveable;
use virtsnap_xml::element::Element;

use crate::hypervisor::Qemu;
use crate::image::{blocking, claim, failure, plain_path, system};
use crate::instance::Instance;
use crate::migration;
use crate::save_image::{self, COOKIE, Damage, Format, Head, Saved};

impl Qemu {
    pub(crate) async fn save_domain(&self, domain: Uuid, save: Save) -> Result<()> {
        let instance = self.running(domain)?;
        let format = writable(&save.format)?;
        plain_path(&save.file)?;
        refuse_layer(self, &save.file)?;
        check_saveable(&instance).await?;
        let was_running = matches!(instance.state(), State::Running(_));
        let definition = save.definition.to_string();
        let running = save.running.unwrap_or(was_running);
        let head = Head::new(definition, Some(COOKIE.to_owned()), running, format);
        Note::of(self, domain).write(&save.file)?;
        let saved = async {
            let target = claim::write_anew(domain, &save.file, true).await?;
            if was_running {
                instance.pause(PausedReason::Save).await?;
            }
            save_image::save(&instance, target, head, false).await?;
            self.destroy_domain(domain, ShutOffReason::Saved).await
        };
        if let Err(err) = saved.await {
            if let Err(undo) = self.undo_save(domain, &instance, &save.file).await {
                tracing::error!(domain = instance.name, "undo of a save: {}", undo.chain());
            }
            return Err(err);
        }
        claim::keep(domain, &save.file).await?;
        Note::of(self, domain).forget();
        Ok(())
    }

    /// The guest goes on as it was, without the file.
    async fn undo_save(&self, domain: Uuid, instance: &Instance, file: &Path) -> Result<()> {
        if self.instance(domain).is_some() {
            migration::end(instance).await?;
            if instance.state() == State::Paused(PausedReason::Save) {
                instance.resume(RunningReason::SaveCanceled).await?;
            }
        }
        claim::undo(domain, file).await?;
        Note::of(self, domain).forget();
        Ok(())
    }

    /// What a daemon that died in a save left, once it is known which guests still run.
    pub(crate) async fn settle_saves(&self) {
        for (domain, file) in Note::all(self) {
            let settled = match self.instance(domain) {
                Some(instance) => self.undo_save(domain, &instance, &file).await,
                None => self.settle_ended(domain, &file).await,
            };
            if let Err(err) = settled {
                tracing::error!(%domain, file = %file.display(), "a save: {}", err.chain());
            }
        }
    }

    /// Its QEMU is gone: by our hand, then the image is whole, or by another's.
    async fn settle_ended(&self, domain: Uuid, file: &Path) -> Result<()> {
        match look_into(file).await {
            Ok(SaveImage::Whole { .. }) => claim::keep(domain, file).await?,
            Ok(SaveImage::Torn(_)) | Err(_) => claim::undo(domain, file).await?,
        }
        Note::of(self, domain).forget();
        Ok(())
    }

    pub(crate) async fn restore_domain(
        &self,
        definition: Element,
        restore: Restore,
    ) -> Result<Active> {
        // What was saved may have gone on, or come back before.
        self.start_saved(with_new_generation(definition), restore).await
    }
}

/// A guest that goes back in time gets another generation id, by which it knows: as libvirt, in the
/// live definition alone.
pub(crate) fn with_new_generation(mut definition: Element) -> Element {
    if let Some(generation) = definition.child_mut("genid") {
        generation.set_text(Uuid::new_v4().to_string());
    }
    definition
}

/// Formats that we write.
fn writable(name: &str) -> Result<Format> {
    match Format::named(name) {
        Some(Format::Lzop | Format::Sparse) => Err(failure(
            Condition::OperationUnsupported,
            format!("this version of virtsnap does not write save images of format '{name}'"),
        )),
        Some(format) => Ok(format),
        None => {
            let what = format!("'{name}' is no format of save images");
            Err(failure(Condition::OperationFailed, what))
        }
    }
}

/// Before the guest is stopped for nothing.
async fn check_saveable(instance: &Instance) -> Result<()> {
    saveable::check(&instance.live(), &migration::blockers(&instance.qmp).await?)?;
    match instance.lock().jobs.keys().next() {
        None => Ok(()),
        Some(target) => Err(saveable::busy(target)),
    }
}

/// Memory must not be written over a disk.
fn refuse_layer(qemu: &Qemu, file: &Path) -> Result<()> {
    let instances: Vec<_> = qemu.shared.instances().values().cloned().collect();
    let Ok(file) = file.canonicalize() else { return Ok(()) };
    for instance in instances {
        if let Some((target, _)) = instance.layer_of(&file) {
            let what = format!(
                "'{}' is an image of disk '{target}' of domain '{}'",
                file.display(),
                instance.name
            );
            return Err(failure(Condition::OperationInvalid, what));
        }
    }
    Ok(())
}

pub(crate) async fn look_into(file: &Path) -> Result<SaveImage> {
    let path = plain_path(file).map(PathBuf::from)?;
    blocking(move || {
        let torn = |damage: Damage| Ok(SaveImage::Torn(damage.to_string()));
        let head = match Saved::open(&path) {
            Ok(saved) => saved.head,
            Err(Damage::Io(err)) => return Err(system("open", &path, err)),
            Err(damage @ (Damage::Partial | Damage::NoMagic | Damage::Short)) => {
                return torn(damage);
            }
            Err(damage) => return Err(unusable(&path, &damage.to_string())),
        };
        let definition = Element::parse(&head.definition)
            .map_err(|err| unusable(&path, "its definition is malformed").caused_by(err))?;
        Ok(SaveImage::Whole { definition, running: head.was_running })
    })
    .await
}

fn unusable(path: &Path, why: &str) -> Error {
    let what = format!("cannot use the save image '{}': {why}", path.display());
    failure(Condition::OperationFailed, what)
}

/// Writes another definition in the place of the one that is there.
pub(crate) async fn edit(file: &Path, definition: &Element, running: Option<bool>) -> Result<()> {
    let path = plain_path(file).map(PathBuf::from)?;
    let text = definition.to_string();
    blocking(move || {
        let open = OpenOptions::new().read(true).write(true).open(&path);
        let file = open.map_err(|err| system("open", &path, err))?;
        let head = Head::read(&file).map_err(|damage| unusable(&path, &damage.to_string()))?;
        let was_running = running.unwrap_or(head.was_running);
        let Some(mut head) = head.with_definition(text) else {
            return Err(unusable(&path, "the new definition is too long for it"));
        };
        head.was_running = was_running;
        file.write_all_at(&head.to_bytes(true), 0)
            .and_then(|()| file.sync_all())
            .map_err(|err| system("write", &path, err))
    })
    .await
}

/// Another definition in the save image that a start is to go on from: in a new file, which takes
/// the place of the old one when all of it is on the disk. One that is not there is done.
pub(crate) async fn set_saved(file: &Path, definition: &Element) -> Result<()> {
    let (path, text) = (file.to_owned(), definition.to_string());
    blocking(move || {
        let mut old = match fs::File::open(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened.map_err(|err| system("open", &path, err))?,
        };
        let head = Head::read(&old).map_err(|damage| unusable(&path, &damage.to_string()))?;
        let stream_at = head.stream_at();
        let head = head
            .with_definition(text.clone())
            .unwrap_or_else(|| Head::new(text, head.cookie.clone(), head.was_running, head.format));
        let mut write = || -> io::Result<()> {
            let directory = path.parent().unwrap_or(Path::new("/"));
            // As all that the store writes, which removes what a crash leaves.
            let mut new = tempfile::Builder::new().prefix(".new-").tempfile_in(directory)?;
            new.write_all(&head.to_bytes(true))?;
            old.seek(io::SeekFrom::Start(stream_at))?;
            io::copy(&mut old, new.as_file_mut())?;
            new.as_file().sync_all()?;
            new.persist(&path).map_err(|err| err.error)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|err| system("write", &path, err))
    })
    .await
}

/// The file of a save under way.
struct Note {
    path: PathBuf,
}

const NOTE: &str = "save";

impl Note {
    fn of(qemu: &Qemu, domain: Uuid) -> Self {
        Self { path: qemu.config().state_dir.join(format!("{domain}.{NOTE}")) }
    }

    fn write(&self, file: &Path) -> Result<()> {
        note::write_durably(&self.path, file.as_os_str().as_bytes())
            .map_err(|err| system("write", &self.path, err))
    }

    fn forget(&self) {
        note::forget(&self.path);
    }

    fn all(qemu: &Qemu) -> Vec<(Uuid, PathBuf)> {
        let Ok(entries) = fs::read_dir(&qemu.config().state_dir) else { return Vec::new() };
        let note = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_suffix(NOTE)?.strip_suffix('.')?;
            let domain = Uuid::parse_str(name).ok()?;
            let file = fs::read(&path).ok()?;
            Some((domain, PathBuf::from(std::ffi::OsString::from_vec(file))))
        };
        entries.flatten().filter_map(|entry| note(entry.path())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_goes_back_has_another_generation() {
        let old = Uuid::new_v4().to_string();
        let mut domain = Element::new("domain");
        assert_eq!(with_new_generation(domain.clone()), domain);
        domain.push(Element::new("genid").with_text(old.clone()));
        let new = with_new_generation(domain);
        let new = new.child("genid").unwrap().text();
        assert_ne!(new, old);
        new.parse::<Uuid>().unwrap();
    }
}
