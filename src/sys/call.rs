// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Calling executor addresses: wrapper functions with LLVM's `CWrapperFunctionResult` ABI.

/// The 16 bytes that a wrapper function returns (in RAX:RDX on x86-64, X0:X1 on AArch64).
///
/// Up to 8 bytes are inline in `data`, first byte lowest; more are in a `malloc`ed block that
/// `data` points to; size 0 with `data` non-zero is an out-of-band error, `data` then being a
/// `malloc`ed C string.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct RawWrapperResult {
    data: u64,
    size: usize,
}

/// What a wrapper function answered, owned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WrapperResult {
    /// The result bytes.
    Bytes(Vec<u8>),
    /// It could not answer; this is its message.
    OutOfBand(String),
}

type WrapperFunction = unsafe extern "C" fn(*const u8, usize) -> RawWrapperResult;

/// Frees a block that JIT'd code or LLVM got from the C library.
fn free_wrapper_buffer(address: u64) {
    let block: *mut libc::c_void = std::ptr::with_exposed_provenance_mut(address as usize);
    // SAFETY: the ABI hands us blocks from malloc to free, once.
    unsafe { libc::free(block) }
}

/// Calls the wrapper function at `function` in this process.
///
/// The address comes from whoever linked the code; like any call of JIT-linked code it can do
/// anything at all. No lock of ours may be held here.
pub(crate) fn call_wrapper(function: u64, args: &[u8]) -> WrapperResult {
    let pointer: *const () = std::ptr::with_exposed_provenance(function as usize);
    // SAFETY: the linker says that a wrapper function is at this address; trusting the linked
    // code is the executor's purpose.
    let function = unsafe { std::mem::transmute::<*const (), WrapperFunction>(pointer) };
    // SAFETY: `args` lives through the call, and the ABI is the one declared above.
    let raw = unsafe { function(args.as_ptr(), args.len()) };
    take(raw)
}

fn take(raw: RawWrapperResult) -> WrapperResult {
    let block: *const u8 = std::ptr::with_exposed_provenance(raw.data as usize);
    match raw.size {
        0 if raw.data == 0 => WrapperResult::Bytes(Vec::new()),
        0 => {
            // SAFETY: an out-of-band error is a NUL-terminated string from malloc.
            let message = unsafe { std::ffi::CStr::from_ptr(block.cast()) };
            let message = message.to_string_lossy().into_owned();
            free_wrapper_buffer(raw.data);
            WrapperResult::OutOfBand(message)
        }
        size @ 1..=8 => WrapperResult::Bytes(raw.data.to_le_bytes()[..size].to_vec()),
        size if raw.data == 0 => {
            WrapperResult::OutOfBand(format!("result of {size} bytes at address 0"))
        }
        size => {
            // SAFETY: a result of more than 8 bytes is a block of `size` bytes from malloc.
            let bytes = unsafe { std::slice::from_raw_parts(block, size) };
            let bytes = bytes.to_vec();
            free_wrapper_buffer(raw.data);
            WrapperResult::Bytes(bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" fn inline_result(args: *const u8, size: usize) -> RawWrapperResult {
        // SAFETY: the test passes at least one byte.
        let first = unsafe { *args };
        RawWrapperResult {
            data: u64::from(first) + 1,
            size,
        }
    }

    unsafe extern "C" fn big_result(_: *const u8, _: usize) -> RawWrapperResult {
        // SAFETY: plain allocation, then a write inside it.
        let block = unsafe { libc::calloc(1, 9) };
        RawWrapperResult {
            data: block.expose_provenance() as u64,
            size: 9,
        }
    }

    unsafe extern "C" fn failing(_: *const u8, _: usize) -> RawWrapperResult {
        // SAFETY: duplicates a literal.
        let message = unsafe { libc::strdup(c"broken".as_ptr()) };
        RawWrapperResult {
            data: message.expose_provenance() as u64,
            size: 0,
        }
    }

    unsafe extern "C" fn empty(_: *const u8, _: usize) -> RawWrapperResult {
        RawWrapperResult { data: 0, size: 0 }
    }

    #[test]
    fn every_form_of_result_is_taken() {
        let call = |function: WrapperFunction, args: &[u8]| {
            call_wrapper(function as *const () as u64, args)
        };
        assert_eq!(call(inline_result, &[6]), WrapperResult::Bytes(vec![7]));
        assert_eq!(
            call(inline_result, &[6, 0]),
            WrapperResult::Bytes(vec![7, 0])
        );
        assert_eq!(call(big_result, &[]), WrapperResult::Bytes(vec![0; 9]));
        assert_eq!(
            call(failing, &[]),
            WrapperResult::OutOfBand("broken".to_owned())
        );
        assert_eq!(call(empty, &[]), WrapperResult::Bytes(vec![]));
    }
}
