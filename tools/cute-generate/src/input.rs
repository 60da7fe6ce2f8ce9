//! What comes in: a model record and prompts, from stdin and from files.

use crate::args::Args;
use crate::integers;
use anyhow::{Context, bail};
use cute_records::digest::{Hasher, sha256};
use cute_records::{Finding, Ledger, Line, Model, Parsed, Prompt, ReadError, Record, Severity};
use std::io::Write;

/// Everything that was read.
#[derive(Default)]
pub struct Input {
    /// the model record, if one came
    pub model: Option<Model>,
    /// the prompts, in order
    pub prompts: Vec<Prompt>,
    /// sha256 of each prompt's line
    lines: Vec<String>,
    /// sha256 over those of the prompts that are used
    pub digest: String,
    /// records to forward
    pub forward: Vec<(Line, Parsed)>,
    /// what was wrong with lines, or is odd about the model
    pub findings: Vec<Finding>,
    /// lines that were wrong
    pub bad: u64,
}

/// Reads stdin where something is expected from it, and the prompts.
pub fn read(args: &Args) -> anyhow::Result<Input> {
    let mut input = Input::default();
    if args.model.is_none() || args.prompts.is_none() {
        let wanted = if args.model.is_none() { "a model record" } else { "prompts" };
        let probed = args.model.is_some() && !args.probes.probe.is_empty();
        let lines = cute_cli::stdin_records();
        if lines.is_none() && !probed {
            bail!("{wanted} expected on stdin, which is a terminal; see --help");
        }
        let mut ledger = Ledger::default();
        input.take(lines.into_iter().flatten(), Some(&mut ledger))?;
        if let Some(trouble) = ledger.trouble().first() {
            bail!("stdin: {trouble}");
        }
    }
    if let Some(path) = &args.prompts {
        if !input.prompts.is_empty() {
            bail!("prompts came on stdin and from --prompts {}: give one of them", path.display());
        }
        input.take(cute_cli::open(path)?, None)?;
    }
    if let Some(limit) = args.limit {
        input.prompts.truncate(limit);
    }
    let mut hasher = Hasher::new();
    for digest in input.lines.iter().take(input.prompts.len()) {
        hasher.update(digest.as_bytes());
    }
    input.digest = hasher.hex();
    Ok(input)
}

impl Input {
    fn take(
        &mut self,
        lines: impl Iterator<Item = Result<Line, ReadError>>,
        mut ledger: Option<&mut Ledger>,
    ) -> anyhow::Result<()> {
        for line in lines {
            let line = match line {
                Ok(line) => line,
                Err(e @ ReadError::Io { .. }) => return Err(e).context("reading input"),
                Err(e) => {
                    self.reject(e);
                    continue;
                }
            };
            if is_record(&line) {
                match line.parse() {
                    Ok(parsed) => {
                        if let Some(ledger) = &mut ledger {
                            ledger.note(&parsed);
                        }
                        if let Parsed::Known(record) = &parsed {
                            match &**record {
                                Record::Model(model) => self.model = Some(model.clone()),
                                Record::Prompt(prompt) => self.prompt(&line, prompt.clone()),
                                _ => {}
                            }
                        }
                        self.forward.push((line, parsed));
                    }
                    Err(e) => self.reject(e),
                }
            } else {
                match line.json::<Prompt>() {
                    Ok(prompt) => self.prompt(&line, prompt),
                    Err(e) => self.reject(e),
                }
            }
        }
        Ok(())
    }

    fn prompt(&mut self, line: &Line, prompt: Prompt) {
        if let Some(integer) = integers::too_wide_for_a_template(&line.text) {
            return self.reject(line.error(format!(
                "the integer {integer:.80} would lose digits: expected one of 64 bits, a float or a string"
            )));
        }
        let given = [
            prompt.prompt.is_some(),
            prompt.messages.is_some(),
            prompt.prompt_token_ids.is_some(),
            prompt.question.is_some(),
        ];
        match given.iter().filter(|g| **g).count() {
            1 => {
                self.lines.push(sha256(line.text.as_bytes()));
                self.prompts.push(prompt);
            }
            n => self.reject(line.error(format!(
                "{n} of prompt, messages, prompt_token_ids and question are given: expected exactly one"
            ))),
        }
    }

    /// Takes what is odd about the model, and says it.
    pub fn note(&mut self, findings: &[Finding]) {
        for finding in findings {
            let _ = writeln!(std::io::stderr(), "cute-generate: {}", finding.message);
        }
        self.findings.extend_from_slice(findings);
    }

    fn reject(&mut self, e: ReadError) {
        let _ = writeln!(std::io::stderr(), "cute-generate: {e}");
        self.bad += 1;
        let at = match &e {
            ReadError::Bad { file, line, .. } => Some(format!("{file}:{line}")),
            ReadError::Io { .. } => None,
        };
        self.findings.push(Finding {
            check: "bad_input".into(),
            severity: Severity::Error,
            message: e.to_string(),
            ordinal: None,
            layer: None,
            at,
            data: Default::default(),
        });
    }
}

/// True for objects with a `type`: records, as opposed to bare prompt lines.
fn is_record(line: &Line) -> bool {
    #[derive(serde::Deserialize)]
    struct Head {
        #[serde(default)]
        r#type: Option<serde_json::Value>,
    }
    line.json::<Head>().is_ok_and(|h| h.r#type.is_some())
}
