//! Journals: what is written comes back, and damage is told from absence.

use std::io::Write;

use proptest::prelude::*;
use virtsnap_engine::facts::Format;
use virtsnap_engine::plan::{Finish, Operation, Pivot, Step};

use super::*;

const DISK: Disk = Disk { watch: None, wait: None };
use crate::sample::{SHOP, every_word, plan};

const ENTRIES: [Entry; 6] = [
    Entry::Acting(0),
    Entry::Undone(0),
    Entry::Pivoting,
    Entry::Pivoted,
    Entry::Finished(12),
    Entry::Up(0),
];

fn journal(home: &Path, plan: &Plan, entries: &[Entry]) -> PathBuf {
    let path = home.join("journal.jsonl");
    let mut journal = JournalFile::begin(&DISK, &path, SHOP, plan).unwrap();
    for entry in entries {
        journal.record(*entry).unwrap();
    }
    path
}

fn entries(path: &Path) -> Vec<Entry> {
    read(path).unwrap().0.entries
}

#[test]
fn every_plan_is_read_as_it_was_written() {
    for plan in every_word() {
        let home = tempfile::tempdir().unwrap();
        let path = journal(home.path(), &plan, &ENTRIES);
        let (read, end) = read(&path).unwrap();
        assert_eq!(read, Unfinished { domain: SHOP, plan, entries: ENTRIES.to_vec() });
        assert_eq!(end as u64, fs::metadata(&path).unwrap().len());
    }
}

/// A crash may leave any beginning of what was written.
#[test]
fn torn_anywhere_the_lines_before_hold() {
    let home = tempfile::tempdir().unwrap();
    let path = journal(home.path(), &plan(), &ENTRIES);
    let whole = fs::read(&path).unwrap();
    let ends: Vec<usize> =
        (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
    for length in ends[0]..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let expected = ends.iter().filter(|end| **end <= length).count() - 1;
        assert_eq!(entries(&path), ENTRIES[..expected], "at {length}");

        let mut journal = JournalFile::resume(&DISK, &path).unwrap();
        journal.record(Entry::Finished(99)).unwrap();
        let mut all = ENTRIES[..expected].to_vec();
        all.push(Entry::Finished(99));
        assert_eq!(entries(&path), all, "resumed at {length}");
    }
    for length in 0..ends[0] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(read(&path).is_err(), "no plan at {length}");
    }
}

#[test]
fn a_torn_line_may_end_like_a_whole_one() {
    let home = tempfile::tempdir().unwrap();
    let path = journal(home.path(), &plan(), &ENTRIES[..2]);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"0123456789abcdef \0\0\0\0\n").unwrap();
    assert_eq!(entries(&path), ENTRIES[..2]);
}

#[test]
fn damage_before_the_end_makes_it_unreadable() {
    let home = tempfile::tempdir().unwrap();
    let path = journal(home.path(), &plan(), &ENTRIES);
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap();
    for at in (0..last).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let err = read(&path).unwrap_err();
        assert!(err.message.contains("journal.jsonl"), "{}", err.message);
        assert!(JournalFile::resume(&DISK, &path).is_err());
    }
}

#[test]
fn what_a_failed_append_left_is_overwritten() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("journal.jsonl");
    let mut journal = JournalFile::begin(&DISK, &path, SHOP, &plan()).unwrap();
    journal.record(ENTRIES[0]).unwrap();
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(
        b"half of a line that is longer than the next one will ever be, and more than t",
    )
    .unwrap();
    journal.record(ENTRIES[1]).unwrap();
    assert_eq!(entries(&path), ENTRIES[..2]);
}

#[test]
fn another_version_is_not_guessed_at() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("journal.jsonl");
    let json = r#"{"version":2,"plan":"all new"}"#;
    fs::write(&path, format!("{:016x} {json}\n", checksum(json.as_bytes()))).unwrap();
    let err = read(&path).unwrap_err();
    assert!(err.message.contains("version 2"), "{}", err.message);
}

#[test]
fn an_operation_does_not_begin_over_an_unfinished_one() {
    let home = tempfile::tempdir().unwrap();
    let path = journal(home.path(), &plan(), &ENTRIES);
    let err = JournalFile::begin(&DISK, &path, SHOP, &plan()).unwrap_err();
    assert_eq!(err.condition, Condition::OperationInvalid);
    assert_eq!(entries(&path), ENTRIES);
}

#[test]
fn what_could_not_be_read_back_is_refused_at_once() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("journal.jsonl");
    let mut plan = plan();
    let bad = crate::sample::moment(".hidden", None);
    let change = virtsnap_engine::plan::MomentChange { write: vec![bad], ..Default::default() };
    plan.finish.push(Finish::Record(change));
    assert!(JournalFile::begin(&DISK, &path, SHOP, &plan).is_err());
    assert!(!path.exists());
}

#[test]
fn a_closed_journal_is_gone() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("journal.jsonl");
    let journal = Box::new(JournalFile::begin(&DISK, &path, SHOP, &plan()).unwrap());
    journal.close().unwrap();
    assert!(!path.exists());
}

fn some_step() -> impl Strategy<Value = Step> {
    let text = "\\PC{0,12}";
    prop_oneof![
        Just(Step::Pause),
        Just(Step::FreezeFilesystems),
        (text, text, any::<u64>()).prop_map(|(overlay, backing, virtual_size)| {
            Step::CreateOverlay {
                overlay: overlay.into(),
                format: Format::Qcow2,
                backing: backing.into(),
                backing_format: Format::Raw,
                virtual_size,
            }
        }),
        (text, "[a-z]{1,9}", text).prop_map(|(disk, format, overlay)| Step::AttachOverlay {
            disk,
            overlay: overlay.into(),
            format: Format::from(format.as_str()),
        }),
        (text, text).prop_map(|(image, tag)| Step::SnapshotImage { image: image.into(), tag }),
    ]
}

fn some_finish() -> impl Strategy<Value = Finish> {
    prop_oneof![
        "\\PC{0,12}".prop_map(|path| Finish::RemoveImage(path.into())),
        ("[a-z<>&'\"]{1,12}", proptest::option::of("[a-z/]{1,12}")).prop_map(|(name, base)| {
            Finish::Stream { disk: name, top: "/t".into(), base: base.map(PathBuf::from) }
        }),
        "[a-z<>&'\"\n\t]{1,12}".prop_map(|text| {
            Finish::SetConfig(virtsnap_xml::element::Element::new("a").with_text(text))
        }),
    ]
}

fn some_entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        any::<usize>().prop_map(Entry::Acting),
        any::<usize>().prop_map(Entry::Undone),
        any::<usize>().prop_map(Entry::Finished),
        Just(Entry::Pivoting),
        Just(Entry::Pivoted),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_journal_is_read_as_it_was_written(
        moment in "\\PC{0,12}",
        prepare in proptest::collection::vec(some_step(), 0..4),
        finish in proptest::collection::vec(some_finish(), 0..4),
        entries in proptest::collection::vec(some_entry(), 0..6),
    ) {
        let plan = Plan {
            operation: Operation::Create { moment },
            prepare,
            pivot: Pivot::Record,
            finish,
            conclude: Vec::new(),
        };
        let home = tempfile::tempdir().unwrap();
        let path = journal(home.path(), &plan, &entries);
        prop_assert_eq!(read(&path).unwrap().0, Unfinished { domain: SHOP, plan, entries });
    }

    #[test]
    fn no_file_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("journal.jsonl");
        fs::write(&path, bytes).unwrap();
        prop_assert!(read(&path).is_err());
    }
}
