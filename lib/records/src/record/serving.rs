//! Records of serving: runs, models, requests, replies, state, time, and the end of a stream.

use super::Count;
use crate::Num;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Where a configuration value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// the command line
    Flag,
    /// an environment variable
    Environment,
    /// the built-in default
    Default,
    /// computed from the other values or from the model
    Derived,
}

/// A resolved configuration value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Setting {
    /// the value as the program uses it
    pub value: Value,
    /// where it came from
    pub origin: Origin,
}

/// `run`: opens what a tool writes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// name of the tool
    pub tool: String,
    /// version of the tool
    pub version: String,
    /// resolved configuration by name
    #[serde(default)]
    pub config: BTreeMap<String, Setting>,
    /// sha256 of inputs by name: `model`, `tokenizer`, `prompts`
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, String>,
    /// the device the work runs on, e.g. `cpu (2 threads)`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// the fault injected on purpose, if any
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// `model`: a checkpoint, checked by `cute-load`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Model {
    /// directory of the checkpoint: as given, or where a name was found
    pub path: String,
    /// repository of the hub, when the directory is a snapshot of the Hugging Face cache
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// commit of that repository
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// sha256 over the digests of every file that defines the model
    pub digest: String,
    /// first of `architectures`
    pub architecture: String,
    /// `model_type` of the text model
    pub model_type: String,
    /// kind of each layer, in config.json's words
    pub layer_types: Vec<String>,
    /// indices of the full-attention layers
    pub full_attention_layers: Vec<usize>,
    /// parameters of the text model (tied weights counted once)
    pub parameters: u64,
    /// bytes by module (`embed_tokens`, `linear_attn`, `self_attn`, `mlp`, `router`, `experts`, `shared_expert`, `norms`,
    /// `lm_head`), scales included
    pub bytes_by_module: Count,
    /// what is announced of quantised weights, e.g. `modelopt NVFP4`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// how the weights of each module are stored, in name order
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub formats: Vec<WeightFormat>,
    /// tensors read, by dtype
    pub tensors_by_dtype: Count,
    /// tensors that are not used, by what they are: `vision`, `mtp`, `activation_scales`, `kv_scales`, `tied_lm_head`
    #[serde(default)]
    pub skipped: Count,
    /// the files, in name order
    pub files: Vec<FileDigest>,
    /// sha256 of tokenizer.json, when there is one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_sha256: Option<String>,
    /// sha256 of the chat template, when there is one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_sha256: Option<String>,
    /// ids that end a reply
    pub eos_token_ids: Vec<u32>,
    /// shape of the text model, in config.json's words
    pub config: BTreeMap<String, Value>,
    /// what serving it takes
    pub plan: MemoryPlan,
    /// non-finite values found by `--scan`, by tensor; absent when not scanned
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub non_finite: Option<Count>,
}

/// Weights of one module that are stored in one way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WeightFormat {
    /// the module, as in `bytes_by_module`
    pub module: String,
    /// `bf16`, `f16`, `f32`, `fp8_tensor`, `fp8_channel`, `fp8_block` or `nvfp4`
    pub format: String,
    /// weights, each with its scales
    pub tensors: u64,
    /// values
    pub parameters: u64,
    /// bytes as stored, scales included
    pub bytes: u64,
}

/// A file and its digest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileDigest {
    /// name in the checkpoint directory
    pub name: String,
    /// size
    pub bytes: u64,
    /// sha256
    pub sha256: String,
}

/// Memory a served model takes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryPlan {
    /// `--max-num-seqs` planned for
    pub max_num_seqs: u64,
    /// `--max-model-len` planned for
    pub max_model_len: u64,
    /// weights as they are stored
    pub weight_bytes: u64,
    /// weights where packed ones are held as f32, as on the CPU
    #[serde(default)]
    pub unpacked_weight_bytes: u64,
    /// K and V of one token in all full-attention layers
    pub kv_bytes_per_token: u64,
    /// recurrent and convolution state of one sequence in all linear-attention layers
    pub recurrent_bytes_per_sequence: u64,
    /// tokens of a KV page
    pub page_size: u64,
    /// pages of the KV pool, the null page included
    pub kv_pages: u64,
    /// slots of the recurrent pool, the reserved slot included
    pub state_slots: u64,
    /// KV pool
    pub kv_pool_bytes: u64,
    /// recurrent pool
    pub state_pool_bytes: u64,
    /// all of it
    pub total_bytes: u64,
}

/// `prompt`: a request. Exactly one of `prompt`, `messages`, `prompt_token_ids`, `question` says what is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Prompt {
    /// name of the request; its 0-based position among the prompts when absent
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// text, sent as it is
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// chat messages, rendered by the model's template
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<Vec<Value>>,
    /// tools that the template offers to the model, as JSON schemas
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Value>>,
    /// variables for the template, such as `enable_thinking`, over those of `--chat-template-kwargs`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template_kwargs: Option<BTreeMap<String, Value>>,
    /// token ids, sent as they are; needs no tokenizer
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Vec<u32>>,
    /// a GSM8K question, put into the question form
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// a GSM8K worked answer; what follows `####` is the gold
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// the gold answer, if it is given without a worked one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<String>,
    /// overrides of the sampling parameters for this request
    #[serde(default, flatten)]
    pub sampling: SamplingOverrides,
}

/// Sampling parameters a request may set for itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SamplingOverrides {
    /// most tokens to generate
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0 is greedy
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// keep the k most likely tokens; 0 keeps all
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// keep the most likely tokens up to this total probability
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// drop tokens below this fraction of the likeliest one's probability
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// divides positive and multiplies negative logits of tokens already seen
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// seed of this request
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// texts that end the reply
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Vec<String>>,
    /// the reply keeps the stop string that ended it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub include_stop_str_in_output: Option<bool>,
}

/// Why a reply ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// an end-of-sequence token or a stop string
    Stop,
    /// the token limit
    Length,
    /// the request failed; `error` says why
    Error,
    /// its client gave up; the reply is what there was by then
    Cancelled,
}

/// `completion`: a reply.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Completion {
    /// name of the request
    pub id: String,
    /// name of the leg or label this reply belongs to, for evidence of other engines
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leg: Option<String>,
    /// which repetition of the prompt set, 0-based
    #[serde(deserialize_with = "crate::num::bounded")]
    pub run: u64,
    /// position within the run, 0-based
    #[serde(deserialize_with = "crate::num::bounded")]
    pub index: u64,
    /// position over the whole stream, 0-based
    #[serde(deserialize_with = "crate::num::bounded")]
    pub ordinal: u64,
    /// tokens of the prompt
    #[serde(
        default,
        deserialize_with = "crate::num::bounded_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub prompt_tokens: Option<u64>,
    /// tokens generated
    #[serde(
        default,
        deserialize_with = "crate::num::bounded_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub completion_tokens: Option<u64>,
    /// why it ended
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// the stop string that ended it; absent after an end-of-sequence token
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
    /// the reply
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// only the end of the reply is known: its last characters
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_tail: Option<String>,
    /// characters of the reply, when only its end is known
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_chars: Option<u64>,
    /// sha256 of the reply's text, or the first digits of it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_sha256: Option<String>,
    /// characters of the prompt, when its tokens were not counted
    #[serde(
        default,
        deserialize_with = "crate::num::bounded_option",
        skip_serializing_if = "Option::is_none"
    )]
    pub prompt_chars: Option<u64>,
    /// sha256 of the generated token ids (little-endian u32)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_sha256: Option<String>,
    /// sha256 over every step's largest logit (its exact bits) and its token id
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// sha256 of the prompt's token ids: equal prompts, equal digests
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// sha256 of the sampling parameters: with the same prompt and these, the reply must be the same
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_sha256: Option<String>,
    /// the gold answer
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gold: Option<String>,
    /// the answer extracted from the reply
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extracted: Option<String>,
    /// whether they agree
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
    /// from admission to the last token
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<f64>,
    /// from arrival to the first token
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// in decode steps
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decode_ms: Option<f64>,
    /// recurrent-state slot it ran in
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// epoch of that slot
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// how often that slot had been used before
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recycle: Option<u64>,
    /// how often it was preempted and computed again; absent when never
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preempted: Option<u64>,
    /// KV pages it held, in order
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_pages: Option<Vec<u32>>,
    /// generated token ids, with `--token-ids`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// the likeliest tokens of every step, with `--logprobs`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// what went wrong, when `finish_reason` is `error`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// where a reply of another engine was read: `file:line`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A token and its log-probability.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// token id
    pub id: u32,
    /// natural logarithm of its probability
    pub logprob: Num,
}

/// `chunk`: what a reply has grown by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// name of the request
    pub id: String,
    /// which repetition of the prompt set, 0-based
    #[serde(deserialize_with = "crate::num::bounded")]
    pub run: u64,
    /// position within the run, 0-based
    #[serde(deserialize_with = "crate::num::bounded")]
    pub index: u64,
    /// position over the whole stream, 0-based
    #[serde(deserialize_with = "crate::num::bounded")]
    pub ordinal: u64,
    /// position within the reply, 0-based
    pub part: u64,
    /// what the text has grown by; empty at most in the last chunk; absent when the model has no tokenizer
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// tokens generated since the chunk before
    pub token_ids: Vec<u32>,
    /// why the reply ended: in its last chunk, and in no other
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// the stop string that ended it
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<String>,
}

/// `state`: one event in the life of a state slot or a KV page.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// `acquire` or `release`
    pub op: String,
    /// `recurrent` (a slot) or `kv` (a page)
    pub kind: String,
    /// slot or page
    pub slot: u32,
    /// request that owns it
    pub owner: String,
    /// ordinal of that request
    #[serde(deserialize_with = "crate::num::bounded")]
    pub ordinal: u64,
    /// times this entry has been acquired, this one included
    pub epoch: u64,
    /// whether the state was all zero after the acquire
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero: Option<bool>,
    /// sha256 of the state's bytes after the acquire
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// entries free after the operation
    pub free: u64,
}

/// `trace`: how a request was served, launch by launch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Trace {
    /// name of the request
    pub id: String,
    /// position over the whole stream, 0-based
    #[serde(deserialize_with = "crate::num::bounded")]
    pub ordinal: u64,
    /// pieces that W_O's inputs are cut into, for each key/value head
    pub wo_split: u64,
    /// steps it was in, by kind: `prefill`, `decode`
    pub steps: Count,
    /// its decode steps, by the tokens that were active in them
    pub active_tokens: Count,
    /// the full-attention layers, ascending; none without a decode step
    pub layers: Vec<TraceLayer>,
    /// recurrent slot, the last one where it was preempted
    pub slot: u32,
    /// epoch of that slot
    pub epoch: u64,
    /// KV pages it held, in order
    pub kv_pages: Vec<u32>,
    /// bytes from the start of the KV memory to each of them
    pub page_offsets: Vec<u64>,
    /// addresses in hexadecimal: `recurrent` of its slot's state in the first linear layer, `kv` of the KV memory
    pub buffers: BTreeMap<String, String>,
    /// slots free when it was admitted, behind its own
    pub slots_free: u64,
    /// slots used then, its own included
    pub slots_used: u64,
    /// KV pages free then
    pub pages_free: u64,
    /// KV pages used then; it had none yet
    pub pages_used: u64,
    /// why it ended
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// sha256 of the generated token ids (little-endian u32)
    pub token_sha256: String,
    /// sha256 over every step's largest logit (its exact bits) and its token id
    pub fingerprint: String,
}

/// A full-attention layer in the decode steps of one request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceLayer {
    /// global layer index
    pub layer: u32,
    /// steps by the path that ran: `coop`, `lite`, `paged`
    pub paths: Count,
    /// how often each workspace was zeroed in these steps; absent where kernels do it, or nothing is fused
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resets: Option<Count>,
    /// addresses of its workspaces, in hexadecimal
    pub buffers: BTreeMap<String, String>,
}

/// `timing`: a measured duration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Timing {
    /// what was measured
    pub name: String,
    /// layer, where it belongs to one
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer: Option<u32>,
    /// how long
    pub ms: f64,
    /// how often, in that time
    pub count: u64,
    /// tokens produced or consumed in that time
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// bytes moved in that time
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// other figures by name
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, Num>,
}

/// `end`: closes what a tool wrote.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct End {
    /// name of the tool
    pub tool: String,
    /// the work was done to its end
    pub complete: bool,
    /// why not, when it was not
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// records written since `run`, that one included, this one not, by type
    pub counts: Count,
    /// other counters: `lines`, `matched`, `ignored`, `unmatched`, pool balances, …
    #[serde(default, skip_serializing_if = "Count::is_empty")]
    pub counters: Count,
}
