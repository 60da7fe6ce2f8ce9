//! Which standard streams were closed when the process started.
//!
//! The runtime opens /dev/null in place of a closed stream before `main`, so that no file takes its number. What is
//! written there succeeds and is nowhere: records would be lost with exit code 0. So the streams are looked at earlier.

#![allow(unsafe_code)]

use rustix::io::fcntl_getfd;
use rustix::stdio;
use std::sync::atomic::{AtomicBool, Ordering};

static STDIN: AtomicBool = AtomicBool::new(false);
static STDOUT: AtomicBool = AtomicBool::new(false);

// SAFETY: this runs before `main`, on one thread. It asks the system about two numbers and stores two flags; it uses
// nothing that the runtime has to set up first.
#[ctor::ctor(unsafe)]
fn look() {
    STDIN.store(fcntl_getfd(stdio::stdin()).is_err(), Ordering::Relaxed);
    STDOUT.store(fcntl_getfd(stdio::stdout()).is_err(), Ordering::Relaxed);
}

/// True when the process was started without stdin.
pub fn stdin() -> bool {
    STDIN.load(Ordering::Relaxed)
}

/// True when the process was started without stdout.
pub fn stdout() -> bool {
    STDOUT.load(Ordering::Relaxed)
}
