//! From a call's number to the function that does it.
//!
//! The table at the end is the list of what this daemon answers; docs/protocol-coverage.md is
//! generated from it. A handler is an `async fn(Context<'_>, XArgs) -> Result<R, E>` where `R` is
//! the procedure's own result struct, or an [`Answer`] when descriptors, a stream or a
//! subscription go with it. The compiler checks that a row's number is that of its handler's
//! arguments.

mod connect;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtsnap_rpc::message::{PROGRAM_QEMU, PROGRAM_REMOTE};
use virtsnap_rpc::procedure::{Procedure, QemuProcedure};
use virtsnap_rpc::remote;
use virtsnap_rpc::xdr::Xdr;

use crate::service::{Call, ERR_INTERNAL, FROM_RPC, Reply, RpcError, Service, Subscription};
use crate::session::{SessionHandle, Sessions};
use crate::stream::ServerStream;

/// What every handler can reach.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) sessions: Arc<Sessions>,
}

/// One call, beside its arguments.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) daemon: &'a Daemon,
    pub(crate) session: &'a Arc<SessionHandle>,
    /// Descriptors that came with the call.
    pub(crate) fds: Vec<OwnedFd>,
}

/// A result with what goes beside it.
#[derive(Debug)]
pub(crate) struct Answer<R> {
    pub(crate) ret: R,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) stream: Option<ServerStream>,
    pub(crate) subscription: Option<Subscription>,
}

impl<R> From<R> for Answer<R> {
    fn from(ret: R) -> Self {
        Self { ret, fds: Vec::new(), stream: None, subscription: None }
    }
}

impl<R> Answer<R> {
    pub(crate) fn with_fd(self, fd: OwnedFd) -> Self {
        Self { fds: vec![fd], ..self }
    }

    pub(crate) fn with_stream(self, stream: ServerStream) -> Self {
        Self { stream: Some(stream), ..self }
    }

    pub(crate) fn with_subscription(self, subscription: Subscription) -> Self {
        Self { subscription: Some(subscription), ..self }
    }
}

/// Decodes the arguments, runs the handler, encodes its answer.
async fn answer<'a, const NUMBER: u32, A, R, E, F>(
    context: Context<'a>,
    payload: &[u8],
    handler: impl FnOnce(Context<'a>, A) -> F,
) -> Result<Reply, RpcError>
where
    A: remote::Call,
    R: Into<Answer<A::Ret>>,
    E: Into<RpcError>,
    F: Future<Output = Result<R, E>>,
{
    const { assert!(A::PROCEDURE == NUMBER, "a row names another procedure than its handler") };
    let args = A::from_bytes(payload).map_err(|_| RpcError::undecodable())?;
    // Boxed, so that the future of a call is as large as its own handler's and not as the largest.
    let answer = Box::pin(handler(context, args)).await.map_err(Into::into)?.into();
    let payload = answer.ret.to_bytes().map_err(|err| {
        RpcError::new(ERR_INTERNAL, FROM_RPC, format!("the result cannot be sent: {err}"))
    })?;
    Ok(Reply { payload, fds: answer.fds, stream: answer.stream, subscription: answer.subscription })
}

macro_rules! table {
    ($answered:ident, $run:ident of $program:ident;
     $($procedure:ident => $handler:path,)*) => {
        /// What is answered, in the order of the table.
        pub(crate) const $answered: &[$program] = &[$($program::$procedure),*];

        #[allow(unused_variables, reason = "a table may be empty")]
        async fn $run(
            context: Context<'_>,
            procedure: $program,
            payload: &[u8],
        ) -> Result<Reply, RpcError> {
            match procedure {
                $($program::$procedure => {
                    answer::<{ $program::$procedure as u32 }, _, _, _, _>(
                        context, payload, $handler,
                    ).await
                })*
                other => Err(RpcError::unknown_procedure(other as u32)),
            }
        }
    };
}

impl Service for Daemon {
    async fn call(&self, session: &Arc<SessionHandle>, call: Call) -> Result<Reply, RpcError> {
        let unknown = || RpcError::unknown_procedure(call.procedure);
        let context = Context { daemon: self, session, fds: call.fds };
        match call.program {
            PROGRAM_REMOTE => {
                let procedure = Procedure::try_from(call.procedure).map_err(|_| unknown())?;
                run_remote(context, procedure, &call.payload).await
            }
            PROGRAM_QEMU => {
                let procedure = QemuProcedure::try_from(call.procedure).map_err(|_| unknown())?;
                run_qemu(context, procedure, &call.payload).await
            }
            _ => Err(unknown()),
        }
    }
}

table! {
    ANSWERED, run_remote of Procedure;
    CONNECT_OPEN => connect::open,
    CONNECT_CLOSE => connect::close,
    CONNECT_GET_TYPE => connect::get_type,
    CONNECT_GET_VERSION => connect::get_version,
    CONNECT_SUPPORTS_FEATURE => connect::supports_feature,
    AUTH_LIST => connect::auth_list,
    CONNECT_GET_LIB_VERSION => connect::get_lib_version,
    CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY => connect::register_domain_event,
    CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY => connect::deregister_domain_event,
    CONNECT_REGISTER_CLOSE_CALLBACK => connect::register_close_callback,
    CONNECT_UNREGISTER_CLOSE_CALLBACK => connect::unregister_close_callback,
}

table! {
    ANSWERED_QEMU, run_qemu of QemuProcedure;
}
