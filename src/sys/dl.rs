// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! The dynamic linker.

use super::gate;
use std::ffi::{CStr, c_void};
use std::ptr::NonNull;

/// What the dynamic linker said last in this thread.
fn dlerror() -> String {
    // SAFETY: the text is this thread's own and is copied before anything else is asked.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "the dynamic linker gives no reason".to_owned();
    }
    // SAFETY: not NULL, so a string.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().into_owned()
}

/// A library that stays open for good. The same library is equal each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Library(NonNull<c_void>);

// SAFETY: dlsym may be called in any thread with any open library.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

/// Opens a library for the whole process; without a path, the process itself. Its constructors run in
/// here, so no lock may be held.
///
/// # Safety
/// What its constructors do may be done in this process.
pub(crate) unsafe fn open_library(path: Option<&CStr>) -> Result<Library, String> {
    gate("dlopen").map_err(|error| error.to_string())?;
    let path = path.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: NULL or a string; the caller vouches for the constructors.
    let library = unsafe { libc::dlopen(path, libc::RTLD_LAZY | libc::RTLD_GLOBAL) };
    NonNull::new(library).map(Library).ok_or_else(dlerror)
}

/// Where a symbol of a library, or of what it depends on, is. A symbol at address 0 is none.
pub(crate) fn symbol_in(library: Library, name: &CStr) -> Option<u64> {
    // SAFETY: a handle of dlopen's that is never closed.
    unsafe { find(library.0.as_ptr(), name) }
}

/// Where a symbol is that any library of the process's global scope has.
pub(crate) fn symbol(name: &CStr) -> Option<u64> {
    // SAFETY: the process's global scope.
    unsafe { find(libc::RTLD_DEFAULT, name) }
}

/// Where the definition of a symbol is that comes behind the one in the caller's image.
pub(crate) fn next_symbol(name: &CStr) -> Option<u64> {
    // SAFETY: the process's global scope.
    unsafe { find(libc::RTLD_NEXT, name) }
}

/// # Safety
/// `library` is a handle of dlopen's that is open, RTLD_DEFAULT or RTLD_NEXT.
unsafe fn find(library: *mut c_void, name: &CStr) -> Option<u64> {
    // SAFETY: as the caller says, and a string.
    let address = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!address.is_null()).then(|| address.expose_provenance() as u64)
}

/// Where the image starts that an address belongs to.
pub(crate) fn image_of(address: u64) -> Option<u64> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::uninit();
    let address = std::ptr::with_exposed_provenance::<c_void>(address as usize);
    // SAFETY: any address may be asked about; `info` is read only if it was filled.
    let info = unsafe {
        match libc::dladdr(address, info.as_mut_ptr()) {
            0 => return None,
            _ => info.assume_init(),
        }
    };
    Some(info.dli_fbase.expose_provenance() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_library(path: Option<&CStr>) -> Result<Library, String> {
        // SAFETY: the process itself, and no library at all.
        unsafe { super::open_library(path) }
    }

    #[test]
    fn the_process_and_its_libraries_are_found() {
        let process = open_library(None).unwrap();
        assert_eq!(open_library(None), Ok(process));
        let getpid = symbol_in(process, c"getpid").unwrap();
        assert_eq!(symbol(c"getpid"), Some(getpid));
        assert_eq!(symbol(c"jitmem has no such symbol"), None);
        let libc = image_of(getpid).unwrap();
        assert_eq!(image_of(symbol(c"malloc").unwrap()), Some(libc));
        assert_eq!(image_of(8), None);
        let error = open_library(Some(c"/nonexistent.so")).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
