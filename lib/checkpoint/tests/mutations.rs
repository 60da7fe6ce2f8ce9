//! A short fuzz of everything that reads a checkpoint, without a fuzzer: seeded damage to a small one.
//!
//! `MUTATIONS=1000000 cargo test -p cute-checkpoint --test mutations` runs longer; `SEED=n` runs elsewhere. A process
//! of its own, so that its peak of memory is that of these files.

#[allow(dead_code)] // shared with the other tests
#[path = "checkpoint/tiny.rs"]
mod tiny;

use cute_checkpoint::{ChatTemplate, Checkpoint, Error, Tokenizer, memory_plan};
use serde_json::json;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};
use tiny::{INDEX, SHARD_1, SHARD_2, Tiny};

/// Longest that one damaged checkpoint may take.
const LONGEST: Duration = Duration::from_secs(1);
/// Most memory the process may take, in kB; it starts with some twenty thousand.
const MOST_KB: u64 = 200_000;

/// A small generator of pseudo-random numbers (splitmix64): the same damage on every machine.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Peak resident memory of this process in kB; 0 where the system does not tell.
fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Words that the parsers look for, and values nobody means.
const WORDS: &[&str] = &[
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\\",
    "\n",
    "\0",
    "-1",
    "0",
    "1e999",
    "NaN",
    "null",
    "true",
    "[]",
    "{}",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775807",
    "4294967296",
    "1073741824",
    "0.5",
    "\"F64\"",
    "\"U8\"",
    "\"F4\"",
    "data_offsets",
    "shape",
    "__metadata__",
    "weight_map",
    "text_config",
    "num_hidden_layers",
    "layer_types",
    "model.safetensors",
    "../",
    "{% for i in range(99999) %}",
    "{{ x * 99999999 }}",
    "{{ messages | tojson }}",
    "-",
    "not ",
    "\u{1b}[31m",
    "\u{feff}",
    "é",
];

/// One to four injuries: bits, bytes, cuts, doubled and moved pieces, words.
fn damage(rng: &mut Rng, bytes: &mut Vec<u8>, within: usize) {
    for _ in 0..1 + rng.below(4) {
        let at = rng.below(within.min(bytes.len()) + 1);
        let end = (at + rng.below(80)).min(bytes.len());
        match rng.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            1 if at < bytes.len() => bytes[at] = rng.next() as u8,
            2 => bytes.truncate(at),
            3 => _ = bytes.drain(at..end),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = rng.below(bytes.len() + 1);
                bytes.splice(to..to, copy);
            }
            _ => {
                let word = WORDS[rng.below(WORDS.len())].bytes();
                if rng.below(2) == 0 {
                    bytes.splice(at..at, word);
                } else {
                    bytes.splice(at..end.min(at + 8), word);
                }
            }
        }
    }
}

/// Damages the JSON of a safetensors header and sets the length right again, so that what is behind it is read.
fn damage_header(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let n = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = bytes[8..n].to_vec();
    damage(rng, &mut header, usize::MAX);
    *bytes = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &bytes[n..]].concat();
}

/// Opens what a file decides on, and if that works reads everything there is.
fn exercise(dir: &Path, file: &str) -> Result<(), Error> {
    let c = Checkpoint::open(dir)?;
    match file {
        "tokenizer.json" => {
            let Some(tokenizer) = Tokenizer::open(dir)? else { return Ok(()) };
            tokenizer.check(&c.config)?;
            let ids = tokenizer.encode("a bc <s> d")?;
            tokenizer.decode(&ids)?;
        }
        "tokenizer_config.json" | "chat_template.jinja" => {
            let Some(template) = ChatTemplate::open(dir)? else { return Ok(()) };
            template.render(&[json!({"role": "user", "content": "x"})], true)?;
        }
        _ => {
            for name in c.tensor_names() {
                c.tensor(name)?.to_f32();
            }
            c.scan(|_| ())?;
            let plan = memory_plan(&c.config, c.weight_bytes(), 4, u64::MAX, u64::MAX, 0);
            c.model(c.digest(|_| ())?, None, plan);
        }
    }
    Ok(())
}

/// A checkpoint in two shards with all the files that may stand beside them; in memory, where the system has a place.
fn sound() -> tempfile::TempDir {
    let tiny = Tiny {
        second_shard: vec!["model.layers.1"],
        generation: Some(json!({"eos_token_id": [1, 2]})),
        ..Tiny::default()
    };
    let (made, memory) = (tiny.write(), Path::new("/dev/shm"));
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
    for entry in std::fs::read_dir(made.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let vocab = json!({"a": 0, "b": 1, "c": 2, "d": 3, "bc": 4, "Ġ": 5, "Ġd": 6});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{"id": 7, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\s?\\w+|\\s+"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}]},
        "post_processor": null, "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [["b", "c"], ["Ġ", "d"]]},
    });
    let template = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content | trim }}{% else %}\
                    {{ m | tojson }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";
    let config = json!({"bos_token": {"content": "<s>"}, "chat_template": template});
    for (name, value) in [("tokenizer.json", tokenizer), ("tokenizer_config.json", config)] {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    std::fs::write(dir.path().join("chat_template.jinja"), template).unwrap();
    dir
}

#[test]
fn damaged_checkpoints_are_refused_or_read_but_never_panic_loop_or_fill_the_memory() {
    const FILES: [&str; 8] = [
        SHARD_1,
        SHARD_2,
        INDEX,
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    ];
    let dir = sound();
    for file in FILES {
        exercise(dir.path(), file).unwrap();
    }
    let seed = number("SEED", 1);
    let mut rng = Rng(seed);
    let (mut slowest, mut read, mut refused) = (Duration::ZERO, [0; FILES.len()], [0; FILES.len()]);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let mut failure = None;
    for i in 0..number("MUTATIONS", 20_000) {
        let which = rng.below(FILES.len());
        let path = dir.path().join(FILES[which]);
        let whole = std::fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        match which {
            0 | 1 if rng.below(4) > 0 => damage_header(&mut rng, &mut bytes),
            0 | 1 => damage(&mut rng, &mut bytes, 2000),
            _ => damage(&mut rng, &mut bytes, usize::MAX),
        }
        std::fs::write(&path, &bytes).unwrap();
        let start = Instant::now();
        let mut outcome = catch_unwind(AssertUnwindSafe(|| exercise(dir.path(), FILES[which])));
        let mut took = start.elapsed();
        if took > LONGEST {
            // The machine may have done something else meanwhile.
            let start = Instant::now();
            outcome = catch_unwind(AssertUnwindSafe(|| exercise(dir.path(), FILES[which])));
            took = start.elapsed();
        }
        slowest = slowest.max(took);
        let trouble = match &outcome {
            Err(_) => Some("a panic".to_owned()),
            Ok(_) if took > LONGEST => Some(format!("it took {took:?}")),
            Ok(Err(e)) if e.to_string().len() > 1000 => {
                Some(format!("a message of {} bytes", e.to_string().len()))
            }
            Ok(Err(e)) if e.to_string().contains(|c: char| c.is_control()) => {
                Some(format!("control characters: {e:?}"))
            }
            Ok(Err(_)) => {
                refused[which] += 1;
                None
            }
            Ok(Ok(())) => {
                read[which] += 1;
                None
            }
        };
        if let Some(trouble) = trouble {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            failure = Some(format!("seed {seed}, mutation {i} of {}: {trouble}\n{text}", FILES[which]));
            break;
        }
        std::fs::write(&path, &whole).unwrap();
    }
    std::panic::set_hook(before);
    if let Some(failure) = failure {
        panic!("{failure}");
    }
    for ((file, read), refused) in FILES.iter().zip(read).zip(refused) {
        println!("{file}: {refused} refused, {read} read all the same");
        assert!(refused > 0, "no damage to {file} was noticed");
    }
    println!("slowest {slowest:?}, peak {} kB", peak_kb());
    assert!(peak_kb() < MOST_KB, "{} kB", peak_kb());
}
