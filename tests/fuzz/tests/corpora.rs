//! Every file of `fixtures/fuzz`, once through its target: seeds are still taken for what they are,
//! and what once broke something breaks nothing any more.
//!
//! `UPDATE_EXPECT=1 cargo test -p virtsnap-fuzz` derives the seeds (`seed-*`) anew from the other
//! fixtures. Files of other names were found by `make fuzz`.

mod seeds;

use std::fs;
use std::path::{Path, PathBuf};

use virtsnap_fuzz::TARGETS;

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The files of a directory in the order of their names, with their content.
pub(crate) fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let listed = fs::read_dir(directory);
    let listed = listed.unwrap_or_else(|err| panic!("{}: {err}", directory.display()));
    let mut files: Vec<(String, Vec<u8>)> = listed
        .map(|entry| entry.expect("a readable directory").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(&path).expect("a readable file"))
        })
        .collect();
    files.sort();
    files
}

/// One test, one thread: what is allocated is counted for the whole process.
#[test]
fn every_file_of_every_corpus_goes_through_its_target() {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        seeds::write(&fixtures());
    }
    let mut runs = 0;
    for target in TARGETS {
        let files = files(&fixtures().join("fuzz").join(target.name));
        let mut taken = 0;
        for (name, input) in &files {
            println!("{}/{name}", target.name);
            assert!(input.len() <= 64 << 10, "{}/{name} is too large to be kept", target.name);
            let seed = name.starts_with("seed-");
            taken += usize::from(target.run(input) && seed);
        }
        let seeds = files.iter().filter(|(name, _)| name.starts_with("seed-")).count();
        assert!(taken * 2 > seeds, "{}: {taken} of {seeds} seeds are taken", target.name);
        runs += files.len();
    }
    println!("{} targets, {runs} files", TARGETS.len());
}

#[test]
fn every_target_is_a_program_too() {
    let manifest = include_str!("../Cargo.toml");
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
    let programs = manifest.matches("[[bin]]").count();
    assert_eq!(programs, TARGETS.len(), "a program without a target");
}
