//! Faults: ways to break the engine on purpose, so that the auditors can prove themselves.

use std::fmt;
use std::str::FromStr;

/// A fault, by the name it has on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// a recycled slot keeps its previous owner's state
    StaleState,
    /// a recycled slot holds random values of large magnitude
    GarbageState,
    /// the KV byte offset that decode reads with is truncated to a signed width the pool exceeds
    KvOffset32,
    /// every cooperative launch fails, and the layer falls back to `lite`
    CoopLaunchFails,
}

impl Fault {
    /// Every fault with its name and its story.
    pub const ALL: &[(Fault, &str, &str)] = &[
        (
            Fault::StaleState,
            "stale-state",
            "no zero on acquire: a recycled slot still holds its previous owner's recurrent and conv state",
        ),
        (
            Fault::GarbageState,
            "garbage-state",
            "a recycled slot holds random finite values of large magnitude, as uninitialised memory would",
        ),
        (
            Fault::KvOffset32,
            "kv-offset-32",
            "decode truncates the KV byte offset to a signed width the pool exceeds (2^31 scaled to the pool); \
             what lies outside reads as NaN, and a row of NaN logits becomes token 0; the pool has 600 pages unless \
             --num-kv-pages says otherwise, and the edges are sharp with --max-num-seqs 1",
        ),
        (
            Fault::CoopLaunchFails,
            "coop-launch-fails",
            "each cooperative launch fails; the layer falls back to lite unless CUTE_PHASE_E_FALLBACK_RAISE=1",
        ),
    ];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(f, ..)| *f == self).map_or("", |(_, name, _)| name)
    }

    /// Signed width, in bits, for a pool of so many bytes: the widest the pool exceeds.
    pub fn kv_offset_bits(self, pool_bytes: usize) -> Option<u32> {
        (self == Fault::KvOffset32 && pool_bytes > 2).then(|| (pool_bytes - 1).ilog2() + 1)
    }

    /// A row of logits without finite values becomes token 0 instead of an error.
    pub fn launders_nan(self) -> bool {
        self == Fault::KvOffset32
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fault {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|(_, name, _)| *name == s).map(|(f, ..)| *f).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|(_, name, _)| *name).collect();
            format!("no fault {s:?}: expected one of {}", names.join(", "))
        })
    }
}
