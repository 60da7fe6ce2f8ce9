//! The requests that each probe sends.

use super::{CODEWORD, Probe, Role};
use anyhow::bail;
use cute_engine::EngineConfig;
use cute_engine::sampler::Stream;
use cute_records::{Prompt, SamplingOverrides};
use std::collections::BTreeSet;

/// How often a prompt says its codeword, so that a model that continues patterns repeats it.
const SAID: usize = 6;
/// Tokens of the short prompts of `aba`, and of the canary.
pub(super) const SHORT: usize = 24;
/// Tokens of a probe's reply; that of `boundary` is shorter, for its prompts are many and long.
const REPLY: u32 = 16;
const BOUNDARY_REPLY: u32 = 4;
/// The canary is the same in every run of a model, whatever --seed says.
const CANARY_SEED: u64 = 0x6361_6e61_7279;

/// Makes the requests of one run, in their order.
pub(super) struct Planner<'a> {
    random: Stream,
    vocab: usize,
    ends: &'a [u32],
    /// most tokens of prompt and reply
    longest: usize,
    groups: usize,
    /// what is sent
    pub requests: Vec<(Prompt, Option<Role>)>,
    /// each with the name of the request that says it
    pub codewords: Vec<(Vec<u32>, String)>,
}

impl<'a> Planner<'a> {
    /// Nothing yet; prompts are drawn from `seed`.
    pub fn new(seed: u64, vocab: usize, ends: &'a [u32], engine: &EngineConfig) -> Self {
        let pool = (engine.pages().saturating_sub(1)).saturating_mul(engine.page_size);
        Planner {
            random: Stream::new(seed),
            vocab,
            ends,
            longest: engine.max_model_len.min(pool),
            groups: 0,
            requests: Vec::new(),
            codewords: Vec::new(),
        }
    }

    /// Random tokens that end no sequence.
    fn tokens(random: &mut Stream, vocab: usize, ends: &[u32], n: usize) -> Vec<u32> {
        let draw = || Some((random.uniform() * vocab as f64) as u32);
        // A vocabulary of nothing but ends is given up on after a while.
        let tries = std::iter::from_fn(draw).take(64 * n);
        tries.filter(|t| ends.len() >= vocab || !ends.contains(t)).take(n).collect()
    }

    fn prompt(&mut self, n: usize) -> Vec<u32> {
        Self::tokens(&mut self.random, self.vocab, self.ends, n)
    }

    fn group(&mut self) -> Option<usize> {
        self.groups += 1;
        Some(self.groups)
    }

    fn request(id: String, tokens: Vec<u32>, reply: u32, role: Role) -> (Prompt, Option<Role>) {
        let sampling = SamplingOverrides {
            max_tokens: Some(reply),
            temperature: Some(0.0),
            repetition_penalty: Some(1.0),
            seed: Some(0),
            stop: Some(Vec::new()),
            ..SamplingOverrides::default()
        };
        (Prompt { id: Some(id), prompt_token_ids: Some(tokens), sampling, ..Prompt::default() }, Some(role))
    }

    fn room(&self, probe: Probe, tokens: usize) -> anyhow::Result<()> {
        if tokens > self.longest {
            bail!(
                "--probe {}: its prompts and replies have {tokens} tokens: --max-model-len and the pool allow {}",
                probe.name(),
                self.longest
            );
        }
        Ok(())
    }

    /// A alone, B in every slot, A in every slot. A slot is handed out again when all others have been.
    pub fn aba(&mut self, slots: usize, length: usize) -> anyhow::Result<()> {
        self.room(Probe::Aba, length + REPLY as usize)?;
        let (a, group) = (self.prompt(length), self.group());
        let role = |group, alone| Role { probe: Probe::Aba, group, alone };
        let id = |what: &str| format!("probe.aba.{length}.{what}");
        self.requests.push(Self::request(id("A"), a.clone(), REPLY, role(group, true)));
        for i in 1..=slots {
            let b = self.prompt(length);
            self.requests.push(Self::request(id(&format!("B{i}")), b, REPLY, role(None, false)));
        }
        for i in 1..=slots {
            self.requests.push(Self::request(id(&format!("A{i}")), a.clone(), REPLY, role(group, false)));
        }
        Ok(())
    }

    /// Prompts that say a word of their own over and over.
    pub fn codewords(&mut self, n: usize) -> anyhow::Result<()> {
        self.room(Probe::Codeword, CODEWORD * (SAID + 1) + REPLY as usize)?;
        for tag in 0..n {
            let drawn: Vec<Vec<u32>> = (0..64).map(|_| self.prompt(CODEWORD)).collect();
            let new = |word: &Vec<u32>| self.codewords.iter().all(|(other, _)| other != word);
            let Some(word) = drawn.into_iter().find(new) else {
                bail!(
                    "--probe codeword: a vocabulary of {} tokens has no {n} words of {CODEWORD}",
                    self.vocab
                );
            };
            let id = format!("probe.codeword.{tag}");
            let mut tokens = self.prompt(CODEWORD);
            tokens.extend(word.repeat(SAID));
            self.codewords.push((word, id.clone()));
            let role = Role { probe: Probe::Codeword, group: None, alone: false };
            self.requests.push(Self::request(id, tokens, REPLY, role));
        }
        Ok(())
    }

    /// Prompts one shorter than, as long as, and one longer than each multiple of a page and of a step's budget: each
    /// alone, then all of them at once.
    pub fn boundaries(&mut self, page: usize, chunk: usize) -> anyhow::Result<()> {
        self.room(Probe::Boundary, 1 + BOUNDARY_REPLY as usize)?;
        let most = self.longest - BOUNDARY_REPLY as usize;
        let multiples = |step: usize| (1..=most / step.max(1) + 1).map(move |i| i * step);
        let around = multiples(page).chain(multiples(chunk)).flat_map(|l| [l - 1, l, l + 1]);
        let lengths: BTreeSet<usize> = around.filter(|l| (1..=most).contains(l)).collect();
        let mut crowd = Vec::new();
        for length in lengths {
            let (tokens, group) = (self.prompt(length), self.group());
            let role = |alone| Role { probe: Probe::Boundary, group, alone };
            let request = |what: &str, alone| {
                let id = format!("probe.boundary.{length}.{what}");
                Self::request(id, tokens.clone(), BOUNDARY_REPLY, role(alone))
            };
            self.requests.push(request("alone", true));
            crowd.push(request("crowd", false));
        }
        // The long ones first: the chunks of the short ones then start anywhere.
        self.requests.extend(crowd.into_iter().rev());
        Ok(())
    }

    /// The canary first, after every so many requests, and last.
    pub fn canaries(&mut self, every: usize) -> anyhow::Result<()> {
        self.room(Probe::Canary, SHORT + REPLY as usize)?;
        let tokens = Self::tokens(&mut Stream::new(CANARY_SEED), self.vocab, self.ends, SHORT);
        let group = self.group();
        let canary = |n: usize| {
            let role = Role { probe: Probe::Canary, group, alone: false };
            Self::request(format!("probe.canary.{n}"), tokens.clone(), REPLY, role)
        };
        let (mut out, mut n) = (Vec::new(), 0);
        for (i, request) in std::mem::take(&mut self.requests).into_iter().enumerate() {
            if i % every == 0 {
                out.push(canary(n));
                n += 1;
            }
            out.push(request);
        }
        out.push(canary(n));
        self.requests = out;
        Ok(())
    }
}
