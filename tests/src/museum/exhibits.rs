//! Which detector stands for which fault, and where it listens.

use super::Sitting;

/// A fault and the two detectors that must name it.
#[derive(Clone, Copy, Debug)]
pub struct Exhibit {
    /// its name on the command line
    pub fault: &'static str,
    /// options that bring it out, in every sitting
    pub options: &'static [&'static str],
    /// from inside: the sitting and the column
    pub white: (Sitting, &'static str),
    /// from outside
    pub black: (Sitting, &'static str),
}

const fn exhibit(fault: &'static str, white: &'static str, black: (Sitting, &'static str)) -> Exhibit {
    Exhibit { fault, options: &[], white: (Sitting::Guards, white), black }
}

const fn recomputed(fault: &'static str, black: (Sitting, &'static str)) -> Exhibit {
    Exhibit { white: (Sitting::Recompute, "recompute"), ..exhibit(fault, "", black) }
}

/// The museum, in the order of `--list-faults`.
pub const EXHIBITS: &[Exhibit] = &[
    exhibit("stale-state", "zero", (Sitting::Probes, "aba")),
    exhibit("stale-conv", "zero", (Sitting::Probes, "aba")),
    exhibit("garbage-state", "zero", (Sitting::Probes, "aba")),
    exhibit("stale-resume", "zero", (Sitting::Storm, "aba")),
    exhibit("double-free", "owner", (Sitting::Probes, "aba")),
    exhibit("lost-release", "owner", (Sitting::Storm, "unanswered")),
    exhibit("late-step", "owner", (Sitting::Probes, "aba")),
    Exhibit { options: &["--num-kv-pages", "64"], ..recomputed("kv-offset-32", (Sitting::Soak, "output")) },
    exhibit("pad-row-slot-0", "slot0", (Sitting::Probes, "aba")),
    recomputed("pad-row-live", (Sitting::Probes, "aba")),
    Exhibit {
        white: (Sitting::Watched, "capture"),
        ..exhibit("capture-live-slot", "", (Sitting::Probes, "canary"))
    },
    recomputed("baked-slot", (Sitting::Probes, "aba")),
    exhibit("skip-wo-reset", "counter", (Sitting::Probes, "aba")),
    exhibit("stale-barrier", "counter", (Sitting::Probes, "canary")),
    recomputed("chunk-grid", (Sitting::Probes, "boundary")),
    recomputed("shared-scratch", (Sitting::Probes, "aba")),
    recomputed("state-bf16", (Sitting::Probes, "boundary")),
    exhibit("coop-launch-fails", "dispatch", (Sitting::Paths, "paths")),
    exhibit("silent-fallback", "counter", (Sitting::Paths, "paths")),
    recomputed("nan-token", (Sitting::Soak, "output")),
];
