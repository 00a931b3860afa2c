// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Serving one controller after another, each in a process of its own: this program again, whose stdin is the
//! connection.

use crate::connection::Listener;
use crate::token::{self, Token};
use anyhow::{Context, Result};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

/// What each session's process is started with.
pub(crate) struct Sessions {
    /// How the program was called.
    pub(crate) name: String,
    /// Its options, without those of this server.
    pub(crate) options: Vec<OsString>,
    pub(crate) token: Option<Token>,
    /// So many run at a time; further controllers wait.
    pub(crate) most: usize,
}

/// Sessions that are being served, and those that may be yet.
struct Places {
    most: usize,
    free: Mutex<usize>,
    changed: Condvar,
}

impl Places {
    fn take(&self) {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.changed.wait_while(free, |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
    }

    /// Waits until a session ends; `false` if none is served but the one that is to begin.
    fn wait_for_an_end(&self) -> bool {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *free;
        if before + 1 == self.most {
            return false;
        }
        let wait = self.changed.wait_while(free, |free| *free <= before);
        drop(wait.unwrap_or_else(PoisonError::into_inner));
        true
    }

    fn give_back(&self) {
        *self.free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_one();
    }
}

/// Serves until the system refuses to go on. `note` is given what the user should know.
pub(crate) fn serve(
    listener: &Listener,
    sessions: Sessions,
    note: impl Fn(&str) + Clone + Send + 'static,
) -> Result<()> {
    let places = Arc::new(Places {
        most: sessions.most,
        free: Mutex::new(sessions.most),
        changed: Condvar::new(),
    });
    let sessions = Arc::new(sessions);
    loop {
        places.take();
        let (socket, peer) = loop {
            match listener.accept(&note) {
                // Sessions, or connections that say nothing, have taken what there is.
                Err(error) if is_shortage(&error) => {
                    note(&format!("{error:#}: waiting for a session to end"));
                    if !places.wait_for_an_end() {
                        return Err(error);
                    }
                }
                accepted => break accepted?,
            }
        };
        let refused = {
            let (note, peer) = (note.clone(), peer.clone());
            move |error| note(&format!("refused a connection of {peer}: {error:#}"))
        };
        let session = {
            let (sessions, places) = (Arc::clone(&sessions), Arc::clone(&places));
            let (note, refused) = (note.clone(), refused.clone());
            move || {
                match sessions.run(socket) {
                    Ok(status) if status.success() => (),
                    Ok(status) => note(&format!("the session of {peer} has ended: {status}")),
                    Err(error) => refused(error),
                }
                places.give_back();
            }
        };
        let thread = thread::Builder::new().name("jitmem-session".to_owned());
        // A session may have taken all that this user may start.
        if let Err(error) = thread.spawn(session) {
            refused(anyhow::Error::from(error).context("start a thread for a session"));
            places.give_back();
        }
    }
}

/// Whether this process or the system has no room for a connection.
fn is_shortage(error: &anyhow::Error) -> bool {
    let number = error
        .downcast_ref::<io::Error>()
        .and_then(io::Error::raw_os_error);
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    number.is_some_and(|number| shortages.contains(&number))
}

impl Sessions {
    /// Runs a session to its end.
    fn run(&self, socket: OwnedFd) -> Result<ExitStatus> {
        if let Some(token) = &self.token {
            token.check(&socket)?;
        }
        let mut process = Command::new("/proc/self/exe")
            .arg0(&self.name)
            .args(&self.options)
            .arg("filedescs=0,0")
            .env_remove(token::VARIABLE)
            .stdin(Stdio::from(socket))
            .spawn()
            .context("start a process for the session")?;
        process.wait().context("wait for the session's process")
    }
}
