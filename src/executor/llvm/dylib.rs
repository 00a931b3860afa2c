// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Libraries of the executor, and the symbols in them.

use super::symbols::found_by_lookup;
use super::{InstanceRegistry, Told, answer, expected};
use crate::lock::Mutex;
use crate::sys::{self, Answer};
use crate::wire::sps::{Bytes, Decode, ExecutorAddr, Malformed, Reader, SymbolDef};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::sync::{Arc, Once};

/// `JITSymbolFlags::Exported`.
const EXPORTED: u8 = 0x10;

/// What a program in C++ expects of the process that runs it.
const RUNTIME: [&CStr; 3] = [c"libgcc_s.so.1", c"libm.so.6", c"libstdc++.so.6"];

/// What linked code opens libraries with that may count on [`RUNTIME`].
const OPENERS: [&CStr; 2] = [c"dlopen", c"dlmopen"];

static MANAGERS: InstanceRegistry<DylibManager> = InstanceRegistry::new("dylib manager");
static LIBRARIES: InstanceRegistry<Library> = InstanceRegistry::new("library");

/// Opens libraries for one session.
pub(super) struct DylibManager {
    /// Whether [`RUNTIME`] is loaded when the process lacks a symbol.
    runtime: bool,
    /// Their numbers by what the dynamic linker calls them.
    opened: Mutex<BTreeMap<sys::Library, u64>>,
}

struct Library {
    handle: sys::Library,
    process: bool,
    runtime: bool,
}

impl DylibManager {
    /// A manager, and its number.
    pub(super) fn publish(runtime: bool) -> (Arc<DylibManager>, u64) {
        let manager = Arc::new(DylibManager {
            runtime,
            opened: Mutex::default(),
        });
        let number = MANAGERS.add(Arc::clone(&manager));
        (manager, number)
    }

    fn open(&self, path: &[u8], mode: u64) -> Told<ExecutorAddr> {
        if mode != 0 {
            return Err("open: non-zero mode bits not yet supported".to_owned());
        }
        let process = path.is_empty();
        let handle = if process {
            // SAFETY: its constructors have run.
            unsafe { sys::open_library(None) }?
        } else {
            let path = CString::new(path).map_err(|_| {
                format!(
                    "open {:?}: a path has no NUL inside",
                    String::from_utf8_lossy(path)
                )
            })?;
            // Libraries may count on them without saying so, as every program in C++ has them.
            if self.runtime {
                load_cxx_runtime();
            }
            // SAFETY: the controller says what this process runs, libraries too.
            unsafe { sys::open_library(Some(&path)) }?
        };
        let mut opened = self.opened.lock();
        let number = opened.entry(handle).or_insert_with(|| {
            LIBRARIES.add(Arc::new(Library {
                handle,
                process,
                runtime: self.runtime,
            }))
        });
        Ok(ExecutorAddr(*number))
    }

    /// Ends the numbers; the libraries stay, for linked code may be using them.
    pub(super) fn shut_down(&self, number: u64) {
        MANAGERS.remove(number);
        for library in std::mem::take(&mut *self.opened.lock()).into_values() {
            LIBRARIES.remove(library);
        }
    }
}

impl Library {
    fn find(&self, name: &[u8]) -> Option<u64> {
        if self.process {
            if let Some(address) = found_by_lookup(name) {
                return Some(address);
            }
        }
        // A name with a NUL inside is no library's.
        let name = CString::new(name).ok()?;
        if self.process && self.runtime && OPENERS.contains(&name.as_c_str()) {
            load_cxx_runtime();
        }
        let found = sys::symbol_in(self.handle, &name);
        if found.is_none() && self.process && self.runtime {
            load_cxx_runtime();
            return sys::symbol_in(self.handle, &name);
        }
        found
    }

    /// The symbol; `None` if it is not there. What is not asked for by any name is refused.
    fn define(&self, Symbol { name, required }: &Symbol<'_>) -> Told<Option<u64>> {
        match (name.0, required) {
            (b"", true) => Err("Required address for empty symbol \"\"".to_owned()),
            (b"", false) => Ok(None),
            (name, _) => Ok(self.find(name)),
        }
    }
}

/// Loads what programs in C++ need, once. Absence is no error: the symbol is missing then.
pub(crate) fn load_cxx_runtime() {
    static LOAD: Once = Once::new();
    LOAD.call_once(|| {
        for library in RUNTIME {
            // SAFETY: any program may load these.
            let _ = unsafe { sys::open_library(Some(library)) };
        }
    });
}

struct Symbol<'a> {
    name: Bytes<'a>,
    required: bool,
}

type LookupRequest<'a> = Vec<(Bytes<'a>, bool)>;

fn symbols<'a>(request: LookupRequest<'a>) -> impl Iterator<Item = Symbol<'a>> {
    let symbol = |(name, required)| Symbol { name, required };
    request.into_iter().map(symbol)
}

/// A definition as controllers have them: a symbol that is missing and may be is at address 0.
fn definition(address: Option<u64>) -> SymbolDef {
    SymbolDef {
        address: ExecutorAddr(address.unwrap_or(0)),
        flags: EXPORTED,
        target_flags: 0,
    }
}

/// The mode is there in all calls of LLVM's; orc-rt's own controllers leave it out.
struct OpenRequest<'a> {
    manager: ExecutorAddr,
    path: Bytes<'a>,
    mode: u64,
}

impl<'a> Decode<'a> for OpenRequest<'a> {
    const LEAST: usize = ExecutorAddr::LEAST + Bytes::LEAST;

    fn decode(bytes: &mut Reader<'a>) -> Result<OpenRequest<'a>, Malformed> {
        let (manager, path) = Decode::decode(bytes)?;
        let mode = if bytes.rest().is_empty() {
            0
        } else {
            Decode::decode(bytes)?
        };
        Ok(OpenRequest {
            manager,
            path,
            mode,
        })
    }
}

/// `expected<addr> (addr manager, string path, u64 mode)`, or without the mode.
pub(super) fn open(args: &[u8]) -> Answer {
    expected(args, |request: OpenRequest<'_>| {
        MANAGERS
            .get(request.manager.0)?
            .open(request.path.0, request.mode)
    })
}

fn lookup<T>(
    (manager, library, request): (ExecutorAddr, ExecutorAddr, LookupRequest<'_>),
    result: impl Fn(&Symbol<'_>, Option<u64>) -> T,
) -> Told<Vec<T>> {
    MANAGERS.get(manager.0)?;
    let library = LIBRARIES.get(library.0)?;
    symbols(request)
        .map(|symbol| match library.define(&symbol)? {
            None if symbol.required => Err(format!(
                "Missing definition for {}",
                String::from_utf8_lossy(symbol.name.0)
            )),
            found => Ok(result(&symbol, found)),
        })
        .collect()
}

/// LLVM 14 to 16: `expected<sequence<addr>> (addr manager, addr library, sequence<(string, bool)>)`.
pub(super) fn lookup_addresses(args: &[u8]) -> Answer {
    expected(args, |request| {
        lookup(request, |_, found| ExecutorAddr(found.unwrap_or(0)))
    })
}

/// LLVM 17 to 21: the same with definitions in place of addresses.
pub(super) fn lookup_definitions(args: &[u8]) -> Answer {
    expected(args, |request| {
        lookup(request, |symbol, found| match symbol.name.0 {
            b"" => SymbolDef::default(),
            _ => definition(found),
        })
    })
}

/// LLVM 22: `expected<sequence<optional<definition>>> (addr library, sequence<(string, bool)>)`.
/// What is required and missing is nothing there, and no error.
pub(super) fn resolve(args: &[u8]) -> Answer {
    expected(args, |(library, request)| optional(library, request))
}

/// After LLVM 22: `expected<sequence<optional<addr>>> (addr manager, addr library,
/// sequence<(string, bool)>)`; else as [`resolve`].
pub(super) fn lookup_optional(args: &[u8]) -> Answer {
    expected(args, |(manager, library, request): (ExecutorAddr, _, _)| {
        MANAGERS.get(manager.0)?;
        let found = optional(library, request)?;
        let addresses = |found: Option<SymbolDef>| found.map(|symbol| symbol.address);
        Ok(found.into_iter().map(addresses).collect::<Vec<_>>())
    })
}

/// After LLVM 22: `sequence<optional<addr>> (sequence<(string, bool)>)`, of names that the session itself
/// has published. What is required and missing is nothing there, as in [`resolve`].
pub(crate) fn lookup_published(args: &[u8], find: impl Fn(&[u8]) -> Option<u64>) -> Answer {
    answer(args, |request: LookupRequest<'_>| {
        symbols(request)
            .map(|symbol| match find(symbol.name.0) {
                None if symbol.required => None,
                found => Some(ExecutorAddr(found.unwrap_or(0))),
            })
            .collect::<Vec<_>>()
    })
}

/// What [`lookup_published`] answers to who calls it by its address, past the session.
pub(super) fn without_session(_: &[u8]) -> Answer {
    Err("look up what a session has published: call this over the session's connection".to_owned())
}

fn optional(library: ExecutorAddr, request: LookupRequest<'_>) -> Told<Vec<Option<SymbolDef>>> {
    let library = LIBRARIES.get(library.0)?;
    symbols(request)
        .map(|symbol| {
            let found = library.define(&symbol)?;
            let nothing = found.is_none() && (symbol.required || symbol.name.0.is_empty());
            Ok((!nothing).then(|| definition(found)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::sps::{Expected, from_bytes, to_bytes};

    fn published() -> (Arc<DylibManager>, ExecutorAddr) {
        let (manager, number) = DylibManager::publish(true);
        (manager, ExecutorAddr(number))
    }

    fn opened(manager: ExecutorAddr, path: &str) -> Told<ExecutorAddr> {
        let answer = open(&to_bytes(&(manager, path, 0u64))).unwrap();
        from_bytes::<Expected<_>>(&answer).unwrap().0
    }

    fn getpid() -> ExecutorAddr {
        ExecutorAddr(sys::symbol(c"getpid").unwrap())
    }

    type Lookup<T> = Told<Vec<T>>;

    fn looked_up<T: for<'a> crate::wire::sps::Decode<'a>>(
        function: fn(&[u8]) -> Answer,
        instances: &[ExecutorAddr],
        names: &[(&str, bool)],
    ) -> Lookup<T> {
        let mut args = Vec::new();
        use crate::wire::sps::Encode;
        instances
            .iter()
            .for_each(|instance| instance.encode(&mut args));
        names.to_vec().encode(&mut args);
        from_bytes::<Expected<Vec<T>>>(&function(&args).unwrap())
            .unwrap()
            .0
    }

    const MISSING: &str = "jitmem has no such symbol";

    #[test]
    fn each_generation_gets_what_it_expects() {
        let (manager, number) = published();
        let process = opened(number, "").unwrap();
        let both = [number, process];
        let names = [("getpid", true), (MISSING, false), ("", false)];
        let addresses = looked_up(lookup_addresses, &both, &names);
        assert_eq!(
            addresses,
            Ok(vec![getpid(), ExecutorAddr(0), ExecutorAddr(0)])
        );
        let found = definition(Some(getpid().0));
        let definitions = looked_up(lookup_definitions, &both, &names);
        let expected = vec![found, definition(None), SymbolDef::default()];
        assert_eq!(definitions, Ok(expected));
        let resolved = looked_up(resolve, &[process], &names);
        assert_eq!(
            resolved,
            Ok(vec![Some(found), Some(definition(None)), None])
        );
        let both_missing = [(MISSING, true), (MISSING, false), ("getpid", true)];
        let resolved = looked_up(resolve, &[process], &both_missing);
        assert_eq!(
            resolved,
            Ok(vec![None, Some(definition(None)), Some(found)])
        );
        let addresses = looked_up(lookup_optional, &both, &both_missing);
        assert_eq!(
            addresses,
            Ok(vec![None, Some(ExecutorAddr(0)), Some(getpid())])
        );
        assert!(
            looked_up::<Option<ExecutorAddr>>(lookup_optional, &[process, process], &[])
                .unwrap_err()
                .starts_with("no dylib manager")
        );
        manager.shut_down(number.0);
        let gone = looked_up::<Option<SymbolDef>>(resolve, &[process], &[]);
        assert!(gone.unwrap_err().starts_with("no library"));
    }

    #[test]
    fn what_is_missing_or_nameless_is_said() {
        let (manager, number) = published();
        let process = opened(number, "").unwrap();
        let both = [number, process];
        let missing = looked_up::<SymbolDef>(lookup_definitions, &both, &[(MISSING, true)]);
        assert_eq!(missing, Err(format!("Missing definition for {MISSING}")));
        let nameless = "Required address for empty symbol \"\"".to_owned();
        let names = [("", true)];
        assert_eq!(
            looked_up::<SymbolDef>(lookup_definitions, &both, &names),
            Err(nameless.clone())
        );
        assert_eq!(
            looked_up::<ExecutorAddr>(lookup_addresses, &both, &names).unwrap_err(),
            nameless
        );
        assert_eq!(
            looked_up::<Option<SymbolDef>>(resolve, &[process], &names).unwrap_err(),
            nameless
        );
        manager.shut_down(number.0);
    }

    #[test]
    fn libraries_are_opened_by_path_and_keep_their_number() {
        let (manager, number) = published();
        let libm = opened(number, "libm.so.6").unwrap();
        assert_eq!(opened(number, "libm.so.6"), Ok(libm));
        let without_mode = open(&to_bytes(&(number, "libm.so.6"))).unwrap();
        let without_mode = from_bytes::<Expected<_>>(&without_mode).unwrap().0;
        assert_eq!(without_mode, Ok(libm));
        assert_ne!(opened(number, ""), Ok(libm));
        let found = looked_up::<Option<SymbolDef>>(resolve, &[libm], &[("cos", true)]).unwrap();
        assert!(found[0].is_some());
        let error = opened(number, "/nonexistent.so").unwrap_err();
        assert!(error.contains("cannot open shared object file"), "{error}");
        let moded = open(&to_bytes(&(number, "", 1u64))).unwrap();
        let moded = from_bytes::<Expected<ExecutorAddr>>(&moded).unwrap().0;
        assert_eq!(
            moded,
            Err("open: non-zero mode bits not yet supported".to_owned())
        );
        manager.shut_down(number.0);
        assert!(
            opened(number, "")
                .unwrap_err()
                .starts_with("no dylib manager")
        );
    }

    #[test]
    fn a_program_in_cxx_finds_its_runtime_and_an_executor_its_own_names() {
        let (manager, number) = published();
        let process = opened(number, "").unwrap();
        let names = [
            ("__cxa_throw", true),
            ("_Unwind_Resume", true),
            ("llvm_orc_registerEHFrameSectionWrapper", true),
            ("llvm_orc_deregisterEHFrameSectionWrapper", true),
            ("llvm_orc_registerJITLoaderGDBWrapper", true),
            ("__jit_debug_descriptor", true),
            ("__jit_debug_register_code", true),
        ];
        let found = looked_up::<ExecutorAddr>(lookup_addresses, &[number, process], &names);
        assert!(!found.unwrap().contains(&ExecutorAddr(0)));
        manager.shut_down(number.0);
    }
}
