//! One request on its way from prompt to reply.

use cute_records::{FinishReason, TokenLogprob};
use std::time::{Duration, Instant};

/// How tokens are chosen, and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// most tokens to generate
    pub max_tokens: usize,
    /// 0 is greedy
    pub temperature: f32,
    /// keep the k likeliest tokens; 0 keeps all
    pub top_k: usize,
    /// keep the likeliest tokens up to this total probability; 1 keeps all
    pub top_p: f32,
    /// drop tokens below this fraction of the likeliest one's probability; 0 keeps all
    pub min_p: f32,
    /// divides positive and multiplies negative logits of tokens already seen; 1 is off
    pub repetition_penalty: f32,
    /// seed of this request's random stream
    pub seed: u64,
    /// texts that end the reply
    pub stop: Vec<String>,
    /// end-of-sequence tokens do not end the reply
    pub ignore_eos: bool,
    /// log-probabilities wanted per step
    pub logprobs: usize,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            max_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            ignore_eos: false,
            logprobs: 0,
        }
    }
}

impl SamplingParams {
    /// Whether the token is the one with the largest logit, untouched.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// Checks every value.
    ///
    /// # Errors
    /// A sentence with the value and what was expected.
    pub fn validate(&self) -> Result<(), String> {
        let fraction = |name: &str, x: f32| {
            if (0.0..=1.0).contains(&x) { Ok(()) } else { Err(format!("{name} is {x}: expected 0 to 1")) }
        };
        if self.max_tokens == 0 {
            return Err("max_tokens is 0: expected at least 1".into());
        }
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(format!("temperature is {}: expected 0 or more", self.temperature));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return Err(format!("repetition_penalty is {}: expected more than 0", self.repetition_penalty));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err("an empty stop string would end every reply at once".into());
        }
        fraction("top_p", self.top_p)?;
        if self.top_p == 0.0 {
            return Err("top_p is 0: expected more than 0".into());
        }
        fraction("min_p", self.min_p)
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// name
    pub id: String,
    /// position over the whole stream; also the owner of its slot and pages
    pub ordinal: u64,
    /// token ids of the prompt, at least one
    pub prompt: Vec<u32>,
    /// sampling
    pub params: SamplingParams,
}

/// A finished request.
#[derive(Clone, Debug)]
pub struct Output {
    /// the request
    pub request: Request,
    /// generated tokens, the end-of-sequence token included
    pub token_ids: Vec<u32>,
    /// the reply; absent without a tokenizer
    pub text: Option<String>,
    /// why it ended
    pub finish_reason: FinishReason,
    /// what went wrong
    pub error: Option<String>,
    /// sha256 over every step's largest logit (bits) and its id
    pub fingerprint: String,
    /// log-probabilities per step, when asked for
    pub logprobs: Vec<Vec<TokenLogprob>>,
    /// recurrent slot
    pub slot: u32,
    /// its epoch
    pub epoch: u64,
    /// KV pages in order
    pub pages: Vec<u32>,
    /// from admission to the last token
    pub wall: Duration,
    /// in decode steps
    pub decode: Duration,
}

/// A request that has been admitted.
#[derive(Debug)]
pub struct Sequence {
    /// the request
    pub request: Request,
    /// generated so far
    pub generated: Vec<u32>,
    /// tokens whose state and KV have been computed
    pub computed: usize,
    /// recurrent slot
    pub slot: u32,
    /// its epoch at admission
    pub epoch: u64,
    /// KV pages in order
    pub pages: Vec<u32>,
    /// pages it may need at most
    pub reserved_pages: usize,
    /// when it was admitted
    pub admitted: Instant,
}

impl Sequence {
    /// Prompt and generated tokens.
    pub fn len(&self) -> usize {
        self.request.prompt.len() + self.generated.len()
    }
    /// Never: a prompt has at least one token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Prompt tokens still to be computed.
    pub fn prefill_left(&self) -> usize {
        self.request.prompt.len().saturating_sub(self.computed)
    }
}
