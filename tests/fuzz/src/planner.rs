//! The planner, over the simulated world: whatever is asked, in whatever order, is done whole or
//! refused, and what is known of the domain afterwards is what is recorded of it.

use std::sync::{Arc, Mutex};

use virtsnap_engine::book::Book;
use virtsnap_engine::error::Result;
use virtsnap_engine::facts::Format;
use virtsnap_engine::options::{
    Afterwards, Consolidate, DeleteOptions, DeleteScope, Metadata, New, Overlays, RevertOptions,
    RevertState, Scope,
};
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_engine::testing::World;
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::policy::NAMESPACE;
use virtsnap_xml::snapshot::{Definition, Request, Survivor};

/// More is told by what comes before.
const ACTS: usize = 24;

type Engine = Snapshots<World, World, World>;

/// A script as in `fixtures/plans`, an act a line; what is no act is passed over.
pub(crate) fn play(input: &[u8]) -> bool {
    let Ok(script) = std::str::from_utf8(input) else { return false };
    let disks = ["vda", "vdb"];
    let world = match script.lines().next() {
        Some("firmware") => World::with_firmware(&disks, &Format::Raw),
        Some("firmware-qcow2") => World::with_firmware(&disks, &Format::Qcow2),
        _ => World::new(&disks),
    };
    let shared = Arc::new(world.clone());
    let engine = Snapshots::new(Arc::clone(&shared), Arc::clone(&shared), shared);
    let book = world.book();
    let mut done = 0;
    for line in script.lines().map(str::trim).take(ACTS) {
        world.tick();
        let outcome = ready(act(&world, &engine, &book, line));
        let Some(outcome) = outcome else { continue };
        assert!(!world.has_journal(), "{line}: {outcome:?} leaves a journal");
        let (known, recorded) = (book.lock().expect("whole"), world.book());
        let recorded = recorded.lock().expect("whole");
        assert_eq!(known.moments, recorded.moments, "{line}");
        assert_eq!(known.owned, recorded.owned, "{line}");
        done += usize::from(outcome.is_ok());
    }
    done > 0
}

/// Nothing in the simulated world waits for anything.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => panic!("the simulated world waits"),
    }
}

/// None: the line is no act, or not one for now.
async fn act(world: &World, engine: &Engine, book: &Mutex<Book>, line: &str) -> Option<Result<()>> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (name, how) = rest.split_once(' ').unwrap_or((rest, ""));
    let has = |word: &str| how.split(' ').any(|one| one == word);
    let mut options = New::plain(Scope::FullSystem { live: has("live") });
    let named = Request { name: Some(name.to_owned()), ..Request::default() };
    match verb {
        "start" if world.guest().is_none() => world.start(),
        "stop" => world.stop(),
        "pause" if world.guest().is_some() => world.pause(),
        "die" if world.guest().is_some() => world.shut_down(),
        "room" => world.set_room(name.parse().ok()?),
        "write" if world.guest().is_none_or(|guest| guest.running) => {
            world.write(["vda", "vdb"].into_iter().find(|disk| *disk == name)?, 1, 7);
        }
        "touch"
            if rest.starts_with("/img/")
                && !world.images().contains_key(std::path::Path::new(rest)) =>
        {
            world.touch(rest);
        }
        "policy" => {
            let set = |domain: &mut Element| {
                drop(domain::set_metadata(domain, Some(rest), "virtsnap", NAMESPACE));
            };
            set(book.lock().expect("whole").config.as_mut()?);
            world.edit(set);
        }
        "full" => return Some(create(engine, book, &named, &options).await),
        "halted" => {
            options.afterwards = Afterwards::Halt;
            return Some(create(engine, book, &named, &options).await);
        }
        "disks" | "quiesced" => {
            options.scope = Scope::DiskOnly { quiesce: verb == "quiesced" };
            options.becomes_current = !has("aside");
            if has("unrecorded") {
                options.metadata = Metadata::Forget;
            }
            return Some(create(engine, book, &named, &options).await);
        }
        "xml" | "reuse" => {
            let (how, text) = rest.split_at_checked(rest.find('<')?)?;
            match how.trim() {
                "disks" => options.scope = Scope::DiskOnly { quiesce: false },
                "live" => options.scope = Scope::FullSystem { live: true },
                "halted" => options.afterwards = Afterwards::Halt,
                _ => {}
            }
            if verb == "reuse" {
                options.scope = Scope::DiskOnly { quiesce: false };
                options.overlays = Overlays::Reuse;
            }
            let request = Request::parse(&Element::parse(text).ok()?).ok()?;
            return Some(create(engine, book, &request, &options).await);
        }
        "redefine" => {
            let (how, text) = rest.split_at_checked(rest.find('<')?)?;
            let definition = Definition::parse(&Element::parse(text).ok()?).ok()?;
            let outcome = engine.redefine(book, definition, how.trim() == "current").await;
            return Some(outcome.map(|_| ()));
        }
        "again" => {
            let known = book.lock().expect("whole").moments.get(name).cloned()?;
            let shown = Element::parse(&known.to_element().to_string()).expect("what we wrote");
            let definition = Definition::parse(&shown).expect("what we showed");
            return Some(engine.redefine(book, definition, has("current")).await.map(|_| ()));
        }
        "revert" => {
            let options = RevertOptions {
                state: match () {
                    () if has("running") => RevertState::Running,
                    () if has("paused") => RevertState::Paused,
                    () if has("off") => RevertState::ShutOff,
                    () => RevertState::AsSnapshot,
                },
                force: has("forced"),
                reset_nvram: has("reset"),
                discard: has("discarding"),
                delete_children: has("alone"),
            };
            return Some(engine.revert(book, name, &options).await);
        }
        "delete" => {
            let scope = match () {
                () if has("all") => DeleteScope::WithDescendants,
                () if has("below") => DeleteScope::DescendantsOnly,
                () => DeleteScope::Single,
            };
            let consolidate = Consolidate {
                required: has("consolidated"),
                keep: how.split(' ').find_map(Survivor::from_name),
            };
            let metadata_only = has("metadata");
            let options = DeleteOptions { scope, metadata_only, consolidate };
            return Some(engine.delete(book, name, &options).await);
        }
        _ => return None,
    }
    Some(Ok(()))
}

async fn create(
    engine: &Engine,
    book: &Mutex<Book>,
    request: &Request,
    options: &New,
) -> Result<()> {
    engine.create(book, request, options).await.map(|_| ())
}
