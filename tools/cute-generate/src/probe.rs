//! Requests that the engine asks itself: their replies are known beforehand to be equal, or to lack something.
//!
//! A probe needs no expected text and no trained model. Prompts are random token ids; what is compared is the
//! fingerprint, which every step's largest logit goes into, and the token ids of replies. What differs becomes a
//! `finding`, behind the reply that differs.

mod plan;

use crate::args::Args;
use anyhow::bail;
use clap::{ValueEnum, value_parser};
use cute_checkpoint::Config;
use cute_engine::EngineConfig;
use cute_engine::backend::cpu::BLOCKS_PER_SEQUENCE;
use cute_engine::knobs::PathKnob;
use cute_records::{Completion, Count, Finding, FinishReason, Prompt, Severity};
use plan::{Planner, SHORT};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// Tokens of a codeword: in a vocabulary of hundreds no reply holds one by chance.
const CODEWORD: usize = 4;

/// The probes, as they are asked for.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Probes")]
pub struct Options {
    /// Send probe requests before the prompts (or without any) and compare their replies: aba, codeword, boundary, canary
    #[arg(long, value_name = "NAMES", value_enum, value_delimiter = ',')]
    pub probe: Vec<Probe>,
    /// Requests between two canaries
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = value_parser!(u64).range(1..=1 << 20))]
    pub canary_every: u64,
    /// Divide slots and KV pages by this factor, so that they are recycled often: 4x
    #[arg(long, value_name = "FACTOR", value_parser = factor)]
    pub pressure: Option<usize>,
}

/// A probe, by the name it has on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Probe {
    /// A, then B in every slot, then A in every slot: every A is the first A
    Aba,
    /// a codeword in each prompt in flight: no reply holds that of another
    Codeword,
    /// prompts that end around each page and chunk boundary, alone and in a crowd: the same reply
    Boundary,
    /// a fixed prompt among the others: always the same reply
    Canary,
}

impl Probe {
    /// The name of its findings.
    fn check(self) -> &'static str {
        match self {
            Probe::Aba => "probe_aba",
            Probe::Codeword => "probe_codeword",
            Probe::Boundary => "probe_boundary",
            Probe::Canary => "probe_canary",
        }
    }

    fn name(self) -> &'static str {
        self.check().trim_start_matches("probe_")
    }
}

/// `4x` or `4`.
fn factor(word: &str) -> Result<usize, String> {
    match word.strip_suffix('x').unwrap_or(word).parse() {
        Ok(n) if (1..=1 << 20).contains(&n) => Ok(n),
        _ => Err("expected a factor from 1x to 1048576x, such as 4x".to_owned()),
    }
}

impl Options {
    /// Shrinks the pools; one sequence of full length always fits.
    pub fn press(&self, engine: &mut EngineConfig) {
        let Some(factor) = self.pressure else { return };
        let longest = engine.max_model_len.div_ceil(engine.page_size.max(1));
        let pages = (engine.pages().saturating_sub(1) / factor).max(longest) + 1;
        engine.max_num_seqs = (engine.max_num_seqs / factor).max(1);
        engine.num_kv_pages = Some(pages);
    }
}

/// What a request is for; the prompts themselves have no role.
#[derive(Clone, Debug)]
struct Role {
    probe: Probe,
    /// requests of one group have one fingerprint
    group: Option<usize>,
    /// nothing else runs meanwhile
    alone: bool,
}

/// The prompts with the probes among them, and what is known of the probes' replies.
pub struct Probes {
    prompts: Arc<[Prompt]>,
    roles: Vec<Option<Role>>,
    /// index of the prompt that says each codeword
    codewords: HashMap<Vec<u32>, u64>,
    /// codewords found in replies not yet judged: ordinal to indices
    found: BTreeMap<u64, BTreeSet<u64>>,
    /// the first reply of each group: ordinal and fingerprint
    measures: BTreeMap<usize, (u64, String)>,
    replies: u64,
    echoes: u64,
    findings: u64,
    /// a reply that was preempted has the bits of one that was not
    preempted: bool,
}

impl Probes {
    /// Puts the probes that were asked for before the prompts, and the canary among them.
    ///
    /// # Errors
    /// When replies would depend on the size of a batch, or no prompt fits.
    pub fn plan(
        args: &Args,
        model: &Config,
        engine: &EngineConfig,
        prompts: Vec<Prompt>,
    ) -> anyhow::Result<Probes> {
        let wanted = |probe| args.probes.probe.contains(&probe);
        let knobs = &engine.knobs;
        if let Some(cap) = knobs.resident_cap.filter(|_| knobs.fusion && knobs.path != PathKnob::Lite)
            && !args.probes.probe.is_empty()
            && cap < engine.max_num_seqs.saturating_mul(BLOCKS_PER_SEQUENCE)
        {
            bail!(
                "--probe: with --resident-cap {cap} the path depends on the size of the batch, and with it the bits of \
                 a reply: expected at least {}, or --phase-e-path lite",
                engine.max_num_seqs * BLOCKS_PER_SEQUENCE
            );
        }
        let mut plan = Planner::new(args.seed, model.vocab_size, &model.eos_token_ids, engine);
        if wanted(Probe::Aba) {
            plan.aba(engine.max_num_seqs, SHORT)?;
            plan.aba(engine.max_num_seqs, engine.page_size + SHORT)?;
        }
        if wanted(Probe::Codeword) {
            plan.codewords(2 * engine.max_num_seqs)?;
        }
        if wanted(Probe::Boundary) {
            plan.boundaries(engine.page_size, engine.max_num_batched_tokens)?;
        }
        for (i, mut prompt) in prompts.into_iter().enumerate() {
            if !args.probes.probe.is_empty() {
                // Name and seed stay what they are without probes.
                prompt.id.get_or_insert_with(|| i.to_string());
                prompt.sampling.seed.get_or_insert(args.seed.wrapping_add(i as u64));
            }
            plan.requests.push((prompt, None));
        }
        if wanted(Probe::Canary) {
            plan.canaries(args.probes.canary_every as usize)?;
        }
        Ok(Probes::of(plan))
    }

    fn of(plan: Planner<'_>) -> Probes {
        let at = |id: &str| plan.requests.iter().position(|(p, _)| p.id.as_deref() == Some(id));
        let codewords = plan.codewords.iter().filter_map(|(word, id)| Some((word.clone(), at(id)? as u64)));
        let codewords = codewords.collect();
        let (prompts, roles): (Vec<_>, _) = plan.requests.into_iter().unzip();
        Probes {
            prompts: prompts.into(),
            roles,
            codewords,
            found: BTreeMap::new(),
            measures: BTreeMap::new(),
            replies: 0,
            echoes: 0,
            findings: 0,
            preempted: false,
        }
    }

    /// Whether replies that were preempted are compared, too: prefill and decode must sum in one order.
    pub fn with_preempted(self, preempted: bool) -> Self {
        Probes { preempted, ..self }
    }

    /// All prompts of one run.
    pub fn prompts(&self) -> Arc<[Prompt]> {
        Arc::clone(&self.prompts)
    }

    /// How many differences were found.
    pub fn findings(&self) -> u64 {
        self.findings
    }

    /// Counters for the `end` record; none without probes.
    pub fn counters(&self) -> Count {
        let counters = [("probe_replies", self.replies), ("probe_findings", self.findings)];
        let any = self.roles.iter().any(Option::is_some);
        counters.into_iter().filter(|_| any).map(|(name, n)| (name.to_owned(), n)).collect()
    }

    /// Whether the next request may start while so many others are in flight.
    pub fn may_start(&self, next: u64, in_flight: usize) -> bool {
        let alone = |ordinal: u64| self.role(ordinal).is_some_and(|r| r.alone);
        // What is in flight beside a request that runs alone can only be that request, the one before.
        in_flight == 0 || !(alone(next) || next > 0 && alone(next - 1))
    }

    fn index(&self, ordinal: u64) -> u64 {
        ordinal % self.prompts.len().max(1) as u64
    }

    fn role(&self, ordinal: u64) -> Option<&Role> {
        self.roles.get(self.index(ordinal) as usize)?.as_ref()
    }

    /// Whether a request is a probe.
    pub fn asks(&self, ordinal: u64) -> bool {
        self.role(ordinal).is_some()
    }

    /// Looks for codewords in a reply's tokens.
    pub fn read(&mut self, ordinal: u64, tokens: &[u32]) {
        if self.codewords.is_empty() {
            return;
        }
        let own = self.index(ordinal);
        let said: BTreeSet<u64> =
            tokens.windows(CODEWORD).filter_map(|w| self.codewords.get(w).copied()).collect();
        self.echoes += u64::from(said.contains(&own));
        let others: BTreeSet<u64> = said.into_iter().filter(|index| *index != own).collect();
        if !others.is_empty() {
            self.found.insert(ordinal, others);
        }
    }

    /// Compares a reply with what is known, in the order of requests. A probe's own reply loses its text and the
    /// reason for its end: nobody asked for it, and nobody is to grade it. What a storm cut short is not compared.
    pub fn judge(&mut self, mut c: Completion) -> (Completion, Vec<Finding>) {
        let mut out = Vec::new();
        if let Some(others) = self.found.remove(&c.ordinal) {
            let names: Vec<String> = others.iter().map(|index| self.name(*index)).collect();
            let message = format!("its reply holds the codeword of {}", names.join(", "));
            out.push(found(Probe::Codeword, &c, &message, None));
        }
        if let Some(role) = self.role(c.ordinal).cloned() {
            self.replies += 1;
            let failed = c.finish_reason == Some(FinishReason::Error);
            let cancelled = c.finish_reason == Some(FinishReason::Cancelled);
            let whole = !failed && !cancelled && (self.preempted || c.preempted.is_none());
            if failed {
                let why = c.error.as_deref().unwrap_or("no reason is given");
                out.push(found(role.probe, &c, &format!("it failed: {why}"), None));
            } else {
                (c.text, c.text_tail) = (None, None);
                c.finish_reason = c.finish_reason.filter(|_| cancelled);
                (c.token_ids, c.logprobs, c.extracted) = (None, None, None);
            }
            if let (Some(group), Some(fingerprint), true) = (role.group, &c.fingerprint, whole) {
                let (first, measure) =
                    self.measures.entry(group).or_insert_with(|| (c.ordinal, fingerprint.clone()));
                if measure != fingerprint {
                    let message = format!("another fingerprint than request {first} with the same prompt");
                    out.push(found(role.probe, &c, &message, Some(*first)));
                }
            }
        }
        self.findings += out.len() as u64;
        (c, out)
    }

    /// What is to be said when all is done: a probe that had nothing to see proves nothing.
    pub fn blind(&self) -> Option<Finding> {
        let message = format!(
            "probe codeword: none of {} prompts' own codewords stands in its reply: this model repeats no pattern, and only \
             copied tokens would have been seen",
            self.codewords.len()
        );
        let blind = !self.codewords.is_empty() && self.echoes == 0;
        blind.then(|| Finding {
            check: "probe_blind".to_owned(),
            severity: Severity::Info,
            message,
            ordinal: None,
            layer: None,
            at: None,
            data: BTreeMap::new(),
        })
    }

    fn name(&self, index: u64) -> String {
        let prompt = self.prompts.get(index as usize);
        prompt.and_then(|p| p.id.clone()).unwrap_or_else(|| index.to_string())
    }
}

/// A finding about a reply.
fn found(probe: Probe, c: &Completion, what: &str, measure: Option<u64>) -> Finding {
    let place = match (c.slot, c.recycle) {
        (Some(slot), Some(n)) => format!(", slot {slot} used {n} time(s) before"),
        _ => String::new(),
    };
    let mut data: BTreeMap<String, Value> = BTreeMap::new();
    data.insert("id".to_owned(), c.id.clone().into());
    data.insert("run".to_owned(), c.run.into());
    data.insert("index".to_owned(), c.index.into());
    data.insert("slot".to_owned(), c.slot.into());
    data.insert("recycle".to_owned(), c.recycle.into());
    if let Some(ordinal) = measure {
        data.insert("measure_ordinal".to_owned(), ordinal.into());
    }
    Finding {
        check: probe.check().to_owned(),
        severity: Severity::Error,
        message: format!("probe {}: request {} ({}{place}): {what}", probe.name(), c.ordinal, c.id),
        ordinal: Some(c.ordinal),
        layer: None,
        at: None,
        data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Eight prompts with codewords.
    fn codewords() -> Probes {
        let mut plan = Planner::new(1, 700, &[0], &EngineConfig::default());
        plan.codewords(8).unwrap();
        Probes::of(plan)
    }

    fn reply(ordinal: u64) -> Completion {
        Completion { id: format!("request {ordinal}"), ordinal, ..Completion::default() }
    }

    #[test]
    fn a_reply_with_anothers_codeword_is_found_and_one_with_its_own_is_not() {
        let mut probes = codewords();
        let words: BTreeMap<u64, Vec<u32>> = probes.codewords.iter().map(|(w, i)| (*i, w.clone())).collect();
        assert_eq!(words.len(), 8);
        // Request 3 says its own word, request 4 that of request 6 between other tokens, request 13 (run 1, index 5) three
        // tokens of four.
        probes.read(3, &words[&3]);
        probes.read(4, &[&[1, 2], words[&6].as_slice(), &[3]].concat());
        probes.read(13, &words[&6][..3]);
        assert!(probes.judge(reply(3)).1.is_empty() && probes.judge(reply(13)).1.is_empty());
        let (_, found) = probes.judge(reply(4));
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].check.as_str(), found[0].ordinal), ("probe_codeword", Some(4)));
        assert!(
            found[0].message.ends_with("its reply holds the codeword of probe.codeword.6"),
            "{}",
            found[0].message
        );
        assert_eq!((probes.findings(), probes.blind()), (1, None));
    }

    #[test]
    fn a_model_that_repeats_nothing_is_said_to_be_blind() {
        let mut probes = codewords();
        probes.read(0, &[1, 2, 3, 4, 5]);
        assert_eq!(probes.blind().unwrap().check, "probe_blind");
    }

    #[test]
    fn a_request_that_runs_alone_waits_for_the_others_and_they_for_it() {
        let mut plan = Planner::new(1, 700, &[0], &EngineConfig::default());
        plan.aba(2, 10).unwrap();
        let probes = Probes::of(plan);
        // A alone, B1, B2, A1, A2; then the next run.
        let may = |next| (probes.may_start(next, 0), probes.may_start(next, 1));
        assert_eq!([0, 1, 2, 3, 4, 5].map(may).map(|m| m.1), [false, false, true, true, true, false]);
        assert!((0..6).all(|next| may(next).0));
    }

    #[test]
    fn lengths_stand_around_each_boundary_once_alone_and_once_in_the_crowd() {
        let engine = EngineConfig {
            max_model_len: 40,
            page_size: 16,
            max_num_batched_tokens: 20,
            ..Default::default()
        };
        let mut plan = Planner::new(1, 700, &[0], &engine);
        plan.boundaries(16, 20).unwrap();
        let length = |(p, _): &(Prompt, Option<Role>)| p.prompt_token_ids.as_ref().unwrap().len();
        let lengths: Vec<usize> = plan.requests.iter().map(length).collect();
        // Pages end at 16 and 32, chunks at 20; 40 less a reply of 4 leaves 36.
        let alone = [15, 16, 17, 19, 20, 21, 31, 32, 33];
        assert_eq!(lengths[..9], alone);
        assert_eq!(lengths[9..], alone.into_iter().rev().collect::<Vec<_>>());
        let all: Vec<&Vec<u32>> =
            plan.requests.iter().filter_map(|(p, _)| p.prompt_token_ids.as_ref()).collect();
        assert!(all[0] == all[17] && all[0][..] != all[1][..15], "each length has tokens of its own");
    }
}
