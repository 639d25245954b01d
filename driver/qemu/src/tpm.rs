//! Emulated TPMs: one swtpm process for each, started before QEMU and ended after it.
//!
//! State is kept in `STATE/tpm/UUID/VERSION` (libvirt: `swtpm/UUID/tpm2`). A new TPM 2.0 gets its
//! certificates by `swtpm_setup` where that is installed.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use uuid::Uuid;
use virtsnap_engine::error::{Condition, Error, Result};

use crate::argv::Swtpm;
use crate::confine::failed;
use crate::hypervisor::QemuConfig;
use crate::launch::private_file;
use crate::process::Process;
use crate::system::Detached;

const SOCKET_DEADLINE: Duration = Duration::from_secs(15);
const SETUP_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// Starts swtpm; returns when it listens on `socket`.
pub(crate) async fn start(
    config: &QemuConfig,
    domain: Uuid,
    tpm: &Swtpm,
    socket: &Path,
    log: &Path,
) -> Result<Process> {
    let state = state_dir(config, domain, &tpm.version);
    let is_new = !state.exists();
    private_dir(&state)?;
    if let Some(user) = config.user {
        user.own(&state).map_err(|err| failed("give to QEMU's user", &state, err))?;
    }
    if is_new {
        manufacture(config, &state, &tpm.version).await?;
    }
    let mut command = Command::new(&config.swtpm);
    command.arg("socket");
    command.args(["--ctrl", &format!("type=unixio,path={},mode=0600", socket.display())]);
    command.args(["--tpmstate", &format!("dir={},mode=0600", state.display())]);
    command.arg("--terminate");
    if tpm.version != "1.2" {
        command.arg("--tpm2");
    }
    // It logs to standard error. QEMU's user could not open the file itself.
    let stderr = private_file(log).map_err(|err| failed("open", log, err))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).current_dir("/");
    Detached { fds: Vec::new(), user: config.user, locks_memory: false }
        .apply(&mut command)
        .map_err(|err| cannot_run(config, err))?;
    let child = command.spawn().map_err(|err| cannot_run(config, err))?;
    let process = i32::try_from(child.id())
        .map_err(std::io::Error::other)
        .and_then(Process::open)
        .map_err(|err| cannot_run(config, err))?;
    let listens = async {
        while !socket.exists() && !process.is_gone() {
            tokio::time::sleep(POLL).await;
        }
    };
    let in_time = tokio::time::timeout(SOCKET_DEADLINE, listens).await.is_ok();
    if !in_time || process.is_gone() {
        crate::life::end_helper(&process).await;
        let message = format!("swtpm did not start; see '{}'", log.display());
        return Err(Error::new(Condition::OperationFailed, message));
    }
    Ok(process)
}

/// Where a domain's TPM keeps what it knows.
pub(crate) fn state_dir(config: &QemuConfig, domain: Uuid, version: &str) -> PathBuf {
    let version = if version == "1.2" { "tpm1.2" } else { "tpm2" };
    all_state_of(config, domain).join(version)
}

/// It goes when its domain is undefined.
pub(crate) fn all_state_of(config: &QemuConfig, domain: Uuid) -> PathBuf {
    config.state_dir.join("tpm").join(domain.to_string())
}

/// The file in it that holds all of a TPM that is off. swtpm replaces it by renaming, so that
/// whoever opens it reads one state.
pub(crate) fn state_file(config: &QemuConfig, domain: Uuid, version: &str) -> PathBuf {
    let name = if version == "1.2" { "tpm-00.permall" } else { "tpm2-00.permall" };
    state_dir(config, domain, version).join(name)
}

/// Certificates of a new TPM. One without works as well, so a missing tool is no failure.
async fn manufacture(config: &QemuConfig, state: &Path, version: &str) -> Result<()> {
    let tool = config.swtpm.with_file_name("swtpm_setup");
    if !tool.exists() {
        return Ok(());
    }
    let mut command = Command::new(tool);
    command.arg("--tpm-state").arg(state);
    if version != "1.2" {
        command.arg("--tpm2");
    }
    command.args(["--create-ek-cert", "--create-platform-cert", "--lock-nvram", "--overwrite"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    Detached { fds: Vec::new(), user: config.user, locks_memory: false }
        .apply(&mut command)
        .map_err(|err| cannot_run(config, err))?;
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    match tokio::time::timeout(SETUP_DEADLINE, command.status()).await {
        Ok(Ok(status)) if status.success() => {}
        outcome => tracing::warn!(?outcome, "swtpm_setup failed: the TPM has no certificates"),
    }
    Ok(())
}

pub(crate) fn private_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path.parent().unwrap_or(path))
        .and_then(|()| fs::DirBuilder::new().recursive(true).mode(0o700).create(path))
        .map_err(|err| failed("make the directory", path, err))
}

fn cannot_run(config: &QemuConfig, err: std::io::Error) -> Error {
    let message = format!("cannot run '{}', which emulates a TPM", config.swtpm.display());
    Error::new(Condition::OperationFailed, message).caused_by(err)
}
