//! The QEMU program: its monitor and the guest's agent, past the driver.

use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::remote::*;

use super::{Context, Outcome, flags};

pub(super) async fn monitor_command<H: Inspect>(
    cx: Context<'_, H>,
    args: QemuDomainMonitorCommandArgs,
) -> Outcome<QemuDomainMonitorCommandRet> {
    const HMP: u32 = 1;
    flags::only::<H>(args.flags, HMP, "DomainQemuMonitorCommand")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    let human = args.flags & HMP != 0;
    let hypervisor = &cx.daemon.domains.hypervisor;
    let result = hypervisor.monitor_command(domain.uuid, &args.cmd, human).await?;
    Ok(QemuDomainMonitorCommandRet { result })
}

pub(super) async fn agent_command<H: Inspect>(
    cx: Context<'_, H>,
    args: QemuDomainAgentCommandArgs,
) -> Outcome<QemuDomainAgentCommandRet> {
    flags::only::<H>(args.flags, 0, "DomainQemuAgentCommand")?;
    let domain = cx.domain(&args.dom)?;
    cx.daemon.domains.running(&domain)?;
    // Negative numbers are "for ever" and "the default"; nothing here waits for ever.
    let seconds = u32::try_from(args.timeout).ok();
    let hypervisor = &cx.daemon.domains.hypervisor;
    let result = hypervisor.agent_command(domain.uuid, &args.cmd, seconds).await?;
    Ok(QemuDomainAgentCommandRet { result: Some(result) })
}
