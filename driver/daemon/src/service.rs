//! The seam between the transport and what a call does.
//!
//! The session decodes frames, bars what a read-only client may not do, and hands each call to a
//! [`Service`] in a task of its own. The service answers with a [`Reply`], whose extra parts tell
//! the session what to do once the reply is queued: start a stream, begin an event subscription.
//! That order is the protocol's: an event never overtakes the reply that hands out its callback id.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use uuid::Uuid;
use virtsnap_rpc::message::WireError;

use crate::session::SessionHandle;
use crate::stream::ServerStream;

/// What answers calls. Dropping the future of a call must be harmless: it happens only when the
/// runtime ends. A client that goes away cancels nothing.
pub(crate) trait Service: Send + Sync + 'static {
    fn call(
        &self,
        session: &Arc<SessionHandle>,
        call: Call,
    ) -> impl Future<Output = Result<Reply, RpcError>> + Send;

    /// The client is gone; its subscriptions and streams are gone too.
    fn closed(self: Arc<Self>, _session: &SessionHandle) {}
}

/// One call, past the checks that need no knowledge of its arguments.
#[derive(Debug)]
pub(crate) struct Call {
    /// REMOTE or QEMU.
    pub(crate) program: u32,
    pub(crate) procedure: u32,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// The answer to a call that succeeded.
#[derive(Debug, Default)]
pub(crate) struct Reply {
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// Starts after the reply, under its serial.
    pub(crate) stream: Option<ServerStream>,
    /// Begins after the reply.
    pub(crate) subscription: Option<Subscription>,
}

/// What a client wants to hear about. The callback id comes from
/// [`SessionHandle::next_callback_id`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subscription {
    pub(crate) callback_id: i32,
    pub(crate) topic: Topic,
    /// Only events of this object; of all objects when absent.
    pub(crate) object: Option<Uuid>,
}

/// The families of events, each with libvirt's event number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Topic {
    Domain(i32),
    /// The connection to the hypervisor is lost (CONNECT_REGISTER_CLOSE_CALLBACK).
    ConnectionClosed,
}

/// libvirt's error domains that the transport itself speaks for.
pub(crate) const FROM_NONE: i32 = 0;
pub(crate) const FROM_RPC: i32 = 7;
pub(crate) const FROM_DOMAIN: i32 = 20;
pub(crate) const FROM_DOMAIN_SNAPSHOT: i32 = 35;
pub(crate) const FROM_STREAMS: i32 = 38;

pub(crate) const ERR_INTERNAL: i32 = 1;
pub(crate) const ERR_NO_SUPPORT: i32 = 3;
pub(crate) const ERR_OPERATION_FAILED: i32 = 9;
pub(crate) const ERR_OPERATION_DENIED: i32 = 29;
pub(crate) const ERR_RPC: i32 = 39;
pub(crate) const ERR_RESOURCE_BUSY: i32 = 87;

/// A refused or failed call, in libvirt's numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RpcError {
    pub(crate) code: i32,
    pub(crate) domain: i32,
    /// The whole text; clients show nothing else.
    pub(crate) message: String,
    /// errno for a failed system call, else -1.
    pub(crate) int1: i32,
}

impl RpcError {
    pub(crate) fn new(code: i32, domain: i32, message: impl Into<String>) -> Self {
        Self { code, domain, message: message.into(), int1: -1 }
    }

    /// Clients turn exactly this text and number into VIR_ERR_NO_SUPPORT and use their fallbacks.
    pub(crate) fn unknown_procedure(procedure: u32) -> Self {
        let procedure = procedure.cast_signed();
        Self::new(ERR_RPC, FROM_RPC, format!("unknown procedure: {procedure}"))
    }

    /// A procedure of the protocol that is not answered; clients know it by the number. People
    /// know the API's `function`, which is the procedure's name in another spelling.
    pub(crate) fn not_answered(procedure: &str) -> Self {
        let words = procedure.split('_').map(|word| match word {
            "CPU" | "XML" => word.to_owned(),
            "NWFILTER" => "NWFilter".to_owned(),
            "NWFILTERS" => "NWFilters".to_owned(),
            "FSINFO" => "FSInfo".to_owned(),
            "IOTHREAD" => "IOThread".to_owned(),
            _ => match word.split_at_checked(1) {
                Some((first, rest)) => format!("{first}{}", rest.to_lowercase()),
                None => String::new(),
            },
        });
        let function: String = words.collect();
        let message =
            format!("this function is not supported by the connection driver: vir{function}");
        Self::new(ERR_NO_SUPPORT, FROM_NONE, message)
    }

    pub(crate) fn undecodable() -> Self {
        Self::new(ERR_RPC, FROM_RPC, "Unable to decode message payload")
    }

    pub(crate) fn into_wire(self) -> WireError {
        const LEVEL_ERROR: i32 = 2;
        WireError {
            code: self.code,
            domain: self.domain,
            // A message with a NUL could not be encoded, and it comes from outside sometimes.
            message: Some(self.message.replace('\0', " ")),
            level: LEVEL_ERROR,
            dom: None,
            str1: None,
            str2: None,
            str3: None,
            int1: self.int1,
            int2: -1,
            net: None,
        }
    }
}
