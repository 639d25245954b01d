//! Plans as golden data: what is done, step by step, in the situations that matter.
//!
//! `UPDATE_EXPECT=1 cargo test -p virtsnap-engine --test plans` writes them anew; read the diff.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use virtsnap_engine::error::Error;
use virtsnap_engine::facts::Format;
use virtsnap_engine::options::{
    Afterwards, Consolidate, DeleteOptions, DeleteScope, Meanwhile, New, Overlays, RevertOptions,
    RevertState, Scope,
};
use virtsnap_engine::snapshots::Snapshots;
use virtsnap_engine::testing::{Shape, World};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::policy::NAMESPACE;
use virtsnap_xml::snapshot::{Memory, Request, Survivor};

/// A script, one act a line: `start`, `save`, `stop`, `pause`, `die`, `full NAME`, `disks NAME`,
/// `quiesced NAME`, `halted NAME`, `xml [disks] [live] [standing] [halted] <domainsnapshot>…`, `policy <policy>…`,
/// `raw TARGET`, `device TARGET`, `bypassed TARGET`, `sealed FILE`, `touch FILE`, `lose FILE`,
/// `revert NAME [running|paused|off] [forced] [reset] [discarding] [alone]`,
/// `delete NAME [all|below] [base|overlay] [consolidated]`, `prepare FILE [BACKING]`,
/// `confined`, `unconfined`,
/// `reuse <domainsnapshot>…`, `room BYTES`, `memory KIB`, `blocked WHY`, `old`. Returns the plans, and
/// the refusals
/// where one was.
fn play(world: &World, script: &str) -> String {
    let shared = Arc::new(world.clone());
    let engine = Snapshots::new(Arc::clone(&shared), Arc::clone(&shared), shared);
    let book = world.book();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut told = String::new();
    let mut seen = 0;
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        writeln!(told, "> {line}").unwrap();
        world.tick();
        let result = runtime.block_on(act(world, &engine, &book, line));
        for plan in &world.plans()[seen..] {
            told.push_str(plan);
        }
        seen = world.plans().len();
        if let Err(err) = result {
            writeln!(told, "  refused ({:?}): {}", err.condition, err.chain()).unwrap();
        }
    }
    told
}

async fn act(
    world: &World,
    engine: &Snapshots<World, World, World>,
    book: &std::sync::Mutex<virtsnap_engine::book::Book>,
    line: &str,
) -> Result<(), Error> {
    let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (name, how) = rest.split_once(' ').unwrap_or((rest, ""));
    let words: Vec<&str> = how.split(' ').collect();
    let mut options = New::plain(Scope::FullSystem { live: false });
    let named = Request { name: Some(name.to_owned()), ..Request::default() };
    match verb {
        "start" => {
            world.start();
            book.lock().unwrap().has_managed_save = false;
        }
        "save" => {
            world.save();
            book.lock().unwrap().has_managed_save = true;
        }
        "stop" => world.stop(),
        "pause" => world.pause(),
        "die" => world.shut_down(),
        "confined" => world.set_confined(true),
        "unconfined" => world.set_confined(false),
        "room" => world.set_room(name.parse().unwrap()),
        "memory" => {
            let set = |domain: &mut Element| domain.child_or_insert("memory").set_text(name);
            set(book.lock().unwrap().config.as_mut().unwrap());
            world.edit(set);
        }
        "blocked" => world.block_memory(rest),
        "old" => world.grow_old(),
        "prepare" => world.prepare(name, Some(how).filter(|backing| !backing.is_empty())),
        "reuse" => {
            options.scope = Scope::DiskOnly { quiesce: false };
            options.overlays = Overlays::Reuse;
            let request = Request::parse(&Element::parse(rest).unwrap()).unwrap();
            return create(engine, book, &request, &options).await;
        }
        "policy" => {
            let set = |domain: &mut Element| {
                domain::set_metadata(domain, Some(rest), "virtsnap", NAMESPACE).unwrap();
            };
            set(book.lock().unwrap().config.as_mut().unwrap());
            world.edit(set);
        }
        "raw" | "device" | "bypassed" => {
            match verb {
                "raw" => world.make_raw(rest),
                "device" => world.make_device(rest),
                _ => world.make_bypassed(rest),
            }
            *book.lock().unwrap() = world.book().into_inner().unwrap();
        }
        "sealed" => world.seal(rest),
        "touch" => world.touch(rest),
        "lose" => world.lose(Path::new(rest)),
        "full" => return create(engine, book, &named, &options).await,
        "halted" => {
            options.afterwards = Afterwards::Halt;
            return create(engine, book, &named, &options).await;
        }
        "disks" | "quiesced" => {
            options.scope = Scope::DiskOnly { quiesce: verb == "quiesced" };
            options.becomes_current = !words.contains(&"aside");
            return create(engine, book, &named, &options).await;
        }
        "xml" => {
            let (how, text) = rest.split_at(rest.find('<').unwrap());
            for word in how.split_whitespace() {
                match word {
                    "disks" => options.scope = Scope::DiskOnly { quiesce: false },
                    "live" => options.scope = Scope::FullSystem { live: true },
                    "standing" => options.meanwhile = Meanwhile::StandsStill,
                    "halted" => options.afterwards = Afterwards::Halt,
                    _ => panic!("{line}"),
                }
            }
            let request = Request::parse(&Element::parse(text).unwrap()).unwrap();
            return create(engine, book, &request, &options).await;
        }
        "revert" => {
            let state = match () {
                () if words.contains(&"running") => RevertState::Running,
                () if words.contains(&"paused") => RevertState::Paused,
                () if words.contains(&"off") => RevertState::ShutOff,
                () => RevertState::AsSnapshot,
            };
            let options = RevertOptions {
                state,
                force: words.contains(&"forced"),
                reset_nvram: words.contains(&"reset"),
                discard: words.contains(&"discarding"),
                delete_children: words.contains(&"alone"),
            };
            return engine.revert(book, name, &options).await;
        }
        "delete" => {
            let scope = match () {
                () if words.contains(&"all") => DeleteScope::WithDescendants,
                () if words.contains(&"below") => DeleteScope::DescendantsOnly,
                () => DeleteScope::Single,
            };
            let consolidate = Consolidate {
                required: words.contains(&"consolidated"),
                keep: words.iter().find_map(|word| Survivor::from_name(word)),
            };
            let options = DeleteOptions { scope, consolidate, ..DeleteOptions::default() };
            return engine.delete(book, name, &options).await;
        }
        _ => panic!("{line}"),
    }
    Ok(())
}

async fn create(
    engine: &Snapshots<World, World, World>,
    book: &std::sync::Mutex<virtsnap_engine::book::Book>,
    request: &Request,
    options: &New,
) -> Result<(), Error> {
    engine.create(book, request, options).await.map(|_| ())
}

/// Plays `fixtures/plans/<name>.script`, and compares with `<name>.plans`.
fn check(name: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/plans");
    let script = std::fs::read_to_string(folder.join(format!("{name}.script"))).unwrap();
    let disks = ["vda", "vdb"];
    let world = match name {
        "firmware" => World::with_firmware(&disks, &Format::Raw),
        "outside" | "bypassed" | "devices" | "sealed" => World::new(&disks).shaped(Shape::Outside),
        "firmware-qcow2" => World::with_firmware(&disks, &Format::Qcow2),
        _ => World::new(&disks),
    };
    let told = play(&world, &script);
    let golden = folder.join(format!("{name}.plans"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&golden, &told).unwrap();
    }
    assert_eq!(told, std::fs::read_to_string(&golden).unwrap(), "{}", golden.display());
}

#[test]
fn creates() {
    check("create");
}

#[test]
fn mixes_memory_and_disks() {
    check("memory");
}

/// On a hypervisor whose images hold no memory.
#[test]
fn keeps_memory_outside() {
    check("outside");
    check("bypassed");
    check("devices");
    check("sealed");
}

#[test]
fn reverts() {
    check("revert");
}

#[test]
fn deletes() {
    check("delete");
}

#[test]
fn takes_saved_memory() {
    check("saved");
}

#[test]
fn places() {
    check("places");
}

#[test]
fn follows_policy() {
    check("policy");
}

#[test]
fn keeps_firmware() {
    check("firmware");
    check("firmware-qcow2");
}

#[test]
fn saves_external_memory_while_the_guest_goes_on() {
    check("live");
}

#[test]
fn gives_up_on_request() {
    check("given-up");
}

/// What a confined hypervisor would have to be allowed; nothing is planned.
#[test]
fn asks_what_confines_the_hypervisor() {
    check("confined");
}

#[test]
fn refuses() {
    check("refusals");
}

/// What is shown of memory, where an overlay of a shut-off domain is asked for: as libvirt.
#[test]
fn memory_is_denied_where_the_client_did() {
    let world = World::new(&["vda"]);
    let disk = "<disks><disk name='vda' snapshot='external'/></disks>";
    for (name, said, recorded) in
        [("a", "", Memory::Unsaid), ("b", "<memory snapshot='no'/>", Memory::No)]
    {
        let xml = format!("<domainsnapshot><name>{name}</name>{said}{disk}</domainsnapshot>");
        play(&world, &format!("xml {xml}"));
        let book = world.book().into_inner().unwrap();
        assert_eq!(book.moments.get(name).unwrap().memory, recorded, "{xml}");
    }
}
