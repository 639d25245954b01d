//! The life of domains, on a hypervisor in memory.

use virtsnap_engine::plan::{self, Finish, MomentChange, Pivot, Plan};
use virtsnap_engine::ports::{Entry, Journals};
use virtsnap_xml::snapshot::Definition;

use super::*;
use crate::fake::{self, FakeHypervisor};

fn xml(name: &str, uuid: u128, inside: &str) -> String {
    let uuid = Uuid::from_u128(uuid);
    format!("<domain type='qemu'><name>{name}</name><uuid>{uuid}</uuid>{inside}</domain>")
}

fn domains() -> (tempfile::TempDir, Domains<FakeHypervisor>) {
    let directory = tempfile::tempdir().unwrap();
    let domains = fake::domains(directory.path());
    (directory, domains)
}

#[tokio::test]
async fn names_and_uuids_belong_to_one_domain() {
    let (_directory, domains) = domains();
    domains.define(&xml("a", 1, "")).await.unwrap();
    let err = domains.define(&xml("b", 1, "")).await.unwrap_err();
    assert_eq!(err.condition, Condition::OperationFailed);
    assert!(err.message.contains("'a' is already defined with uuid"), "{}", err.message);
    let err = domains.create(&xml("a", 2, ""), false).await.unwrap_err();
    assert!(err.message.contains("'a' already exists with uuid"), "{}", err.message);
}

#[tokio::test]
async fn a_refused_definition_changes_nothing() {
    let (_directory, domains) = domains();
    let vm = domains.define(&xml("a", 1, "<title>old</title>")).await.unwrap();
    assert!(domains.define(&xml("a", 1, "<unknown/>")).await.is_err());
    let shown = domains.xml(&vm, View::default()).unwrap();
    assert_eq!(shown.child_text("title").as_deref(), Some("old"));
}

#[tokio::test]
async fn a_running_domain_is_redefined_for_its_next_start() {
    let (_directory, domains) = domains();
    let vm = domains.define(&xml("a", 1, "<title>old</title>")).await.unwrap();
    domains.start(&vm, false).await.unwrap();
    domains.define(&xml("a", 1, "<title>new</title>")).await.unwrap();
    let title = |inactive| {
        let view = View { inactive, ..View::default() };
        domains.xml(&vm, view).unwrap().child_text("title").unwrap()
    };
    assert_eq!((title(false).as_str(), title(true).as_str()), ("old", "new"));
}

#[tokio::test]
async fn a_transient_domain_is_gone_when_it_stops() {
    let (_directory, domains) = domains();
    let (vm, active) = domains.create(&xml("a", 1, ""), false).await.unwrap();
    assert_eq!(domains.with_id(active.id).unwrap().uuid, vm.uuid);
    assert!(domains.create(&xml("a", 1, ""), false).await.is_err());
    domains.destroy(&vm).await.unwrap();
    let err = domains.named("a").unwrap_err();
    assert_eq!(err.condition, Condition::NoDomain);
}

#[tokio::test]
async fn a_transient_domain_that_does_not_start_was_never_there() {
    let (_directory, domains) = domains();
    assert!(domains.create(&xml("a", 1, "<fails/>"), false).await.is_err());
    assert!(domains.table.all().is_empty());
    let vm = domains.define(&xml("a", 1, "")).await.unwrap();
    assert!(domains.create(&xml("a", 1, "<fails/>"), false).await.is_err());
    assert_eq!(domains.state(&vm), State::ShutOff(ShutOffReason::Failed));
}

#[tokio::test]
async fn a_definition_makes_a_transient_domain_persistent() {
    let (_directory, domains) = domains();
    let (vm, _) = domains.create(&xml("a", 1, ""), false).await.unwrap();
    domains.define(&xml("a", 1, "")).await.unwrap();
    domains.destroy(&vm).await.unwrap();
    assert_eq!(domains.state(&vm), State::ShutOff(ShutOffReason::Destroyed));
    assert!(domains.named("a").is_ok());
}

#[tokio::test]
async fn undefine_of_a_running_domain_makes_it_transient() {
    let (_directory, domains) = domains();
    let vm = domains.define(&xml("a", 1, "")).await.unwrap();
    domains.start(&vm, false).await.unwrap();
    domains.undefine(&vm, Undefine::default()).await.unwrap();
    assert!(!vm.is_persistent());
    assert!(domains.undefine(&vm, Undefine::default()).await.is_err());
    domains.destroy(&vm).await.unwrap();
    assert!(domains.table.all().is_empty());
}

#[tokio::test]
async fn undefine_asks_what_to_do_with_nvram() {
    let (_directory, domains) = domains();
    let file = tempfile::NamedTempFile::new().unwrap();
    let os = format!("<os><nvram>{}</nvram></os>", file.path().display());
    let vm = domains.define(&xml("a", 1, &os)).await.unwrap();
    let err = domains.undefine(&vm, Undefine::default()).await.unwrap_err();
    assert_eq!(err.condition, Condition::OperationInvalid);
    let keep = Undefine { nvram: Nvram::Keep, ..Undefine::default() };
    domains.undefine(&vm, keep).await.unwrap();
    assert!(file.path().exists());
}

#[tokio::test]
async fn wrong_states_are_refused_in_libvirts_words() {
    let (_directory, domains) = domains();
    let vm = domains.define(&xml("a", 1, "")).await.unwrap();
    for refused in [
        domains.destroy(&vm).await,
        domains.suspend(&vm).await,
        domains.resume(&vm).await,
        domains.shutdown(&vm).await,
    ] {
        assert_eq!(refused.unwrap_err().message, "domain is not running");
    }
    domains.start(&vm, true).await.unwrap();
    let again = domains.start(&vm, false).await.unwrap_err();
    assert_eq!(again.message, "domain is already running");
    domains.resume(&vm).await.unwrap();
    assert_eq!(domains.resume(&vm).await.unwrap_err().message, "domain is already running");
}

#[tokio::test]
async fn what_is_defined_and_marked_outlives_the_daemon() {
    let (directory, first) = domains();
    let vm = first.define(&xml("a", 1, "")).await.unwrap();
    first.set_autostart(&vm, true).await.unwrap();
    first.rename(&vm, "b").await.unwrap();
    drop(first);
    let second = fake::domains(directory.path());
    assert!(second.named("a").is_err());
    second.autostart().await;
    assert!(second.active(&second.named("b").unwrap()).is_some());
}

/// An operation that took effect and whose last step the fake refuses to do.
fn leave_unfinished(domains: &Domains<FakeHypervisor>, domain: &Domain) {
    let plan = Plan {
        operation: plan::Operation::Delete { moments: Vec::new() },
        prepare: Vec::new(),
        pivot: Pivot::Record,
        finish: vec![Finish::ThawFilesystems],
        conclude: Vec::new(),
    };
    let mut journal = domains.table.store().begin(domain.uuid, &plan).unwrap();
    journal.record(Entry::Pivoted).unwrap();
}

#[tokio::test]
async fn nothing_starts_or_is_redefined_on_a_world_in_doubt() {
    let (_directory, domains) = domains();
    let vm = domains.define(&xml("a", 1, "")).await.unwrap();
    leave_unfinished(&domains, &vm);
    for refused in [
        domains.start(&vm, false).await.map(drop),
        domains.create(&xml("a", 1, ""), false).await.map(drop),
        domains.define(&xml("a", 1, "<title>new</title>")).await.map(drop),
        domains.rename(&vm, "b").await,
        domains.undefine(&vm, Undefine::default()).await,
    ] {
        let message = refused.unwrap_err().message;
        assert!(message.contains("an earlier operation"), "{message}");
    }
    assert!(domains.active(&vm).is_none());
    assert!(vm.config().unwrap().child("title").is_none());
}

#[tokio::test]
async fn undefine_of_a_running_domain_ends_its_autostart() {
    let (_directory, domains) = domains();
    let vm = domains.define(&xml("a", 1, "")).await.unwrap();
    domains.start(&vm, false).await.unwrap();
    domains.set_autostart(&vm, true).await.unwrap();
    domains.undefine(&vm, Undefine::default()).await.unwrap();
    domains.define(&xml("a", 1, "")).await.unwrap();
    assert!(!vm.autostart());
}

#[tokio::test]
async fn a_managed_save_image_is_not_undefined_by_accident() {
    let (directory, first) = domains();
    let uuid = first.define(&xml("a", 1, "")).await.unwrap().uuid;
    std::fs::write(first.table.store().managed_save(uuid).unwrap(), "").unwrap();
    drop(first);
    let domains = fake::domains(directory.path());
    let vm = domains.named("a").unwrap();
    let err = domains.undefine(&vm, Undefine::default()).await.unwrap_err();
    assert_eq!(err.condition, Condition::OperationInvalid);
    let gone = Undefine { managed_save: true, ..Undefine::default() };
    domains.undefine(&vm, gone).await.unwrap();
}

fn add_snapshot(domains: &Domains<FakeHypervisor>, vm: &Domain) {
    let snapshot = Element::parse(
        "<domainsnapshot><name>s</name><state>shutoff</state>\
         <creationTime>1</creationTime></domainsnapshot>",
    )
    .unwrap();
    let mut snapshot = Definition::parse(&snapshot).unwrap();
    let domain =
        format!("<domain type='xen'><name>{}</name><uuid>{}</uuid></domain>", vm.name(), vm.uuid);
    snapshot.domain = Some(Element::parse(&domain).unwrap());
    let change = MomentChange { write: vec![snapshot], ..MomentChange::default() };
    domains.table.store().record(vm.uuid, &change).unwrap();
    vm.book().moments.apply(&change);
}

/// As a tool beside the daemon does it.
async fn start_elsewhere(domains: &Domains<FakeHypervisor>, xml: &str) {
    let start = Start { paused: false, from: StartFrom::Boot };
    let definition = Element::parse(xml).unwrap();
    domains.hypervisor.start(definition, start).await.unwrap();
}

#[tokio::test]
async fn a_domain_of_another_program_is_listed_while_it_runs() {
    let (_directory, domains) = domains();
    start_elsewhere(&domains, &xml("theirs", 7, "")).await;
    let vm = domains.named("theirs").unwrap();
    assert!(!vm.is_persistent());
    assert!(matches!(domains.state(&vm), State::Running(_)));
    assert!(domains.create(&xml("theirs", 7, ""), false).await.is_err());
    domains.destroy(&vm).await.unwrap();
    assert!(domains.table.all().is_empty());
}

#[tokio::test]
async fn where_others_start_domains_snapshots_wait_for_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let domains = fake::shared_domains(directory.path());
    start_elsewhere(&domains, &xml("theirs", 7, "")).await;
    start_elsewhere(&domains, &xml("bare", 8, "")).await;
    let vm = domains.named("theirs").unwrap();
    add_snapshot(&domains, &vm);
    for vm in domains.table.all() {
        domains.destroy(&vm).await.unwrap();
    }
    assert!(domains.table.all().is_empty(), "nobody here could start them");
    assert!(domains.find(vm.uuid).is_err());
    drop((vm, domains));

    let domains = fake::shared_domains(directory.path());
    domains.drop_ended();
    assert!(domains.table.all().is_empty());
    // Brought back in every way, once by another name.
    start_elsewhere(&domains, &xml("theirs", 7, "")).await;
    assert!(ends_with_one_snapshot(&domains, "theirs").await.is_none());
    domains.create(&xml("other", 7, ""), false).await.unwrap();
    let moments = domains.named("other").unwrap().book().moments.clone();
    let named = moments.iter().filter_map(|moment| moment.domain.as_ref()?.child_text("name"));
    assert_eq!(named.collect::<Vec<_>>(), ["other"]);
    assert!(ends_with_one_snapshot(&domains, "other").await.is_none());
    assert!(domains.create(&xml("x", 7, "<fails/>"), false).await.is_err());
    assert!(domains.table.all().is_empty(), "it did not start");
    domains.define(&xml("theirs", 7, "")).await.unwrap();
    domains.start(&domains.named("theirs").unwrap(), false).await.unwrap();
    let vm = ends_with_one_snapshot(&domains, "theirs").await.unwrap();
    domains.start(&vm, false).await.unwrap();
    domains.undefine(&vm, Undefine::default()).await.unwrap();
    assert!(ends_with_one_snapshot(&domains, "theirs").await.is_none());
    let vm = domains.define(&xml("theirs", 7, "")).await.unwrap();
    let with = Undefine { snapshots_metadata: true, ..Undefine::default() };
    domains.undefine(&vm, with).await.unwrap();
    start_elsewhere(&domains, &xml("theirs", 7, "")).await;
    assert!(domains.named("theirs").unwrap().book().moments.is_empty());
}

/// Ends it; gives it if it is still there.
async fn ends_with_one_snapshot(
    domains: &Domains<FakeHypervisor>,
    name: &str,
) -> Option<Arc<Domain>> {
    let vm = domains.named(name).unwrap();
    assert_eq!(vm.book().moments.len(), 1);
    domains.destroy(&vm).await.unwrap();
    domains.named(name).ok()
}

/// Whoever removes a file asks who needs it.
#[tokio::test]
async fn what_waits_is_not_written_over() {
    let directory = tempfile::tempdir().unwrap();
    let domains = fake::shared_domains(directory.path());
    start_elsewhere(&domains, &xml("theirs", 7, "")).await;
    let vm = domains.named("theirs").unwrap();
    add_snapshot(&domains, &vm);
    domains.destroy(&vm).await.unwrap();
    let file = directory.path().join("its");
    std::fs::write(&file, "").unwrap();
    vm.book().owned.insert(file.clone());
    let (other, _) = domains.create(&xml("other", 8, ""), false).await.unwrap();
    let saving = crate::domains::save::Saving { file: Some(file), ..Default::default() };
    let err = domains.save(&other, saving).await.unwrap_err();
    assert!(err.message.contains("theirs"), "{}", err.chain());
}

#[tokio::test]
async fn a_transient_domain_keeps_its_snapshots_when_the_daemon_comes_back() {
    let (directory, first) = domains();
    let (vm, _) = first.create(&xml("a", 1, ""), false).await.unwrap();
    let (bare, _) = first.create(&xml("b", 2, ""), false).await.unwrap();
    add_snapshot(&first, &vm);
    let (vm, bare) = (vm.uuid, bare.uuid);
    drop(first);
    // Both guests have stopped meanwhile.
    let second = fake::domains(directory.path());
    assert_eq!(second.find(vm).unwrap().book().moments.len(), 1);
    second.drop_ended();
    assert!(second.find(vm).is_ok(), "its snapshots would be gone");
    assert!(second.find(bare).is_err(), "nobody could start it");
    assert_eq!(second.table.store().load().unwrap().domains.len(), 1);
}

#[tokio::test]
async fn a_transient_domain_is_known_to_the_next_daemon_or_gone() {
    let (directory, first) = domains();
    first.create(&xml("a", 1, ""), false).await.unwrap();
    drop(first);
    let second = fake::domains(directory.path());
    assert_eq!(second.named("a").unwrap().uuid, Uuid::from_u128(1));
    second.drop_ended();
    drop(second);
    assert!(fake::domains(directory.path()).table.all().is_empty());
}

#[tokio::test]
async fn a_rename_needs_a_free_name_and_a_domain_at_rest() {
    let (_directory, domains) = domains();
    let a = domains.define(&xml("a", 1, "")).await.unwrap();
    domains.define(&xml("b", 2, "")).await.unwrap();
    assert!(domains.rename(&a, "b").await.is_err());
    assert!(domains.rename(&a, "a").await.is_err());
    domains.start(&a, false).await.unwrap();
    assert!(domains.rename(&a, "c").await.is_err());
}
