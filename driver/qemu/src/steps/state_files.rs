//! Variable stores of firmware and the state of TPMs: where they are, copied, put back.
//!
//! Neither program has to be asked. QEMU's flash writes each change through to its file at once
//! and reads the file only when it starts; after memory was loaded, it writes all of the flash when
//! the guest goes on. swtpm replaces its file by renaming, and reads it only when the TPM is
//! switched on; memory that is loaded has the TPM's state in it, too. So a copy may be read under
//! either of them, and the file may be replaced while nothing writes to it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Result};
use virtsnap_engine::facts::{Format, StateFile, StateKind};
use virtsnap_xml::element::Element;

use crate::hypervisor::Qemu;
use crate::image::{blocking, claim, failure, header, system};
use crate::setup;
use crate::tpm;

/// A guest that changes its variables does so in milliseconds, and then not for long.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(20);

impl Qemu {
    pub(crate) fn state_files_of(
        &self,
        domain: Uuid,
        definition: &Element,
    ) -> Result<Vec<StateFile>> {
        let mut files = Vec::new();
        if let (Some(nvram), Some(path)) =
            (definition.at(&["os", "nvram"]), setup::nvram_path(definition))
        {
            let format = nvram.attr("format").unwrap_or("raw");
            // What is qcow2 is written into, whatever the template is; what is raw becomes a copy.
            let usable =
                format == "qcow2" || nvram.attr("templateFormat").unwrap_or("raw") == format;
            files.push(StateFile {
                kind: StateKind::Nvram,
                exists: is_there(&path)?,
                format: Format::from(format),
                template: nvram.attr("template").filter(|_| usable).map(Into::into),
                copies: path.clone(),
                path,
            });
        }
        for tpm in setup::devices(definition, "tpm") {
            let Some(backend) = tpm.child("backend") else { continue };
            if backend.attr("type") != Some("emulator") {
                continue;
            }
            let version = backend.attr("version").unwrap_or("2.0");
            let path = tpm::state_file(self.config(), domain, version);
            files.push(StateFile {
                kind: StateKind::Tpm,
                exists: is_there(&path)?,
                format: Format::Raw,
                template: None,
                copies: tpm::state_dir(self.config(), domain, version),
                path,
            });
        }
        Ok(files)
    }

    /// A copy of a file. What a guest writes to meanwhile is copied until it stood still: what is
    /// read twice the same was so in between.
    pub(super) async fn copy_file(&self, domain: Uuid, from: &Path, to: &Path) -> Result<()> {
        let Some(instance) = self.instance(domain) else {
            return claim::copy_image(domain, from, to).await;
        };
        let files = self.state_files_of(domain, &instance.live())?;
        if files.iter().all(|file| file.path != from) {
            return claim::copy_image(domain, from, to).await;
        }
        for _ in 0..ATTEMPTS {
            claim::copy_image(domain, from, to).await?;
            let (a, b) = (from.to_owned(), to.to_owned());
            if blocking(move || equal(&a, &b).map_err(|err| system("compare", &a, err))).await? {
                return Ok(());
            }
            claim::undo(domain, to).await?;
            tokio::time::sleep(PAUSE).await;
        }
        Err(failure(
            Condition::OperationFailed,
            format!(
                "'{}' does not stand still: the guest writes to it all the time",
                from.display()
            ),
        ))
    }

    /// A template is qcow2 or raw, as its first bytes say: nobody but the host's packages wrote it.
    pub(super) async fn overwrite(&self, image: &Path, from: &Path) -> Result<()> {
        let format = header::overlay_format(from).map_err(|err| system("read", from, err))?;
        let from = (from, &format.unwrap_or(Format::Raw));
        self.image_tool().convert_into(from, (image, &Format::Qcow2)).await
    }

    pub(super) async fn put_back(&self, domain: Uuid, file: &Path, to: &Path) -> Result<()> {
        // QEMU has the variable store open, and would go on with the file that was there.
        let open = self
            .instance(domain)
            .is_some_and(|instance| setup::nvram_path(&instance.live()).as_deref() == Some(to));
        let (from, last) = (file.to_owned(), to.to_owned());
        blocking(move || {
            if !is_there(&from)? {
                return Ok(());
            }
            let moved = if open { overwrite(&from, &last) } else { rename(&from, &last) };
            moved.map_err(|err| system("put back", &last, err))
        })
        .await?;
        claim::remove(domain, file).await
    }
}

/// Flash has one size. swtpm's file says how long it is, itself included.
pub(crate) fn is_whole_copy(file: &StateFile, copy: &Path) -> io::Result<bool> {
    let Some((mut copy, length)) = measured(copy)? else { return Ok(false) };
    match file.kind {
        StateKind::Nvram => {
            let mut is_known = false;
            for like in [Some(&file.path), file.template.as_ref()].into_iter().flatten() {
                let Some((_, whole)) = measured(like)? else { continue };
                if whole == length {
                    return Ok(true);
                }
                is_known = true;
            }
            Ok(!is_known && length > 0)
        }
        StateKind::Tpm => {
            let mut head = [0; 10];
            if length < head.len() as u64 {
                return Ok(false);
            }
            copy.read_exact(&mut head)?;
            let [.., a, b, c, d] = head;
            Ok(u64::from(u32::from_be_bytes([a, b, c, d])) == length)
        }
    }
}

/// A file or device, and its length.
fn measured(path: &Path) -> io::Result<Option<(File, u64)>> {
    let mut file = match header::open_image(path) {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    let length = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    Ok(Some((file, length)))
}

fn is_there(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(err) => Err(system("look at", path, err)),
    }
}

fn equal(a: &Path, b: &Path) -> io::Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut here, mut there) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let read = a.read(&mut here)?;
        let (Some(here), Some(there)) = (here.get(..read), there.get_mut(..read)) else {
            return Ok(false);
        };
        if read == 0 {
            return Ok(true);
        }
        match b.read_exact(there) {
            Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if here != there {
            return Ok(false);
        }
    }
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    File::open(to.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The same again after a crash, as `from` goes only when all of it is durable.
fn overwrite(from: &Path, to: &Path) -> io::Result<()> {
    let mut from = File::open(from)?;
    let mut file = OpenOptions::new().write(true).open(to)?;
    let length = from.metadata()?.len();
    if file.metadata()?.len() != length {
        return Err(io::Error::other("it has another size than what is to be put back"));
    }
    io::copy(&mut from, &mut file)?;
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_compared_whole() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str, data: &[u8]| {
            let path = dir.path().join(name);
            fs::write(&path, data).unwrap();
            path
        };
        let mut data = vec![7; 200_000];
        let a = at("a", &data);
        assert!(equal(&a, &at("b", &data)).unwrap());
        data[199_999] = 8;
        assert!(!equal(&a, &at("c", &data)).unwrap());
        assert!(!equal(&a, &at("d", &data[..199_999])).unwrap());
    }

    #[test]
    fn a_copy_that_is_cut_short_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let copy = at("copy");
        let file = |kind| StateFile {
            kind,
            path: at("file"),
            format: Format::Raw,
            exists: true,
            template: Some(at("template")),
            copies: at("file"),
        };
        let is_whole = |kind, data: &[u8]| {
            fs::write(&copy, data).unwrap();
            is_whole_copy(&file(kind), &copy).unwrap()
        };
        assert!(is_whole(StateKind::Nvram, b"flash"));
        assert!(!is_whole(StateKind::Nvram, b""));
        fs::write(at("template"), "flash").unwrap();
        assert!(is_whole(StateKind::Nvram, b"FLASH"));
        assert!(!is_whole(StateKind::Nvram, b"flas"));
        // The store itself may be the one that is damaged, or of another version of the firmware.
        fs::write(at("file"), "fla").unwrap();
        assert!(is_whole(StateKind::Nvram, b"FLASH") && is_whole(StateKind::Nvram, b"FLA"));

        let tpm = b"\x02\x01\0\x0a\0\0\0\0\0\x0d...";
        assert!(is_whole(StateKind::Tpm, tpm));
        for cut in 0..tpm.len() {
            assert!(!is_whole(StateKind::Tpm, &tpm[..cut]), "{cut}");
        }
        fs::remove_file(&copy).unwrap();
        fs::create_dir(&copy).unwrap();
        assert!(!is_whole_copy(&file(StateKind::Tpm), &copy).unwrap());
    }

    #[test]
    fn a_file_that_is_open_keeps_its_inode_and_gets_the_content() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        fs::write(&old, "before").unwrap();
        fs::write(&new, "behind").unwrap();
        let inode = fs::metadata(&old).unwrap().ino();
        overwrite(&new, &old).unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"behind");
        assert_eq!(fs::metadata(&old).unwrap().ino(), inode);
        fs::write(&new, "longer than it").unwrap();
        overwrite(&new, &old).unwrap_err();
        assert_eq!(fs::read(&old).unwrap(), b"behind");
        rename(&new, &old).unwrap();
        assert_eq!(fs::read(&old).unwrap(), b"longer than it");
        assert!(!new.exists());
    }
}
