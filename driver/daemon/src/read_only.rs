//! What a read-only client may not do. The rule for each procedure stands in the table of
//! `virtsnap_rpc::procedure`; here it becomes a refusal.

use virtsnap_rpc::message::{PROGRAM_QEMU, PROGRAM_REMOTE};
use virtsnap_rpc::procedure::{Procedure, QemuProcedure, barred_by_flags};

use crate::service::{
    ERR_OPERATION_DENIED, FROM_DOMAIN, FROM_DOMAIN_SNAPSHOT, FROM_NONE, RpcError,
};

pub(crate) fn check(program: u32, procedure: u32, payload: &[u8]) -> Result<(), RpcError> {
    let barred = match program {
        PROGRAM_REMOTE => Procedure::try_from(procedure)
            .ok()
            .and_then(|known| known.barred_read_only().or_else(|| barred_by_flags(known, payload))),
        PROGRAM_QEMU => {
            QemuProcedure::try_from(procedure).ok().and_then(QemuProcedure::barred_read_only)
        }
        _ => None,
    };
    let Some(function) = barred else { return Ok(()) };
    let domain = match program {
        PROGRAM_QEMU => FROM_NONE,
        _ if function.contains("Snapshot") => FROM_DOMAIN_SNAPSHOT,
        _ => FROM_DOMAIN,
    };
    let message = format!("operation forbidden: read only access prevents {function}");
    Err(RpcError::new(ERR_OPERATION_DENIED, domain, message))
}

#[cfg(test)]
mod tests;
