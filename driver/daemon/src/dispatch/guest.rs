//! Consoles, displays and keys of a running guest.

use std::fs::File;

use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;

use super::{Answer, Context, Outcome, flags};
use crate::consoles::Device;
use crate::stream::ServerStream;

pub(super) async fn screenshot<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainScreenshotArgs,
) -> Outcome<Answer<DomainScreenshotRet>> {
    flags::only::<H>(args.flags, 0, "DomainScreenshot")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    let shot = cx.daemon.domains.hypervisor.screenshot(domain.uuid, args.screen).await?;
    let image = tokio::fs::File::from_std(File::from(shot.image));
    let answer = Answer::from(DomainScreenshotRet { mime: Some(shot.mime.to_owned()) });
    Ok(answer.with_stream(ServerStream::download(image)))
}

pub(super) async fn open_console<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainOpenConsoleArgs,
) -> Outcome<Answer<()>> {
    /// Somebody who is connected already is thrown out.
    const FORCE: u32 = 1;
    /// Refused unless nobody else can be connected: ours always is exclusive.
    const SAFE: u32 = 2;
    flags::only::<H>(args.flags, FORCE | SAFE, "DomainOpenConsole")?;
    let domain = cx.domain(&args.dom)?;
    let active = cx.daemon.domains.running(&domain)?;
    let device = Device::console(&active.live, args.dev_name.as_deref())?;
    let stream = cx.daemon.consoles.open(domain.uuid, &device, args.flags & FORCE != 0).await?;
    Ok(Answer::from(()).with_stream(stream))
}

pub(super) async fn open_channel<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainOpenChannelArgs,
) -> Outcome<Answer<()>> {
    const FORCE: u32 = 1;
    flags::only::<H>(args.flags, FORCE, "DomainOpenChannel")?;
    let domain = cx.domain(&args.dom)?;
    let active = cx.daemon.domains.running(&domain)?;
    let device = Device::channel(&active.live, args.name.as_deref())?;
    let stream = cx.daemon.consoles.open(domain.uuid, &device, args.flags & FORCE != 0).await?;
    Ok(Answer::from(()).with_stream(stream))
}

pub(super) async fn open_graphics_fd<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainOpenGraphicsFdArgs,
) -> Outcome<Answer<()>> {
    /// SKIPAUTH: the client is trusted already.
    const SKIP_AUTH: u32 = 1;
    flags::only::<H>(args.flags, SKIP_AUTH, "DomainOpenGraphicsFD")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    let fd = cx.daemon.domains.hypervisor.open_graphics(domain.uuid, args.idx).await?;
    Ok(Answer::from(()).with_fd(fd))
}

pub(super) async fn send_key<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainSendKeyArgs,
) -> Outcome<()> {
    const LINUX: u32 = 0;
    const XT: u32 = 1;
    flags::only::<H>(args.flags, 0, "DomainSendKey")?;
    // For the keys that have one, the AT keyboard's numbers are Linux' own.
    if !matches!(args.codeset, LINUX | XT) {
        let message = "only key codes of the code sets 'linux' and 'xt' are understood";
        return Err(Error::new(Condition::ArgumentUnsupported, message).into());
    }
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    let hypervisor = &cx.daemon.domains.hypervisor;
    Ok(hypervisor.send_keys(domain.uuid, &args.keycodes, args.holdtime).await?)
}

pub(super) async fn inject_nmi<H: Inspect>(
    cx: Context<'_, H>,
    args: DomainInjectNmiArgs,
) -> Outcome<()> {
    flags::only::<H>(args.flags, 0, "DomainInjectNMI")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    Ok(cx.daemon.domains.hypervisor.inject_nmi(domain.uuid).await?)
}
