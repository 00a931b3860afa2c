// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What controllers after LLVM 22 ask for.

use super::*;
use crate::sys::{WrapperResult, page_size};
use crate::wire::sps::Bytes;

#[test]
fn controllers_after_llvm_22_find_their_names() {
    static RAN: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    fn note(args: &[u8]) -> Answer {
        RAN.lock().extend(args);
        Ok(to_bytes(&Outcome(Ok(()))))
    }
    extern "C" fn main(count: i32, _: *const *const i8) -> i32 {
        40 + count
    }
    let ci = |name: &str| format!("orc_rt_ci_sps_{name}");
    let map = |name: &str| ci(&format!("SimpleNativeMemoryMap_{name}"));
    let mut controller = over_pipes();
    let instance = ExecutorAddr(controller.symbol("orc_rt_ci_SimpleNativeMemoryMap_Instance"));
    let reserve = controller.symbol(&map("reserve"));
    let page = page_size().bytes();
    let base = controller.call(reserve, &to_bytes(&(instance, page)));
    let base = from_bytes::<Expected<ExecutorAddr>>(&base)
        .unwrap()
        .0
        .unwrap();
    // A segment that can be read, of a page that begins with "x", and a pair of actions.
    let mut request = Vec::new();
    (instance, 1u64).encode(&mut request);
    (1u8, base, page, "x").encode(&mut request);
    1u64.encode(&mut request);
    for number in [1u8, 2] {
        (ExecutorAddr(wrapper_address(note)), vec![number]).encode(&mut request);
    }
    let initialize = controller.symbol(&map("initialize"));
    let key = controller.call(initialize, &request);
    assert_eq!(
        from_bytes::<Expected<ExecutorAddr>>(&key).unwrap().0,
        Ok(base)
    );
    assert_eq!(*RAN.lock(), [1]);
    for name in ["deinitializeMultiple", "releaseMultiple"] {
        let function = controller.symbol(&map(name));
        let answer = controller.call(function, &to_bytes(&(instance, vec![base])));
        assert_eq!(from_bytes::<Outcome>(&answer).unwrap().0, Ok(()), "{name}");
        assert_eq!(*RAN.lock(), [1, 2], "{name}");
    }
    let program = ExecutorAddr((main as *const ()).expose_provenance() as u64);
    let call_main = controller.symbol(&ci("call_main"));
    let answer = controller.call(call_main, &to_bytes(&(program, vec!["program", "word"])));
    assert_eq!(answer, to_bytes(&42i64));
    controller.finish().unwrap();
}

#[test]
fn controllers_after_llvm_22_call_functions_and_find_them_in_libraries() {
    static CALLED: Mutex<u32> = Mutex::new(0);
    extern "C" fn nothing() {
        *CALLED.lock() += 1;
    }
    extern "C" fn seven() -> i32 {
        7
    }
    extern "C" fn next(number: i32) -> i32 {
        number + 1
    }
    let address = |function: *const ()| ExecutorAddr(function.expose_provenance() as u64);
    let mut controller = over_pipes();
    let call = |controller: &mut Controller<_, _>, name: &str, args: &[u8]| {
        let function = controller.symbol(&format!("orc_rt_ci_sps_{name}"));
        controller.call(function, args)
    };
    let function = address(nothing as *const ());
    let answer = call(&mut controller, "call_void_void", &to_bytes(&function));
    assert_eq!((answer, *CALLED.lock()), (vec![], 1));
    let function = address(seven as *const ());
    let answer = call(&mut controller, "call_int32_void", &to_bytes(&function));
    assert_eq!(answer, to_bytes(&7i32));
    let request = to_bytes(&(address(next as *const ()), 41i32));
    let answer = call(&mut controller, "call_int32_int32", &request);
    assert_eq!(answer, to_bytes(&42i32));

    let manager = ExecutorAddr(controller.symbol("orc_rt_ci_NativeDylibManager_Instance"));
    let request = to_bytes(&(manager, "libm.so.6", 0u64));
    let library = call(&mut controller, "NativeDylibManager_load", &request);
    let library = from_bytes::<Expected<ExecutorAddr>>(&library).unwrap().0;
    let names = vec![("cos", true), ("jitmem has no such symbol", true)];
    let request = to_bytes(&(manager, library.unwrap(), names));
    let found = call(&mut controller, "NativeDylibManager_lookup", &request);
    let found = from_bytes::<Expected<Vec<Option<ExecutorAddr>>>>(&found)
        .unwrap()
        .0
        .unwrap();
    assert!(matches!(found[..], [Some(ExecutorAddr(1..)), None]));
    controller.finish().unwrap();
}

#[test]
fn controllers_after_llvm_22_read_and_write_memory() {
    let mut controller = over_pipes();
    let mut call = |name: &str, args: &[u8]| {
        let function = controller.symbol(&format!("orc_rt_ci_sps_mem_{name}"));
        controller.call(function, args)
    };
    let mut memory = Box::new([0u64; 2]);
    let start = ExecutorAddr((&raw mut *memory).expose_provenance() as u64);
    let second = ExecutorAddr(start.0 + 8);
    call("write_uint64s", &to_bytes(&vec![(start, !0u64)]));
    call("write_uint32s", &to_bytes(&vec![(start, 0x03020100u32)]));
    call("write_uint16s", &to_bytes(&vec![(start, 0x6968u16)]));
    call("write_uint8s", &to_bytes(&vec![(start, 0x67u8)]));
    let zero: &[u8] = &[0];
    let buffers = vec![(ExecutorAddr(start.0 + 2), Bytes(zero))];
    call("write_buffers", &to_bytes(&buffers));
    call("write_pointers", &to_bytes(&vec![(second, start)]));
    let at = |address| to_bytes(&vec![address]);
    let word = 0xffff_ffff_0300_6967u64;
    assert_eq!(call("read_uint64s", &at(start)), to_bytes(&vec![word]));
    let low = word as u32;
    assert_eq!(call("read_uint32s", &at(start)), to_bytes(&vec![low]));
    let low = word as u16;
    assert_eq!(call("read_uint16s", &at(start)), to_bytes(&vec![low]));
    let low = word as u8;
    assert_eq!(call("read_uint8s", &at(start)), to_bytes(&vec![low]));
    assert_eq!(call("read_pointers", &at(second)), at(start));
    assert_eq!(call("read_strings", &at(start)), to_bytes(&vec!["gi"]));
    // A range is where it starts and ends, as LLVM's controllers have it.
    let range = vec![(start, ExecutorAddr(start.0 + 4))];
    let bytes = vec![Bytes(b"gi\0\x03")];
    assert_eq!(call("read_buffers", &to_bytes(&range)), to_bytes(&bytes));
    controller.finish().unwrap();
}

#[test]
fn controllers_after_llvm_22_register_frames_and_debug_objects() {
    let mut controller = over_pipes();
    let mut call = |name: &str, args: &[u8]| {
        let function = controller.symbol(&format!("orc_rt_ci_aa_sps_{name}"));
        from_bytes::<Outcome>(&controller.call(function, args))
            .unwrap()
            .0
    };
    let section = Box::new([0u8; 64]);
    let start = ExecutorAddr((&raw const *section).expose_provenance() as u64);
    let range = to_bytes(&(start, ExecutorAddr(start.0 + 4)));
    for name in ["registerSection", "deregisterSection"] {
        let name = format!("DWARFEHFrameRegistrar_{name}");
        assert_eq!(call(&name, &range), Ok(()), "{name}");
    }
    assert_eq!(call("GDBJITRegistrar_register", &range), Ok(()));
    assert_eq!(call("GDBJITRegistrar_deregister", &range), Ok(()));
    assert!(call("GDBJITRegistrar_deregister", &range).is_err());
    controller.finish().unwrap();
}

#[test]
fn controllers_after_llvm_22_look_up_what_a_session_has_published() {
    const LOOKUP: &str = "orc_rt_ci_sps_Session_lookupInstanceSymbols";
    const MAP: &str = "orc_rt_ci_SimpleNativeMemoryMap_Instance";
    let options = |value| Options {
        symbols: vec![("mine".to_owned(), value)],
        ..Options::default()
    };
    // Each session has its own.
    let mut controllers = [1u64, 2].map(|value| over_socket(options(value)));
    for (controller, mine) in controllers.iter_mut().zip([1u64, 2]) {
        let function = controller.symbol(LOOKUP);
        let map = ExecutorAddr(controller.symbol(MAP));
        let mut look_up = |names: Vec<(&str, bool)>| {
            let answer = controller.call(function, &to_bytes(&names));
            from_bytes::<Vec<Option<ExecutorAddr>>>(&answer).unwrap()
        };
        let mine = Some(ExecutorAddr(mine));
        let missing = Some(ExecutorAddr(0));
        let names = vec![
            ("mine", true),
            ("yours", true),
            (MAP, false),
            ("yours", false),
            // A function is the process's, and an unknown name has no owner.
            (LOOKUP, true),
            ("", true),
        ];
        let found = [mine, None, Some(map), missing, None, None];
        assert_eq!(look_up(names), found);
        assert_eq!(look_up(vec![]), []);
        assert_eq!(controller.call(function, &[1]), []); // malformed
        let past_the_session = crate::sys::testing::call_wrapper(function, &[]);
        let WrapperResult::OutOfBand(refused) = past_the_session else {
            panic!("{past_the_session:?}");
        };
        assert!(
            refused.contains("over the session's connection"),
            "{refused}"
        );
    }
    for controller in controllers {
        controller.finish().unwrap();
    }
}
