//! The repository's own invariants, as tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use regex::Regex;
use virtsnap_tests::host::root;

/// Every file that git has, or would have.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    let listed = listed.expect("git is there").stdout;
    let listed = String::from_utf8(listed).expect("file names are UTF-8");
    listed.lines().map(|line| root().join(line)).filter(|path| path.is_file()).collect()
}

fn rust_files() -> Vec<(String, String)> {
    let rust = files().into_iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    rust.map(|path| (name(&path), std::fs::read_to_string(&path).expect("UTF-8"))).collect()
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().into_owned()
}

#[test]
fn every_rust_file_says_first_what_it_is_for() {
    let silent: Vec<_> = rust_files()
        .into_iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(name, _)| name)
        .collect();
    assert!(silent.is_empty(), "these do not begin with //!: {silent:#?}");
}

#[test]
fn unsafe_code_is_where_the_architecture_says() {
    let keyword = Regex::new(r"\bunsafe\s+(\{|fn|impl|extern)").unwrap();
    let uses: BTreeSet<String> = rust_files()
        .into_iter()
        .filter(|(name, _)| name != "tests/tests/tidy.rs")
        .filter(|(_, text)| {
            text.lines().any(|line| !line.trim_start().starts_with("//") && keyword.is_match(line))
        })
        .map(|(name, _)| name)
        .collect();
    let architecture = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    for file in uses {
        assert!(architecture.contains(&file), "docs/architecture.md does not list {file}");
    }
}

#[test]
fn dependencies_point_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("virtsnap-xml", &[][..]),
        ("virtsnap-rpc", &[]),
        ("virtsnap-relaxng", &[]),
        ("virtsnap-engine", &["virtsnap-xml"]),
        ("virtsnap-store", &["virtsnap-engine", "virtsnap-xml"]),
        ("virtsnap-cli", &["virtsnap-xml"]),
        ("virtsnap-block", &["virtsnap-engine", "virtsnap-xml"]),
        ("virtsnap-qemu", &["virtsnap-block", "virtsnap-engine", "virtsnap-xml"]),
        ("virtsnap-xen-sys", &[]),
        (
            "virtsnap-xen",
            &["virtsnap-block", "virtsnap-engine", "virtsnap-xen-sys", "virtsnap-xml"],
        ),
        (
            "virtsnapd",
            &[
                "virtsnap-engine",
                "virtsnap-qemu",
                "virtsnap-relaxng",
                "virtsnap-rpc",
                "virtsnap-store",
                "virtsnap-xen",
                "virtsnap-xml",
            ],
        ),
        (
            "virtsnap-fuzz",
            &[
                "virtsnap-block",
                "virtsnap-engine",
                "virtsnap-qemu",
                "virtsnap-relaxng",
                "virtsnap-rpc",
                "virtsnap-store",
                "virtsnap-xen",
                "virtsnap-xml",
                "virtsnapd",
            ],
        ),
        // It drives programs, and links nothing of ours.
        ("virtsnap-tests", &[]),
    ]);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let allowed = allowed.get(name).unwrap_or_else(|| panic!("{name}: whom may it use?"));
        for dependency in package["dependencies"].as_array().unwrap() {
            let used = dependency["name"].as_str().unwrap();
            let in_product = dependency["kind"].is_null();
            assert!(
                !ours.contains(used) || !in_product || allowed.contains(&used),
                "{name}→{used}"
            );
            let may = ["virtsnap-cli", "virtsnap-tests"];
            let client = used == "virt" && !may.contains(&name);
            assert!(!client, "{name} uses the client library");
        }
    }
}

#[test]
fn nothing_names_the_machine_it_was_written_on() {
    // Put together here, so that this file does not name them either.
    let places = ["/wo#rk/", "/tmp/s#rc", "deb.deb#ian.org", "artifact-reg#istry"];
    let places = places.map(|place| place.replace('#', ""));
    let mut found = Vec::new();
    for path in files() {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for place in places.iter().filter(|place| text.contains(place.as_str())) {
            found.push(format!("{}: {place}", name(&path)));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn documents_are_reachable_and_their_links_lead_somewhere() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let link = Regex::new(r"\]\(([^)#:]+)(#[^)]*)?\)").unwrap();
    let mut reachable = BTreeSet::new();
    let mut open = vec![root().join("README.md")];
    while let Some(page) = open.pop() {
        if page.is_dir() {
            open.extend(std::fs::read_dir(&page).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        if !reachable.insert(page.clone()) || page.extension().is_none_or(|e| e != "md") {
            continue;
        }
        let text = std::fs::read_to_string(&page).unwrap_or_default();
        for found in link.captures_iter(&text) {
            let target = page.parent().unwrap().join(&found[1]);
            let exists = target.exists();
            assert!(exists, "{} links to {}, which does not exist", name(&page), &found[1]);
            open.push(target.canonicalize().unwrap());
        }
    }
    assert!(readme.contains("make demo") && readme.contains("make test"));
    let docs = files().into_iter().filter(|path| name(path).starts_with("docs/"));
    let lost: Vec<_> = docs
        .filter(|path| path.extension().is_some_and(|e| e == "md") && !reachable.contains(path))
        .map(|path| name(&path))
        .collect();
    assert!(lost.is_empty(), "no link leads from README.md to {lost:?}");
}

/// What a client sends must never meet a shell's grammar: in the product none is run, and no
/// argument is put together to be parsed by one. Tests may.
#[test]
fn no_program_is_run_by_a_shell() {
    let shell = Regex::new(r#""(/\S*/)?(ba|da|z|k)?sh"|/bin/sh|libc::(system|popen)"#).unwrap();
    let mut found = Vec::new();
    for (name, text) in rust_files().into_iter().filter(|(name, _)| name.starts_with("driver/")) {
        // Unit tests are modules at the end of a file, or files of their own.
        let is_test = name.contains("/tests") || name.contains("/real");
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines = product.lines().filter(|line| !line.trim_start().starts_with("//"));
        found.extend(
            lines
                .filter(|line| !is_test && shell.is_match(line))
                .map(|line| format!("{name}: {}", line.trim())),
        );
    }
    found.retain(|line| !line.starts_with("driver/daemon/src/server/clients.rs"));
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn shell_scripts_parse() {
    for path in files() {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let Some(first) = text.lines().next() else { continue };
        if first.starts_with("#!/bin/bash") {
            let output = Command::new("bash").arg("-n").arg(&path).output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{}: {complaint}", name(&path));
        }
    }
}
