// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Reserving a window in this process, and what to do where address space is short.

use super::placement::{Placement, largest};
use super::reservation::Reservation;
use crate::error::{Result, Status};
use crate::sys;

/// A window is never made smaller than this when address space is short.
const SMALLEST_WINDOW: u64 = 8 << 20;

/// A window takes no address space that its writer views and the host's heap will need: at least
/// this part of its size must stay free.
const HEADROOM: u64 = 16;

/// Out of reach of the process's images a whole window is worth more than a smaller one in reach.
const SMALLEST_IN_REACH: u64 = 64 << 20;

/// Reserves a window: the size asked for; or, where the neighbourhood is short, the largest that fits
/// there; or, where address space is short, half of it, and so on.
pub(crate) fn reserve_window(size: u64, least: u64, placement: Placement) -> Result<Reservation> {
    let smaller = |least: u64, reserve: &dyn Fn(u64) -> Result<Reservation>| {
        let mut tried = size;
        loop {
            let error = match reserve(tried).and_then(with_headroom) {
                Err(error) if error.status() == Status::OutOfMemory => error,
                other => return other,
            };
            // An error without errno says that no gap is large enough.
            let crowded = error.os_code().is_none() && tried == size;
            let fitting = crowded.then(|| largest_in_reach(size, least, placement));
            let half = sys::page_size().round_down(tried / 2);
            tried = fitting.flatten().unwrap_or(half);
            if tried < least {
                return Err(error);
            }
        }
    };
    let smallest = SMALLEST_WINDOW.max(least).min(size);
    let reservation = match placement {
        Placement::Default => {
            let in_reach = |size| Reservation::new(size, placement);
            smaller(SMALLEST_IN_REACH.max(least), &in_reach)
                .or_else(|_| Reservation::anywhere(size).and_then(with_headroom))
                .or_else(|_| smaller(smallest, &in_reach))
                .or_else(|_| smaller(smallest, &Reservation::anywhere))
        }
        Placement::Near(_) | Placement::NearAll { .. } => {
            smaller(smallest, &|size| Reservation::new(size, placement))
        }
        Placement::Fixed(_) => Reservation::new(size, placement),
    };
    reservation.map_err(|error| error.context(format!("reserve a window of {size} bytes")))
}

/// The largest window for which there is a gap now.
fn largest_in_reach(size: u64, least: u64, placement: Placement) -> Option<u64> {
    let mappings = sys::mappings().ok()?;
    let target = |size| placement.target(&mappings, size);
    largest(&mappings, target, size, least, sys::page_size())
}

/// Keeps a reservation only if it leaves something to work with.
fn with_headroom(reservation: Reservation) -> Result<Reservation> {
    let room = sys::page_size()
        .round_down(reservation.range().size() / HEADROOM)
        .max(1 << 20);
    Reservation::anywhere(room)?;
    Ok(reservation)
}
