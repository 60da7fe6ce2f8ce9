//! The arguments, and the engine configuration they make.

use crate::device::{Choice, GdnPrefill};
use anyhow::anyhow;
use clap::{Parser, ValueEnum, value_parser};
use cute_cli::Config;
use cute_engine::backend::KvDtype;
use cute_engine::knobs::{self, PathKnob};
use cute_engine::{EngineConfig, Fault, Guard, Knobs, SamplingParams};
use serde_json::json;
use std::path::PathBuf;

const EXAMPLES: &str = "Examples:
  cute-load examples/tiny-hybrid | cute-generate --prompts examples/arith-50.jsonl --runs 5 > soak.jsonl
  echo '{\"prompt\":\"Question: What is 3 + 4?\\nAnswer:\"}' | cute-generate --model examples/tiny-hybrid | jq -r 'select(.type==\"completion\").text'
  cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --stream --stop '####' | jq -j 'select(.type==\"chunk\").text'
  cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --journal night --resume > night.jsonl
  cute-generate --model examples/tiny-hybrid --probe aba,codeword,boundary,canary --pressure 4x </dev/null | cute-verdict
  cute-generate --model examples/tiny-hybrid --probe aba,canary --storm cancel,preempt --storm-seed 7 </dev/null | cute-audit
  cute-generate --model examples/tiny-hybrid --prompts examples/arith-50.jsonl --fault stale-state 2> gen.log | cute-audit";

/// Run the engine over prompts: continuous batching, greedy or sampled, repeated on one engine.
///
/// Dispatch decisions are logged on stderr, one `[PHASE_E_DISPATCH]` line for each layer and distinct decision.
#[derive(Debug, Parser)]
#[command(name = "cute-generate", version, after_help = EXAMPLES)]
pub struct Args {
    /// Checkpoint directory, or the name of a model in the Hugging Face cache; without it a model record is read from stdin
    #[arg(long, value_name = "DIR|NAME")]
    pub model: Option<PathBuf>,
    /// Prompts, one JSON object a line; without it they are read from stdin
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Use only the first N prompts
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// Repeat the prompt set on one engine
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = value_parser!(u64).range(1..))]
    pub runs: u64,
    /// What a GSM8K question becomes; {question} stands for it
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Question: {question}\nAnswer:",
        hide_default_value = true
    )]
    pub question_template: String,
    /// Send questions and prompts as a user's message through the chat template
    #[arg(long)]
    pub chat: bool,
    /// Variables for the chat template, e.g. '{"enable_thinking": false}'; a request's own come on top
    #[arg(long, value_name = "JSON", value_parser = kwargs)]
    pub chat_template_kwargs: Option<Kwargs>,
    /// Which of several chat templates to take [default: tool_use for requests with tools, else default]
    #[arg(long, value_name = "NAME")]
    pub chat_template: Option<String>,

    /// Most tokens of a reply
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Sampling")]
    pub max_tokens: u32,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0, help_heading = "Sampling")]
    pub temperature: f32,
    /// Keep the k likeliest tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Sampling")]
    pub top_k: u32,
    /// Keep the likeliest tokens up to this total probability
    #[arg(long, value_name = "P", default_value_t = 1.0, help_heading = "Sampling")]
    pub top_p: f32,
    /// Drop tokens below this fraction of the likeliest one's probability
    #[arg(long, value_name = "P", default_value_t = 0.0, help_heading = "Sampling")]
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens already seen; 1 is off
    #[arg(long, value_name = "X", default_value_t = 1.0, help_heading = "Sampling")]
    pub repetition_penalty: f32,
    /// The i-th prompt samples with seed + i, in every run
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    pub seed: u64,
    /// A text that ends the reply, which ends before it; may be repeated
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    pub stop: Vec<String>,
    /// The reply keeps the stop string that ended it
    #[arg(long, help_heading = "Sampling")]
    pub include_stop_str_in_output: bool,
    /// Go on after an end-of-sequence token
    #[arg(long, help_heading = "Sampling")]
    pub ignore_eos: bool,
    /// Write a `chunk` record for every new piece of text, as soon as nothing can change it any more
    #[arg(long, help_heading = "Output")]
    pub stream: bool,
    /// Write the generated token ids
    #[arg(long, help_heading = "Output")]
    pub token_ids: bool,
    /// Write the N likeliest tokens of every step with their log-probabilities
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Output")]
    pub logprobs: usize,

    /// Hash the model's files while they are loaded, for the run record: 1 or 0. With a model record or a journal they
    /// always are
    #[arg(long, value_name = "0|1", default_value = "1", value_parser = knobs::parse_switch, help_heading = "Engine", action = clap::ArgAction::Set)]
    pub hash_model: bool,
    /// Where to run: auto (the first GPU, else the CPU), cpu, cuda, cuda:N, or emulated (the CUDA kernels as host code)
    #[arg(long, env = "CUTE_DEVICE", value_name = "DEVICE", default_value = "auto", value_parser = |s: &str| s.parse::<Choice>(), help_heading = "Engine")]
    pub device: Choice,
    /// How CUDA computes the gated delta rule over a prompt; the CPU always goes token by token
    #[arg(long, value_enum, value_name = "HOW", default_value_t = GdnPrefill::Sequential, help_heading = "Engine")]
    pub gdn_prefill: GdnPrefill,
    /// Sequences running at once
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Engine")]
    pub max_num_seqs: usize,
    /// Longest prompt plus reply [default: the model's own limit, at most 1024]
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub max_model_len: Option<usize>,
    /// Prompt tokens of one step
    #[arg(long, value_name = "TOKENS", default_value_t = 256, help_heading = "Engine")]
    pub max_num_batched_tokens: usize,
    /// Tokens of a KV page
    #[arg(long, value_name = "TOKENS", default_value_t = 64, help_heading = "Engine")]
    pub page_size: usize,
    /// KV pages, the null page included [default: enough for all sequences at full length]
    #[arg(long, value_name = "N", help_heading = "Engine")]
    pub num_kv_pages: Option<usize>,
    /// Element type of the KV cache
    #[arg(long, value_name = "DTYPE", default_value = "f32", help_heading = "Engine")]
    pub kv_cache_dtype: KvCacheDtype,
    /// Threads; 0 is one a core
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = value_parser!(u64).range(..=1024), help_heading = "Engine")]
    pub threads: u64,

    /// Fused paths for full-attention layers: 1 or 0
    #[arg(long, env = "CUTE_PHASE_E_FUSION", value_name = "0|1", default_value = "1", value_parser = knobs::parse_switch, help_heading = "Dispatch", action = clap::ArgAction::Set)]
    pub phase_e_fusion: bool,
    /// Path of a fused layer: auto, coop or lite
    #[arg(long, env = "CUTE_PHASE_E_PATH", value_name = "PATH", default_value = "auto", value_parser = knobs::parse_path, help_heading = "Dispatch")]
    pub phase_e_path: PathKnob,
    /// Full-attention layers that may be fused, e.g. 3,7; empty is all
    #[arg(
        long,
        env = "CUTE_PHASE_E_LAYERS",
        value_name = "LAYERS",
        default_value = "",
        help_heading = "Dispatch"
    )]
    pub phase_e_layers: String,
    /// A failed launch ends the run instead of falling back: 1 or 0
    #[arg(long, env = "CUTE_PHASE_E_FALLBACK_RAISE", value_name = "0|1", default_value = "0", value_parser = knobs::parse_switch, help_heading = "Dispatch", action = clap::ArgAction::Set)]
    pub fallback_raise: bool,
    /// Log dispatch decisions on stderr: 1 or 0
    #[arg(long, env = "CUTE_PHASE_E_DISPATCH_LOG", value_name = "0|1", default_value = "1", value_parser = knobs::parse_switch, help_heading = "Dispatch", action = clap::ArgAction::Set)]
    pub dispatch_log: bool,
    /// Pieces W_O's inputs are split into, for each key/value head: 1, 2, 4 or 8
    #[arg(long, env = "CUTE_WO_SPLIT", value_name = "N", default_value = "1", value_parser = knobs::parse_wo_split, help_heading = "Dispatch")]
    pub wo_split: usize,
    /// Time the phases of cooperative launches, as `timing` records: 1 or 0
    #[arg(long, env = "CUTE_BETA_REGION_TIMING", value_name = "0|1", default_value = "0", value_parser = knobs::parse_switch, help_heading = "Dispatch", action = clap::ArgAction::Set)]
    pub region_timing: bool,
    /// Run gated-delta-net layers as one cooperative launch too: 1 or 0
    #[arg(long, env = "CUTE_COOP_GDN", value_name = "0|1", default_value = "0", num_args = 0..=1, default_missing_value = "1", value_parser = knobs::parse_switch, help_heading = "Dispatch", action = clap::ArgAction::Set)]
    pub coop_gdn: bool,
    /// Blocks of a cooperative launch resident at once, instead of what the device reports
    #[arg(long, value_name = "N", help_heading = "Dispatch")]
    pub resident_cap: Option<usize>,

    /// Keep what is finished in this directory, so that the run can go on after it was killed
    #[arg(long, value_name = "DIR", help_heading = "Journal")]
    pub journal: Option<PathBuf>,
    /// Go on with the run whose journal this is: first what it holds, then the rest
    #[arg(long, requires = "journal", help_heading = "Journal")]
    pub resume: bool,

    #[command(flatten)]
    pub probes: crate::probe::Options,

    #[command(flatten)]
    pub storm: crate::storm::Options,

    /// Watch the engine: recompute[/N] (every N-th sequence that ends is computed again, alone, and must leave the same
    /// recurrent state to the bit; needs --phase-e-fusion 0; CPU only), rows[/N] (slots and pages of nobody in the step, by
    /// digests before and after every N-th step), slot0 (the slot and the page that are nobody's, after every step), capture (what
    /// recording a decode step leaves alone, by digests around it)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = |s: &str| s.parse::<Guard>(), help_heading = "Guards")]
    pub guard: Vec<Guard>,

    /// Fill slots and KV pages with NaN when they are released, and at the start, and every buffer of activations before every
    /// step: what is used without being written shows
    #[arg(long, help_heading = "Guards")]
    pub poison: bool,
    /// Prove that a slot's state is zero when a request gets it: 1 or 0
    #[arg(long, value_name = "0|1", default_value = "1", value_parser = knobs::parse_switch, help_heading = "Guards", action = clap::ArgAction::Set)]
    pub zero_check: bool,
    /// Attribute each request's first value that is not finite to layer, operation, slot and position: every operation's
    /// output is read, and on CUDA no step is recorded
    #[arg(long, help_heading = "Guards")]
    pub trace_nonfinite: bool,

    /// Write a trace record behind each reply: the path of every layer, resets and addresses of buffers, pages with their
    /// offsets, free and used slots and pages at its start
    #[arg(long, value_name = "WHAT", value_enum, help_heading = "Guards")]
    pub trace: Option<Traced>,

    /// Break the engine on purpose; see --list-faults
    #[arg(long, value_name = "NAME", value_parser = |s: &str| s.parse::<Fault>(), help_heading = "Faults")]
    pub fault: Option<Fault>,
    /// Leave out the engine's own checks of ownership and counters, so that what the fault does reaches the replies
    #[arg(long, requires = "fault", help_heading = "Faults")]
    pub unguarded: bool,
    /// List the faults, their stories and where they happened
    #[arg(long, help_heading = "Faults")]
    pub list_faults: bool,
}

/// Variables by name.
pub type Kwargs = serde_json::Map<String, serde_json::Value>;

fn kwargs(text: &str) -> Result<Kwargs, String> {
    let kwargs = serde_json::from_str(text).map_err(|e| format!("expected a JSON object: {e}"))?;
    match crate::integers::too_wide(text) {
        None => Ok(kwargs),
        Some(integer) => Err(format!("the integer {integer:.80} would lose digits: expected one of 64 bits")),
    }
}

/// What `trace` records are written of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Traced {
    /// each request that was admitted
    Requests,
}

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum KvCacheDtype {
    /// exact
    F32,
    /// rounded to nearest even
    Bf16,
    /// 8 bits, without a scale: vLLM's fp8_e4m3
    #[value(name = "fp8_e4m3")]
    Fp8E4m3,
}

impl Args {
    /// The engine's configuration, checked against the model by the engine.
    pub fn engine_config(&self, model: &cute_checkpoint::Config) -> anyhow::Result<EngineConfig> {
        let layers =
            knobs::parse_layers(&self.phase_e_layers).map_err(|e| anyhow!("--phase-e-layers: {e}"))?;
        let mut engine = EngineConfig {
            max_num_seqs: self.max_num_seqs,
            max_model_len: self.max_model_len.unwrap_or(model.max_position_embeddings.min(1024)),
            max_num_batched_tokens: self.max_num_batched_tokens,
            page_size: self.page_size,
            num_kv_pages: self.num_kv_pages,
            kv_dtype: match self.kv_cache_dtype {
                KvCacheDtype::F32 => KvDtype::F32,
                KvCacheDtype::Bf16 => KvDtype::Bf16,
                KvCacheDtype::Fp8E4m3 => KvDtype::Fp8E4m3,
            },
            knobs: Knobs {
                fusion: self.phase_e_fusion,
                path: self.phase_e_path,
                layers,
                fallback_raise: self.fallback_raise,
                dispatch_log: self.dispatch_log,
                wo_split: self.wo_split,
                region_timing: self.region_timing,
                coop_gdn: self.coop_gdn,
                resident_cap: self.resident_cap,
            },
            fault: self.fault,
            guards: self.guard.iter().copied().collect(),
            zero_check: self.zero_check,
            poison: self.poison,
            trace_nonfinite: self.trace_nonfinite,
            trace_requests: self.trace.is_some(),
            unguarded: self.unguarded,
        };
        self.probes.press(&mut engine);
        Ok(engine)
    }

    /// Refuses what cannot be resumed.
    pub fn check_journal(&self) -> anyhow::Result<()> {
        match (&self.journal, self.fault) {
            (None, _) => Ok(()),
            _ if !self.probes.probe.is_empty() => {
                Err(anyhow!("--journal with --probe: what a probe compares replies with is not kept"))
            }
            _ if !self.storm.storm.is_empty() => {
                Err(anyhow!("--journal with --storm: whom a storm struck, and when, is not kept"))
            }
            _ if !self.guard.is_empty() => {
                Err(anyhow!("--journal with --guard: what a guard finds is not kept"))
            }
            _ if self.trace_nonfinite => {
                Err(anyhow!("--journal with --trace-nonfinite: what it finds is not kept"))
            }
            _ if self.trace.is_some() => {
                Err(anyhow!("--journal with --trace: addresses and what ran in each step are not kept"))
            }
            (_, Some(fault)) => Err(anyhow!(
                "--journal with --fault {fault}: replies of a broken engine depend on what ran before them"
            )),
            (_, None) if self.region_timing => {
                Err(anyhow!("--journal with --region-timing 1: the time of each phase is not kept"))
            }
            _ => Ok(()),
        }
    }

    /// Puts the values the engine received in place of what was typed. Where the journal is changes no record.
    pub fn resolve(&self, config: &mut Config, engine: &EngineConfig) {
        config.forget("journal");
        config.forget("resume");
        for (name, value) in [
            ("max_num_seqs", engine.max_num_seqs),
            ("max_model_len", engine.max_model_len),
            ("max_num_batched_tokens", engine.max_num_batched_tokens),
            ("page_size", engine.page_size),
            ("num_kv_pages", engine.pages()),
            ("wo_split", engine.knobs.wo_split),
        ] {
            config.resolve(name, value);
        }
        config.resolve("phase_e_fusion", engine.knobs.fusion);
        config.resolve("phase_e_layers", json!(engine.knobs.layers));
        config.resolve("fallback_raise", engine.knobs.fallback_raise);
        config.resolve("dispatch_log", engine.knobs.dispatch_log);
        config.resolve("region_timing", engine.knobs.region_timing);
        config.resolve("coop_gdn", engine.knobs.coop_gdn);
        if let Some(kwargs) = &self.chat_template_kwargs {
            config.resolve("chat_template_kwargs", json!(kwargs));
        }
        config.resolve("runs", self.runs);
        config.resolve("max_tokens", self.max_tokens);
        config.resolve("temperature", f64::from(self.temperature));
    }

    /// Sampling parameters of the prompt at `index`.
    pub fn sampling(&self, index: u64, over: &cute_records::SamplingOverrides) -> SamplingParams {
        SamplingParams {
            max_tokens: over.max_tokens.unwrap_or(self.max_tokens) as usize,
            temperature: over.temperature.unwrap_or(self.temperature),
            top_k: over.top_k.unwrap_or(self.top_k) as usize,
            top_p: over.top_p.unwrap_or(self.top_p),
            min_p: over.min_p.unwrap_or(self.min_p),
            repetition_penalty: over.repetition_penalty.unwrap_or(self.repetition_penalty),
            seed: over.seed.unwrap_or_else(|| self.seed.wrapping_add(index)),
            stop: over.stop.clone().unwrap_or_else(|| self.stop.clone()),
            include_stop_str_in_output: over
                .include_stop_str_in_output
                .unwrap_or(self.include_stop_str_in_output),
            stream: self.stream,
            ignore_eos: self.ignore_eos,
            logprobs: self.logprobs,
        }
    }
}
