//! Tap devices and the bridges they hang on.
//!
//! A tap that we make belongs to its descriptor and is gone with the QEMU that holds it; one that
//! was there before stays. So none is ever removed by name: the kernel gives a free name at once to
//! the next guest.

use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use virtsnap_engine::error::{Condition, Error, Result};

use crate::argv::{TapRequest, VsockRequest};
use crate::system;

const IP_DEADLINE: Duration = Duration::from_secs(20);

/// An open tap: its name on the host and the descriptors to pass, by number.
#[derive(Debug)]
pub(crate) struct Tap {
    pub(crate) alias: String,
    pub(crate) name: String,
    pub(crate) fds: Vec<(i32, OwnedFd)>,
}

/// Opens a tap with its queues, puts it on its bridge and brings it up.
pub(crate) async fn open_tap(request: &TapRequest) -> Result<Tap> {
    let wanted = request.target.as_deref().unwrap_or("vnet%d");
    let is_multiqueue = request.fds.len() > 1;
    let mut name = wanted.to_owned();
    let mut fds = Vec::new();
    for &number in &request.fds {
        let (fd, given) = system::open_tap(&name, request.vnet_header, is_multiqueue)
            .map_err(|err| failed(request, "make a tap device", err))?;
        name = given;
        fds.push((number, fd));
    }
    for &number in &request.vhost_fds {
        let fd = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/vhost-net")
            .map_err(|err| failed(request, "open /dev/vhost-net", err))?;
        fds.push((number, fd.into()));
    }
    if request.managed {
        bring_up(request, &name).await?;
    }
    Ok(Tap { alias: request.alias.clone(), name, fds })
}

async fn bring_up(request: &TapRequest, name: &str) -> Result<()> {
    let mut arguments = vec!["link", "set", "dev", name];
    let mtu = request.mtu.map(|mtu| mtu.to_string());
    if let Some(mtu) = &mtu {
        arguments.extend(["mtu", mtu]);
    }
    // The host's end must not have the guest's own address, or the bridge would learn it twice.
    let address = request.mac.get(2..).map(|rest| format!("fe{rest}"));
    if let Some(address) = &address {
        arguments.extend(["address", address]);
    }
    if let Some(bridge) = &request.bridge {
        arguments.extend(["master", bridge]);
    }
    arguments.push("up");
    ip(&arguments).await.map_err(|text| {
        let bridge = request.bridge.as_deref().unwrap_or("no bridge");
        let message = format!("interface '{}': cannot attach to {bridge}: {text}", request.alias);
        Error::new(Condition::OperationFailed, message)
    })
}

/// A descriptor of /dev/vhost-vsock that stands for that guest CID.
pub(crate) fn open_vsock(request: &VsockRequest) -> Result<(i32, OwnedFd)> {
    let fd = system::open_vsock(request.cid).map_err(|err| {
        let message = format!("cannot use guest CID {} of vsock", request.cid);
        Error::new(Condition::OperationFailed, message).caused_by(err)
    })?;
    Ok((request.fd, fd))
}

async fn ip(arguments: &[&str]) -> std::result::Result<(), String> {
    let run = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    match timeout(IP_DEADLINE, run).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(err)) => Err(format!("cannot run 'ip' of iproute2: {err}")),
        Err(_) => Err("'ip' does not end".to_owned()),
    }
}

fn failed(request: &TapRequest, what: &str, err: std::io::Error) -> Error {
    let message = format!("interface '{}': cannot {what}", request.alias);
    Error::new(Condition::OperationFailed, message).caused_by(err)
}
