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

/// The museum, in the order of `--list-faults`.
pub const EXHIBITS: &[Exhibit] = &[
    exhibit("stale-state", "zero", (Sitting::Probes, "aba")),
    exhibit("stale-conv", "zero", (Sitting::Probes, "aba")),
    exhibit("garbage-state", "zero", (Sitting::Probes, "aba")),
    exhibit("stale-resume", "zero", (Sitting::Storm, "canary")),
    exhibit("double-free", "owner", (Sitting::Probes, "aba")),
    exhibit("lost-release", "owner", (Sitting::Storm, "unanswered")),
    exhibit("late-step", "owner", (Sitting::Probes, "aba")),
    Exhibit {
        options: &["--max-num-seqs", "1", "--num-kv-pages", "150"],
        ..exhibit("kv-offset-32", "nonfinite", (Sitting::Soak, "output"))
    },
    exhibit("pad-row-slot-0", "canary 0", (Sitting::Probes, "aba")),
    exhibit("pad-row-live", "rows", (Sitting::Probes, "aba")),
    exhibit("capture-live-slot", "rows", (Sitting::Probes, "canary")),
    exhibit("baked-slot", "rows", (Sitting::Probes, "aba")),
    exhibit("skip-wo-reset", "end", (Sitting::Probes, "aba")),
    exhibit("stale-barrier", "counter", (Sitting::Probes, "canary")),
    exhibit("chunk-grid", "recompute", (Sitting::Probes, "boundary")),
    exhibit("shared-scratch", "recompute", (Sitting::Probes, "aba")),
    exhibit("state-bf16", "recompute", (Sitting::Probes, "boundary")),
    exhibit("coop-launch-fails", "end", (Sitting::Soak, "dispatch")),
    exhibit("silent-fallback", "end", (Sitting::Paths, "paths")),
    exhibit("nan-token", "nonfinite", (Sitting::Soak, "output")),
];
