//! libxl's binary interface, loaded at run time, so that one package serves hosts with and without
//! Xen.
//!
//! libxl promises its source interface across releases and not its binary one: sizes of structures
//! change, and the soname with them. So there is one binding for each soname, made from that
//! release's headers by `make xen-bindings` and committed, and a library with any other soname is
//! refused by its name rather than guessed at.
//!
//! Nothing here is safe to call. The owner of the context, in `driver/xen`, has the arguments.

use std::path::{Path, PathBuf};

#[expect(
    missing_debug_implementations,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all,
    unsafe_op_in_unsafe_fn,
    reason = "made by bindgen"
)]
pub mod v4_17;

/// The soname that [`v4_17`] is the binding of.
pub const SONAME: &str = "libxenlight.so.4.17";

/// Where the dynamic linker finds libraries on the systems that have Xen.
const DIRECTORIES: [&str; 5] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/lib/x86_64-linux-gnu",
];

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("libxl is not installed on this host: there is no {SONAME}")]
    Missing,
    /// Another release of Xen.
    #[error("this host has {}, and virtsnap knows {SONAME} only", .0.join(", "))]
    Unknown(Vec<String>),
    #[error("{SONAME} cannot be loaded")]
    Broken(#[source] libloading::Error),
}

/// Loads the libxl of this host.
pub fn load() -> Result<v4_17::Libxl, LoadError> {
    // SAFETY: loading runs the initialisers of libxl and of the libraries it needs, which do nothing
    // but set up their own state; each function is looked up by its name and has the type that
    // the headers of this soname declare.
    unsafe { v4_17::Libxl::new(SONAME) }.map_err(|err| why(err, &DIRECTORIES.map(Path::new)))
}

/// What is there instead of a library that did not load.
fn why(err: libloading::Error, directories: &[&Path]) -> LoadError {
    let entries = directories.iter().flat_map(std::fs::read_dir).flatten().flatten();
    let files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let names = files.iter().filter_map(|file| file.file_name()?.to_str());
    let mut found: Vec<String> =
        names.filter(|name| name.starts_with("libxenlight.so.4.")).map(str::to_owned).collect();
    // `libxenlight.so.4.17.0` is the file that the soname's link leads to.
    found.retain(|name| name.matches('.').count() == 3);
    found.sort();
    found.dedup();
    match found.as_slice() {
        [] => LoadError::Missing,
        found if found.iter().any(|name| name == SONAME) => LoadError::Broken(err),
        _ => LoadError::Unknown(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> libloading::Error {
        // SAFETY: there is no such library, so nothing is run.
        unsafe { libloading::Library::new("/no/such/library.so") }.unwrap_err()
    }

    #[test]
    fn another_soname_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let told = || why(refused(), &[dir.path()]).to_string();
        assert!(told().contains("not installed"), "{}", told());
        for file in ["libxenlight.so.4.20", "libxenlight.so.4.20.0", "libxenlight.so"] {
            std::fs::write(dir.path().join(file), "").unwrap();
        }
        assert_eq!(
            told(),
            "this host has libxenlight.so.4.20, and virtsnap knows libxenlight.so.4.17 only"
        );
        std::fs::write(dir.path().join(SONAME), "no library").unwrap();
        assert!(told().contains("cannot be loaded"), "{}", told());
    }
}
