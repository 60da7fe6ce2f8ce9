//! Ctrl-C and SIGTERM as a question that a loop asks between its steps.

use crate::Exit;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Whether somebody asked the process to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    signal: Arc<AtomicUsize>,
}

impl Stop {
    /// Takes the two signals from here on. The first is noted; the second ends the process at once.
    ///
    /// # Errors
    /// What the system says.
    pub fn watch() -> io::Result<Self> {
        let stop = Stop::default();
        let again = Arc::new(AtomicBool::new(false));
        for (signal, exit) in [(SIGINT, Exit::Interrupted), (SIGTERM, Exit::Terminated)] {
            // in this order: what ends the process looks at the flag before it is set
            flag::register_conditional_shutdown(signal, exit as i32, again.clone())?;
            flag::register(signal, again.clone())?;
            flag::register_usize(signal, stop.signal.clone(), exit as usize)?;
        }
        Ok(stop)
    }

    /// The exit code to return, once a signal has come.
    pub fn asked(&self) -> Option<Exit> {
        match self.signal.load(Ordering::Relaxed) {
            0 => None,
            n if n == Exit::Interrupted as usize => Some(Exit::Interrupted),
            _ => Some(Exit::Terminated),
        }
    }
}
