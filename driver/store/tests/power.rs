//! Every call of the store on a disk that breaks at every act, and on a host that loses its power at
//! every act, in every way in which what was not synced can be lost.
//!
//! What was told to be done is there afterwards. Of what was told to have failed, the old or the new
//! state is there, and the same call, made again, does it.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use virtsnap_engine::error::Result;
use virtsnap_engine::plan::{MomentChange, Operation, Pivot, Plan, Step};
use virtsnap_engine::ports::{Entry, Journals, Records};
use virtsnap_store::testing::{LossyDisk, TROUBLES, Trouble, scratch};
use virtsnap_store::{Store, StoredDomain};
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::Definition;

const UUID: Uuid = Uuid::from_u128(0x1234);

/// How a store is opened: as it is, or with what xl's users read of each moment.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Plain,
    Informing,
}

impl Kind {
    fn of(self, store: Store) -> Store {
        match self {
            Kind::Plain => store,
            Kind::Informing => store.informing(),
        }
    }
}

fn config(name: &str, memory: u32) -> Element {
    Element::parse(&format!(
        "<domain type='qemu'><name>{name}</name><uuid>{UUID}</uuid><memory>{memory}</memory></domain>"
    ))
    .unwrap()
}

fn moment(name: &str, parent: Option<&str>) -> Definition {
    let parent = parent.map_or_else(String::new, |p| format!("<parent><name>{p}</name></parent>"));
    let text = format!(
        "<domainsnapshot><name>{name}</name><state>shutoff</state>{parent}\
         <creationTime>1</creationTime><memory snapshot='no'/>\
         <disks><disk name='vda' snapshot='no'/></disks>{}<active>0</active></domainsnapshot>",
        config("vm", 1)
    );
    Definition::parse_stored(&Element::parse(&text).unwrap()).unwrap().0
}

fn change(write: &[Definition], forget: &[&str], current: Option<&str>) -> MomentChange {
    MomentChange {
        write: write.to_vec(),
        forget: forget.iter().map(|&name| name.to_owned()).collect(),
        current: current.map(str::to_owned),
    }
}

fn plan() -> Plan {
    Plan {
        operation: Operation::Create { moment: "s".to_owned() },
        prepare: vec![Step::Pause],
        pivot: Pivot::Record,
        finish: Vec::new(),
        conclude: Vec::new(),
    }
}

/// None is missing, none is too many, and each says what its moment does.
fn check_information(
    store: &Store,
    root: &Path,
    domain: &StoredDomain,
    there: bool,
    context: &str,
) {
    assert_eq!(store.strays(UUID).unwrap(), [], "{context}: one of no moment");
    let moments = root.join("domains").join(UUID.to_string()).join("moments");
    let entries = std::fs::read_dir(moments).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let found: BTreeSet<_> = names.filter(|name| name.ends_with(".xl")).collect();
    let expected: BTreeSet<_> = (domain.book.moments.iter().filter(|_| there))
        .map(|moment| format!("snapshotdata-{}.xl", moment.name))
        .collect();
    assert_eq!(found, expected, "{context}");
}

/// All that a store tells.
#[derive(Debug, Clone, PartialEq)]
struct View {
    domains: Vec<String>,
    journals: Vec<Vec<Entry>>,
}

/// Nothing that cannot be read is left by any loss.
fn view(root: &Path, kind: Kind, context: &str) -> View {
    let store = Store::open(root).unwrap_or_else(|err| panic!("{context}: {}", err.chain()));
    let store = kind.of(store);
    let loaded = store.load().unwrap();
    for domain in &loaded.domains {
        check_information(&store, root, domain, kind == Kind::Informing, context);
    }
    assert_eq!(loaded.bad, [], "{context}");
    let domains = loaded.domains.iter().map(|domain| {
        let book = &domain.book;
        let moments: Vec<_> =
            book.moments.iter().map(|def| (&def.name, &def.parent, &def.domain)).collect();
        format!(
            "{} autostart={} {:?} owned={:?} current={:?} {moments:?}",
            book.name,
            domain.autostart,
            book.config.as_ref().map(Element::to_string),
            book.owned,
            book.moments.current(),
        )
    });
    let domains = domains.collect();
    let journals = store.unfinished().unwrap();
    View { domains, journals: journals.into_iter().map(|one| one.entries).collect() }
}

type Act = fn(&Store) -> Result<()>;

/// Whether the call is one step, so that nothing between old and new may be seen. Several moments
/// change in several steps, which the journal of their operation completes.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    OneStep,
    Several,
}

/// How many states a loss of power was tried in.
fn every_trouble(before: &[Act], act: Act, is: Is) -> usize {
    every_trouble_of(Kind::Plain, before, act, is)
}

fn every_trouble_of(kind: Kind, before: &[Act], act: Act, is: Is) -> usize {
    let setup = |root: &Path| {
        let store = kind.of(Store::open(root).unwrap());
        store.load().unwrap();
        before.iter().for_each(|act| act(&store).unwrap());
    };
    let done = scratch();
    setup(done.path());
    let old = view(done.path(), kind, "before");
    let store = kind.of(Store::open(done.path()).unwrap());
    store.load().unwrap();
    act(&store).unwrap();
    drop(store);
    let new = view(done.path(), kind, "after");
    let mut tried = 0;

    for trouble in TROUBLES {
        for at in 0.. {
            let context = format!("act {at} {trouble:?}");
            let home = scratch();
            setup(home.path());
            let disk = Arc::new(LossyDisk::new(home.path()));
            let store = kind.of(Store::open_watched(home.path(), disk.clone()).unwrap());
            store.load().unwrap();
            disk.arm(at, trouble);
            let result = act(&store);
            let struck = disk.was_struck();
            let mut check = |is_done: bool, when: &str| {
                for lost in disk.losses() {
                    let seen = view(lost.path(), kind, &format!("{context}, {when}"));
                    let is_fine = seen == new || !is_done && (seen == old || is == Is::Several);
                    assert!(is_fine, "{context}, {when}:\nsaw {seen:?}\nold {old:?}\nnew {new:?}");
                    tried += 1;
                }
            };
            check(result.is_ok(), "power lost");
            if !struck {
                assert!(at > 0 && result.is_ok(), "{context}: {result:?}");
                break;
            }
            disk.mend();
            if trouble == Trouble::Dies {
                // Whoever comes next finds one of them and does it again.
                for lost in disk.losses() {
                    let disk = Arc::new(LossyDisk::new(lost.path()));
                    let store = kind.of(Store::open_watched(lost.path(), disk.clone()).unwrap());
                    store.load().unwrap();
                    act(&store).unwrap_or_else(|err| panic!("{context}: {}", err.chain()));
                    drop(store);
                    for lost in disk.losses() {
                        assert_eq!(view(lost.path(), kind, &context), new, "{context}, done again");
                    }
                }
            } else {
                act(&store).unwrap_or_else(|err| panic!("{context}: {}", err.chain()));
                check(true, "done again");
            }
        }
    }
    tried
}

const DEFINE: Act = |store| store.set_config(UUID, &config("vm", 1));
const NAME: Act = |store| store.set_name(UUID, "vm");
const AUTOSTART: Act = |store| store.set_autostart(UUID, true);
const OWN: Act =
    |store| store.set_owned(UUID, &BTreeSet::from([PathBuf::from("/a"), PathBuf::from("/b")]));
const FIRST: Act = |store| store.record(UUID, &change(&[moment("s1", None)], &[], Some("s1")));
const SECOND: Act =
    |store| store.record(UUID, &change(&[moment("s2", Some("s1"))], &[], Some("s2")));

#[test]
fn what_is_told_of_a_definition_is_there() {
    let mut tried = 0;
    let mut every = |before: &[Act], act| tried += every_trouble(before, act, Is::OneStep);
    every(&[], DEFINE);
    every(&[DEFINE, NAME, AUTOSTART], |store| store.set_config(UUID, &config("vm", 2)));
    every(&[DEFINE, NAME], |store| store.set_config(UUID, &config("other", 1)));
    every(&[DEFINE, NAME, FIRST], |store| store.set_config(UUID, &config("other", 1)));
    every(&[DEFINE, NAME], AUTOSTART);
    every(&[DEFINE, NAME, AUTOSTART], |store| store.set_autostart(UUID, false));
    every(&[DEFINE, NAME, FIRST], OWN);
    every(&[DEFINE, NAME, AUTOSTART, FIRST], |store| store.remove_config(UUID));
    every(&[DEFINE, NAME, AUTOSTART, FIRST], |store| store.forget(UUID));
    every(&[DEFINE, NAME, AUTOSTART, |store| store.remove_config(UUID)], DEFINE);
    eprintln!("definitions: {tried} losses of power");
}

#[test]
fn what_is_told_of_moments_is_there() {
    let both = [DEFINE, NAME, FIRST, SECOND];
    let mut tried = every_trouble(&[DEFINE, NAME], FIRST, Is::OneStep);
    let mut several = |before: &[Act], act| tried += every_trouble(before, act, Is::Several);
    several(&[DEFINE, NAME, FIRST], SECOND);
    several(&both, |store| store.record(UUID, &change(&[], &[], Some("s1"))));
    several(&both, |store| store.record(UUID, &change(&[moment("s2", None)], &["s1"], Some("s2"))));
    several(&both, |store| store.record(UUID, &change(&[], &["s1", "s2"], None)));
    eprintln!("moments: {tried} losses of power");
}

/// Where the process dies between a record and what is read beside it, the next start completes it.
#[test]
fn what_xls_users_read_of_moments_is_there() {
    let both = [DEFINE, NAME, FIRST, SECOND];
    let of = |before: &[Act], act| every_trouble_of(Kind::Informing, before, act, Is::Several);
    let tried = of(&[DEFINE, NAME], FIRST)
        + of(&[DEFINE, NAME, FIRST], SECOND)
        + of(&both, |store| store.record(UUID, &change(&[], &["s1", "s2"], None)))
        + of(&both, |store| {
            store.record(UUID, &change(&[moment("s2", None)], &["s1"], Some("s2")))
        });
    eprintln!("moments with information: {tried} losses of power");
}

/// Of a journal, each line is one step; a line that was not told to be there may be.
#[test]
fn what_is_told_of_a_journal_is_there() {
    const BEGIN: Act = |store| store.begin(UUID, &plan()).map(drop);
    const AGAIN: Act = |store| match store.unfinished()?.is_empty() {
        true => BEGIN(store),
        false => store.resume(UUID).map(drop),
    };
    /// As recovery, which looks at what is there first.
    const APPEND: Act = |store| {
        let has = store.unfinished()?[0].entries.len();
        let mut journal = store.resume(UUID)?;
        for n in has..3 {
            journal.record(Entry::Acting(n))?;
        }
        Ok(())
    };
    /// The next operation, where there is none to be ended.
    const CLOSE: Act = |store| {
        AGAIN(store)?;
        store.resume(UUID)?.close()
    };
    let tried = every_trouble(&[DEFINE], AGAIN, Is::OneStep)
        + every_trouble(&[DEFINE, BEGIN], APPEND, Is::Several)
        + every_trouble(&[DEFINE, BEGIN, APPEND], CLOSE, Is::OneStep);
    eprintln!("journals: {tried} losses of power");
}

#[test]
fn a_store_is_opened_on_whatever_is_left() {
    for at in 0..12 {
        let home = scratch();
        let disk = Arc::new(LossyDisk::new(home.path()));
        disk.arm(at, Trouble::Dies);
        let opened = Store::open_watched(home.path(), disk.clone());
        assert!(opened.is_ok() || disk.was_struck());
        for lost in disk.losses() {
            assert_eq!(view(lost.path(), Kind::Plain, "opened").domains, Vec::<String>::new());
        }
    }
}
