//! From a call's number to the function that does it.
//!
//! The table at the end is the list of what this daemon answers; a test holds
//! docs/protocol-coverage.md to it. A handler is an `async fn(Context<'_, H>, XArgs) -> Outcome<R>`
//! where `R` is the procedure's own result struct, or an [`Answer`] when descriptors, a stream or a
//! subscription go with it. The compiler checks that a row's number is that of its handler's
//! arguments. Flag words are decoded in the handlers and go no further.

mod agent;
mod blockjobs;
mod connect;
#[cfg(test)]
mod coverage;
#[cfg(test)]
mod damaged;
mod disks;
mod flags;
mod guest;
mod images;
mod info;
mod jobs;
mod life;
mod lists;
mod node;
mod numbers;
mod qemu;
mod save;
mod settings;
mod snapshots;
mod stats;
mod storage;
#[cfg(test)]
mod tests;
mod tuning;
mod validate;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;
use virtsnap_engine::domain::Active;
use virtsnap_engine::error::{Condition, Error};
use virtsnap_engine::inspect::Inspect;
use virtsnap_rpc::message::{PROGRAM_QEMU, PROGRAM_REMOTE};
use virtsnap_rpc::procedure::{Procedure, QemuProcedure};
use virtsnap_rpc::remote;
use virtsnap_rpc::xdr::Xdr;

use crate::consoles::Consoles;
use crate::domains::{Domain, Domains};
use crate::handle::SessionHandle;
use crate::service::{Call, ERR_INTERNAL, FROM_RPC, Reply, RpcError, Service, Subscription};
use crate::stream::ServerStream;
use crate::vir_error::VirError;

/// What every handler can reach.
pub(crate) struct Daemon<H: Inspect> {
    pub(crate) domains: Arc<Domains<H>>,
    pub(crate) consoles: Consoles,
    autodestroy: Mutex<Vec<Autodestroy>>,
}

/// A guest that ends with the session that started it. By its id, because the same domain may
/// stop and be started again by somebody else.
#[derive(Debug, Clone, Copy)]
struct Autodestroy {
    session: u64,
    domain: Uuid,
    id: i32,
}

impl<H: Inspect> Daemon<H> {
    pub(crate) fn new(domains: Arc<Domains<H>>) -> Self {
        Self { domains, consoles: Consoles::default(), autodestroy: Mutex::default() }
    }

    fn autodestroy(&self) -> MutexGuard<'_, Vec<Autodestroy>> {
        self.autodestroy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest ends when the session does; at once, if the session ended while it started.
    async fn destroy_with(&self, session: &SessionHandle, guest: &Active) {
        let entry = Autodestroy { session: session.id, domain: guest.uuid, id: guest.id };
        self.autodestroy().push(entry);
        if session.is_closed() {
            self.destroy_all_of(session.id).await;
        }
    }

    async fn destroy_all_of(&self, session: u64) {
        let ending: Vec<_> =
            self.autodestroy().extract_if(.., |entry| entry.session == session).collect();
        for Autodestroy { domain, id, .. } in ending {
            let Some(domain) = self.domains.table.get(domain) else { continue };
            if self.domains.id(&domain) != id {
                continue;
            }
            match self.domains.destroy(&domain).await {
                Ok(()) => tracing::info!(domain = domain.name(), "ended with its session"),
                Err(err) => tracing::debug!(error = %err.chain(), "not ended with its session"),
            }
        }
    }
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// In our words; numbered on its way out.
    Engine(Error),
    /// Numbered already.
    Wire(RpcError),
}

impl From<Error> for Failure {
    fn from(err: Error) -> Self {
        Failure::Engine(err)
    }
}

impl From<RpcError> for Failure {
    fn from(err: RpcError) -> Self {
        Failure::Wire(err)
    }
}

impl Failure {
    fn told_by(self, driver: i32) -> RpcError {
        match self {
            Failure::Engine(err) => {
                let told = VirError::new(&err, driver);
                let int1 = told.errno.unwrap_or(-1);
                RpcError { int1, ..RpcError::new(told.code, told.domain, told.message) }
            }
            Failure::Wire(err) => err,
        }
    }
}

pub(crate) type Outcome<T> = Result<T, Failure>;

/// Clients know how to live with this one.
fn unsupported(what: &str) -> Failure {
    Error::new(Condition::NoSupport, format!("{what} is not supported")).into()
}

/// One call, beside its arguments.
pub(crate) struct Context<'a, H: Inspect> {
    pub(crate) daemon: &'a Daemon<H>,
    pub(crate) session: &'a Arc<SessionHandle>,
}

impl<H: Inspect> Context<'_, H> {
    /// A client's reference to a domain names it by its uuid; name and id may be out of date.
    fn domain(&self, dom: &remote::DomainRef) -> Outcome<Arc<Domain>> {
        self.daemon.domains.find(dom.uuid).map_err(|_| {
            let message = format!("no domain with matching uuid '{}' ({})", dom.uuid, dom.name);
            Error::new(Condition::NoDomain, message).into()
        })
    }

    fn reference(&self, domain: &Domain) -> remote::DomainRef {
        remote::DomainRef {
            name: domain.name(),
            uuid: domain.uuid,
            id: self.daemon.domains.id(domain),
        }
    }
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
async fn answer<'a, const NUMBER: u32, H, A, R, F>(
    context: Context<'a, H>,
    payload: &[u8],
    handler: impl FnOnce(Context<'a, H>, A) -> F,
) -> Result<Reply, RpcError>
where
    H: Inspect,
    A: remote::Call,
    R: Into<Answer<A::Ret>>,
    F: Future<Output = Outcome<R>>,
{
    const { assert!(A::PROCEDURE == NUMBER, "a row names another procedure than its handler") };
    let args = A::from_bytes(payload).map_err(|_| RpcError::undecodable())?;
    // Boxed, so that the future of a call is as large as its own handler's and not as the largest.
    let answer = Box::pin(handler(context, args)).await;
    let answer: Answer<A::Ret> = answer.map_err(|failure| failure.told_by(H::ERROR_DOMAIN))?.into();
    let payload = answer.ret.to_bytes().map_err(|err| {
        RpcError::new(ERR_INTERNAL, FROM_RPC, format!("the result cannot be sent: {err}"))
    })?;
    Ok(Reply { payload, fds: answer.fds, stream: answer.stream, subscription: answer.subscription })
}

macro_rules! table {
    ($answered:ident, $run:ident of $program:ident;
     $($procedure:ident => $handler:path,)*) => {
        /// What is answered, in the order of the table.
        #[cfg(test)]
        const $answered: &[$program] = &[$($program::$procedure),*];

        async fn $run<H: Inspect>(
            context: Context<'_, H>,
            procedure: $program,
            payload: &[u8],
        ) -> Result<Reply, RpcError> {
            match procedure {
                $($program::$procedure => {
                    answer::<{ $program::$procedure as u32 }, H, _, _, _>(
                        context, payload, $handler,
                    ).await
                })*
                other if other.is_message() => Err(RpcError::unknown_procedure(other as u32)),
                other => Err(RpcError::not_answered(other.name())),
            }
        }
    };
}

impl<H: Inspect> Service for Daemon<H> {
    async fn call(&self, session: &Arc<SessionHandle>, call: Call) -> Result<Reply, RpcError> {
        let unknown = || RpcError::unknown_procedure(call.procedure);
        // No call that is answered takes descriptors.
        drop(call.fds);
        let context = Context { daemon: self, session };
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

    fn closed(self: Arc<Self>, session: &SessionHandle) {
        let session = session.id;
        tokio::spawn(async move { self.destroy_all_of(session).await });
    }
}

table! {
    ANSWERED, run_remote of Procedure;
    CONNECT_OPEN => connect::open,
    CONNECT_CLOSE => connect::close,
    CONNECT_GET_TYPE => connect::get_type,
    CONNECT_GET_VERSION => connect::get_version,
    CONNECT_GET_MAX_VCPUS => node::max_vcpus,
    NODE_GET_INFO => node::info,
    CONNECT_GET_CAPABILITIES => node::capabilities,
    DOMAIN_ATTACH_DEVICE => settings::attach,
    DOMAIN_CREATE => life::create,
    DOMAIN_CREATE_XML => life::create_xml,
    DOMAIN_DEFINE_XML => life::define,
    DOMAIN_DESTROY => life::destroy,
    DOMAIN_DETACH_DEVICE => settings::detach,
    DOMAIN_GET_XML_DESC => life::xml_desc,
    DOMAIN_GET_AUTOSTART => life::get_autostart,
    DOMAIN_GET_INFO => info::info,
    DOMAIN_GET_MAX_MEMORY => info::max_memory,
    DOMAIN_GET_MAX_VCPUS => info::max_vcpus,
    DOMAIN_GET_OS_TYPE => info::os_type,
    DOMAIN_GET_VCPUS => info::vcpus,
    CONNECT_LIST_DEFINED_DOMAINS => lists::list_defined,
    DOMAIN_LOOKUP_BY_ID => lists::by_id,
    DOMAIN_LOOKUP_BY_NAME => lists::by_name,
    DOMAIN_LOOKUP_BY_UUID => lists::by_uuid,
    CONNECT_NUM_OF_DEFINED_DOMAINS => lists::num_defined,
    DOMAIN_REBOOT => life::reboot,
    DOMAIN_RESUME => life::resume,
    DOMAIN_SET_AUTOSTART => life::set_autostart,
    DOMAIN_SET_MAX_MEMORY => settings::set_max_memory,
    DOMAIN_SET_MEMORY => settings::set_memory,
    DOMAIN_RESTORE => save::restore,
    DOMAIN_SAVE => save::save,
    DOMAIN_SET_VCPUS => settings::set_vcpus,
    DOMAIN_SHUTDOWN => life::shutdown,
    DOMAIN_SUSPEND => life::suspend,
    DOMAIN_UNDEFINE => life::undefine,
    CONNECT_LIST_DOMAINS => lists::list_ids,
    CONNECT_NUM_OF_DOMAINS => lists::num_active,
    CONNECT_GET_HOSTNAME => node::hostname,
    CONNECT_SUPPORTS_FEATURE => connect::supports_feature,
    DOMAIN_BLOCK_STATS => disks::stats,
    DOMAIN_INTERFACE_STATS => stats::interface,
    AUTH_LIST => connect::auth_list,
    STORAGE_POOL_REFRESH => storage::refresh,
    STORAGE_POOL_LOOKUP_BY_NAME => storage::pool_by_name,
    STORAGE_POOL_LOOKUP_BY_VOLUME => storage::pool_by_volume,
    STORAGE_POOL_GET_INFO => storage::pool_info,
    STORAGE_POOL_GET_XML_DESC => storage::pool_xml,
    STORAGE_VOL_DELETE => storage::delete,
    STORAGE_VOL_LOOKUP_BY_NAME => storage::volume_by_name,
    STORAGE_VOL_LOOKUP_BY_PATH => storage::volume_by_path,
    STORAGE_VOL_GET_INFO => storage::volume_info,
    STORAGE_VOL_GET_XML_DESC => storage::volume_xml,
    STORAGE_VOL_GET_PATH => storage::volume_path,
    NODE_GET_CELLS_FREE_MEMORY => node::cells_free_memory,
    NODE_GET_FREE_MEMORY => node::free_memory,
    CONNECT_GET_URI => connect::get_uri,
    DOMAIN_GET_SECURITY_LABEL => info::security_label,
    NODE_GET_SECURITY_MODEL => info::security_model,
    CONNECT_IS_SECURE => connect::is_secure,
    DOMAIN_IS_ACTIVE => info::is_active,
    DOMAIN_IS_PERSISTENT => info::is_persistent,
    CONNECT_GET_LIB_VERSION => connect::get_lib_version,
    STORAGE_POOL_IS_ACTIVE => storage::pool_is_active,
    STORAGE_POOL_IS_PERSISTENT => storage::pool_is_persistent,
    DOMAIN_MEMORY_STATS => stats::memory,
    DOMAIN_ATTACH_DEVICE_FLAGS => settings::attach_flags,
    DOMAIN_DETACH_DEVICE_FLAGS => settings::detach_flags,
    DOMAIN_GET_JOB_INFO => jobs::info,
    DOMAIN_ABORT_JOB => jobs::abort,
    DOMAIN_UPDATE_DEVICE_FLAGS => settings::update_flags,
    DOMAIN_MANAGED_SAVE => save::managed_save,
    DOMAIN_HAS_MANAGED_SAVE_IMAGE => info::has_managed_save,
    DOMAIN_MANAGED_SAVE_REMOVE => save::managed_save_remove,
    DOMAIN_SNAPSHOT_CREATE_XML => snapshots::create,
    DOMAIN_SNAPSHOT_GET_XML_DESC => snapshots::xml_desc,
    DOMAIN_SNAPSHOT_NUM => snapshots::num,
    DOMAIN_SNAPSHOT_LIST_NAMES => snapshots::list_names,
    DOMAIN_SNAPSHOT_LOOKUP_BY_NAME => snapshots::lookup,
    DOMAIN_HAS_CURRENT_SNAPSHOT => snapshots::has_current,
    DOMAIN_SNAPSHOT_CURRENT => snapshots::current,
    DOMAIN_REVERT_TO_SNAPSHOT => snapshots::revert,
    DOMAIN_SNAPSHOT_DELETE => snapshots::delete,
    DOMAIN_GET_BLOCK_INFO => disks::info,
    DOMAIN_CREATE_WITH_FLAGS => life::create_with_flags,
    DOMAIN_SET_VCPUS_FLAGS => settings::set_vcpus_flags,
    DOMAIN_GET_VCPUS_FLAGS => info::vcpus_flags,
    DOMAIN_OPEN_CONSOLE => guest::open_console,
    DOMAIN_IS_UPDATED => info::is_updated,
    CONNECT_GET_SYSINFO => node::sysinfo,
    DOMAIN_SET_MEMORY_FLAGS => settings::set_memory_flags,
    DOMAIN_INJECT_NMI => guest::inject_nmi,
    DOMAIN_GET_VCPU_PIN_INFO => tuning::vcpu_pins,
    DOMAIN_SCREENSHOT => guest::screenshot,
    DOMAIN_GET_STATE => info::state,
    DOMAIN_SEND_KEY => guest::send_key,
    NODE_GET_CPU_STATS => node::cpu_stats,
    NODE_GET_MEMORY_STATS => node::memory_stats,
    DOMAIN_GET_CONTROL_INFO => info::control_info,
    DOMAIN_UNDEFINE_FLAGS => life::undefine_flags,
    DOMAIN_SAVE_FLAGS => save::save_flags,
    DOMAIN_RESTORE_FLAGS => save::restore_flags,
    DOMAIN_DESTROY_FLAGS => life::destroy_flags,
    DOMAIN_SAVE_IMAGE_GET_XML_DESC => save::image_xml,
    DOMAIN_SAVE_IMAGE_DEFINE_XML => save::define_image_xml,
    DOMAIN_BLOCK_JOB_ABORT => blockjobs::abort,
    DOMAIN_GET_BLOCK_JOB_INFO => blockjobs::info,
    DOMAIN_BLOCK_JOB_SET_SPEED => blockjobs::set_speed,
    DOMAIN_BLOCK_PULL => blockjobs::pull,
    DOMAIN_BLOCK_STATS_FLAGS => disks::stats_flags,
    DOMAIN_SNAPSHOT_GET_PARENT => snapshots::parent,
    DOMAIN_RESET => life::reset,
    DOMAIN_SNAPSHOT_NUM_CHILDREN => snapshots::num_children,
    DOMAIN_SNAPSHOT_LIST_CHILDREN_NAMES => snapshots::list_children_names,
    DOMAIN_BLOCK_RESIZE => disks::resize,
    DOMAIN_SHUTDOWN_FLAGS => life::shutdown_flags,
    DOMAIN_GET_CPU_STATS => stats::cpu,
    DOMAIN_GET_DISK_ERRORS => info::disk_errors,
    DOMAIN_SET_METADATA => settings::set_metadata,
    DOMAIN_GET_METADATA => settings::get_metadata,
    DOMAIN_SNAPSHOT_IS_CURRENT => snapshots::is_current,
    DOMAIN_SNAPSHOT_HAS_METADATA => snapshots::has_metadata,
    CONNECT_LIST_ALL_DOMAINS => lists::list_all,
    DOMAIN_LIST_ALL_SNAPSHOTS => snapshots::list_all,
    DOMAIN_SNAPSHOT_LIST_ALL_CHILDREN => snapshots::list_all_children,
    DOMAIN_BLOCK_REBASE => blockjobs::rebase,
    DOMAIN_GET_EMULATOR_PIN_INFO => tuning::emulator_pins,
    DOMAIN_BLOCK_COMMIT => blockjobs::commit,
    CONNECT_LIST_ALL_STORAGE_POOLS => storage::list_pools,
    DOMAIN_GET_HOSTNAME => agent::hostname,
    NODE_GET_CPU_MAP => node::cpu_map,
    DOMAIN_OPEN_CHANNEL => guest::open_channel,
    DOMAIN_GET_JOB_STATS => jobs::stats,
    CONNECT_DOMAIN_EVENT_CALLBACK_REGISTER_ANY => connect::register_domain_event,
    CONNECT_DOMAIN_EVENT_CALLBACK_DEREGISTER_ANY => connect::deregister_domain_event,
    DOMAIN_FSFREEZE => agent::freeze,
    DOMAIN_FSTHAW => agent::thaw,
    DOMAIN_BLOCK_COPY => blockjobs::copy,
    DOMAIN_FSTRIM => agent::trim,
    DOMAIN_SET_TIME => agent::set_time,
    DOMAIN_GET_FSINFO => agent::filesystems,
    DOMAIN_GET_TIME => agent::get_time,
    NODE_GET_FREE_PAGES => node::free_pages,
    CONNECT_GET_DOMAIN_CAPABILITIES => node::domain_capabilities,
    DOMAIN_OPEN_GRAPHICS_FD => guest::open_graphics_fd,
    DOMAIN_GET_IOTHREAD_INFO => tuning::iothreads,
    CONNECT_GET_ALL_DOMAIN_STATS => stats::all,
    DOMAIN_DEFINE_XML_FLAGS => life::define_flags,
    DOMAIN_RENAME => life::rename,
    CONNECT_REGISTER_CLOSE_CALLBACK => connect::register_close_callback,
    CONNECT_UNREGISTER_CLOSE_CALLBACK => connect::unregister_close_callback,
    DOMAIN_MANAGED_SAVE_GET_XML_DESC => save::managed_xml,
    DOMAIN_MANAGED_SAVE_DEFINE_XML => save::define_managed_xml,
    DOMAIN_LIST_ALL_CHECKPOINTS => info::list_checkpoints,
    DOMAIN_GET_MESSAGES => info::messages,
    DOMAIN_ABORT_JOB_FLAGS => jobs::abort_flags,
    DOMAIN_SAVE_PARAMS => save::save_params,
    DOMAIN_RESTORE_PARAMS => save::restore_params,
    DOMAIN_GET_AUTOSTART_ONCE => life::get_autostart_once,
}

table! {
    ANSWERED_QEMU, run_qemu of QemuProcedure;
    DOMAIN_MONITOR_COMMAND => qemu::monitor_command,
    DOMAIN_AGENT_COMMAND => qemu::agent_command,
}
