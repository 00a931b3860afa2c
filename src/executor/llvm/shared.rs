// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The shared-memory mapper service: the controller writes content itself, through shared memory
//! that it opens by name, so none travels.

use super::request::{last_to_first, placed, protect, told};
use super::{InstanceRegistry, expected, outcome};
use crate::error::{Error, Result, Status, invalid_argument};
use crate::executor::actions::{from_wire, kept};
use crate::group::Protection;
use crate::lock::Mutex;
use crate::mapper::WrapperCall;
use crate::mapper::actions::{run_dealloc, run_finalize};
use crate::memory::reservation::Reservation;
use crate::page::AddressRange;
use crate::sys::{self, Answer, SharedName, explain};
use crate::unwind::registration::forget_within;
use crate::wire::llvm::SharedMemoryFinalizeRequest;
use crate::wire::sps::ExecutorAddr;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::sync::Arc;

static MAPPERS: InstanceRegistry<SharedMapper> = InstanceRegistry::new("shared-memory mapper");

/// The reservations of one session, by their first addresses.
#[derive(Default)]
pub(super) struct SharedMapper {
    reservations: Mutex<BTreeMap<u64, Arc<Shared>>>,
    allocations: Mutex<Allocations>,
}

/// Deallocation actions by key.
#[derive(Default)]
struct Allocations {
    live: BTreeMap<u64, Allocation>,
    order: u64,
}

#[derive(Default)]
struct Allocation {
    order: u64,
    dealloc: Vec<WrapperCall>,
}

/// Shared memory in this process; unmapped when dropped, and its name and what debuggers were told
/// of in it forgotten.
struct Shared {
    memory: Reservation,
    name: SharedName,
}

impl Drop for Shared {
    fn drop(&mut self) {
        forget_within(self.memory.range());
        sys::deregister_debug_objects_within(self.memory.range());
    }
}

impl Shared {
    fn new(size: u64) -> Result<Shared> {
        let what = format!("reserve {size} bytes of shared memory");
        let failed = |error| explain(&what, error);
        let size = sys::page_size()
            .round_up(size)
            .filter(|size| *size > 0)
            .ok_or_else(|| invalid_argument(format!("{what}: no size for a mapping")))?;
        // Random, so that it is free and can't be guessed; with the process that it belongs to.
        let name = format!(
            "/jitmem-{}-{:032x}",
            std::process::id(),
            sys::random().map_err(failed)?
        );
        let name = CString::new(name).map_err(|_| invalid_argument("a name with a NUL"))?;
        let (name, file) = SharedName::create(&name, size).map_err(failed)?;
        let memory = Reservation::anywhere(size)?;
        let nothing = Protection::from_bits(0)?;
        let taken = memory.take_file(memory.range(), nothing, file.as_fd());
        taken.map_err(failed)?;
        Ok(Shared { memory, name })
    }
}

impl SharedMapper {
    /// A mapper, and its number.
    pub(super) fn publish() -> (Arc<SharedMapper>, u64) {
        let mapper = Arc::new(SharedMapper::default());
        let number = MAPPERS.add(Arc::clone(&mapper));
        (mapper, number)
    }

    fn reserve(&self, size: u64) -> Result<(ExecutorAddr, String)> {
        let shared = Shared::new(size)?;
        let base = shared.memory.range().start();
        let name = shared.name.as_str().to_owned();
        self.reservations.lock().insert(base, Arc::new(shared));
        Ok((ExecutorAddr(base), name))
    }

    fn initialize(
        &self,
        reservation: u64,
        request: &SharedMemoryFinalizeRequest<'_>,
    ) -> Result<u64> {
        let (on_wire, pairs) = request;
        let mut segments = Vec::with_capacity(on_wire.len());
        for (group, address, size) in on_wire {
            segments.push(placed(*group, *address, *size)?);
        }
        let Some(key) = segments.iter().map(|(range, _)| range.start()).min() else {
            return Err(invalid_argument("initialize: the request has no segments"));
        };
        // Held until all is done, so that no other memory can be where it was.
        let shared = self.reservations.lock().get(&reservation).cloned();
        let reserved = shared.as_ref().map(|shared| shared.memory.range());
        let strays = |range: &AddressRange| !reserved.is_some_and(|all| all.contains(*range));
        if let Some(range) = segments.iter().map(|(range, _)| *range).find(strays) {
            return Err(invalid_argument(format!(
                "initialize {range:?}: not inside the reservation at {reservation:#x}"
            )));
        }
        for (range, protection) in segments {
            // SAFETY: it was found inside the reservation, which is held.
            unsafe { protect(range, protection) }.map_err(hint)?;
            if protection.executable() {
                sys::flush_instruction_cache(range.start(), range.size());
            }
        }
        sys::synchronize_fetches();
        let dealloc = kept(run_finalize(from_wire(pairs))?);
        let mut allocations = self.allocations.lock();
        allocations.order += 1;
        let order = allocations.order;
        // A controller that initializes twice what it ends once has it all ended then.
        let allocation = allocations.live.entry(key).or_default();
        allocation.order = order;
        allocation.dealloc.extend(dealloc);
        Ok(key)
    }

    /// A key that is not known has nothing to be run.
    fn deinitialize(&self, key: u64) -> Result<()> {
        let allocation = self.allocations.lock().live.remove(&key);
        allocation.map_or(Ok(()), |allocation| run_dealloc(&allocation.dealloc))
    }

    fn release(&self, base: u64) -> Result<()> {
        let Some(shared) = self.reservations.lock().remove(&base) else {
            // What stock executors say.
            return Err(Error::new(Status::InvalidHandle, "Invalid argument"));
        };
        let inside = |key: &u64| {
            AddressRange::new(*key, 0).is_some_and(|key| shared.memory.range().contains(key))
        };
        let result = self.run_dealloc_of(inside);
        drop(shared);
        result
    }

    /// Runs what is left to be run of some allocations, the last one first.
    fn run_dealloc_of(&self, which: impl Fn(&u64) -> bool) -> Result<()> {
        let mut gone: Vec<Allocation> = {
            let mut allocations = self.allocations.lock();
            let keys: Vec<u64> = allocations.live.keys().copied().filter(which).collect();
            let keys = keys.into_iter();
            keys.filter_map(|key| allocations.live.remove(&key))
                .collect()
        };
        gone.sort_by_key(|allocation| allocation.order);
        let calls = gone.into_iter().flat_map(|allocation| allocation.dealloc);
        run_dealloc(&calls.collect::<Vec<_>>())
    }

    /// Ends the mapper: actions run, memory goes, names that no controller has opened go.
    pub(super) fn shut_down(&self, number: u64) -> Result<()> {
        MAPPERS.remove(number);
        let result = self.run_dealloc_of(|_| true);
        let gone = std::mem::take(&mut *self.reservations.lock());
        drop(gone);
        result
    }
}

/// What refuses executable pages here most often.
fn hint(error: Error) -> Error {
    match error.status() {
        Status::Denied => {
            error.remedy("shared memory is executable only if /dev/shm is not mounted noexec")
        }
        _ => error,
    }
}

/// `expected<(addr, string)> (addr mapper, u64 size)`.
pub(super) fn reserve(args: &[u8]) -> Answer {
    expected(args, |(mapper, size): (ExecutorAddr, u64)| {
        MAPPERS.get(mapper.0)?.reserve(size).map_err(told)
    })
}

/// `expected<addr> (addr mapper, addr reservation, (sequence<segment>, sequence<action pair>))`.
pub(super) fn initialize(args: &[u8]) -> Answer {
    type Args<'a> = (ExecutorAddr, ExecutorAddr, SharedMemoryFinalizeRequest<'a>);
    expected(args, |(mapper, reservation, request): Args<'_>| {
        let mapper = MAPPERS.get(mapper.0)?;
        let key = mapper.initialize(reservation.0, &request).map_err(told)?;
        Ok(ExecutorAddr(key))
    })
}

/// `error (addr mapper, sequence<addr key>)`.
pub(super) fn deinitialize(args: &[u8]) -> Answer {
    outcome(args, |(mapper, keys): (ExecutorAddr, Vec<ExecutorAddr>)| {
        let mapper = MAPPERS.get(mapper.0)?;
        last_to_first(keys, |key| mapper.deinitialize(key))
    })
}

/// `error (addr mapper, sequence<addr reservation>)`.
pub(super) fn release(args: &[u8]) -> Answer {
    outcome(
        args,
        |(mapper, bases): (ExecutorAddr, Vec<ExecutorAddr>)| {
            let mapper = MAPPERS.get(mapper.0)?;
            last_to_first(bases, |base| mapper.release(base))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::super::Told;
    use super::super::testing::{
        Log, NOTHING, ask, failing, noting, pair, protection_at, returning,
    };
    use super::*;
    use crate::wire::llvm::SharedMemorySegFinalizeRequest;
    use crate::wire::sps::{ActionPair, Expected, Outcome, RemoteAllocGroup};
    use std::fs::OpenOptions;
    use std::os::unix::fs::FileExt;

    const RX: RemoteAllocGroup = RemoteAllocGroup(5);
    const RW: RemoteAllocGroup = RemoteAllocGroup(3);

    struct TestSession {
        mapper: Arc<SharedMapper>,
        number: ExecutorAddr,
    }

    type Segments<'a> = &'a [(RemoteAllocGroup, u64, u64)];

    impl TestSession {
        fn new() -> TestSession {
            let (mapper, number) = SharedMapper::publish();
            let number = ExecutorAddr(number);
            TestSession { mapper, number }
        }

        fn reserve(&self, size: u64) -> Told<(u64, String)> {
            let answer = ask::<Expected<(ExecutorAddr, String)>>(reserve, &(self.number, size));
            answer.0.map(|(base, name)| (base.0, name))
        }

        fn initialize(
            &self,
            reservation: u64,
            segments: Segments<'_>,
            actions: Vec<ActionPair<'_>>,
        ) -> Told<u64> {
            let segments = segments.iter();
            let segments: Vec<SharedMemorySegFinalizeRequest> = segments
                .map(|(group, address, size)| (*group, ExecutorAddr(*address), *size))
                .collect();
            let args = (self.number, ExecutorAddr(reservation), (segments, actions));
            ask::<Expected<ExecutorAddr>>(initialize, &args)
                .0
                .map(|key| key.0)
        }

        fn end(&self, function: fn(&[u8]) -> Answer, addresses: &[u64]) -> Told<()> {
            let addresses: Vec<ExecutorAddr> =
                addresses.iter().copied().map(ExecutorAddr).collect();
            ask::<Outcome>(function, &(self.number, addresses)).0
        }
    }

    fn path(name: &str) -> String {
        format!("/dev/shm{name}")
    }

    fn mapped(name: &str) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.contains(name)
    }

    #[test]
    fn content_that_a_controller_writes_through_the_name_runs() {
        let session = TestSession::new();
        let log = Log::new();
        let [one, two, three] = [1, 2, 3].map(|number| log.note(number));
        let page = sys::page_size().bytes();
        let (base, name) = session.reserve(1 << 30).unwrap();
        assert!(name.starts_with('/'));
        assert_eq!(protection_at(base), "---s");
        assert!(mapped(&name));
        let file = OpenOptions::new().write(true).open(path(&name)).unwrap();
        std::fs::remove_file(path(&name)).unwrap();
        for answer in [42, 43] {
            let code = returning(answer);
            file.write_all_at(&code, 0).unwrap();
            let segments = [
                (RX, base, code.len() as u64),
                (RW, base + page, page + 0xb88),
            ];
            let actions = vec![pair(noting(&one), noting(&two))];
            assert_eq!(session.initialize(base, &segments, actions), Ok(base));
            assert_eq!(sys::testing::call_void(base), answer.into());
            assert_eq!(protection_at(base), "r-xs");
            assert_eq!(protection_at(base + 2 * page), "rw-s");
            session.end(deinitialize, &[base]).unwrap();
            assert_eq!(log.ran(), [1, 2]);
        }
        assert_eq!(session.end(deinitialize, &[base, 16]), Ok(()));
        let bad = vec![
            pair(noting(&one), noting(&two)),
            pair(failing(&three), NOTHING),
        ];
        let failed = session.initialize(base, &[(RX, base, 6)], bad);
        assert!(failed.unwrap_err().contains("bad 3"));
        assert_eq!(log.ran(), [1, 3, 2]);

        let last = vec![pair(NOTHING, noting(&three))];
        session.initialize(base, &[(RX, base, 6)], last).unwrap();
        session.end(release, &[base]).unwrap();
        assert_eq!(log.ran(), [3]);
        assert!(!mapped(&name));
        assert_eq!(
            session.end(release, &[base]),
            Err("Invalid argument".to_owned())
        );
        session.mapper.shut_down(session.number.0).unwrap();
    }

    #[test]
    fn debuggers_forget_what_was_in_memory_that_goes() {
        let session = TestSession::new();
        let (base, _) = session.reserve(0x4000).unwrap();
        sys::register_debug_object(base + 0x1000, 0x1000, true);
        session.end(release, &[base]).unwrap();
        assert!(!sys::deregister_debug_object(base + 0x1000));
    }

    #[test]
    fn names_that_nobody_opened_go_at_the_end() {
        let session = TestSession::new();
        let log = Log::new();
        let [one, two] = [1, 2].map(|number| log.note(number));
        let (first, name) = session.reserve(1).unwrap();
        let (second, other) = session.reserve(1).unwrap();
        assert_ne!(name, other);
        for (base, note) in [(second, &one), (first, &two)] {
            let actions = vec![pair(NOTHING, noting(note))];
            session.initialize(base, &[(RX, base, 1)], actions).unwrap();
        }
        session.mapper.shut_down(session.number.0).unwrap();
        assert_eq!(log.ran(), [2, 1]);
        for name in [name, other] {
            assert!(!mapped(&name));
            assert!(!std::path::Path::new(&path(&name)).exists());
        }
        assert!(
            session
                .reserve(1)
                .unwrap_err()
                .starts_with("no shared-memory mapper")
        );
    }

    #[test]
    fn what_is_not_inside_a_reservation_is_refused() {
        let session = TestSession::new();
        let page = sys::page_size().bytes();
        let (base, _) = session.reserve(page).unwrap();
        let refused = |reservation, segment, words: &str| {
            let message = session
                .initialize(reservation, &[segment], vec![])
                .unwrap_err();
            assert!(message.contains(words), "{message}");
        };
        refused(base, (RX, base, page + 1), "not inside the reservation");
        refused(base, (RX, base - page, page), "not inside the reservation");
        refused(base + 1, (RX, base, 1), "not inside the reservation");
        refused(base, (RX, u64::MAX, 2), "beyond the end of memory");
        refused(
            base,
            (RemoteAllocGroup(7), base, 1),
            "writable and executable",
        );
        assert!(session.initialize(base, &[], vec![]).is_err());
        assert!(session.reserve(0).is_err());
        assert!(session.reserve(u64::MAX).is_err());
        assert!(session.reserve(1 << 60).is_err());
        session.mapper.shut_down(session.number.0).unwrap();
    }
}
