//! Records of evidence and judgment: what logs say, what should not be so, and the verdict.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Where a record was read from a log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// the log
    pub file: String,
    /// 1-based line
    pub line: u64,
    /// byte offset of the line
    pub byte: u64,
    /// process prefix, e.g. `EngineCore pid=146`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// the line's own timestamp, as it stands there
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
}

/// `dispatch`: one `[PHASE_E_DISPATCH]` line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Dispatch {
    /// dotted module name of the layer
    pub layer_name: String,
    /// global layer index
    pub layer_idx: Option<u32>,
    /// fusion switched on
    pub enabled: bool,
    /// layers allowed, when restricted
    pub restricted_layers: Option<Vec<u32>>,
    /// no request of the batch is in prefill
    pub is_decode_only: bool,
    /// attention fusion bound and the batch fits
    pub use_fusion: bool,
    /// sequences in the batch
    pub num_seqs: u64,
    /// blocks that fit on the device at once
    pub resident_cap: u64,
    /// coop was chosen
    pub use_beta_coop: bool,
    /// lite was chosen
    pub use_beta_lite: bool,
    /// path chosen: `coop`, `lite` or `paged`; the seed's logs have none
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// path that ran
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// why it was chosen
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// pieces the output projection's K range is cut into
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wo_split: Option<u64>,
    /// fields of the line this build does not know
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub other: BTreeMap<String, String>,
    /// where it was read
    #[serde(flatten)]
    pub source: Source,
}

/// `pool`: the geometry of a cache pool, read from a log or written by the engine itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    /// blocks, the null block included
    pub num_blocks: Option<u64>,
    /// how `num_blocks` was derived
    pub rule: Option<String>,
    /// tokens of an attention block
    pub block_size: Option<u64>,
    /// bytes of a block in one tensor
    pub block_bytes: Option<u64>,
    /// bytes of a token in one tensor
    pub token_bytes: Option<u64>,
    /// blocks a request takes from each group that keeps one state per sequence, before its attention blocks
    pub state_blocks_per_request: Option<u64>,
    /// first block handed out (those before are reserved)
    pub first_block: Option<u64>,
    /// tokens the pool holds, as reported
    pub kv_cache_tokens: Option<u64>,
    /// requests of `max_model_len` the pool holds, as reported
    pub max_concurrency: Option<f64>,
    /// longest request
    pub max_model_len: Option<u64>,
    /// memory given to the pool
    pub available_bytes: Option<u64>,
    /// `none`, `align`, …
    pub mamba_cache_mode: Option<String>,
    /// smallest and largest block count the reported figures allow, when they leave a choice
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_blocks_range: Option<(u64, u64)>,
    /// groups of layers that take blocks by the token
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_groups: Option<u64>,
    /// groups of layers that keep one state per sequence
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_groups: Option<u64>,
    /// tokens of a kernel page, when a block spans several
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<u64>,
    /// tensors the pool's memory is cut into: layers of a group
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensors: Option<u64>,
    /// number format of K and V
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_cache_dtype: Option<String>,
    /// most sequences served at once
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_num_seqs: Option<u64>,
    /// where it was read; absent when the engine itself wrote it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// `event`: a recognised log line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// name of the pattern
    pub event: String,
    /// pattern pack it belongs to
    pub pack: String,
    /// captured fields
    pub fields: BTreeMap<String, Value>,
    /// where it was read
    #[serde(flatten)]
    pub source: Source,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// worth knowing
    Info,
    /// suspicious, or weakens the evidence
    Warning,
    /// an invariant is broken
    Error,
}

/// `finding`: something that should not be so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// identifier of the check
    pub check: String,
    /// how bad
    pub severity: Severity,
    /// one sentence with the values
    pub message: String,
    /// request it concerns, by ordinal
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ordinal: Option<u64>,
    /// layer it concerns
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// where the evidence stands: `file:line`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// the evidence
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, Value>,
}

/// The outcome of a gate or of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// the evidence is sufficient and good
    Pass,
    /// the evidence is sufficient and bad
    Fail,
    /// the evidence is missing, cut off or empty
    Inconclusive,
}

/// One gate and its outcome.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Gate {
    /// the gate as asked for, e.g. `correct>=45/50`
    pub gate: String,
    /// its outcome
    pub outcome: Outcome,
    /// one sentence with the values
    pub reason: String,
}

/// One repetition of the prompt set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RunScore {
    /// which, 0-based
    pub run: u64,
    /// replies with a right answer
    pub correct: u64,
    /// replies with a gold answer
    pub n: u64,
    /// requests that failed
    pub errors: u64,
    /// replies that are degenerate
    pub degenerate: u64,
    /// 95 % interval of the accuracy (Wilson)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wilson: Option<(f64, f64)>,
    /// 95 % interval of the accuracy (Clopper–Pearson)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clopper_pearson: Option<(f64, f64)>,
}

/// `verdict`: the judgment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Verdict {
    /// the judgment; the exit code says the same
    pub outcome: Outcome,
    /// every gate that was asked for
    pub gates: Vec<Gate>,
    /// per-run scores
    pub runs: Vec<RunScore>,
    /// first ordinal of the bad stretch
    pub onset_ordinal: Option<u64>,
    /// first ordinal after the bad stretch; none when nothing shows an end of it
    pub recovery_ordinal: Option<u64>,
    /// replies that are degenerate
    pub degenerate: u64,
    /// requests with a label
    pub labels: u64,
    /// labels the mechanism explains
    pub explained: Option<u64>,
    /// identifier of the mechanism, e.g. `kv_offset_i32_overflow`
    pub mechanism: Option<String>,
    /// first block the mechanism makes bad
    pub first_bad_block: Option<u64>,
    /// blocks of the pool
    pub pool_blocks: Option<u64>,
    /// findings of severity `error`
    pub findings: u64,
    /// further figures by name
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, Value>,
}
