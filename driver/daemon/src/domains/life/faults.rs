//! Definitions on a disk that breaks: every change of the disk fails in turn, the disk is full or
//! read-only from there on, the daemon dies there, the host loses its power there.
//!
//! Afterwards the old state or the new one holds, what was told to be done is done, a daemon that
//! starts on what is left lists every domain, and the same call, made again, does it.

use std::path::Path;
use std::sync::Arc;

use virtsnap_engine::plan::MomentChange;
use virtsnap_store::testing::{LossyDisk, TROUBLES, Trouble, scratch};
use virtsnap_store::{Act, Watch};
use virtsnap_xml::snapshot::Definition;

use super::*;
use crate::fake::{self, FakeHypervisor};

const UUID: Uuid = Uuid::from_u128(1);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Define(&'static str),
    Undefine,
    Rename(&'static str),
    Autostart(bool),
    Title(&'static str),
    /// With the domain's definition of then.
    Snapshot(&'static str),
}
use Op::{Autostart, Define, Rename, Snapshot, Title};

async fn apply(domains: &Domains<FakeHypervisor>, op: Op) -> Result<()> {
    if let Define(name) = op {
        let xml = format!("<domain type='qemu'><name>{name}</name><uuid>{UUID}</uuid></domain>");
        return domains.define(&xml).await.map(drop);
    }
    let vm = domains.find(UUID)?;
    match op {
        Define(_) => Ok(()),
        Op::Undefine => {
            let metadata = Undefine { snapshots_metadata: true, ..Undefine::default() };
            domains.undefine(&vm, metadata).await
        }
        Rename(name) => domains.rename(&vm, name).await,
        Autostart(on) => domains.set_autostart(&vm, on).await,
        Title(title) => domains.store_config(&vm, |config| {
            definition::set_metadata(config, definition::Metadata::Title, Some(title), "")
        }),
        Snapshot(name) => {
            let text = format!(
                "<domainsnapshot><name>{name}</name><state>shutoff</state>\
                 <creationTime>1</creationTime><memory snapshot='no'/>\
                 <disks><disk name='vda' snapshot='no'/></disks>{}<active>1</active>\
                 </domainsnapshot>",
                vm.config().expect("it is persistent")
            );
            let parsed = Definition::parse_stored(&Element::parse(&text).expect("XML"));
            let (moment, _) = parsed.expect("a snapshot");
            let current = Some(moment.name.clone());
            let change = MomentChange { write: vec![moment], forget: Vec::new(), current };
            domains.table.store().record(UUID, &change)?;
            vm.book().moments.apply(&change);
            Ok(())
        }
    }
}

/// All that a client can see.
fn view(domains: &Domains<FakeHypervisor>) -> Vec<String> {
    let domains = domains.table.all().into_iter().map(|vm| {
        let moments: Vec<_> = (vm.book().moments.iter())
            .map(|moment| (moment.name.clone(), moment.domain.as_ref().map(Element::to_string)))
            .collect();
        let config = vm.config().map(|config| config.to_string());
        format!("{} autostart={} {config:?} {moments:?}", vm.name(), vm.autostart())
    });
    domains.collect()
}

fn start(root: &Path) -> Domains<FakeHypervisor> {
    let store = Store::open(root).unwrap_or_else(|err| panic!("{}", err.chain()));
    assert_eq!(store.load().unwrap().bad, []);
    let (domains, _) = fake::domains_on(store);
    domains.drop_ended();
    domains
}

/// Repeated when it had been done, it may be refused as done.
fn is_done_or_refused(result: &Result<()>, was_done: bool) -> bool {
    match result {
        Ok(()) => true,
        Err(err) => {
            let refused =
                matches!(err.condition, Condition::OperationInvalid | Condition::NoDomain);
            was_done && refused
        }
    }
}

/// In how many states a daemon was started.
async fn every_trouble(before: &[Op], op: Op) -> usize {
    let mut started = 0;
    let setup = async |root: &Path| {
        let domains = start(root);
        for op in before {
            apply(&domains, *op).await.unwrap();
        }
        view(&domains)
    };
    let home = scratch();
    let old = setup(home.path()).await;
    let domains = start(home.path());
    assert_eq!(view(&domains), old, "a restart changes nothing");
    apply(&domains, op).await.unwrap();
    let new = view(&domains);

    for trouble in TROUBLES {
        for at in 0.. {
            let context = format!("{before:?} then {op:?}, act {at} {trouble:?}");
            let home = scratch();
            setup(home.path()).await;
            let disk = Arc::new(LossyDisk::new(home.path()));
            let store = Store::open_watched(home.path(), disk.clone()).unwrap();
            let (domains, _) = fake::domains_on(store);
            disk.arm(at, trouble);
            let result = apply(&domains, op).await;
            let struck = disk.was_struck();
            let seen = view(&domains);
            let expected = if result.is_ok() { &new } else { &old };
            assert!(trouble == Trouble::Dies || seen == *expected, "{context}: {seen:?}");
            for lost in disk.losses() {
                let domains = start(lost.path());
                let seen = view(&domains);
                let is_fine = seen == new || result.is_err() && seen == old;
                assert!(is_fine, "{context}:\nsaw {seen:?}\nold {old:?}\nnew {new:?}");
                let again = apply(&domains, op).await;
                assert!(is_done_or_refused(&again, seen == new), "{context}, again: {again:?}");
                assert_eq!(view(&domains), new, "{context}, again");
                started += 1;
            }
            if !struck {
                assert!(at > 0 && result.is_ok(), "{context}: {result:?}");
                break;
            }
            // The same daemon, when the disk is well again.
            disk.mend();
            let again = apply(&domains, op).await;
            assert!(is_done_or_refused(&again, result.is_ok()), "{context}, mended: {again:?}");
            assert_eq!(view(&domains), new, "{context}, mended");
            for lost in disk.losses() {
                assert_eq!(view(&start(lost.path())), new, "{context}, mended");
                started += 1;
            }
        }
    }
    started
}

async fn every(cases: &[(&[Op], Op)]) {
    let mut started = 0;
    for (before, op) in cases {
        started += every_trouble(before, *op).await;
    }
    eprintln!("{started} starts on what was left");
}

#[tokio::test]
async fn a_definition_is_the_old_one_or_the_new() {
    every(&[
        (&[], Define("a")),
        (&[Define("a"), Title("old")], Define("a")),
        (&[Define("a"), Autostart(true), Title("old")], Title("new")),
        (&[Define("a")], Autostart(true)),
        (&[Define("a"), Autostart(true)], Autostart(false)),
    ])
    .await;
}

#[tokio::test]
async fn a_domain_is_there_or_gone() {
    every(&[
        (&[Define("a"), Autostart(true)], Op::Undefine),
        (&[Define("a"), Snapshot("s1"), Snapshot("s2")], Op::Undefine),
        (&[Define("a"), Autostart(true), Op::Undefine], Define("a")),
    ])
    .await;
}

const OTHER: Uuid = Uuid::from_u128(2);

async fn define_with_nvram(domains: &Domains<FakeHypervisor>, uuid: Uuid, nvram: &Path) {
    let xml = format!(
        "<domain type='qemu'><name>{uuid}</name><uuid>{uuid}</uuid><os><nvram>{}</nvram></os>\
         </domain>",
        nvram.display()
    );
    domains.define(&xml).await.unwrap();
}

/// The variable store is there as long as its domain, and no longer; and as long as another domain
/// has it.
#[tokio::test]
async fn what_goes_with_a_domain_is_there_or_gone_with_it() {
    let outside = scratch();
    let nvram = outside.path().join("vars.fd");
    let options =
        Undefine { nvram: Nvram::Remove, snapshots_metadata: true, ..Undefine::default() };
    let is_right = |domains: &Domains<FakeHypervisor>, context: &str| {
        let is_needed = domains.find(UUID).is_ok() || domains.find(OTHER).is_ok();
        assert_eq!(nvram.exists(), is_needed, "{context}");
    };
    let mut swept = 0;
    for (others, trouble) in TROUBLES.iter().flat_map(|t| [(false, *t), (true, *t)]) {
        for at in 0.. {
            let context = format!("another {others}, act {at} {trouble:?}");
            std::fs::write(&nvram, "variables").unwrap();
            let home = scratch();
            {
                let domains = start(home.path());
                define_with_nvram(&domains, UUID, &nvram).await;
                if others {
                    define_with_nvram(&domains, OTHER, &nvram).await;
                }
            }
            let disk = Arc::new(LossyDisk::new(home.path()));
            let store = Store::open_watched(home.path(), disk.clone()).unwrap();
            let (domains, _) = fake::domains_on(store);
            disk.arm(at, trouble);
            let result = domains.undefine(&domains.find(UUID).unwrap(), options).await;
            if trouble != Trouble::Dies {
                is_right(&domains, &context);
            }
            let was_there = nvram.exists();
            for lost in disk.losses() {
                if was_there {
                    std::fs::write(&nvram, "variables").unwrap();
                }
                is_right(&start(lost.path()), &context);
                swept += usize::from(was_there && !nvram.exists());
            }
            if !disk.was_struck() {
                assert!(at > 0 && result.is_ok(), "{context}: {result:?}");
                break;
            }
        }
    }
    assert!(swept > 0, "no start had anything to finish");
}

/// What was once to go with a domain that stayed goes with it no more.
#[tokio::test]
async fn an_undefine_that_failed_leaves_no_word_for_the_next() {
    let outside = scratch();
    let nvram = outside.path().join("vars.fd");
    std::fs::write(&nvram, "variables").unwrap();
    let home = scratch();
    define_with_nvram(&start(home.path()), UUID, &nvram).await;
    let disk = Arc::new(LossyDisk::new(home.path()));
    let (domains, _) = fake::domains_on(Store::open_watched(home.path(), disk.clone()).unwrap());
    let vm = domains.find(UUID).unwrap();
    let remove = Undefine { nvram: Nvram::Remove, ..Undefine::default() };
    // The list is written, and the directory keeps its name.
    disk.arm(5, Trouble::Fails);
    domains.undefine(&vm, remove).await.unwrap_err();
    assert!(home.path().join(format!("domains/{UUID}/.new-gone")).exists());
    disk.mend();
    domains.undefine(&vm, Undefine { nvram: Nvram::Keep, ..remove }).await.unwrap();
    assert!(nvram.exists());
    drop(domains);
    drop(start(home.path()));
    assert!(nvram.exists());
}

#[tokio::test]
async fn a_domain_has_the_old_name_or_the_new_with_all_its_snapshots() {
    every(&[
        (&[Define("a"), Autostart(true)], Rename("b")),
        (&[Define("a"), Snapshot("s1"), Snapshot("s2")], Rename("b")),
        (&[Define("a"), Snapshot("s1"), Rename("b")], Rename("a")),
    ])
    .await;
}

/// A disk that takes its time, until it is told to go on.
#[derive(Debug)]
struct Slow(std::sync::Mutex<std::sync::mpsc::Receiver<()>>);

impl Watch for Slow {
    fn before(&self, act: Act<'_>) -> std::io::Result<()> {
        if matches!(act, Act::Sync(_)) {
            let told = self.0.lock().unwrap().recv_timeout(std::time::Duration::from_secs(60));
            told.map_err(std::io::Error::other)?;
        }
        Ok(())
    }

    fn after(&self, _: Act<'_>) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_slow_disk_keeps_nobody_else_waiting() {
    let home = scratch();
    drop(Store::open(home.path()).unwrap());
    let (go_on, told) = std::sync::mpsc::channel();
    let store = Store::open_watched(home.path(), Arc::new(Slow(told.into()))).unwrap();
    let store = store.waiting_by(|work| tokio::task::block_in_place(work));
    let (domains, _) = fake::domains_on(store);
    // Both tasks on the one thread; the second lets the first go on.
    let define = tokio::spawn(async move { apply(&domains, Define("a")).await });
    let other = tokio::spawn(async move {
        for _ in 0..8 {
            go_on.send(()).unwrap();
        }
        go_on
    });
    define.await.unwrap().unwrap();
    drop(other.await.unwrap());
}
