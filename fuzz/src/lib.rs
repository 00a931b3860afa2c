// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! What the fuzz targets share.

pub mod actions;
mod channel;
pub mod dispatch;
pub mod executor;
pub mod host;
mod hostile;
pub mod input;
mod linked;
pub mod llvm;
pub mod own;
mod packets;

/// Decodes bytes as each of the types, or not. A value that was decoded must come back from what
/// it is encoded as. (A macro, because values borrow from their bytes.)
#[macro_export]
macro_rules! reread {
    ($bytes:expr => $($type:ty),* $(,)?) => {$(
        if let Ok(value) = ::jitmem::wire::sps::from_bytes::<$type>($bytes) {
            let encoded = ::jitmem::wire::sps::to_bytes(&value);
            let again = ::jitmem::wire::sps::from_bytes::<$type>(&encoded);
            assert_eq!(again.as_ref(), Ok(&value), "{}", stringify!($type));
        }
    )*};
}
