//! Faults: ways to break the engine on purpose, so that the auditors can prove themselves.
//!
//! Each is a bug that a public server had, put back at the place where it stood. `docs/MUSEUM.md` tells their stories,
//! says what is simulated on the CPU and how, and which detector names each.

use std::fmt;
use std::str::FromStr;

/// A fault, by the name it has on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// a recycled slot keeps its previous owner's state
    StaleState,
    /// a recycled slot keeps its previous owner's conv state; the recurrent state is cleared
    StaleConv,
    /// a recycled slot holds random values of large magnitude
    GarbageState,
    /// a slot is not cleared for a sequence that comes back after a preemption
    StaleResume,
    /// a finished sequence's slot is released twice
    DoubleFree,
    /// a cancelled sequence's slot and pages are not released
    LostRelease,
    /// one more step of a sequence runs after it has ended
    LateStep,
    /// the KV byte offset that decode reads with is truncated to a signed width the pool exceeds
    KvOffset32,
    /// padding rows of a decode step write slot 0, which is handed out
    PadRowSlot0,
    /// padding rows of a decode step keep the slots of an earlier step
    PadRowLive,
    /// a step is warmed up on slots that are in use
    CaptureLiveSlot,
    /// a recorded step is replayed on the slots it was recorded with
    BakedSlot,
    /// the W_O partial sums are not zeroed before a launch
    SkipWoReset,
    /// the grid barrier's counter is not zeroed before a launch
    StaleBarrier,
    /// states at chunk boundaries lie in one grid over the batch and are read as if each sequence had its own
    ChunkGrid,
    /// the third and later sequences of a decode step share one scratch row
    SharedScratch,
    /// the recurrent state is stored in bf16
    StateBf16,
    /// every cooperative launch fails, and the layer falls back to `lite`
    CoopLaunchFails,
    /// the same, and the log says `coop`
    SilentFallback,
    /// masked positions of a page are multiplied by zero, NaN or not, and a row of NaN logits becomes a token
    NanToken,
}

/// A fault with what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Exhibit {
    /// the fault
    pub fault: Fault,
    /// its name on the command line
    pub name: &'static str,
    /// what it does, in a sentence
    pub story: &'static str,
    /// where it happened: `owner/repository#number` of public threads
    pub source: &'static str,
    /// the CUDA backend has it too; the others are built into the CPU's text
    pub on_cuda: bool,
}

const fn exhibit(fault: Fault, name: &'static str, story: &'static str, source: &'static str) -> Exhibit {
    Exhibit { fault, name, story, source, on_cuda: false }
}

const fn everywhere(e: Exhibit) -> Exhibit {
    Exhibit { on_cuda: true, ..e }
}

impl Fault {
    /// Every fault with its name, its story and its source.
    pub const ALL: &[Exhibit] = &[
        everywhere(exhibit(
            Fault::StaleState,
            "stale-state",
            "no zero on acquire: a recycled slot still holds its previous owner's recurrent and conv state",
            "vllm-project/vllm#56524",
        )),
        exhibit(
            Fault::StaleConv,
            "stale-conv",
            "half a zero on acquire: the recurrent state of a recycled slot is cleared, its conv state is not",
            "NVIDIA/TensorRT-LLM#14509",
        ),
        everywhere(exhibit(
            Fault::GarbageState,
            "garbage-state",
            "a recycled slot holds random finite values of large magnitude, as uninitialised memory would",
            "vllm-project/vllm#35219",
        )),
        exhibit(
            Fault::StaleResume,
            "stale-resume",
            "a sequence that comes back after a preemption is taken for one that has a state: its slot is not cleared",
            "vllm-project/vllm-metal#488",
        ),
        exhibit(
            Fault::DoubleFree,
            "double-free",
            "a finished sequence releases its slot twice, and the free list takes it: two live sequences share a slot",
            "EricLBuehler/mistral.rs#2357",
        ),
        exhibit(
            Fault::LostRelease,
            "lost-release",
            "a cancelled sequence gives back neither slot nor pages: the pool runs dry (needs --storm cancel)",
            "kekzl/imp#501",
        ),
        exhibit(
            Fault::LateStep,
            "late-step",
            "the step after a sequence's last was already on its way: it advances a slot that is another's by then",
            "vllm-project/vllm#45096",
        ),
        everywhere(exhibit(
            Fault::KvOffset32,
            "kv-offset-32",
            "decode truncates the KV byte offset to a signed width the pool exceeds (2^31 scaled to the pool); \
             what lies outside reads as NaN, and a row of NaN logits becomes token 0; the pool has 600 pages unless \
             --num-kv-pages says otherwise, and the edges are sharp with --max-num-seqs 1",
            "ROCm/aiter#4774",
        )),
        exhibit(
            Fault::PadRowSlot0,
            "pad-row-slot-0",
            "decode steps are padded to the next power of two, padding rows write slot 0, and slot 0 is handed out",
            "inclusionAI/AReno#509",
        ),
        exhibit(
            Fault::PadRowLive,
            "pad-row-live",
            "padding rows of a decode step keep what an earlier step left there, and advance those slots once more",
            "vllm-project/vllm#49757",
        ),
        everywhere(exhibit(
            Fault::CaptureLiveSlot,
            "capture-live-slot",
            "before the first decode step of a size, a warm-up of that size runs on the first slots, in use or not",
            "inclusionAI/AReno#509",
        )),
        exhibit(
            Fault::BakedSlot,
            "baked-slot",
            "a decode step is recorded once for each size, with the slots it had; replays use those slots",
            "vllm-project/vllm#42947",
        ),
        exhibit(
            Fault::SkipWoReset,
            "skip-wo-reset",
            "the workspace of W_O's partial sums is not zeroed: every launch adds to what the last one left",
            "ROCm/composable_kernel#2697",
        ),
        exhibit(
            Fault::StaleBarrier,
            "stale-barrier",
            "the grid barrier's counter is not zeroed: from the second launch on the MLP starts before its input is there",
            "tile-ai/tilelang#2319",
        ),
        exhibit(
            Fault::ChunkGrid,
            "chunk-grid",
            "states at chunk boundaries lie in one grid over the batch and are read as if each sequence had its own; a \
             sequence alone in its step is right",
            "sgl-project/sglang#37836",
        ),
        exhibit(
            Fault::SharedScratch,
            "shared-scratch",
            "the third and all later sequences of a decode step share one scratch row for q, k and v",
            "ikawrakow/ik_llama.cpp#1933",
        ),
        exhibit(
            Fault::StateBf16,
            "state-bf16",
            "the recurrent state is rounded to bf16 whenever a step stores it; within a step it is f32",
            "ollama/ollama#15865",
        ),
        everywhere(exhibit(
            Fault::CoopLaunchFails,
            "coop-launch-fails",
            "each cooperative launch fails; the layer falls back to lite unless CUTE_PHASE_E_FALLBACK_RAISE=1",
            "vllm-project/vllm#25709",
        )),
        exhibit(
            Fault::SilentFallback,
            "silent-fallback",
            "each cooperative launch fails, lite runs, and the log says that coop ran",
            "NVIDIA/TensorRT-LLM#17698",
        ),
        exhibit(
            Fault::NanToken,
            "nan-token",
            "what a page holds past the end is masked by a product with 0, and 0 · NaN is NaN, after prompts that end 4 \
             to 10 tokens into a page; a row of NaN logits becomes token 0 instead of an error",
            "vllm-project/vllm#55766",
        ),
    ];

    /// The fault with what is known of it.
    pub fn exhibit(self) -> Option<&'static Exhibit> {
        Self::ALL.iter().find(|e| e.fault == self)
    }

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        self.exhibit().map_or("", |e| e.name)
    }

    /// Whether the CUDA backend has it too.
    pub fn on_cuda(self) -> bool {
        self.exhibit().is_some_and(|e| e.on_cuda)
    }

    /// Signed width, in bits, for a pool of so many bytes: the widest the pool exceeds.
    pub fn kv_offset_bits(self, pool_bytes: usize) -> Option<u32> {
        (self == Fault::KvOffset32 && pool_bytes > 2).then(|| (pool_bytes - 1).ilog2() + 1)
    }

    /// A row of logits without finite values becomes token 0 instead of an error.
    pub fn launders_nan(self) -> bool {
        matches!(self, Fault::KvOffset32 | Fault::NanToken)
    }

    /// No cooperative launch succeeds.
    pub fn fails_coop(self) -> bool {
        matches!(self, Fault::CoopLaunchFails | Fault::SilentFallback)
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
        Self::ALL.iter().find(|e| e.name == s).map(|e| e.fault).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|e| e.name).collect();
            format!("no fault {s:?}: expected one of {}", names.join(", "))
        })
    }
}
