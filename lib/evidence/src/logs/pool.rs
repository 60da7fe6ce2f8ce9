//! Lines about one boot's cache pool, gathered from its processes into one `pool` record.

use super::geometry::{self, Facts};
use super::template::Field;
use super::value::Val;
use cute_records::{Finding, Record, Severity, Source};
use serde_json::Value;

/// Processes remembered at once; a log that names more keeps the first.
const MAX_PROCESSES: usize = 64;

#[derive(Debug, Default)]
struct Process {
    name: Option<String>,
    facts: Facts,
    source: Source,
    emitted: bool,
}

/// Follows the pool lines of a log.
#[derive(Debug, Default)]
pub(crate) struct Pools {
    shared: Facts,
    processes: Vec<Process>,
    /// a pool is complete and waits for the boot to settle
    pub waiting: bool,
}

impl Pools {
    /// Takes note of a recognised line; pushes the records of pools it settles.
    pub(crate) fn note(&mut self, name: &str, fields: &[Field<'_>], source: &Source, out: &mut Vec<Record>) {
        match name {
            "version" | "args" => {
                if self.processes.iter().any(|p| p.facts.any()) {
                    self.finish(out);
                }
                if name == "args" {
                    // a boot opens here: what one that came to nothing left behind is not its own
                    self.processes.clear();
                    self.shared = Facts {
                        max_model_len: count(fields, "max_model_len"),
                        given_block_size: count(fields, "block_size"),
                        kv_cache_dtype: word(fields, "kv_cache_dtype"),
                        max_num_seqs: count(fields, "max_num_seqs"),
                        speculative: speculative(fields),
                        ..Facts::default()
                    };
                }
            }
            "max_model_len" | "mamba_cache_mode" => {
                // the API server prints these before the engine's process starts: they hold for the whole boot
                let facts = Facts {
                    max_model_len: count(fields, "max_model_len"),
                    mamba_cache_mode: word(fields, "mamba_cache_mode"),
                    ..Facts::default()
                };
                let shared = std::mem::replace(&mut self.shared, facts);
                self.shared.fill(&shared);
            }
            _ => self.process_line(name, fields, source),
        }
    }

    fn process_line(&mut self, name: &str, fields: &[Field<'_>], source: &Source) {
        let fact = |f: &mut Facts| match name {
            "engine_config" => {
                f.max_model_len = count(fields, "max_seq_len").or(f.max_model_len);
                f.kv_cache_dtype = word(fields, "kv_cache_dtype").or(f.kv_cache_dtype.take());
                f.model_dtype = word(fields, "dtype").or(f.model_dtype.take());
            }
            "kv_cache_dtype" => f.kv_cache_dtype = word(fields, "kv_cache_dtype"),
            "kv_block_size" => f.page_size = count(fields, "kv_block_size"),
            "attention_block_size" => f.block_size = count(fields, "attention_block_size"),
            "attention_geometry" => {
                f.kv_heads = count(fields, "kv_heads");
                f.head_dim = count(fields, "head_dim");
                f.layers_seen = f.layers_seen.saturating_add(1);
            }
            "metadata_builder" => {
                f.page_size = count(fields, "page_size");
                f.layers = count(fields, "layers");
            }
            // from 0 blocks: a passing pool for measuring graph memory
            "num_gpu_blocks_override" if count(fields, "old") == Some(0) => {}
            "num_gpu_blocks_override" => f.blocks_given = count(fields, "new"),
            "gpu_blocks" => f.blocks_given = count(fields, "gpu_blocks"),
            "available_memory" => f.available_gib = number(fields, "available_gib"),
            "kv_cache_size" | "max_concurrency" => {
                f.tokens = count(fields, "kv_cache_tokens").or(f.tokens);
                f.concurrency = number(fields, "max_concurrency").or(f.concurrency);
                f.max_model_len = count(fields, "concurrency_tokens").or(f.max_model_len);
            }
            _ => {}
        };
        let mut facts = Facts::default();
        fact(&mut facts);
        if facts == Facts::default() {
            return;
        }
        let process = match self.processes.iter().position(|p| p.name == source.process) {
            Some(at) => &mut self.processes[at],
            None if self.processes.len() < MAX_PROCESSES => {
                self.processes.push(Process { name: source.process.clone(), ..Process::default() });
                let last = self.processes.len() - 1;
                &mut self.processes[last]
            }
            None => return,
        };
        if process.emitted {
            // another boot without a banner: its figures do not mix with those of the one before
            *process = Process { name: source.process.clone(), ..Process::default() };
        }
        fact(&mut process.facts);
        process.source = source.clone();
        self.waiting |= process.facts.complete();
    }

    /// The boot has settled: emits every complete pool.
    pub(crate) fn settle(&mut self, out: &mut Vec<Record>) {
        self.waiting = false;
        self.emit(Facts::complete, out);
    }

    /// The boot is over: emits whatever is known and forgets it.
    pub(crate) fn finish(&mut self, out: &mut Vec<Record>) {
        self.settle(out);
        if !self.processes.iter().any(|p| p.emitted) {
            self.emit(Facts::any, out);
        }
        *self = Pools::default();
    }

    fn emit(&mut self, when: impl Fn(&Facts) -> bool, out: &mut Vec<Record>) {
        let all: Vec<Facts> = self.processes.iter().map(|p| p.facts.clone()).collect();
        for process in self.processes.iter_mut().filter(|p| !p.emitted && when(&p.facts)) {
            process.emitted = true;
            let mut facts = process.facts.clone();
            facts.fill(&self.shared);
            // engine and workers of one boot share what only some of them print
            for other in all.iter().filter(|o| !o.complete()) {
                facts.fill(other);
            }
            let derived = geometry::derive(&facts);
            let mut pool = derived.pool;
            pool.source = Some(process.source.clone());
            let at = format!("{}:{}", process.source.file, process.source.line);
            let finding = |check: &str, severity, message| {
                Record::from(Finding {
                    check: check.to_owned(),
                    severity,
                    message,
                    ordinal: None,
                    layer: None,
                    at: Some(at.clone()),
                    data: Default::default(),
                })
            };
            let doubts = [
                derived.contradiction.map(|m| finding("pool_figures_disagree", Severity::Warning, m)),
                pool.num_blocks.is_none().then(|| {
                    finding("pool_not_derived", Severity::Warning, pool.rule.clone().unwrap_or_default())
                }),
            ];
            out.push(pool.into());
            out.extend(doubts.into_iter().flatten());
        }
    }
}

fn get<'f>(fields: &'f [Field<'_>], name: &str) -> Option<&'f Val<'f>> {
    fields.iter().find(|(n, _)| n == name).map(|(_, v)| v)
}

fn count(fields: &[Field<'_>], name: &str) -> Option<u64> {
    get(fields, name)?.as_u64()
}

fn number(fields: &[Field<'_>], name: &str) -> Option<f64> {
    get(fields, name)?.as_f64()
}

fn word(fields: &[Field<'_>], name: &str) -> Option<String> {
    get(fields, name)?.as_str().map(str::to_owned)
}

fn speculative(fields: &[Field<'_>]) -> Option<u64> {
    match get(fields, "speculative_config")? {
        Val::Json(Value::Object(map)) => map.get("num_speculative_tokens")?.as_u64(),
        _ => None,
    }
}
