// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A process whose service is another's too: one that it forks, in which linked code runs. It asks its supervisor
//! what to do with each call.

use super::session::Session;
use super::{Function, REGISTRY, SENT_ALONG};
use crate::wire::service::Restarted;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// What does the calls of a supervised service.
pub(in crate::executor) trait Supervise: Send + Sync {
    /// Answers a call of `open`; `here` does it in this process.
    fn open(&self, args: &[u8], here: &dyn Fn() -> Vec<u8>) -> Vec<u8>;

    /// Answers a call of another function.
    fn call(&self, function: Function, args: &[u8], descriptors: Vec<OwnedFd>) -> Vec<u8>;
}

static SUPERVISOR: OnceLock<Arc<dyn Supervise>> = OnceLock::new();
/// This process is the supervisor's, and no child that it has forked.
static IS_ACTIVE: AtomicBool = AtomicBool::new(false);

/// Leaves the calls of all sessions of this process to a supervisor, for good. One that was there before stays;
/// `false` then.
pub(in crate::executor) fn leave_to(supervisor: Arc<dyn Supervise>) -> bool {
    let set = SUPERVISOR.set(supervisor).is_ok();
    IS_ACTIVE.store(true, Ordering::Release);
    set
}

pub(super) fn supervisor() -> Option<&'static dyn Supervise> {
    match IS_ACTIVE.load(Ordering::Acquire) {
        true => SUPERVISOR.get().map(|supervisor| &**supervisor),
        false => None,
    }
}

/// Whether this process has a supervisor, or was forked from one that has.
pub(super) fn is_supervised() -> bool {
    SUPERVISOR.get().is_some()
}

/// Has a child that was forked for it go on with the sessions that it finds.
pub(in crate::executor) fn succeed() {
    IS_ACTIVE.store(false, Ordering::Release);
    let registry = REGISTRY.lock();
    registry
        .sessions
        .values()
        .for_each(|session| session.claim());
    drop(registry);
    // Controllers' sockets that its supervisor has taken and no session has asked for.
    SENT_ALONG.lock().clear();
}

/// Leaves what there is to the process that this one was forked from, which has it all.
pub(in crate::executor) fn leave_to_parent() {
    let mut registry = REGISTRY.lock();
    registry.services.clear();
    // Neither memory nor actions are this process's.
    std::mem::forget(std::mem::take(&mut registry.sessions));
    drop(registry);
    SENT_ALONG.lock().clear();
}

/// Tells the controllers of all sessions that another process runs linked code. May wait for one that does not read.
pub(in crate::executor) fn tell_restarted(restarted: &Restarted) {
    let sessions: Vec<Arc<Session>> = REGISTRY.lock().sessions.values().cloned().collect();
    sessions.iter().for_each(|session| session.tell(restarted));
}
