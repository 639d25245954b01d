//! Snapshots that others made: what whoever works with xl put among the records of a domain
//! becomes a snapshot like any other (docs/xen.md).
//!
//! Such a file names the guest's memory, and is of a guest whose disks had an internal snapshot of
//! the same name taken at the same time. The definition is that of the memory. Where a disk that can
//! be written has no such snapshot it stays what it is, a file: memory that meets other disks than
//! its own ruins them.

use std::collections::BTreeMap;
use std::path::Path;

use virtsnap_engine::domain::SaveImage;
use virtsnap_engine::error::Result;
use virtsnap_engine::inspect::Inspect;
use virtsnap_store::Information;
use virtsnap_xml::domain as xml_domain;
use virtsnap_xml::element::Element;
use virtsnap_xml::snapshot::{Definition, Disk, Location, Memory, State};

use super::job::Operation;
use super::life::{Domains, failed};
use super::table::Domain;

impl<H: Inspect> Domains<H> {
    /// For all domains. What cannot be had is told in the log.
    pub(crate) async fn take_in_strays(&self) {
        for domain in self.table.all() {
            let strays = self.table.store().strays(domain.uuid).unwrap_or_else(|err| {
                tracing::warn!(domain = domain.name(), "{}", err.chain());
                Vec::new()
            });
            for (file, stray) in strays {
                let (domain, snapshot) = (&domain, &stray.name);
                let name = domain.name();
                match self.take_in(domain, &file, &stray).await {
                    Ok(()) => tracing::info!(domain = name, snapshot, "taken in"),
                    Err(err) => {
                        let (file, why) = (file.display(), err.chain());
                        tracing::warn!(domain = name, snapshot, "'{file}' stays alone: {why}");
                    }
                }
            }
        }
    }

    async fn take_in(&self, domain: &Domain, file: &Path, stray: &Information) -> Result<()> {
        let _job = self.job(domain, Operation::SnapshotCreate).await?;
        let mut moment = Definition::new(&stray.name, State::DiskSnapshot, stray.creation_time);
        let definition = match &stray.save {
            None => {
                moment.memory = Memory::No;
                self.current(domain)?
            }
            Some(save) => {
                let (definition, was_running) = self.saved(save).await?;
                moment.state = if was_running { State::Running } else { State::Paused };
                moment.memory = Memory::External { file: save.to_string_lossy().into_owned() };
                definition
            }
        };
        moment.disks = self.disks_of(domain, &definition, &stray.name).await?;
        moment.domain = Some(definition);
        self.snapshots.redefine(&domain.book, moment, false).await?;
        self.table.store().took_in(domain.uuid, file)
    }

    async fn saved(&self, save: &Path) -> Result<(Element, bool)> {
        match self.hypervisor.save_image(save).await? {
            SaveImage::Whole { definition, running } => {
                // Of another program: what it leaves open is as in any definition.
                let completed = self.complete(definition.clone()).await;
                Ok((completed.unwrap_or(definition), running))
            }
            SaveImage::Torn(why) => {
                Err(failed(format!("'{}' is no guest's memory: {why}", save.display())))
            }
        }
    }

    /// Each with its internal snapshot of that name, but for those that nobody writes to.
    async fn disks_of(&self, domain: &Domain, of: &Element, name: &str) -> Result<Vec<Disk>> {
        let images = self.hypervisor.image_snapshots(domain.uuid, of, &BTreeMap::new()).await?;
        let disk = |disk: xml_domain::DiskView<'_>| {
            let inside = disk.path().and_then(|path| images.get(Path::new(path)));
            let is_there = inside.is_some_and(|all| all.iter().any(|one| one.tag == name));
            match is_there {
                true => Ok(Disk::new(disk.target(), Location::Internal)),
                false if disk.is_empty() || disk.is_readonly() => {
                    Ok(Disk::new(disk.target(), Location::No))
                }
                false => {
                    let target = disk.target();
                    Err(failed(format!("disk '{target}' has no internal snapshot '{name}'")))
                }
            }
        };
        xml_domain::disks(of).map(disk).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use uuid::Uuid;
    use virtsnap_engine::facts::InternalSnapshot;

    use super::*;
    use crate::fake::{self, FakeHypervisor};

    const VM: &str = "<domain type='xen'><name>vm</name>\
        <uuid>00000000-0000-0000-0000-000000000007</uuid><devices>\
        <disk type='file' device='disk'><driver type='qcow2'/><source file='/i/a'/>\
        <target dev='xvda'/></disk>\
        <disk type='file' device='cdrom'><source file='/i/cd'/><target dev='xvdb'/><readonly/></disk>\
        </devices></domain>";

    /// A daemon whose domain has that file among its records, and memory in a file.
    async fn started(text: &str, tag: &str) -> (tempfile::TempDir, Domains<FakeHypervisor>) {
        let home = tempfile::tempdir().unwrap();
        let first = fake::shared_domains(home.path());
        let uuid = first.define(VM).await.unwrap().uuid;
        drop(first);
        let memory = home.path().join("memory");
        fs::write(&memory, VM).unwrap();
        let text = text.replace("MEMORY", &memory.to_string_lossy());
        let moments = home.path().join("domains").join(uuid.to_string()).join("moments");
        fs::write(moments.join("snapshotdata-x.xl"), text).unwrap();
        let domains = fake::shared_domains(home.path());
        let inside = InternalSnapshot {
            id: "1".to_owned(),
            tag: tag.to_owned(),
            vm_state_size: 0,
            date: 0,
            vm_clock: 0,
        };
        domains.hypervisor.put_inside(Path::new("/i/a"), inside);
        domains.take_in_strays().await;
        (home, domains)
    }

    const INFORMATION: &str =
        "snapshot_name=\"s\"\nsnapshot_creationtime=\"7\"\nsnapshot_save=\"MEMORY\"\n";

    #[tokio::test]
    async fn what_xls_users_left_becomes_a_snapshot() {
        let (home, domains) = started(INFORMATION, "s").await;
        let vm = domains.find(Uuid::from_u128(7)).unwrap();
        let moment = vm.book().moments.get("s").cloned().unwrap();
        assert_eq!((moment.state, moment.creation_time), (State::Running, 7));
        let places: Vec<_> = moment.disks.iter().map(|disk| disk.snapshot).collect();
        assert_eq!(places, [Location::Internal, Location::No]);
        let memory = home.path().join("memory").to_string_lossy().into_owned();
        assert_eq!(moment.memory, Memory::External { file: memory });
        assert_eq!(domains.table.store().strays(vm.uuid).unwrap(), []);
        drop((vm, domains));
        let again = fake::shared_domains(home.path());
        assert_eq!(again.find(Uuid::from_u128(7)).unwrap().book().moments.len(), 1);
    }

    #[tokio::test]
    async fn memory_without_its_disks_stays_a_file() {
        for (text, tag) in [
            (INFORMATION.to_owned(), "other"),
            (INFORMATION.replace("MEMORY", "/none"), "s"),
            (INFORMATION.replace("=\"s\"", "=\"a\n"), "s"),
        ] {
            let (_home, domains) = started(&text, tag).await;
            let vm = domains.find(Uuid::from_u128(7)).unwrap();
            assert!(vm.book().moments.is_empty(), "{text}");
        }
    }
}
