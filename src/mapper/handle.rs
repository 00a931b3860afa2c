// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What hosts choose from.

use super::{
    Candidate, Capabilities, Checked, CustomMapper, GroupExecutor, GroupMapper, GroupObserver,
    InProcess, InProcessKind, Kind, LlvmSharedMapper, LlvmSimpleMapper, MapperInterface,
    MemoryMapper, ReservingMapper, ServiceMapper,
};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::transport::Transport;
use std::fmt;
use std::sync::Arc;

/// Where memory comes from: the process that runs the linked code, and the way into its memory.
///
/// A mapper may serve any number of managers, which keep what they need of it; it and its clones may
/// be dropped while they use it. Thread-safe.
#[derive(Clone)]
pub struct Mapper(MapperInterface);

/// Which service of an executor a mapper uses, and why it is this mapper.
#[derive(Clone, Debug, Default)]
pub struct ExecutorService {
    /// Executor address of `jitmem_service_open`; `None`: what the transport knows by this name.
    pub open: Option<u64>,
    /// The number published as `jitmem_service_instance`; `None`: what the transport knows by this
    /// name, or the service that every process with this library has.
    pub instance: Option<u64>,
    /// Why a better mapper was not taken, for the statistics.
    pub instead_of: Option<String>,
}

/// An executor that a group is to have.
#[derive(Clone)]
pub struct NewExecutor {
    /// The way to it, which calls into it go as well; a [`Stream`](crate::transport::Stream), for instance.
    pub transport: Arc<dyn Transport>,
    /// Its service. [`ExecutorService::instead_of`] has no part here.
    pub service: ExecutorService,
    /// What errors and events call it; `None`: its number.
    pub name: Option<String>,
}

impl fmt::Debug for NewExecutor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewExecutor")
            .field("service", &self.service)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl NewExecutor {
    fn candidate(self) -> Result<Candidate> {
        let service = addresses(&*self.transport, &self.service)?;
        Ok(Candidate {
            transport: self.transport,
            service,
            name: self.name,
        })
    }
}

/// Where a service is.
fn addresses(transport: &dyn Transport, service: &ExecutorService) -> Result<(u64, u64)> {
    let find = |given: Option<u64>, name| given.or_else(|| transport.symbol(name));
    let open = find(service.open, "jitmem_service_open").ok_or_else(|| {
        Error::new(
            Status::Unsupported,
            "the executor published no jitmem_service_open and none was given: link jitmem's \
             service into the executor or load libjitmem.so there",
        )
    })?;
    Ok((
        open,
        find(service.instance, "jitmem_service_instance").unwrap_or(0),
    ))
}

impl Mapper {
    pub(crate) fn new(mapper: impl MemoryMapper + 'static) -> Mapper {
        Mapper(MapperInterface::Windows(Arc::new(mapper)))
    }

    pub(crate) fn reserving(mapper: impl ReservingMapper + 'static) -> Mapper {
        Mapper(MapperInterface::Reservations(Arc::new(mapper)))
    }

    pub(crate) fn interface(&self) -> &MapperInterface {
        &self.0
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        match &self.0 {
            MapperInterface::Windows(mapper) => mapper.capabilities(),
            MapperInterface::Reservations(mapper) => mapper.capabilities(),
        }
    }

    /// This process's own memory. Choose [`InProcessKind::Auto`] unless a system that allows no two
    /// views shall be an error.
    ///
    /// # Errors
    /// With [`InProcessKind::TwoViews`], why the system refuses two views: `Denied`, `OutOfMemory`,
    /// `Unsupported` or `System`.
    pub fn in_process(kind: InProcessKind) -> Result<Mapper> {
        InProcess::new(kind).map(Mapper::new)
    }

    /// Memory of another process on this machine that has jitmem's service (`jitmem-executor`, or any
    /// executor that has loaded the library), through shared pages: what is written here is what the
    /// executor sees there, and no content is sent.
    ///
    /// Calls the executor and waits for its answers, so it must not be called where the transport's
    /// answers come from. Children that the executor forks have linked code's data as it is then.
    ///
    /// # Errors
    /// `Unsupported` if the executor has no service, or another version of it, or memfds can't be
    /// handed to it, with every step that was tried; `Disconnected`; what the transport says.
    pub fn shared(transport: Arc<dyn Transport>, service: ExecutorService) -> Result<Mapper> {
        Mapper::over(transport, service, ServiceMapper::shared)
    }

    /// Memory of a process on any machine that has jitmem's service: content travels in the
    /// transport's messages, zero-fill does not. Waits as [`Mapper::shared`] does.
    ///
    /// # Errors
    /// As [`Mapper::shared`], but for handing memfds over.
    pub fn remote(transport: Arc<dyn Transport>, service: ExecutorService) -> Result<Mapper> {
        Mapper::over(transport, service, ServiceMapper::remote)
    }

    /// Memory of several executors on this machine, which are linked for once: code and constants are one set of
    /// sealed pages that all map at the same addresses, writable data is private to each, and actions run in each,
    /// first to last and in all or none. Calls into one go through its own transport.
    ///
    /// Executors must have their programs and libraries at the same addresses, since linked code refers to them by
    /// address: they are forked from one process, or started without address-space randomization. jitmem checks that
    /// of its own service; of other libraries the host must know it.
    ///
    /// An executor that ends, breaks the protocol or does not answer within a limit leaves the group, and the others
    /// go on; `observer` is told, with no lock held and in any thread, which it must not keep. What is asked for when
    /// the last one has gone fails with [`Status::Disconnected`] or with the reason. A finalize action that fails in
    /// one executor is undone in the others, and the error names the executor.
    ///
    /// What is written by [`Manager::write_scope`](crate::Manager::write_scope) is seen by all; writable data can't be
    /// written so. Segments of finalize lifetime stay until deallocate. Waits as [`Mapper::shared`] does.
    ///
    /// # Errors
    /// As [`Mapper::add_executor`]; `InvalidArgument` for no executors.
    pub fn group(
        executors: impl IntoIterator<Item = NewExecutor>,
        observer: Option<GroupObserver>,
    ) -> Result<Mapper> {
        let candidates = executors.into_iter().map(NewExecutor::candidate);
        let candidates = candidates.collect::<Result<Vec<Candidate>>>()?;
        GroupMapper::new(candidates, observer).map(Mapper::new)
    }

    fn as_group(&self) -> Result<&GroupMapper> {
        let group = match &self.0 {
            MapperInterface::Windows(mapper) => mapper.group(),
            MapperInterface::Reservations(_) => None,
        };
        group.ok_or_else(|| {
            let name = self.name();
            invalid_argument(format!(
                "this mapper is no group of executors but {name}; make one by Mapper::group or \
                 jitmem_mapper_group"
            ))
        })
    }

    /// Has an executor join a group, and waits until it has all that the others have: windows, chunks, and what the
    /// finalize actions of live allocations do. Nothing is linked, and the others go on meanwhile. Gives its number.
    ///
    /// # Errors
    /// `Unsupported` if it has no service, if memfds can't be handed to it through a socket, or if its program lies at
    /// other addresses; that a window of the group is not free there; what a finalize action says there. The session
    /// with it is ended then, and the error names it.
    pub fn add_executor(&self, executor: NewExecutor) -> Result<u64> {
        self.as_group()?.add(executor.candidate()?)
    }

    /// Removes an executor from a group: its deallocation actions run and it gives the group's memory back. Waits for
    /// that. Calls into it must have returned.
    ///
    /// # Errors
    /// `InvalidArgument` for a number that no executor of the group has, and for the last one.
    pub fn remove_executor(&self, number: u64) -> Result<()> {
        self.as_group()?.remove(number)
    }

    /// The executors that a group has now.
    ///
    /// # Errors
    /// `InvalidArgument` if this is no group.
    pub fn executors(&self) -> Result<Vec<GroupExecutor>> {
        Ok(self.as_group()?.executors())
    }

    fn over(
        transport: Arc<dyn Transport>,
        service: ExecutorService,
        make: impl FnOnce(Arc<dyn Transport>, u64, u64) -> Result<ServiceMapper>,
    ) -> Result<Mapper> {
        let (open, instance) = addresses(&*transport, &service)?;
        let mapper = make(transport, open, instance)?;
        Ok(match service.instead_of {
            Some(reason) => Mapper::new(mapper.instead_of(reason)),
            None => Mapper::new(mapper),
        })
    }

    /// Memory of another process on this machine through LLVM's own shared-memory service
    /// (`ExecutorSharedMemoryMapperService`), which executors have that know nothing of jitmem.
    /// Protections are set for each allocation, so each takes whole pages and a message.
    ///
    /// The transport must know the service's bootstrap symbols by name. `instead_of` says why a better
    /// mapper was not taken, for the statistics.
    ///
    /// # Errors
    /// `Unsupported` if the executor does not publish the service.
    ///
    /// # Safety
    /// The shared memory whose names the executor answers is its own, and does not become smaller as
    /// long as the mapper or a manager of it is there. LLVM's protocol has no way to see to it: memory
    /// that is gone raises SIGBUS where it is written.
    #[allow(unsafe_code)]
    pub unsafe fn llvm_shared(
        transport: Arc<dyn Transport>,
        instead_of: Option<String>,
    ) -> Result<Mapper> {
        let mapper = LlvmSharedMapper::new(transport)?;
        Ok(match instead_of {
            Some(reason) => Mapper::new(mapper.instead_of(reason)),
            None => Mapper::new(mapper),
        })
    }

    /// Memory of a process on any machine through LLVM's own memory manager service
    /// (`SimpleExecutorMemoryManager`), which every executor of LLVM 14 to 19 or of LLVM 22 has.
    ///
    /// Content travels in messages, and each allocation has a reservation of its own, at an address
    /// that the executor chooses: it takes whole pages and three messages from allocate to deallocate,
    /// and can't be made or given back without waiting. The transport must know the service's
    /// bootstrap symbols by name, and the executor's pages must be as large as this process's.
    ///
    /// # Errors
    /// `Unsupported` if the executor does not publish the service.
    pub fn llvm_simple(
        transport: Arc<dyn Transport>,
        instead_of: Option<String>,
    ) -> Result<Mapper> {
        let mapper = LlvmSimpleMapper::new(transport)?;
        Ok(match instead_of {
            Some(reason) => Mapper::reserving(mapper.instead_of(reason)),
            None => Mapper::reserving(mapper),
        })
    }

    /// Memory of the host's own making.
    ///
    /// # Errors
    /// `InvalidArgument` for a granule above the page size, or a page size above 64 MiB.
    pub fn custom(mapper: impl CustomMapper + 'static) -> Result<Mapper> {
        Checked::new(mapper).map(Mapper::new)
    }

    /// Which mapper it is.
    pub fn kind(&self) -> Kind {
        self.capabilities().kind
    }

    /// Which mapper it is, in words.
    pub fn name(&self) -> &'static str {
        self.capabilities().name
    }

    /// Why a better mapper was not taken, if one was tried.
    pub fn fallback(&self) -> Option<&str> {
        self.capabilities().fallback.as_deref()
    }
}

impl fmt::Debug for Mapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mapper").field(&self.name()).finish()
    }
}
