// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Which pool of a window serves which segments: a number says their group, and what their code is for.

use crate::group::{AllocGroup, CodeHint, Lifetime, Protection};

/// How many numbers there are: protection (3 bits) and lifetime (1 bit); and behind them those of code with a hint.
pub(in crate::manager) const POOLS: usize = (HINT_BIT | CODE_BIT) as usize + CodeHint::ALL.len();

/// Set in the number of pools of executable pieces: their protection's bit.
pub(in crate::manager) const CODE_BIT: u8 = 4;
/// Set in the number of pools whose pieces are of finalize lifetime.
pub(in crate::manager) const FINALIZE_BIT: u8 = 8;
/// Set in the number of pools of code with a hint, which is in the bits below [`CODE_BIT`].
const HINT_BIT: u8 = 16;

/// The code that hints are for.
const HINTED: AllocGroup = AllocGroup::new(Protection::READ_EXEC, Lifetime::Standard);

/// Which pool of a window serves a group.
#[inline]
pub(in crate::manager) fn of(group: AllocGroup, hint: CodeHint) -> u8 {
    if hint != CodeHint::Normal && group == HINTED {
        return HINT_BIT | CODE_BIT | hint as u8;
    }
    let lifetime = match group.lifetime {
        Lifetime::Finalize => FINALIZE_BIT,
        _ => 0,
    };
    group.protection.bits() as u8 | lifetime
}

/// The hint of the code that a pool is for.
pub(in crate::manager) fn hint(pool: u8) -> CodeHint {
    match pool & HINT_BIT {
        0 => CodeHint::Normal,
        _ => CodeHint::ALL[usize::from(pool & !(HINT_BIT | CODE_BIT))],
    }
}

/// The pool that serves the group of another one where hints are of no use.
pub(in crate::manager) fn without_hint(pool: u8) -> u8 {
    match pool & HINT_BIT {
        0 => pool,
        _ => of(HINTED, CodeHint::Normal),
    }
}

/// The pools of other hints that may serve a segment where its own has no room.
pub(in crate::manager) fn instead_of(pool: u8) -> impl Iterator<Item = u8> {
    let pools = CodeHint::ALL.map(|hint| of(HINTED, hint));
    let others = pools.contains(&pool).then_some(pools);
    others
        .into_iter()
        .flatten()
        .filter(move |other| *other != pool)
}

/// The group that a pool serves.
pub(in crate::manager) fn group(pool: u8) -> AllocGroup {
    known_group(pool).expect("pools have a group")
}

/// The same of what may be no pool's number.
pub(in crate::manager) fn known_group(pool: u8) -> Option<AllocGroup> {
    if pool & HINT_BIT != 0 {
        return (pool & CODE_BIT != 0 && usize::from(pool) < POOLS).then_some(HINTED);
    }
    let protection = Protection::checked((pool & !FINALIZE_BIT).into())?;
    let lifetime = match pool & FINALIZE_BIT {
        0 => Lifetime::Standard,
        _ => Lifetime::Finalize,
    };
    Some(AllocGroup::new(protection, lifetime))
}
