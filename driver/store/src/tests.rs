//! The store on a real file system.

use std::os::unix::fs::PermissionsExt;

use virtsnap_engine::ports::Entry;
use virtsnap_xml::snapshot::{Memory, State};

use super::*;
use crate::sample::{SHOP, TRANSIENT, config, every_word, moment, plan};

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/store/v1")
}

fn change(write: &[(&str, Option<&str>)], forget: &[&str], current: Option<&str>) -> MomentChange {
    MomentChange {
        write: write.iter().map(|(name, parent)| moment(name, *parent)).collect(),
        forget: forget.iter().map(|name| (*name).to_owned()).collect(),
        current: current.map(str::to_owned),
    }
}

fn owned(paths: &[&str]) -> BTreeSet<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

/// What the frozen store holds.
fn fill(store: &Store) {
    store.set_name(SHOP, "shop & co").unwrap();
    store.set_config(SHOP, &config(SHOP, "shop & co")).unwrap();
    store.set_autostart(SHOP, true).unwrap();
    let long = "n".repeat(300);
    store.record(SHOP, &change(&[("s1", None)], &[], Some("s1"))).unwrap();
    store.record(SHOP, &change(&[("s2", Some("s1"))], &[], Some("s2"))).unwrap();
    let odd = [("50% | a?", Some("s1")), (long.as_str(), None)];
    for (name, parent) in odd {
        store.record(SHOP, &change(&[(name, parent)], &[], Some("s2"))).unwrap();
    }
    store.set_owned(SHOP, &owned(&["/srv/images/a.s1", "/srv/images/a.s2"])).unwrap();
    let mut journal = store.begin(SHOP, &plan()).unwrap();
    for entry in [Entry::Acting(0), Entry::Acting(1), Entry::Pivoting, Entry::Pivoted] {
        journal.record(entry).unwrap();
    }
    journal.record(Entry::Finished(0)).unwrap();

    store.set_name(TRANSIENT, "passing").unwrap();
    store.record(TRANSIENT, &change(&[("s1", None)], &[], None)).unwrap();
    let mut journal = store.begin(TRANSIENT, &every_word()[1]).unwrap();
    journal.record(Entry::Acting(0)).unwrap();
    journal.record(Entry::Undone(0)).unwrap();
}

/// Every file below `root`, by its path in it.
fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let text = fs::read_to_string(&path).unwrap();
                found.insert(path.strip_prefix(root).unwrap().to_owned(), text);
            }
        }
    }
    found.remove(Path::new("lock"));
    found
}

/// A copy of the frozen store.
fn thawed() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for (path, text) in tree(&frozen()) {
        let path = home.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    home
}

fn check_content(store: &Store) {
    let Loaded { domains, bad } = store.load().unwrap();
    assert_eq!(bad, []);
    let [passing, shop] = domains.as_slice() else { panic!("{domains:?}") };
    assert_eq!((shop.book.uuid, shop.book.name.as_str()), (SHOP, "shop & co"));
    assert!(shop.autostart && !shop.book.has_managed_save);
    assert_eq!(shop.book.config, Some(config(SHOP, "shop & co")));
    assert_eq!(shop.book.moments.len(), 4);
    assert_eq!(shop.book.moments.current(), Some("s2"));
    assert_eq!(shop.book.moments.get("s2"), Some(&moment("s2", Some("s1"))));
    assert_eq!(shop.book.owned, owned(&["/srv/images/a.s1", "/srv/images/a.s2"]));
    assert_eq!((passing.book.name.as_str(), passing.autostart), ("passing", false));
    assert_eq!((&passing.book.config, passing.book.moments.current()), (&None, None));
    assert_eq!(passing.book.moments.len(), 1);
    let unfinished = store.unfinished().unwrap();
    assert_eq!(unfinished.len(), 2);
    assert_eq!((unfinished[0].domain, &unfinished[0].plan), (TRANSIENT, &every_word()[1]));
    assert_eq!((unfinished[1].domain, &unfinished[1].plan), (SHOP, &plan()));
    assert_eq!(unfinished[1].entries.last(), Some(&Entry::Finished(0)));
}

#[test]
fn the_frozen_store_is_opened_and_read() {
    let home = thawed();
    check_content(&Store::open(home.path()).unwrap());
    assert_eq!(tree(home.path()), tree(&frozen()), "opening and reading changes nothing");
}

/// The format does not change without a new version. A new version's tree is made by this test
/// where there is none; one that is there is never touched.
#[test]
fn what_is_written_today_is_what_was_frozen() {
    let home = tempfile::tempdir().unwrap();
    fill(&Store::open(home.path()).unwrap());
    let written = tree(home.path());
    if !frozen().exists() {
        for (path, text) in &written {
            let path = frozen().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    assert_eq!(written, tree(&frozen()));
}

#[test]
fn the_document_shows_the_frozen_files_and_every_word() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/format.md");
    let document = fs::read_to_string(document).unwrap();
    for (path, text) in tree(&frozen()) {
        if path.starts_with(format!("domains/{SHOP}")) && !path.to_string_lossy().contains('%') {
            assert!(document.contains(&text), "docs/format.md lacks {}", path.display());
        }
    }
    let mut words = BTreeSet::new();
    for plan in every_word() {
        collect(&serde_json::to_value(v1::PlanV1::from(&plan)).unwrap(), &mut words);
    }
    for word in words {
        assert!(document.contains(&format!("`{word}`")), "docs/format.md lacks `{word}`");
    }
}

/// Keys, and texts that are words of the format.
fn collect(value: &serde_json::Value, words: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                words.insert(key.clone());
                let content = ["tag", "vmstate", "disk", "moment", "format", "backing-format"];
                if !content.contains(&key.as_str()) {
                    collect(value, words);
                }
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, words)),
        serde_json::Value::String(text) => {
            let word = text.len() > 3 && text.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            if word {
                words.insert(text.clone());
            }
        }
        _ => {}
    }
}

/// What the document shows.
const INFORMATION: &str = "snapshot_name=\"before update\"\n\
    snapshot_creationtime=\"1795309776\"\n\
    snapshot_save=\"/srv/images/shop.before update.save\"\n";

fn with_memory() -> MomentChange {
    let mut moment = moment("before update", None);
    moment.creation_time = 1_795_309_776;
    let file = "/srv/images/shop.before update.save".to_owned();
    moment.memory = Memory::External { file };
    moment.state = State::Running;
    MomentChange { write: vec![moment], ..MomentChange::default() }
}

#[test]
fn what_xls_users_read_stands_beside_a_moment_as_long_as_it_does() {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/format.md");
    let document = fs::read_to_string(document).unwrap();
    assert!(document.contains(INFORMATION), "docs/format.md shows it");

    let home = tempfile::tempdir().unwrap();
    let moments = home.path().join("domains").join(SHOP.to_string()).join("moments");
    let file = moments.join("snapshotdata-before update.xl");
    let store = Store::open(home.path()).unwrap();
    store.set_config(SHOP, &config(SHOP, "shop")).unwrap();
    store.record(SHOP, &with_memory()).unwrap();
    assert!(!file.exists(), "nobody asked for it");
    drop(store);

    let store = Store::open(home.path()).unwrap().informing();
    assert_eq!(store.load().unwrap().domains.len(), 1);
    assert_eq!(fs::read_to_string(&file).unwrap(), INFORMATION, "made when it is missing");
    store.record(SHOP, &change(&[], &["before update"], None)).unwrap();
    assert_eq!(fs::read_dir(&moments).unwrap().count(), 0);
    store.record(SHOP, &with_memory()).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), INFORMATION);
}

#[test]
fn what_somebody_put_there_for_other_snapshots_is_told() {
    let home = tempfile::tempdir().unwrap();
    let moments = home.path().join("domains").join(SHOP.to_string()).join("moments");
    let store = Store::open(home.path()).unwrap().informing();
    store.set_config(SHOP, &config(SHOP, "shop")).unwrap();
    store.record(SHOP, &change(&[("s1", None)], &[], None)).unwrap();
    let put = |name: &str, text: &str| fs::write(moments.join(name), text).unwrap();
    put("snapshotdata-before.xl", INFORMATION);
    put("snapshotdata-empty.xl", "");
    put("snapshotdata-long.xl", &format!("{INFORMATION}{}", "#\n".repeat(40_000)));
    put("snapshotdata-twice.xl", &INFORMATION.replace("before update", "s1"));
    put("other.xl", INFORMATION);
    fs::create_dir(moments.join("snapshotdata-directory.xl")).unwrap();

    let stray = moments.join("snapshotdata-before.xl");
    let store = store.with_strays_in(&home.path().join("elsewhere"));
    let found = store.strays(SHOP).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0].0, found[0].1.name.as_str()), (&stray, "before update"));
    assert_eq!(store.load().unwrap().bad, []);
    store.record(SHOP, &with_memory()).unwrap();
    store.took_in(SHOP, &stray).unwrap();
    assert!(!stray.exists() && moments.join("snapshotdata-before update.xl").exists());
    assert_eq!(store.strays(SHOP).unwrap(), []);
    let elsewhere = home.path().join("elsewhere").join(SHOP.to_string());
    fs::create_dir_all(&elsewhere).unwrap();
    let another = elsewhere.join("snapshotdata-before update.xl");
    fs::write(&another, INFORMATION.replace("before", "after")).unwrap();
    let found = store.strays(SHOP).unwrap();
    assert_eq!((found.len(), &found[0].0), (1, &another), "by its place, it is none of ours");
    store.took_in(SHOP, &another).unwrap();
    assert!(!another.exists());
    store.took_in(SHOP, &moments.join("snapshotdata-before update.xl")).unwrap();
    assert!(moments.join("snapshotdata-before update.xl").exists(), "that is ours");
    drop(store);
    assert_eq!(Store::open(home.path()).unwrap().strays(SHOP).unwrap(), []);
}

#[test]
fn one_process_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    let err = Store::open(home.path()).unwrap_err();
    assert_eq!(err.condition, Condition::ResourceBusy);
    drop(store);
    Store::open(home.path()).unwrap();
}

#[test]
fn a_store_is_waited_for_while_a_killed_daemons_child_has_it() {
    let home = tempfile::tempdir().unwrap();
    drop(Store::open(home.path()).unwrap());
    let lock = File::open(home.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let child = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(lock);
    });
    Store::open(home.path()).unwrap();
    child.join().unwrap();
}

#[test]
fn a_closed_store_is_free_though_a_child_still_has_its_lock_open() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    let child = store._lock.0.try_clone().unwrap();
    drop(store);
    Store::open(home.path()).unwrap();
    drop(child);
}

#[test]
fn another_layout_is_refused_by_its_version() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("version"), "2\n").unwrap();
    let err = Store::open(home.path()).unwrap_err();
    assert_eq!(err.condition, Condition::ConfigUnsupported);
    assert!(err.message.contains("'2'"), "{}", err.message);
}

#[test]
fn nobody_else_can_read() {
    let home = tempfile::tempdir().unwrap();
    let root = home.path().join("a/b");
    fill(&Store::open(&root).unwrap());
    let mut open = vec![root];
    while let Some(path) = open.pop() {
        let metadata = fs::metadata(&path).unwrap();
        let mode = metadata.permissions().mode() & 0o7777;
        assert_eq!(mode, if metadata.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
        if metadata.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
}

/// (name, parent) of the moments, and the current one, as a fresh reader sees them.
fn moments(home: &Path) -> (Vec<(String, Option<String>)>, Option<String>) {
    let loaded = Store::open(home).unwrap().load().unwrap();
    assert_eq!(loaded.bad, []);
    let moments = &loaded.domains[0].book.moments;
    let names = moments.iter().map(|def| (def.name.clone(), def.parent.clone())).collect();
    (names, moments.current().map(str::to_owned))
}

#[test]
fn changes_of_moments_are_durable_and_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let steps = [
        (change(&[("a", None)], &[], Some("a")), vec![("a", None)], Some("a")),
        (
            change(&[("b", Some("a"))], &[], Some("b")),
            vec![("a", None), ("b", Some("a"))],
            Some("b"),
        ),
        // Revert: only the mark moves.
        (change(&[], &[], Some("a")), vec![("a", None), ("b", Some("a"))], Some("a")),
        // Delete of the parent, its child moves up.
        (change(&[("b", None)], &["a"], Some("b")), vec![("b", None)], Some("b")),
        (change(&[], &[], None), vec![("b", None)], None),
        (change(&[], &["b", "never"], None), vec![], None),
        (change(&[("b", None)], &["b"], None), vec![("b", None)], None),
    ];
    for (change, expected, current) in steps {
        for _ in 0..2 {
            let store = Store::open(home.path()).unwrap();
            store.set_name(SHOP, "n").unwrap();
            store.record(SHOP, &change).unwrap();
            store.record(SHOP, &change).unwrap();
            drop(store);
            let expected: Vec<_> = expected
                .iter()
                .map(|(name, parent)| ((*name).to_owned(), parent.map(str::to_owned)))
                .collect();
            assert_eq!(moments(home.path()), (expected, current.map(str::to_owned)));
        }
    }
}

#[test]
fn a_moment_that_could_not_be_read_back_is_not_written() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    store.set_name(SHOP, "n").unwrap();
    let before = tree(home.path());
    let mut deep = moment("deep", None);
    deep.extra = vec![(0..400).fold(Element::new("a"), |e, _| Element::new("a").with_child(e))];
    for bad in [deep, moment(".hidden", None)] {
        let change = MomentChange { write: vec![bad], ..MomentChange::default() };
        store.record(SHOP, &change).unwrap_err();
    }
    assert_eq!(tree(home.path()), before);
}

#[test]
fn two_names_with_one_escaped_beginning_are_two_files() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    store.set_name(SHOP, "n").unwrap();
    let (a, b) = ("x".repeat(250), "x".repeat(251));
    store.record(SHOP, &change(&[(&a, None), (&b, None)], &[], None)).unwrap();
    assert_eq!(store.load().unwrap().domains[0].book.moments.len(), 2);
}

#[test]
fn the_name_inside_a_file_decides() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    store.set_name(SHOP, "n").unwrap();
    store.record(SHOP, &change(&[("a", None)], &[], Some("a"))).unwrap();
    let directory = home.path().join(format!("domains/{SHOP}/moments"));
    fs::rename(directory.join("a.xml"), directory.join("renamed.xml")).unwrap();
    drop(store);

    let store = Store::open(home.path()).unwrap();
    assert_eq!(store.load().unwrap().domains[0].book.moments.current(), Some("a"));
    // Where another moment's file stands in the way, nothing is lost.
    let err = store.record(SHOP, &change(&[("renamed", None)], &[], None)).unwrap_err();
    assert!(err.message.contains("holds snapshot 'a'"), "{}", err.message);
    store.record(SHOP, &change(&[("a", None)], &[], None)).unwrap();
    let files: Vec<_> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["a.xml"]);
}

#[test]
fn a_bad_file_is_reported_by_name_and_hides_nothing_else() {
    let home = thawed();
    let shop = home.path().join(format!("domains/{SHOP}"));
    let bad_moment = shop.join("moments/s1.xml");
    let bad_journal = shop.join("journal.jsonl");
    let bad_own = home.path().join(format!("domains/{TRANSIENT}/domain.json"));
    fs::write(&bad_moment, "<domainsnapshot>").unwrap();
    fs::write(&bad_journal, "x").unwrap();
    fs::write(&bad_own, r#"{"version":7}"#).unwrap();
    fs::write(shop.join("moments/notes.txt"), "mine").unwrap();
    fs::create_dir(home.path().join("domains/strange")).unwrap();
    fs::copy(shop.join("moments/s2.xml"), shop.join("moments/s2 copy.xml")).unwrap();
    let store = Store::open(home.path()).unwrap();
    let Loaded { domains, bad } = store.load().unwrap();
    let paths: BTreeSet<_> = bad.into_iter().map(|bad| bad.path).collect();
    let expected = [
        bad_moment.clone(),
        bad_journal,
        bad_own.clone(),
        // Of two the first by file name counts.
        shop.join("moments/s2.xml"),
        home.path().join("domains/strange"),
        // Nothing says the other domain's name any more.
        home.path().join(format!("domains/{TRANSIENT}")),
    ];
    assert_eq!(paths, expected.into_iter().collect());
    let [shop_domain] = domains.as_slice() else { panic!("{domains:?}") };
    assert_eq!(shop_domain.book.moments.len(), 3);
    assert_eq!(shop_domain.book.moments.current(), Some("s2"));

    // The operation of the unreadable journal is unknown: no other may begin.
    let unfinished: Vec<_> = store.unfinished().unwrap().iter().map(|one| one.domain).collect();
    assert_eq!(unfinished, [TRANSIENT]);
    assert!(store.begin(SHOP, &plan()).is_err());

    // What takes a bad file's place does not destroy it.
    store.record(SHOP, &change(&[("s1", None)], &[], None)).unwrap();
    store.set_name(TRANSIENT, "named").unwrap();
    let aside = |path: &Path| fs::read_to_string(format!("{}.unreadable", path.display()));
    assert_eq!(aside(&bad_moment).unwrap(), "<domainsnapshot>");
    assert_eq!(aside(&bad_own).unwrap(), r#"{"version":7}"#);
    assert_eq!(store.load().unwrap().domains.len(), 2);
}

#[test]
fn a_domain_whose_definition_cannot_be_read_is_not_listed_and_stays() {
    for text in ["", "<domain>", "<network/>", "<domain><name>n</name></domain>"] {
        let home = thawed();
        let path = home.path().join(format!("domains/{SHOP}/domain.xml"));
        fs::write(&path, text).unwrap();
        let before = tree(home.path());
        let store = Store::open(home.path()).unwrap();
        let Loaded { domains, bad } = store.load().unwrap();
        assert_eq!(domains.len(), 1);
        assert_eq!(bad.iter().map(|bad| &bad.path).collect::<Vec<_>>(), [&path]);
        assert_eq!(tree(home.path()), before);
        // Nor does another domain that takes its uuid write over it, or take it away.
        for refused in [
            store.set_name(SHOP, "another"),
            store.set_config(SHOP, &config(SHOP, "another")),
            store.record(SHOP, &change(&[("s1", None)], &[], None)),
            store.remove_config(SHOP),
            store.forget(SHOP),
        ] {
            assert!(refused.unwrap_err().message.contains("domain.xml' cannot be read"));
        }
        assert_eq!(tree(home.path()), before);
    }
}

#[test]
fn a_definition_that_could_not_be_read_back_is_not_written() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    fill(&store);
    let before = tree(home.path());
    let nested = (0..400).fold(Element::new("a"), |e, _| Element::new("a").with_child(e));
    let deep = config(SHOP, "shop").with_child(Element::new("metadata").with_child(nested));
    for bad in [deep, config(TRANSIENT, "shop"), Element::new("domain")] {
        store.set_config(SHOP, &bad).unwrap_err();
    }
    assert_eq!(tree(home.path()), before);
}

/// A crash of [`atomic::replace`] before its rename leaves the old file and a new one beside it.
#[test]
fn what_a_crash_left_half_written_is_taken_away() {
    let home = thawed();
    let shop = home.path().join(format!("domains/{SHOP}"));
    let before = tree(home.path());
    for directory in [home.path(), &shop, &shop.join("moments"), &home.path().join("domains")] {
        fs::write(directory.join(".new-Xy12"), "<domain").unwrap();
    }
    let gone = home.path().join(format!("domains/.new-{TRANSIENT}"));
    fs::create_dir_all(gone.join("moments")).unwrap();
    check_content(&Store::open(home.path()).unwrap());
    assert_eq!(tree(home.path()), before);
    assert!(!gone.exists());
}

/// A crash between the writes of one change: at most one moment is current, none is lost, and
/// doing the change again completes it.
#[test]
fn a_change_that_was_interrupted_is_completed_by_doing_it_again() {
    let new = change(&[("b", None)], &["a"], Some("b"));
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    store.set_name(SHOP, "n").unwrap();
    store.record(SHOP, &change(&[("a", None), ("b", Some("a"))], &[], Some("a"))).unwrap();
    // A directory in the place of its file makes the second write fail.
    let file = home.path().join(format!("domains/{SHOP}/moments/b.xml"));
    let content = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    fs::create_dir_all(file.join("in the way")).unwrap();
    store.record(SHOP, &new).unwrap_err();
    fs::remove_dir_all(&file).unwrap();
    fs::write(&file, content).unwrap();
    drop(store);
    let (names, current) = moments(home.path());
    assert_eq!((names.len(), current), (2, None));

    let store = Store::open(home.path()).unwrap();
    store.record(SHOP, &new).unwrap();
    drop(store);
    assert_eq!(moments(home.path()), (vec![("b".to_owned(), None)], Some("b".to_owned())));
}

#[test]
fn a_domain_is_renamed_undefined_and_forgotten() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    fill(&store);
    store.set_name(SHOP, "new").unwrap();
    store.set_config(SHOP, &config(SHOP, "new")).unwrap();
    let book = |store: &Store| store.load().unwrap().domains.pop().unwrap();
    assert_eq!(book(&store).book.name, "new");
    fs::write(store.managed_save(SHOP).unwrap(), "").unwrap();
    assert!(book(&store).book.has_managed_save);

    store.remove_config(SHOP).unwrap();
    store.remove_config(SHOP).unwrap();
    let left = book(&store);
    assert_eq!((left.book.name.as_str(), left.autostart), ("new", false));
    assert_eq!((left.book.config, left.book.moments.len()), (None, 4));

    store.forget(SHOP).unwrap();
    store.forget(SHOP).unwrap();
    assert_eq!(store.load().unwrap().domains.len(), 1);
    assert_eq!(store.unfinished().unwrap().len(), 1);
    assert_eq!(fs::read_dir(home.path().join("domains")).unwrap().count(), 1);
    // The uuid can be used anew.
    store.set_config(SHOP, &config(SHOP, "again")).unwrap();
    assert!(book(&store).book.moments.is_empty());
}

#[test]
fn journals_are_found_resumed_and_closed() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(home.path()).unwrap();
    store.begin(SHOP, &plan()).unwrap().record(Entry::Acting(0)).unwrap();
    drop(store);
    let store = Store::open(home.path()).unwrap();
    let mut journal = store.resume(SHOP).unwrap();
    journal.record(Entry::Undone(0)).unwrap();
    let [unfinished] = store.unfinished().unwrap().try_into().unwrap();
    assert_eq!(unfinished.entries, [Entry::Acting(0), Entry::Undone(0)]);
    journal.close().unwrap();
    assert_eq!(store.unfinished().unwrap(), []);
    assert!(store.resume(SHOP).is_err());
}
