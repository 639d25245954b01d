//! The hypervisor of the target `session`: definitions are completed as for QEMU, and each domain
//! is a simulated world of its own. Nothing on the host is touched: images are names, and where a
//! client could have the daemon touch a file that a definition names, the definition is refused.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtsnap_engine::domain::{
    Active, Event, Restore, Resumed, RunningReason, Save, SaveImage, ShutOffReason, Start,
    StartFrom, Started, State, Suspended,
};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{DomainFacts, PathKind, Place};
use virtsnap_engine::inspect::{CpuTimes, ImageSize, Inspect, MemoryStat};
use virtsnap_engine::merging::Merging;
use virtsnap_engine::plan::{Conclude, Finish, Pivot, Step};
use virtsnap_engine::ports::{EventSink, Hypervisor, MergeError, PivotError, Subject};
use virtsnap_engine::testing::{Guest, Image, World};
use virtsnap_qemu::complete::{self, Host};
use virtsnap_xml::element::Element;

/// Where images are, of which none is there on the host.
pub(super) const IMAGES: &str = "/img/";

/// What outlives the daemon.
#[derive(Debug)]
pub(super) struct Site {
    host: Host,
    directory: PathBuf,
    inner: Mutex<Inner>,
    /// Every console is at the other end of it, and says nothing.
    _console: UnixListener,
}

#[derive(Debug, Default)]
struct Inner {
    worlds: BTreeMap<Uuid, World>,
    guests: BTreeMap<Uuid, Known>,
    last_id: i32,
    saves: BTreeMap<PathBuf, (Element, bool)>,
    /// What the guests' agents answer to everything.
    agent: String,
}

/// What was last told of a guest.
#[derive(Debug, Clone, PartialEq)]
struct Known {
    name: String,
    id: i32,
    running: bool,
}

/// All that a client may have changed, to be compared.
pub(super) type Look = BTreeMap<Uuid, (Option<Guest>, BTreeMap<PathBuf, Image>)>;

impl Site {
    /// In a directory that is there.
    pub(super) fn new(directory: &Path) -> Self {
        let console = UnixListener::bind(directory.join("console")).expect("a socket");
        let host = Host { nvram_dir: IMAGES.into(), ..Host::for_test() };
        Self { host, directory: directory.to_owned(), inner: Mutex::default(), _console: console }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn look(&self) -> Look {
        let worlds = self.lock().worlds.clone().into_iter();
        worlds.map(|(uuid, world)| (uuid, (world.guest(), world.images()))).collect()
    }

    pub(super) fn agent_says(&self, answer: &str) {
        answer.clone_into(&mut self.lock().agent);
    }

    fn world(&self, domain: Uuid) -> World {
        let mut inner = self.lock();
        let world = inner.worlds.entry(domain).or_insert_with(|| {
            let mut world = World::new(&["vda", "vdb"]);
            world.uuid = domain;
            world
        });
        world.clone()
    }

    /// Every character device is a socket that is there.
    fn wire_up(&self, live: &mut Element) {
        let console = self.directory.join("console").display().to_string();
        for device in live.children_mut("devices").flat_map(Element::elements_mut) {
            if ["console", "serial", "parallel", "channel"].contains(&device.name()) {
                device.set_attr("type", "unix");
                device.remove_children("source");
                device.push(Element::new("source").with_attr("path", console.as_str()));
            }
        }
    }
}

/// A daemon's driver of it.
pub(super) struct Machine {
    site: Arc<Site>,
    sink: Arc<dyn EventSink>,
}

impl Machine {
    pub(super) fn new(site: Arc<Site>, sink: Arc<dyn EventSink>) -> Self {
        Self { site, sink }
    }

    fn world(&self, domain: Uuid) -> World {
        self.site.world(domain)
    }

    /// Tells what has become of a guest.
    fn tell(&self, domain: Uuid, off: ShutOffReason) {
        let guest = self.world(domain).guest();
        let mut inner = self.site.lock();
        let before = inner.guests.get(&domain).cloned();
        let now = guest.map(|guest| {
            let id = before.as_ref().map_or(inner.last_id + 1, |before| before.id);
            let name = guest.live.child_text("name").unwrap_or_default();
            Known { name, id, running: guest.running }
        });
        let (known, events) = match (before, &now) {
            (None, Some(now)) => (now.clone(), vec![(now.id, Event::Started(Started::Booted))]),
            (Some(before), None) => (before, vec![(-1, Event::Stopped(off))]),
            (Some(before), Some(now)) if before.running && !now.running => {
                (before, vec![(now.id, Event::Suspended(Suspended::Paused))])
            }
            (Some(before), Some(now)) if !before.running && now.running => {
                (before, vec![(now.id, Event::Resumed(Resumed::Unpaused))])
            }
            (Some(_), Some(_)) | (None, None) => return,
        };
        inner.last_id = inner.last_id.max(known.id);
        match now {
            Some(now) => inner.guests.insert(domain, now),
            None => inner.guests.remove(&domain),
        };
        drop(inner);
        for (id, event) in events {
            self.sink.emit(domain, &known.name, id, event);
        }
    }

    async fn told<T>(&self, domain: Uuid, work: impl Future<Output = T>) -> T {
        let done = work.await;
        self.tell(domain, ShutOffReason::Shutdown);
        done
    }

    fn found(&self, domain: Uuid) -> Result<Active> {
        let gone = || Error::new(Condition::OperationInvalid, "the domain is not running");
        self.active(domain).ok_or_else(gone)
    }
}

fn uuid_of(domain: &Element) -> Result<Uuid> {
    let uuid = domain.child_text("uuid").and_then(|text| Uuid::parse_str(text.trim()).ok());
    uuid.ok_or_else(|| Error::new(Condition::Internal, "a definition without its uuid"))
}

impl Hypervisor for Machine {
    fn complete(&self, domain: Element) -> Result<Element> {
        let complete = complete::complete(domain, &self.site.host)?;
        // It goes from the host with the domain.
        let nvram = complete.at(&["os", "nvram"]).map(Element::text).unwrap_or_default();
        if nvram.is_empty() || (nvram.starts_with(IMAGES) && !nvram.contains("..")) {
            return Ok(complete);
        }
        Err(Error::new(Condition::ConfigUnsupported, "a variable store of the host's"))
    }

    fn abi_difference(&self, a: &Element, b: &Element) -> Option<String> {
        complete::abi_difference(a, b)
    }

    async fn capabilities(&self) -> Result<Element> {
        Ok(Element::new("capabilities"))
    }

    async fn reconnect(&self) -> Result<Vec<Active>> {
        Ok(self.all_active())
    }

    async fn start(&self, domain: Element, start: Start) -> Result<Active> {
        let uuid = uuid_of(&domain)?;
        let mut domain = domain;
        self.site.wire_up(&mut domain);
        let world = self.world(uuid);
        self.told(uuid, Hypervisor::start(&world, domain, start)).await?;
        self.found(uuid)
    }

    fn active(&self, domain: Uuid) -> Option<Active> {
        let world = self.site.lock().worlds.get(&domain).cloned()?;
        let active = Hypervisor::active(&world, domain)?;
        let known = self.site.lock().guests.get(&domain).cloned()?;
        let state = match active.state {
            State::Running(_) => State::Running(RunningReason::Booted),
            other => other,
        };
        Some(Active { uuid: domain, name: known.name, id: known.id, state, live: active.live })
    }

    fn all_active(&self) -> Vec<Active> {
        let domains: Vec<Uuid> = self.site.lock().guests.keys().copied().collect();
        domains.into_iter().filter_map(|domain| self.active(domain)).collect()
    }

    fn set_live(&self, domain: Uuid, live: Element) -> Result<()> {
        self.world(domain).set_live(domain, live)
    }

    async fn suspend(&self, domain: Uuid) -> Result<()> {
        self.told(domain, self.world(domain).suspend(domain)).await
    }

    async fn resume(&self, domain: Uuid) -> Result<()> {
        self.told(domain, self.world(domain).resume(domain)).await
    }

    async fn shutdown(&self, domain: Uuid) -> Result<()> {
        self.told(domain, self.world(domain).shutdown(domain)).await
    }

    async fn reboot(&self, domain: Uuid) -> Result<()> {
        self.told(domain, self.world(domain).reboot(domain)).await
    }

    async fn reset(&self, domain: Uuid) -> Result<()> {
        self.told(domain, self.world(domain).reset(domain)).await
    }

    async fn destroy(&self, domain: Uuid, reason: ShutOffReason) -> Result<()> {
        let done = self.world(domain).destroy(domain, reason).await;
        self.tell(domain, reason);
        done
    }

    async fn save(&self, domain: Uuid, save: Save) -> Result<()> {
        let active = self.found(domain)?;
        let running = save.running.unwrap_or(matches!(active.state, State::Running(_)));
        // Of a managed save the daemon itself wants to see the file.
        if save.file.starts_with(&self.site.directory) {
            std::fs::write(&save.file, "").expect("a file in a directory of ours");
        }
        self.site.lock().saves.insert(save.file, (save.definition, running));
        self.destroy(domain, ShutOffReason::Saved).await
    }

    async fn save_image(&self, file: &Path) -> Result<SaveImage> {
        let found = self.site.lock().saves.get(file).cloned();
        let missing = || Error::new(Condition::OperationFailed, "there is no such save image");
        let (definition, running) = found.ok_or_else(missing)?;
        Ok(SaveImage::Whole { definition, running })
    }

    async fn edit_save_image(
        &self,
        file: &Path,
        definition: &Element,
        running: Option<bool>,
    ) -> Result<()> {
        let mut inner = self.site.lock();
        if let Some((saved, was_running)) = inner.saves.get_mut(file) {
            *saved = definition.clone();
            *was_running = running.unwrap_or(*was_running);
        }
        Ok(())
    }

    async fn restore(&self, domain: Element, restore: Restore) -> Result<Active> {
        if restore.discard {
            self.site.lock().saves.remove(&restore.file);
            if restore.file.starts_with(&self.site.directory) {
                std::fs::remove_file(&restore.file).expect("the save is there");
            }
        }
        let paused = restore.suspended.is_some();
        self.start(domain, Start { paused, from: StartFrom::Boot }).await
    }

    async fn monitor_command(&self, _: Uuid, command: &str, _: bool) -> Result<String> {
        Ok(command.to_owned())
    }

    async fn facts(&self, subject: &Subject) -> Result<DomainFacts> {
        self.world(subject.uuid).facts(subject).await
    }

    async fn probe(&self, path: &Path) -> Result<PathKind> {
        let worlds = self.site.lock().worlds.clone();
        let known = worlds.values().any(|world| world.images().contains_key(path));
        Ok(if known { PathKind::Regular(1) } else { PathKind::Missing })
    }

    async fn place(&self, at: &Path, below: &Path, facts: &DomainFacts) -> Result<Place> {
        self.world(facts.uuid).place(at, below, facts).await
    }

    async fn act(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.told(domain, self.world(domain).act(domain, step)).await
    }

    async fn undo(&self, domain: Uuid, step: &Step) -> Result<()> {
        self.told(domain, self.world(domain).undo(domain, step)).await
    }

    async fn pivot(&self, domain: Uuid, pivot: &Pivot) -> Result<(), PivotError> {
        self.told(domain, self.world(domain).pivot(domain, pivot)).await
    }

    async fn pivoted(&self, domain: Uuid, pivot: &Pivot) -> Result<bool> {
        self.world(domain).pivoted(domain, pivot).await
    }

    async fn finish(&self, domain: Uuid, finish: &Finish) -> Result<()> {
        self.told(domain, self.world(domain).finish(domain, finish)).await
    }

    async fn merge(
        &self,
        domain: Uuid,
        merge: &Finish,
        merging: &Merging,
    ) -> Result<(), MergeError> {
        self.told(domain, self.world(domain).merge(domain, merge, merging)).await
    }

    async fn conclude(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        self.told(domain, self.world(domain).conclude(domain, conclude)).await
    }

    async fn release(&self, domain: Uuid, conclude: &Conclude) -> Result<()> {
        self.told(domain, self.world(domain).release(domain, conclude)).await
    }
}

impl Inspect for Machine {
    const NAME: &'static str = "QEMU";
    const ERROR_DOMAIN: i32 = 10;
    const FUNCTIONS: &'static str = "qemu";
    const PATHS: &'static [&'static str] = &["/system", "/session"];

    async fn version(&self) -> Result<u64> {
        Ok(10_000_002)
    }

    fn cpu_times(&self, _: Uuid) -> Result<CpuTimes> {
        Ok(CpuTimes::default())
    }

    fn resident_memory(&self, _: Uuid) -> Result<u64> {
        Ok(1024)
    }

    async fn set_balloon(&self, _: Uuid, _: u64) -> Result<()> {
        Ok(())
    }

    async fn image_size(&self, _: &Element, _: &str) -> Result<ImageSize> {
        Ok(ImageSize { virtual_size: 1 << 20, allocation: 1 << 16, physical: 1 << 16 })
    }

    async fn memory_stats(&self, _: Uuid) -> Result<Vec<(MemoryStat, u64)>> {
        Ok(vec![(MemoryStat::ActualBalloon, 65536), (MemoryStat::Unused, u64::MAX)])
    }

    async fn attach_device(&self, _: Uuid, _: &Element) -> Result<()> {
        Ok(())
    }

    async fn detach_device(&self, _: Uuid, _: &str) -> Result<()> {
        Ok(())
    }

    async fn change_medium(&self, _: Uuid, _: &Element, _: bool) -> Result<()> {
        Ok(())
    }

    async fn send_keys(&self, _: Uuid, _: &[u32], _: u32) -> Result<()> {
        Ok(())
    }

    async fn resize_disk(&self, _: Uuid, _: &str, _: u64) -> Result<()> {
        Ok(())
    }

    async fn agent_command(&self, _: Uuid, _: &str, _: Option<u32>) -> Result<String> {
        Ok(self.site.lock().agent.clone())
    }
}
