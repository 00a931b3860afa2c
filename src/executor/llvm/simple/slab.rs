// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which regions of which slabs hold something: no system call in here.

use super::super::request::pages_of;
use super::Rules;
use crate::error::{Result, invalid_handle as unknown};
use crate::group::Protection;
use crate::mapper::WrapperCall;
use crate::memory::reservation::Reservation;
use crate::page::AddressRange;
use crate::sys;
use crate::unwind::registration::forget_within;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// One segment of a request.
pub(super) struct Segment<'a> {
    pub(super) range: AddressRange,
    pub(super) protection: Protection,
    pub(super) content: &'a [u8],
}

/// What was initialized together.
struct Region {
    extent: AddressRange,
    state: RegionState,
}

enum RegionState {
    /// A thread writes its content, or runs its actions.
    Busy,
    /// It is there.
    Live {
        /// Later ones have larger numbers.
        order: u64,
        dealloc: Vec<WrapperCall>,
    },
}

/// What was reserved together; readable and writable where no region is.
pub(super) struct Slab {
    /// `None` for no bytes: stock executors answer address 0 then, and take it back.
    memory: Option<Reservation>,
    /// By their lowest addresses. No page belongs to two.
    regions: BTreeMap<u64, Region>,
    /// Lowest addresses of regions that are gone. A controller may end a region twice.
    ended: BTreeSet<u64>,
}

/// All slabs of a manager, by their first addresses.
#[derive(Default)]
pub(super) struct Slabs {
    by_base: BTreeMap<u64, Slab>,
    order: u64,
}

impl Drop for Slab {
    fn drop(&mut self) {
        forget_within(self.range());
        sys::deregister_debug_objects_within(self.range());
    }
}

impl Slab {
    /// What is to be run when slabs go, in the order in which the regions came.
    pub(super) fn dealloc_actions<'a>(
        slabs: impl IntoIterator<Item = &'a Slab>,
    ) -> Vec<WrapperCall> {
        let regions = slabs.into_iter().flat_map(|slab| slab.regions.values());
        let mut live: Vec<(u64, &Vec<WrapperCall>)> = regions
            .filter_map(|region| match &region.state {
                RegionState::Live { order, dealloc } => Some((*order, dealloc)),
                RegionState::Busy => None,
            })
            .collect();
        live.sort_by_key(|(order, _)| *order);
        let calls = live.into_iter().flat_map(|(_, dealloc)| dealloc);
        calls.cloned().collect()
    }

    fn range(&self) -> AddressRange {
        const NOTHING: AddressRange = AddressRange::new(0, 0).expect("it ends where it starts");
        let memory = self.memory.as_ref();
        memory.map_or(NOTHING, Reservation::range)
    }

    fn is_busy(&self) -> bool {
        let mut regions = self.regions.values();
        regions.any(|region| matches!(region.state, RegionState::Busy))
    }

    /// A region that has pages in common with `pages`.
    fn overlapping(&self, pages: AddressRange) -> Option<&Region> {
        let (_, region) = self.regions.range(..pages.end()).next_back()?;
        held(region.extent).overlaps(pages).then_some(region)
    }
}

/// The pages that a region keeps from others: at least one, or its key could be another's too.
fn held(extent: AddressRange) -> AddressRange {
    let size = extent.size().max(1);
    pages_of(AddressRange::new(extent.start(), size).unwrap_or(extent))
}

/// A range as stock executors write it.
fn words(range: AddressRange) -> String {
    format!("{:#x} -- {:#x}", range.start(), range.end())
}

impl Slabs {
    /// Takes a reservation in and gives its first address.
    pub(super) fn add(&mut self, memory: Option<Reservation>) -> u64 {
        let slab = Slab {
            memory,
            regions: BTreeMap::new(),
            ended: BTreeSet::new(),
        };
        let base = slab.range().start();
        // However often no bytes are asked for, that is one slab.
        self.by_base.entry(base).or_insert(slab);
        base
    }

    /// The slab that an address lies in.
    fn around(&mut self, address: u64) -> Option<(u64, &mut Slab)> {
        let (base, slab) = self.by_base.range_mut(..=address).next_back()?;
        (address == *base || address < slab.range().end()).then_some((*base, slab))
    }

    /// Sets the pages of a new region aside, and gives its slab.
    pub(super) fn claim(&mut self, extent: AddressRange, rules: Rules) -> Result<u64> {
        let nowhere = || {
            unknown(match rules {
                Rules::Finalize => format!(
                    "Attempt to finalize unrecognized allocation {:#x}",
                    extent.start()
                ),
                Rules::Initialize => format!(
                    "In initialize, {} is not part of any reserved address range",
                    words(extent)
                ),
            })
        };
        let (base, slab) = self.around(extent.start()).ok_or_else(nowhere)?;
        if rules == Rules::Finalize && base != extent.start() {
            return Err(nowhere());
        }
        if !slab.range().contains(extent) {
            return Err(unknown(format!(
                "region {} does not lie inside its reservation {}",
                words(extent),
                words(slab.range())
            )));
        }
        let pages = held(extent);
        if let Some(previous) = slab.overlapping(pages) {
            return Err(unknown(format!(
                "In initialize, region {} overlaps previous region {}",
                words(extent),
                words(previous.extent)
            )));
        }
        let inside = pages.start()..=pages.end().saturating_sub(1);
        slab.forget_ended(inside);
        let state = RegionState::Busy;
        slab.regions
            .insert(extent.start(), Region { extent, state });
        Ok(base)
    }

    /// What was claimed is there now.
    pub(super) fn settle(&mut self, slab: u64, key: u64, dealloc: Vec<WrapperCall>) {
        self.order += 1;
        let order = self.order;
        if let Some(region) = self.region(slab, key) {
            region.state = RegionState::Live { order, dealloc };
        }
    }

    /// What was busy is gone. Pages that could not be made writable again stay set aside.
    pub(super) fn vacate(&mut self, slab: u64, key: u64, writable: bool) {
        if !writable {
            return self.settle(slab, key, Vec::new());
        }
        if let Some(slab) = self.by_base.get_mut(&slab) {
            slab.regions.remove(&key);
            slab.ended.insert(key);
        }
    }

    /// Starts to end a region: slab, extent and what is to be run. `None` if it has ended before.
    #[allow(clippy::type_complexity)]
    pub(super) fn begin_to_end(
        &mut self,
        key: u64,
    ) -> Result<Option<(u64, AddressRange, Vec<WrapperCall>)>> {
        let Some((base, slab)) = self.around(key) else {
            return Err(unknown(format!(
                "In deinitialize, address {key:#x} is not part of any reserved address range"
            )));
        };
        let ended = slab.ended.contains(&key);
        let Some(region) = slab.regions.get_mut(&key) else {
            if ended {
                return Ok(None);
            }
            return Err(unknown(format!(
                "In deinitialize, address {key:#x} does not correspond to the start of any \
                 initialized region"
            )));
        };
        match std::mem::replace(&mut region.state, RegionState::Busy) {
            RegionState::Busy => Err(unknown(format!(
                "In deinitialize, the region at {key:#x} is being initialized or deinitialized"
            ))),
            RegionState::Live { dealloc, .. } => Ok(Some((base, region.extent, dealloc))),
        }
    }

    fn region(&mut self, slab: u64, key: u64) -> Option<&mut Region> {
        self.by_base.get_mut(&slab)?.regions.get_mut(&key)
    }

    /// Takes a slab out for good, unless a region of it is busy.
    pub(super) fn take(&mut self, base: u64, rules: Rules) -> Result<Slab> {
        let Some(slab) = self.by_base.get(&base) else {
            return Err(unknown(match rules {
                Rules::Finalize => format!("No allocation entry found for {base:#x}"),
                Rules::Initialize => {
                    format!("In release, {base:#x} is not part of any reserved address range")
                }
            }));
        };
        if slab.is_busy() {
            return Err(unknown(format!(
                "In release, a region of the reservation at {base:#x} is being initialized or \
                 deinitialized"
            )));
        }
        Ok(self.remove(base).expect("it was there a moment ago"))
    }

    /// Takes a slab out, busy or not.
    pub(super) fn remove(&mut self, base: u64) -> Option<Slab> {
        self.by_base.remove(&base)
    }

    /// Takes all of them out.
    pub(super) fn take_all(&mut self) -> Vec<Slab> {
        std::mem::take(&mut self.by_base).into_values().collect()
    }
}

impl Slab {
    fn forget_ended(&mut self, keys: RangeInclusive<u64>) {
        let gone: Vec<u64> = self.ended.range(keys).copied().collect();
        for key in gone {
            self.ended.remove(&key);
        }
    }
}
