//! How a header that a job rewrites names its new backing file.

use std::path::{Component, Path, PathBuf};

use virtsnap_engine::blockjob::BackingName;
use virtsnap_engine::error::{Condition, Result};

use crate::blocks::Layer;
use crate::image::info::{MAX_DEPTH, resolve};
use crate::image::{failure, header, system};

/// The name of `base` in the header of `overlay`, which stands on it, if not directly.
pub(super) fn backing(overlay: &Layer, base: &Path, name: BackingName) -> Result<String> {
    match name {
        BackingName::Absolute => Ok(base.to_string_lossy().into_owned()),
        BackingName::Relative => {
            let found = relative(&overlay.image, base)?;
            found.map(|path| path.to_string_lossy().into_owned()).ok_or_else(|| {
                let what = format!(
                    "cannot keep a relative backing relationship: a header between '{}' and '{}' \
                     names its backing file by an absolute path",
                    overlay.image.display(),
                    base.display()
                );
                failure(Condition::OperationInvalid, what)
            })
        }
    }
}

/// Joined from the names in the headers on the way; none if one of them is not relative.
fn relative(overlay: &Path, base: &Path) -> Result<Option<PathBuf>> {
    let (mut at, mut joined) = (overlay.to_owned(), PathBuf::new());
    for _ in 0..MAX_DEPTH {
        let Some(name) = backing_name(&at)? else { return Ok(None) };
        let is_plain = !name.split('/').next().unwrap_or_default().contains(':');
        if Path::new(&name).is_absolute() || !is_plain {
            return Ok(None);
        }
        joined = joined.parent().unwrap_or(Path::new("")).join(&name);
        at = resolve(&at, &name);
        if same(&at, base) {
            return Ok(Some(joined));
        }
    }
    Ok(None)
}

fn backing_name(image: &Path) -> Result<Option<String>> {
    let read = |err| system("read", image, err);
    let Some(file) = header::open_image(image).map_err(read)? else { return Ok(None) };
    Ok(header::read(&file).map_err(read)?.and_then(|head| head.backing))
}

fn same(one: &Path, other: &Path) -> bool {
    let plain = |path: &Path| {
        path.components().filter(|part| *part != Component::CurDir).collect::<PathBuf>()
    };
    plain(one) == plain(other)
        || one.canonicalize().is_ok_and(|one| other.canonicalize().is_ok_and(|o| o == one))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn relative_names_are_joined_and_an_absolute_one_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("bases")).unwrap();
        let create = |image: &str, backing: &str| {
            let made = Command::new("qemu-img")
                .args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing])
                .arg(at(image))
                .arg("1M")
                .status();
            made.is_ok_and(|status| status.success())
        };
        if !create("bases/a", "/absolute/b") {
            return;
        }
        create("bases/m", "a");
        create("top", "bases/m");
        assert_eq!(relative(&at("top"), &at("bases/m")).unwrap(), Some("bases/m".into()));
        assert_eq!(relative(&at("top"), &at("bases/a")).unwrap(), Some("bases/a".into()));
        assert_eq!(relative(&at("top"), Path::new("/absolute/b")).unwrap(), None);
    }
}
