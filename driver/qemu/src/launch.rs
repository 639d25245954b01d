//! All that a QEMU needs before it is one.
//!
//! A [`Launch`] gathers what the process needs (run directory, live definition, chains, images
//! lent, swtpm, taps) and can put all of it away again. The status file is written before the
//! first image changes hands.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use virtsnap_engine::domain::{PausedReason, State};
use virtsnap_engine::error::{Condition, Error, Result};
use virtsnap_engine::facts::{Format, Target};
use virtsnap_engine::plan::state_files::{NVRAM, qcow2_store};
use virtsnap_xml::domain;
use virtsnap_xml::element::Element;

use crate::argv::{self, CommandLine, LaunchContext};
use crate::blocks::{Chain, FLASH, Layer};
use crate::confine::{Owner, failed};
use crate::events::{self, Gate};
use crate::hypervisor::Shared;
use crate::image::tool::QemuImg;
use crate::instance::{Inner, Instance};
use crate::life::end_helper;
use crate::log::DomainLog;
use crate::process::Process;
use crate::qmp::{Qmp, QmpError};
use crate::status::{ProcessRecord, Status};
use crate::system::Detached;
use crate::unapplied::unapplied;
use crate::{network, setup, tpm, transient};

/// QEMU opens its images before its monitor answers: on a busy host that takes a while.
const MONITOR_DEADLINE: Duration = Duration::from_secs(60);
const MONITOR_POLL: Duration = Duration::from_millis(10);
const KILL_DEADLINE: Duration = Duration::from_secs(30);
/// Numbers that descriptors get in QEMU; our own must stay below.
const FIRST_FD: i32 = 700;

pub(crate) struct Launch<'a> {
    shared: &'a Arc<Shared>,
    uuid: Uuid,
    name: String,
    id: i32,
    dir: PathBuf,
    inner: Inner,
    helpers: Vec<Process>,
    process: Option<Process>,
    command: CommandLine,
    /// It is to wait for memory.
    pub(crate) incoming: bool,
    log: Option<DomainLog>,
}

impl<'a> Launch<'a> {
    pub(crate) fn new(
        shared: &'a Arc<Shared>,
        uuid: Uuid,
        name: String,
        id: i32,
        definition: Element,
    ) -> Result<Self> {
        let dir = shared.config.run_dir.join(uuid.to_string());
        refuse_lost(&dir, &name)?;
        make_dirs(&dir, shared.config.user)?;
        let state = State::Paused(PausedReason::StartingUp);
        let inner = Inner::new(definition, state, BTreeMap::new());
        let command = CommandLine::default();
        let helpers = Vec::new();
        let process = None;
        Ok(Self {
            shared,
            uuid,
            name,
            id,
            dir,
            inner,
            helpers,
            process,
            command,
            incoming: false,
            log: None,
        })
    }

    pub(crate) async fn until_monitor(&mut self, gate: &Gate) -> Result<Qmp> {
        let shared = Arc::clone(self.shared);
        let probed =
            shared.probe_blocking(domain::emulator(&self.inner.live).map(PathBuf::from)).await?;
        self.inner.live = setup::live_form(&shared, &self.inner.live, self.id, &self.dir)?;
        self.inner.clock_base = setup::clock_base(&self.inner.live);
        let mut chains = chains_of(&self.inner.live, &shared.config.qemu_img).await?;
        let tool = QemuImg::new(&shared.config.qemu_img);
        let domain = (self.uuid, self.name.as_str());
        let added = transient::add(&tool, domain, &self.inner.live, &mut chains).await;
        // What was made is put away whether or not all of it was.
        self.inner.chains.clone_from(&chains);
        added?;
        let fresh = Inner::new(self.inner.live.clone(), self.inner.state, chains);
        self.inner = Inner { clock_base: self.inner.clock_base, ..fresh };
        setup::write_chains(&mut self.inner);

        let monitor = self.dir.join("qemu").join("monitor.sock");
        let context = LaunchContext {
            monitor: monitor.clone(),
            memory_dir: self.dir.join("qemu"),
            hugepages: setup::hugepages(),
            tpm_sockets: setup::tpm_sockets(&self.inner.live, &self.dir),
            network_bridges: shared.config.network_bridges.clone(),
            incoming: self.incoming,
            sandbox: shared.config.sandbox,
            now: chrono::Utc::now().timestamp(),
            local_offset: i64::from(chrono::Local::now().offset().local_minus_utc()),
            first_fd: FIRST_FD,
            qemu: probed.facts.clone(),
        };
        self.command = argv::command_line(&self.inner.live, &self.inner.chains, &context)?;
        let tool = QemuImg::new(&shared.config.qemu_img);
        setup::make_nvram(&self.inner.live, &tool).await?;
        self.lend_images()?;
        for what in unapplied(&self.inner.live) {
            tracing::warn!(domain = self.name, "{what}");
        }
        let mut log = DomainLog::open(&shared.config, &self.name, self.uuid)?;
        self.start_tpms(&context, &log).await?;
        let fds = self.open_network().await?;
        self.spawn(&mut log, fds)?;
        let connected = self.connect(&monitor, gate, &log).await;
        self.log = Some(log);
        connected
    }

    /// Notes whose the images are, durably, and only then gives them away.
    fn lend_images(&mut self) -> Result<()> {
        if let Some(user) = self.shared.borrower() {
            for (path, how) in setup::images_in_use(&self.inner, &self.command.files) {
                self.inner
                    .borrowed
                    .note(&path, user, how)
                    .map_err(|err| failed("look at the owner of", &path, err))?;
            }
        }
        self.note()?;
        match self.shared.borrower() {
            Some(user) => self.inner.borrowed.give(user, &self.shared.ledger),
            None => Ok(()),
        }
    }

    /// What the next daemon has to undo if this one ends now.
    fn note(&self) -> Result<()> {
        let mut status = Status::starting(self.uuid, &self.name, self.id, &self.inner);
        status.process = self.process.as_ref().map(ProcessRecord::from);
        status.helpers = self.helpers.iter().map(ProcessRecord::from).collect();
        status.write(&self.dir).map_err(|err| failed("write the status in", &self.dir, err))
    }

    async fn start_tpms(&mut self, context: &LaunchContext, log: &DomainLog) -> Result<()> {
        for tpm in &self.command.swtpm {
            let Some(socket) = context.tpm_sockets.get(&tpm.alias) else { continue };
            let config = &self.shared.config;
            let log = log.beside("swtpm");
            let process = tpm::start(config, self.uuid, tpm, socket, &log).await?;
            self.helpers.push(process);
            self.note()?;
        }
        Ok(())
    }

    async fn open_network(&mut self) -> Result<Vec<(i32, std::os::fd::OwnedFd)>> {
        let mut fds = Vec::new();
        for request in &self.command.taps {
            let tap = network::open_tap(request).await?;
            setup::name_interface(&mut self.inner.live, &tap.alias, &tap.name);
            fds.extend(tap.fds);
        }
        if let Some(vsock) = &self.command.vsock {
            fds.push(network::open_vsock(vsock)?);
        }
        Ok(fds)
    }

    fn spawn(&mut self, log: &mut DomainLog, fds: Vec<(i32, std::os::fd::OwnedFd)>) -> Result<()> {
        use std::os::fd::AsRawFd;
        let program = &self.command.program;
        let cannot = |err: io::Error| {
            let message = format!("domain '{}': cannot run '{program}'", self.name);
            Error::new(Condition::Internal, message).caused_by(err)
        };
        if let Some((_, fd)) = fds.iter().find(|(_, fd)| fd.as_raw_fd() >= FIRST_FD) {
            let message = format!("too many open files: {} is in use", fd.as_raw_fd());
            return Err(Error::new(Condition::ResourceBusy, message));
        }
        make_socket_dirs(&self.command.creates, self.shared.config.user)?;
        log.begin(&self.command)?;
        let mut command = Command::new(program);
        command.args(&self.command.args).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("LC_ALL", "C").env("HOME", self.dir.join("qemu"));
        command.envs(self.command.env.iter().map(|(key, value)| (key, value)));
        command.current_dir("/").stdin(Stdio::null());
        command.stdout(log.writer()?).stderr(log.writer()?);
        let locks_memory = self.inner.live.at(&["memoryBacking", "locked"]).is_some();
        Detached { fds, user: self.shared.config.user, locks_memory }
            .apply(&mut command)
            .map_err(cannot)?;
        let child = command.spawn().map_err(cannot)?;
        let pid = i32::try_from(child.id()).map_err(|err| cannot(io::Error::other(err)))?;
        self.process = Some(Process::open(pid).map_err(cannot)?);
        self.note()?;
        // A service manager may have made the daemon hard to kill; its guests shall not be.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
        Ok(())
    }

    /// Waits for the monitor, for as long as the process lives.
    async fn connect(&self, monitor: &Path, gate: &Gate, log: &DomainLog) -> Result<Qmp> {
        let Some(process) = &self.process else {
            return Err(Error::new(Condition::Internal, "there is no process to connect to"));
        };
        let connect = async {
            loop {
                let listener = events::listener(Arc::clone(gate));
                if monitor.exists() {
                    match Qmp::connect_with(monitor, listener).await {
                        Err(QmpError::Closed) => {}
                        outcome => return outcome,
                    }
                }
                sleep(MONITOR_POLL).await;
            }
        };
        let name = &self.name;
        tokio::select! {
            biased;
            () = process.gone() => {
                let message = format!("QEMU of domain '{name}' ended at once: {}", log.last_words());
                Err(Error::new(Condition::Internal, message))
            }
            outcome = timeout(MONITOR_DEADLINE, connect) => match outcome {
                Ok(Ok(qmp)) => Ok(qmp),
                Ok(Err(err)) => Err(err.into()),
                Err(_) => {
                    let message = format!(
                        "the monitor of domain '{name}' did not answer in time: {}",
                        log.last_words()
                    );
                    Err(Error::new(Condition::Timeout, message))
                }
            },
        }
    }

    pub(crate) fn into_instance(
        self,
        qmp: Qmp,
    ) -> Result<(Arc<Instance>, CommandLine, Option<DomainLog>)> {
        let Some(process) = self.process else {
            return Err(Error::new(Condition::Internal, "there is no process to watch"));
        };
        let identity = (self.uuid, self.name, self.id);
        let instance =
            Instance::new(identity, process, Arc::new(qmp), self.dir, self.helpers, self.inner);
        Ok((Arc::new(instance), self.command, self.log))
    }

    pub(crate) async fn put_away(mut self) {
        if let Some(process) = &self.process {
            process.signal(Signal::KILL);
            if timeout(KILL_DEADLINE, process.gone()).await.is_err() {
                tracing::error!(domain = self.name, pid = process.pid(), "QEMU does not die");
            }
            process.reap();
        }
        for helper in &self.helpers {
            end_helper(helper).await;
        }
        let (shared, uuid) = (self.shared, self.uuid);
        let kept = |path: &Path, owner| shared.is_used_by_another(uuid, path, owner);
        self.inner.borrowed.hand_back(&shared.ledger, kept);
        transient::remove(&self.name, self.inner.chains.values());
        shared.ports.release_all(&self.inner.live);
        if let Err(err) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(domain = self.name, %err, "cannot remove the run directory");
        }
    }
}

/// A QEMU that could not be taken up again when the daemon started may still run. Its status file
/// is all that leads to it.
fn refuse_lost(dir: &Path, name: &str) -> Result<()> {
    let who = match Status::read(dir) {
        Ok(None) => return Ok(()),
        Ok(Some(status)) => match status.process.as_ref().and_then(ProcessRecord::find) {
            Some(process) => format!("process {} still runs", process.pid()),
            None => return Ok(()),
        },
        Err(err) => format!("what is known of it cannot be read: {err}"),
    };
    let message = format!(
        "domain '{name}' was not found again when the daemon started, and {who}; \
         end its QEMU and remove '{}'",
        dir.display()
    );
    Err(Error::new(Condition::ResourceBusy, message))
}

/// `RUN/UUID` is ours, and QEMU's user may only pass through to `qemu/`, where it makes its
/// sockets: what is in the status file must not be QEMU's to change.
fn make_dirs(dir: &Path, user: Option<Owner>) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            return Err(failed("remove what is left in", dir, err));
        }
        _ => {}
    }
    let make = |path: &Path, mode| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(|err| failed("make the directory", path, err))
    };
    let inside = dir.join("qemu");
    make(dir, 0o711)?;
    make(&inside, 0o700)?;
    match user {
        Some(user) => user.own(&inside).map_err(|err| failed("give to QEMU's user", &inside, err)),
        None => Ok(()),
    }
}

/// Directories of the sockets and logs that QEMU will make, where they are not there yet.
fn make_socket_dirs(files: &[PathBuf], user: Option<Owner>) -> Result<()> {
    for dir in files.iter().filter_map(|path| path.parent()) {
        if dir.as_os_str().is_empty() || dir.exists() {
            continue;
        }
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(dir)
            .and_then(|()| user.map_or(Ok(()), |user| user.own(dir)))
            .map_err(|err| failed("make the directory", dir, err))?;
    }
    Ok(())
}

/// One chain for each disk that has an image, and for a variable store that is qcow2. Disks are
/// numbered from the last to the first, and each from the top down, as libvirt does.
async fn chains_of(live: &Element, qemu_img: &Path) -> Result<BTreeMap<Target, Chain>> {
    let tool = QemuImg::new(qemu_img);
    let mut chains = BTreeMap::new();
    let mut number = 0;
    let disks: Vec<_> = live
        .child("devices")
        .into_iter()
        .flat_map(|devices| devices.children("disk"))
        .filter_map(setup::disk_image)
        .collect();
    for (target, image, format) in disks.into_iter().rev() {
        let mut layers = Vec::new();
        for (image, facts) in tool.chain(&image, &Format::from(format.as_str())).await? {
            number += 1;
            layers.push(Layer {
                image,
                format: facts.format.as_str().to_owned(),
                is_block_device: facts.is_block_device,
                number,
            });
        }
        chains.insert(target.clone(), Chain { target, layers });
    }
    if let Some(image) = qcow2_store(live) {
        let format = Format::Qcow2.as_str().to_owned();
        let layer = Layer { image, format, is_block_device: false, number: FLASH };
        chains.insert(NVRAM.to_owned(), Chain { target: NVRAM.to_owned(), layers: vec![layer] });
    }
    Ok(chains)
}

/// A file that is made if it is not there, for us alone.
pub(crate) fn private_file(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}
