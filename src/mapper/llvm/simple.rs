// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! LLVM's SimpleExecutorMemoryManager: content travels in messages, and addresses can't be used twice.
//!
//! Until LLVM 19 a reservation is finalized once, as a whole, and deallocated; its first address is
//! the name of the allocation. In LLVM 22 parts of one can be initialized, but what was
//! deinitialized keeps its protection, and writing there again ends a stock executor. So in either
//! generation each allocation has a reservation of its own, and both are spoken with the same three
//! functions: reserve, install, give back.

use super::{outcome, said, symbol, value};
use crate::completion::Completion;
use crate::error::{Error, Result, Status};
use crate::group::{AllocGroup, Lifetime, Protection};
use crate::mapper::{
    Action, Capabilities, Kind, MapperBase, ReservingMapper, SegmentContent, SegmentContents,
    WrapperCall,
};
use crate::page::AddressRange;
use crate::sys;
use crate::transport::limits::{Asked, Deadline, SessionLimits};
use crate::transport::{Traffic, Transport, dispatched};
use crate::wire::llvm::SegFinalizeRequest;
use crate::wire::sps::{
    ActionPair, Bytes, Call, Encode, ExecutorAddr, Outcome, RemoteAllocGroup, from_bytes, to_bytes,
};
use std::sync::Arc;

const PREFIX: &str = "__llvm_orc_SimpleExecutorMemoryManager_";

/// A mapper over LLVM's memory manager service.
pub(crate) struct LlvmSimpleMapper {
    capabilities: Capabilities,
    client: Arc<Client>,
}

/// What answers are handled with.
struct Client {
    transport: Arc<dyn Transport>,
    session: SessionLimits,
    service: Service,
    traffic: Traffic,
}

struct Service {
    instance: ExecutorAddr,
    reserve: ExecutorAddr,
    /// `finalize` or `initialize`.
    install: ExecutorAddr,
    /// `deallocate` or `release`; ends reservations that hold nothing as well.
    give_back: ExecutorAddr,
    generation: Generation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Generation {
    /// LLVM 14 to 19: finalize and deallocate.
    Finalize,
    /// LLVM 22: initialize and release.
    Initialize,
}

impl Service {
    fn find(transport: &dyn Transport) -> Result<Service> {
        let find = |name: &str| symbol(transport, &format!("{PREFIX}{name}"));
        let (install, give_back, generation) = match find("initialize_wrapper") {
            Ok(initialize) => (initialize, find("release_wrapper")?, Generation::Initialize),
            Err(newer) => (
                find("finalize_wrapper").map_err(|older| newer.join(older))?,
                find("deallocate_wrapper")?,
                Generation::Finalize,
            ),
        };
        Ok(Service {
            instance: find("Instance")?,
            reserve: find("reserve_wrapper")?,
            install,
            give_back,
            generation,
        })
    }

    /// Protection and lifetime. There was no lifetime before LLVM 16, and no executor up to LLVM 19
    /// looks at it.
    fn group_of(&self, segment: &SegmentContent) -> RemoteAllocGroup {
        let group = segment.group;
        match self.generation {
            Generation::Finalize => RemoteAllocGroup::new(group.protection, false),
            Generation::Initialize => group.into(),
        }
    }
}

fn wire_segment<'a>(service: &Service, segment: &'a SegmentContent) -> SegFinalizeRequest<'a> {
    let content = segment.content().unwrap_or_default();
    // What was reserved is zero, readable and writable, so zero-fill of data is not written.
    // Not empty all the same: it would be no segment to some executors.
    let size = match segment.group.protection {
        Protection::READ_WRITE => content.len().max(1) as u64,
        _ => segment.range.size(),
    };
    let group = service.group_of(segment);
    let address = ExecutorAddr(segment.range.start());
    (group, address, size, Bytes(content))
}

/// `actions` with `nothing`, a call that succeeds, in place of each call that is missing from a
/// pair: stock executors of LLVM 14 to 19 call address 0 for it, when they finalize and when they
/// roll back.
fn without_gaps<'a>(actions: &'a [Action], nothing: Call<'a>) -> Vec<ActionPair<'a>> {
    let filled = |call: &'a WrapperCall| match call.is_none() {
        true => nothing,
        false => call.into(),
    };
    let calls = |action: &&Action| !action.finalize.is_none() || !action.dealloc.is_none();
    let pairs = actions.iter().filter(calls).map(|action| ActionPair {
        finalize: filled(&action.finalize),
        dealloc: filled(&action.dealloc),
    });
    pairs.collect()
}

impl LlvmSimpleMapper {
    /// Speaks with the executor's memory manager, found by its published names.
    ///
    /// # Errors
    /// `Unsupported` if a name is missing.
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Result<LlvmSimpleMapper> {
        let service = Service::find(&*transport)?;
        // The executor does not say how large its pages are.
        let page_size = sys::page_size();
        let name = match service.generation {
            Generation::Finalize => "remote, LLVM's service (finalize and deallocate)",
            Generation::Initialize => "remote, LLVM's service (initialize and release)",
        };
        let capabilities = Capabilities::new(Kind::LlvmSimple, name, page_size);
        let client = Client {
            session: SessionLimits::begin(transport.limits()),
            transport,
            service,
            traffic: Traffic::default(),
        };
        Ok(LlvmSimpleMapper {
            capabilities,
            client: Arc::new(client),
        })
    }

    /// Says why a better mapper was not taken.
    pub(crate) fn instead_of(mut self, reason: String) -> LlvmSimpleMapper {
        self.capabilities.taken_instead(reason);
        self
    }
}

/// Why content is not in, and what became of its reservation.
struct NotInstalled {
    error: Error,
    /// The executor has given it back already.
    gone: bool,
}

impl Client {
    fn call(
        self: &Arc<Self>,
        function: ExecutorAddr,
        args: &impl Encode,
        done: Completion<Vec<u8>>,
    ) {
        if let Err(error) = self.session.check() {
            return done.complete(Err(error));
        }
        let args = to_bytes(args);
        self.traffic.sent(args.len());
        let client = Arc::clone(self);
        let counted = done.map(move |answer: Result<Vec<u8>>| {
            answer.inspect(|bytes| client.traffic.received(bytes.len()))
        });
        let done = dispatched(&self.transport, counted);
        self.transport.call(function.0, args, done);
    }

    /// What the answer to `install` says.
    fn installed(&self, answer: Result<Vec<u8>>) -> Result<(), NotInstalled> {
        let still_there = |error| NotInstalled { error, gone: false };
        let bytes = answer.map_err(|error| NotInstalled {
            gone: error.status() == Status::Disconnected,
            error,
        })?;
        match self.service.generation {
            Generation::Initialize => value::<ExecutorAddr>("initialize", &bytes)
                .map(drop)
                .map_err(still_there),
            Generation::Finalize => match from_bytes::<Outcome>(&bytes) {
                // Its first address may be another reservation's by now.
                Ok(Outcome(Err(message))) => Err(NotInstalled {
                    error: said(message),
                    gone: true,
                }),
                _ => outcome("finalize", &bytes).map_err(still_there),
            },
        }
    }

    /// Ends reservations, the last one first. Their deallocation actions run.
    fn give_back(self: &Arc<Self>, reservations: &[AddressRange], done: Completion<()>) {
        let what = match self.service.generation {
            Generation::Finalize => "deallocate",
            Generation::Initialize => "release",
        };
        let done = done.map(move |answer: Result<Vec<u8>>| outcome(what, &answer?));
        let bases = reservations.iter().map(|range| ExecutorAddr(range.start()));
        let bases: Vec<ExecutorAddr> = bases.collect();
        self.call(
            self.service.give_back,
            &(self.service.instance, bases),
            done,
        );
    }
}

/// The reservation of `size` bytes that the executor says is at `base`.
fn reserved(base: u64, size: u64) -> Result<AddressRange> {
    let page = sys::page_size();
    let range = AddressRange::new(base, size).filter(|_| base != 0 && page.divides(base));
    range.ok_or_else(|| {
        let message = format!("LLVM's executor: reserve of {size} bytes answered {base:#x}");
        Error::new(Status::MapperFailed, message).remedy(format!(
            "want an address on a page; pages must have {} bytes there as they have here",
            page.bytes()
        ))
    })
}

/// Both generations know an allocation by the address of its lowest segment, which must be the
/// reservation's: where no segment lies there, this does.
fn first_page(reservation: AddressRange, page: u64) -> SegmentContent {
    SegmentContent {
        range: reservation.part(0, page).unwrap_or(reservation),
        group: AllocGroup {
            protection: Protection::READ,
            lifetime: Lifetime::Standard,
        },
        content: None,
        zeroed: true,
    }
}

impl MapperBase for LlvmSimpleMapper {
    fn deadline(&self, asked: Asked) -> Option<Deadline> {
        self.client.session.deadline(asked)
    }

    fn transport(&self) -> Option<&Arc<dyn Transport>> {
        Some(&self.client.transport)
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn traffic(&self) -> (u64, u64) {
        (self.client.traffic.messages(), self.client.traffic.bytes())
    }
}

impl ReservingMapper for LlvmSimpleMapper {
    fn reserve(&self, size: u64, done: Completion<AddressRange>) {
        let done = done.map(move |answer: Result<Vec<u8>>| {
            let base = value::<ExecutorAddr>("reserve", &answer?)?;
            reserved(base.0, size)
        });
        let Service {
            instance, reserve, ..
        } = self.client.service;
        self.client.call(reserve, &(instance, size), done);
    }

    fn initialize(
        &self,
        reservation: AddressRange,
        mut segments: SegmentContents,
        actions: Vec<Action>,
        done: Completion<()>,
    ) {
        let at_start = |segment: &SegmentContent| segment.range.start() == reservation.start();
        if !segments.iter().any(at_start) {
            let page = self.capabilities.page_size.bytes();
            segments.insert(0, first_page(reservation, page));
        }
        let service = &self.client.service;
        let no_bases = to_bytes(&(service.instance, Vec::<ExecutorAddr>::new()));
        let nothing = Call {
            function: service.give_back,
            args: Bytes(&no_bases),
        };
        let on_wire: Vec<_> = segments
            .iter()
            .map(|segment| wire_segment(service, segment))
            .collect();
        let pairs = match service.generation {
            Generation::Finalize => without_gaps(&actions, nothing),
            Generation::Initialize => actions.iter().map(ActionPair::from).collect(),
        };
        let client = Arc::clone(&self.client);
        let done = Completion::with_delivery(move |answer, delivery| {
            let error = match client.installed(answer) {
                Ok(()) => return done.complete_with(Ok(()), delivery),
                Err(NotInstalled { error, gone: true }) => {
                    return done.complete_with(Err(error), delivery);
                }
                Err(NotInstalled { error, gone: false }) => error,
            };
            let given_back = done.map(move |answer: Result<()>| {
                Err(match answer {
                    Ok(()) => error,
                    Err(second) => error.join(second),
                })
            });
            client.give_back(&[reservation], given_back);
        });
        let request = (service.instance, (on_wire, pairs));
        self.client.call(service.install, &request, done);
    }

    fn release(&self, reservations: Vec<AddressRange>, done: Completion<()>) {
        self.client.give_back(&reservations, done);
    }
}
