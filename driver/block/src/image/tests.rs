//! Against the real `qemu-img` and `qemu-io`.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use uuid::Uuid;
use virtsnap_engine::facts::Format;
use virtsnap_engine::facts::Format::{Qcow2, Qed, Raw};
use virtsnap_engine::merging::Merging;

use crate::testing::{base, holds, tool, write};

use super::info::resolve;
use super::tool::Watch;
use super::{QemuImg, claim};

const DOMAIN: Uuid = Uuid::from_u128(7);
const MIB: u64 = 1 << 20;

async fn overlay(tool: &QemuImg, path: &Path, backing: &Path) {
    claim::create_overlay(tool, DOMAIN, path, &Qcow2, backing, &Qcow2, 4 * MIB).await.unwrap();
    claim::keep(DOMAIN, path).await.unwrap();
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const ODD: [&str; 11] = [
    "a b",
    "a,b",
    "a,,b",
    "nbd:a",
    "json:{}",
    "a\"b",
    "a'b",
    "ünï-日本",
    "a\nb",
    "-n",
    "file:a=b%s\\",
];

/// A merge that nobody stops.
fn watch(merging: &Merging) -> Watch<'_> {
    Watch { merging, stall: Duration::from_secs(60) }
}

#[tokio::test]
async fn odd_names_stay_names() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    for name in ODD {
        let bottom = dir.path().join(format!("{name}.base"));
        let middle = dir.path().join(format!("{name}.mid"));
        let top = dir.path().join(name);
        base(&bottom).await;
        write(&bottom, 1, "0 64k");
        overlay(&tool, &middle, &bottom).await;
        write(&middle, 2, "64k 64k");
        overlay(&tool, &top, &middle).await;
        write(&top, 3, "128k 64k");
        let chain = tool.chain(&top, &Qcow2).await.unwrap();
        let paths: Vec<&PathBuf> = chain.iter().map(|(path, _)| path).collect();
        assert_eq!(paths, [&top, &middle, &bottom], "{name:?}");
        assert!(holds(&top, 1, "0 64k") && holds(&top, 2, "64k 64k"), "{name:?}");

        tool.snapshot(&top, &Qcow2, name).await.unwrap();
        write(&top, 4, "128k 64k");
        tool.apply(&top, &Qcow2, name).await.unwrap();
        assert!(holds(&top, 3, "128k 64k"), "{name:?}");
        tool.delete_snapshot(&top, &Qcow2, name).await.unwrap();

        let merging = Merging::default();
        tool.commit((&middle, &Qcow2), &bottom, 0, watch(&merging)).await.unwrap();
        assert!(holds(&bottom, 2, "64k 64k"), "{name:?}");
        tool.repoint(&top, &Qcow2, &bottom, &Qcow2).await.unwrap();
        claim::remove(DOMAIN, &middle).await.unwrap();
        assert!(holds(&top, 2, "64k 64k") && holds(&top, 3, "128k 64k"), "{name:?}");
        tool.stream(&top, &Qcow2, None, watch(&merging)).await.unwrap();
        claim::remove(DOMAIN, &bottom).await.unwrap();
        assert!(holds(&top, 1, "0 64k") && holds(&top, 3, "128k 64k"), "{name:?}");
        let check = tool.check(&top, &Qcow2).await.unwrap();
        assert_eq!((check.corruptions, check.leaks, check.check_errors), (0, 0, 0));
        assert_eq!(names(dir.path()), [name]);
        claim::remove(DOMAIN, &top).await.unwrap();
    }
}

#[tokio::test]
async fn relative_paths_and_devices_of_qemus_own_are_refused() {
    let Some(tool) = tool() else { return };
    for name in ["nbd:x", "a.qcow2", "/dev/fdset/1", "/a\0b"] {
        assert!(tool.info(Path::new(name), &Qcow2).await.is_err(), "{name}");
    }
}

#[tokio::test]
async fn a_raw_image_is_never_taken_for_a_chain() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (secret, disk) = (dir.path().join("secret"), dir.path().join("disk.raw"));
    base(&secret).await;
    // The guest writes a qcow2 header with a backing file into its raw disk.
    overlay(&tool, &disk, &secret).await;
    let chain = tool.chain(&disk, &Raw).await.unwrap();
    assert_eq!(chain.len(), 1);
    assert_eq!(chain[0].1.backing, None);

    // Nor where a header leaves the format of its backing file open.
    let top = dir.path().join("top");
    overlay(&tool, &top, &disk).await;
    forget_backing_format(&top);
    let err = tool.chain(&top, &Qcow2).await.unwrap_err();
    assert!(err.message.contains("does not say the format"), "{}", err.chain());
}

#[tokio::test]
async fn a_loop_and_a_missing_backing_file_are_named() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    base(&a).await;
    overlay(&tool, &b, &a).await;
    tool.repoint(&a, &Qcow2, &b, &Qcow2).await.unwrap();
    assert!(tool.chain(&b, &Qcow2).await.unwrap_err().message.contains("loops"));
    fs::remove_file(&a).unwrap();
    let err = tool.chain(&b, &Qcow2).await.unwrap_err();
    assert!(err.message.contains(a.to_str().unwrap()), "{}", err.chain());
    assert!(err.message.contains(b.to_str().unwrap()), "{}", err.chain());
}

#[tokio::test]
async fn hostile_images_are_errors() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a");
    base(&image).await;
    let good = fs::read(&image).unwrap();
    for (at, value) in [(4, 9u8), (20, 0xff), (24, 0xff), (36, 0x7f), (60, 0xff)] {
        let mut bytes = good.clone();
        bytes[at..at + 4].fill(value);
        fs::write(&image, bytes).unwrap();
        assert!(tool.info(&image, &Qcow2).await.is_err(), "{at}");
    }
    fs::write(&image, b"").unwrap();
    assert!(tool.chain(&image, &Qcow2).await.is_err());
}

#[tokio::test]
async fn an_image_that_keeps_its_data_elsewhere_is_refused() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (disk, top) = (dir.path().join("disk"), dir.path().join("top"));
    let secret = format!("data_file={},data_file_raw=on", dir.path().join("secret").display());
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o", &secret])
        .arg(&disk)
        .arg("4M")
        .status();
    assert!(made.unwrap().success());
    let err = tool.info(&disk, &Qcow2).await.unwrap_err();
    assert!(err.message.contains("data file"), "{}", err.chain());
    // A guest can write such a header into its raw disk: where the format below is left open, the
    // disk must not be taken for what it claims to be.
    overlay(&tool, &top, &disk).await;
    forget_backing_format(&top);
    let err = tool.chain(&top, &Qcow2).await.unwrap_err();
    assert!(err.message.contains("does not say the format"), "{}", err.chain());
    assert_eq!(tool.chain(&disk, &Raw).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_backing_file_that_is_no_file_is_not_opened() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (pipe, top) = (dir.path().join("pipe"), dir.path().join("top"));
    base(&pipe).await;
    overlay(&tool, &top, &pipe).await;
    fs::remove_file(&pipe).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).unwrap();
    // To open it would wait for a writer for ever.
    let err = tool.chain(&top, &Qcow2).await.unwrap_err();
    assert!(err.message.contains("neither"), "{}", err.chain());
    forget_backing_format(&top);
    let err = tool.chain(&top, &Qcow2).await.unwrap_err();
    assert!(err.message.contains("does not say the format"), "{}", err.chain());
}

/// Its header says no more of the format below it than that it is raw, or is to be looked for.
#[tokio::test]
async fn what_a_qed_image_stands_on_is_never_guessed() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [root, middle, top] = ["root", "middle", "top"].map(|name| dir.path().join(name));
    let qed = async |overlay: &Path, below: &Path, format: &Format| {
        claim::create_overlay(&tool, DOMAIN, overlay, &Qed, below, format, 4 * MIB).await.unwrap();
    };
    base(&root).await;
    qed(&middle, &root, &Qcow2).await;
    let chain = tool.chain(&middle, &Qed).await.unwrap();
    assert_eq!(chain[1].1.format, Qcow2);
    qed(&top, &middle, &Qed).await;
    let err = tool.chain(&top, &Qed).await.unwrap_err();
    assert!(err.message.contains("does not say the format"), "{}", err.chain());
}

/// The header extension that says it becomes one that nobody knows.
fn forget_backing_format(image: &Path) {
    let mut bytes = fs::read(image).unwrap();
    let at = bytes.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at..at + 4].copy_from_slice(&[1, 2, 3, 4]);
    fs::write(image, bytes).unwrap();
}

#[tokio::test]
async fn a_tag_that_looks_like_an_id_is_a_tag() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a");
    base(&image).await;
    write(&image, 1, "0 64k");
    tool.snapshot(&image, &Qcow2, "first").await.unwrap(); // id 1
    write(&image, 2, "0 64k");
    tool.snapshot(&image, &Qcow2, "1").await.unwrap();
    write(&image, 3, "0 64k");
    tool.apply(&image, &Qcow2, "1").await.unwrap();
    assert!(holds(&image, 2, "0 64k"));
    tool.delete_snapshot(&image, &Qcow2, "1").await.unwrap();
    tool.delete_snapshot(&image, &Qcow2, "1").await.unwrap();
    let tags: Vec<_> =
        tool.info(&image, &Qcow2).await.unwrap().snapshots.into_iter().map(|s| s.tag).collect();
    assert_eq!(tags, ["first"]);
    assert!(tool.apply(&image, &Qcow2, "1").await.is_err());
    assert!(tool.snapshot(&image, &Qcow2, "first").await.is_err());
}

#[test]
fn backing_names_are_resolved_as_qemu_does() {
    let check = |name: &str, path: &str| {
        assert_eq!(resolve(Path::new("/d/a"), name), Path::new(path), "{name}");
    };
    check("b", "/d/b");
    check("/e/b:c", "/e/b:c");
    check("x/b:c", "/d/x/b:c");
    check("file:/e/b", "/e/b");
    check("file:b", "/d/b");
    check("nbd:localhost:1", "nbd:localhost:1");
    check(r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/e/b"}}"#, "/e/b");
    check(r#"json:{"driver":"qcow2","file.driver":"file","file.filename":"b"}"#, "/d/b");
    for remote in [
        r#"json:{"driver":"qcow2","file":{"driver":"nbd","filename":"/e/b"}}"#,
        r#"json:{"file":"node"}"#,
        "json:{",
        "json:[1]",
    ] {
        check(remote, remote);
    }
}

// -- claims -----------------------------------------------------------------------------------

#[tokio::test]
async fn an_overlay_is_like_its_backing_but_never_looser() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (bottom, top) = (dir.path().join("b"), dir.path().join("t"));
    base(&bottom).await;
    for (mode, expected) in [(0o644, 0o644), (0o777, 0o666), (0o400, 0o600), (0o660, 0o660)] {
        fs::set_permissions(&bottom, fs::Permissions::from_mode(mode)).unwrap();
        claim::create_overlay(&tool, DOMAIN, &top, &Qcow2, &bottom, &Raw, MIB).await.unwrap();
        assert_eq!(fs::metadata(&top).unwrap().mode() & 0o7777, expected);
        let facts = tool.info(&top, &Qcow2).await.unwrap();
        assert_eq!((facts.virtual_size, facts.backing_format), (MIB, Some(Raw)));
        claim::undo(DOMAIN, &top).await.unwrap();
        claim::undo(DOMAIN, &top).await.unwrap();
        assert_eq!(names(dir.path()), ["b"]);
    }
}

#[tokio::test]
async fn what_others_put_at_the_path_survives() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (bottom, top) = (dir.path().join("b"), dir.path().join("t"));
    base(&bottom).await;
    let create =
        async || claim::create_overlay(&tool, DOMAIN, &top, &Qcow2, &bottom, &Qcow2, MIB).await;
    // Undo of a step that never ran.
    fs::write(&top, "precious").unwrap();
    claim::undo(DOMAIN, &top).await.unwrap();
    // It was there before.
    assert!(create().await.unwrap_err().message.contains("already exists"));
    claim::undo(DOMAIN, &top).await.unwrap();
    assert_eq!(fs::read(&top).unwrap(), b"precious");
    // It took the place of ours.
    fs::remove_file(&top).unwrap();
    create().await.unwrap();
    fs::remove_file(&top).unwrap();
    fs::write(&top, "precious").unwrap();
    claim::undo(DOMAIN, &top).await.unwrap();
    assert_eq!(fs::read(&top).unwrap(), b"precious");
    assert_eq!(names(dir.path()), ["b", "t"]);
}

#[tokio::test]
async fn a_kept_file_is_nobodys_to_undo_even_with_a_claim_left_over() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (bottom, top) = (dir.path().join("b"), dir.path().join("t"));
    base(&bottom).await;
    claim::create_overlay(&tool, DOMAIN, &top, &Qcow2, &bottom, &Qcow2, MIB).await.unwrap();
    claim::create_overlay(&tool, DOMAIN, &top, &Qcow2, &bottom, &Qcow2, MIB).await.unwrap_err();
    claim::undo(DOMAIN, &top).await.unwrap();
    assert_eq!(names(dir.path()), ["b", "t"]);
    // Another domain's claim is not ours.
    claim::create_overlay(&tool, DOMAIN, &dir.path().join("u"), &Qcow2, &bottom, &Qcow2, MIB)
        .await
        .unwrap();
    claim::undo(Uuid::from_u128(8), &dir.path().join("u")).await.unwrap();
    assert!(dir.path().join("u").exists());
}

#[tokio::test]
async fn a_crash_before_the_file_has_its_name_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("t");
    fs::write(dir.path().join(format!(".t.virtsnap-{DOMAIN}")), "half").unwrap();
    fs::write(&top, "precious").unwrap();
    claim::undo(DOMAIN, &top).await.unwrap();
    assert_eq!(names(dir.path()), ["t"]);
}

#[tokio::test]
async fn without_hard_links_the_inode_tells() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("t");
    let marker = dir.path().join(format!(".t.virtsnap-{DOMAIN}-at"));
    fs::write(&top, "ours").unwrap();
    let meta = fs::metadata(&top).unwrap();
    fs::write(&marker, format!("{} {}\n", meta.dev(), meta.ino() + 1)).unwrap();
    claim::undo(DOMAIN, &top).await.unwrap();
    assert_eq!(names(dir.path()), ["t"]);
    fs::write(&marker, format!("{} {}\n", meta.dev(), meta.ino())).unwrap();
    claim::undo(DOMAIN, &top).await.unwrap();
    assert!(names(dir.path()).is_empty());
}

#[tokio::test]
async fn names_of_full_length_can_be_claimed() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (bottom, top) = (dir.path().join("b"), dir.path().join("é".repeat(127)));
    base(&bottom).await;
    claim::create_overlay(&tool, DOMAIN, &top, &Qcow2, &bottom, &Qcow2, MIB).await.unwrap();
    assert_eq!(names(dir.path()).len(), 3);
    claim::undo(DOMAIN, &top).await.unwrap();
    assert_eq!(names(dir.path()), ["b"]);
}

#[tokio::test]
async fn a_copy_has_content_chain_and_snapshots() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [bottom, top, copy] = ["b", "t", "c"].map(|name| dir.path().join(name));
    base(&bottom).await;
    write(&bottom, 1, "0 64k");
    overlay(&tool, &top, &bottom).await;
    write(&top, 2, "64k 64k");
    tool.snapshot(&top, &Qcow2, "s").await.unwrap();
    claim::copy_image(DOMAIN, &top, &copy).await.unwrap();
    let (mut a, b) =
        (tool.info(&top, &Qcow2).await.unwrap(), tool.info(&copy, &Qcow2).await.unwrap());
    a.actual_size = b.actual_size;
    assert_eq!(a, b);
    assert!(holds(&copy, 1, "0 64k") && holds(&copy, 2, "64k 64k"));
    claim::copy_image(DOMAIN, &dir.path().join("absent"), &dir.path().join("x")).await.unwrap_err();
    claim::undo(DOMAIN, &copy).await.unwrap();
    assert_eq!(names(dir.path()), ["b", "t"]);
}

#[tokio::test]
async fn an_image_is_written_over_around_its_snapshots() {
    let Some(tool) = tool() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [image, raw] = ["i", "r"].map(|name| dir.path().join(name));
    base(&image).await;
    write(&image, 1, "0 64k");
    tool.snapshot(&image, &Qcow2, "s").await.unwrap();
    write(&image, 2, "0 128k");
    let size = tool.info(&image, &Qcow2).await.unwrap().virtual_size;
    let mut new = vec![0; usize::try_from(size).unwrap()];
    new[..65536].fill(3);
    std::fs::write(&raw, new).unwrap();
    for _ in 0..2 {
        tool.convert_into((&raw, &Raw), (&image, &Qcow2)).await.unwrap();
        assert!(holds(&image, 3, "0 64k") && holds(&image, 0, "64k 64k"));
    }
    tool.apply(&image, &Qcow2, "s").await.unwrap();
    assert!(holds(&image, 1, "0 64k") && holds(&image, 0, "64k 64k"));
    let copy = dir.path().join("c");
    tool.convert((&raw, &Raw), (&copy, &Qcow2)).await.unwrap();
    assert!(holds(&copy, 3, "0 64k"));
}

#[tokio::test]
async fn only_regular_files_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("f"), dir.path().join("l"));
    fs::write(&file, "x").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    claim::remove(DOMAIN, &link).await.unwrap_err();
    claim::remove(DOMAIN, dir.path()).await.unwrap_err();
    claim::remove(DOMAIN, &file).await.unwrap();
    claim::remove(DOMAIN, &file).await.unwrap();
    assert_eq!(names(dir.path()), ["l"]);
}
