//! Loading from files: a checkpoint of random weights to load, and how fast that goes beside merely reading its bytes and
//! merely sending them.

use super::nowhere::Nowhere;
use super::{config_json, format};
use anyhow::{Context, bail};
use cute_checkpoint::{Checkpoint, Config, Format, LazyWeight, expected_shapes};
use cute_engine::backend::Cpu;
use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::stage::BUFFERS;
use cute_engine::backend::cuda::{Cuda, Driver, Emulated, LoadOptions, Options, Settings};
use cute_engine::model::{Model, left_plain};
use rayon::prelude::*;
use rustix::fs::Advice;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// Bytes that are made and written at once.
const BLOCK: u64 = 8 << 20;

/// What random bytes become, eight at a time: those of `and` are kept, those of `or` set.
#[derive(Clone, Copy)]
struct Bits {
    and: u64,
    or: u64,
}

/// bf16 of either sign with exponents of 2⁻⁷ and 2⁻⁶, about as large as weights are.
const WEIGHTS: Bits = Bits { and: 0x80ff_80ff_80ff_80ff, or: 0x3c00_3c00_3c00_3c00 };
/// The same, positive.
const SCALES: Bits = Bits { and: 0x007f_007f_007f_007f, or: 0x3c00_3c00_3c00_3c00 };
/// e4m3 below 2.
const E4M3: Bits = Bits { and: 0xbfbf_bfbf_bfbf_bfbf, or: 0 };
/// e2m1.
const E2M1: Bits = Bits { and: u64::MAX, or: 0 };
/// e4m3 from 1 to 1.875.
const E4M3_SCALES: Bits = Bits { and: 0x0707_0707_0707_0707, or: 0x3838_3838_3838_3838 };
/// f32 2⁻⁷.
const GLOBAL: Bits = Bits { and: 0, or: 0x3c00_0000_3c00_0000 };

/// A tensor to be written.
struct Stored {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: u64,
    bits: Bits,
}

/// The tensors that store a weight.
fn stored(name: &str, shape: &[usize], packed: Format) -> Vec<Stored> {
    let full = if name == "lm_head.weight" { name.to_owned() } else { format!("model.{name}") };
    let one = |end: &str, dtype, shape: &[usize], size: usize, bits| {
        let name = format!("{}{end}", full.trim_end_matches("weight"));
        let bytes = (shape.iter().product::<usize>() * size) as u64;
        Stored { name, dtype, shape: shape.to_vec(), bytes, bits }
    };
    match (shape, packed) {
        (&[n, k], Format::Fp8Block) if !left_plain(name) => vec![
            one("weight", "F8_E4M3", shape, 1, E4M3),
            one("weight_scale_inv", "BF16", &[n.div_ceil(128), k.div_ceil(128)], 2, SCALES),
        ],
        (&[n, k], Format::Nvfp4) if !left_plain(name) => vec![
            one("weight", "U8", &[n, k / 2], 1, E2M1),
            one("weight_scale", "F8_E4M3", &[n, k / 16], 1, E4M3_SCALES),
            one("weight_scale_2", "F32", &[], 4, GLOBAL),
        ],
        _ => {
            let end = if full.ends_with("weight") { "weight" } else { "" };
            vec![one(end, "BF16", shape, 2, WEIGHTS)]
        }
    }
}

/// Writes a checkpoint of a published shape with random weights: config.json, shards of about so many bytes, their index.
pub fn save(dir: &Path, shape: &str, stored_as: &str, shard_bytes: u64) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut config = config_json(shape)?;
    let parsed = Config::parse((shape, config.to_string().as_bytes()), None)?;
    let packed = format(stored_as)?;
    let shapes = expected_shapes(&parsed);
    let plain = || shapes.iter().map(|(name, _)| name).filter(|name| left_plain(name));
    let left: Vec<String> = plain()
        .map(|name| name.trim_end_matches(".weight"))
        .map(|name| if name == "lm_head" { name.to_owned() } else { format!("model.{name}") })
        .collect();
    match packed {
        Format::Fp8Block => {
            config["quantization_config"] = json!({
                "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                "weight_block_size": [128, 128], "modules_to_not_convert": left
            });
        }
        Format::Nvfp4 => {
            config["quantization_config"] =
                json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": left});
        }
        _ => {}
    }
    let mut shards: Vec<Vec<Stored>> = vec![Vec::new()];
    let mut room = shard_bytes;
    for tensor in shapes.iter().flat_map(|(name, shape)| stored(name, shape, packed)) {
        if tensor.bytes > room && shards.last().is_some_and(|shard| !shard.is_empty()) {
            shards.push(Vec::new());
            room = shard_bytes;
        }
        room = room.saturating_sub(tensor.bytes);
        shards.last_mut().context("a shard")?.push(tensor);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let (mut map, mut total) = (Map::new(), 0);
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        total += write(&dir.join(&name), shard, (i as u64) << 40)?;
        map.extend(shard.iter().map(|t| (t.name.clone(), Value::from(name.as_str()))));
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    for (name, value) in [("config.json", &config), ("model.safetensors.index.json", &index)] {
        std::fs::write(dir.join(name), value.to_string()).with_context(|| format!("writing {name}"))?;
    }
    let (seconds, gb) = (start.elapsed().as_secs_f64(), total as f64 / 1e9);
    println!(
        "{}",
        json!({
            "what": "save", "shape": shape, "format": stored_as, "shards": shards.len(), "gb": gb, "seconds": seconds
        })
    );
    eprintln!("{shape:>5} {stored_as:<5} {gb:.2} GB in {} shards, {seconds:.1} s", shards.len());
    Ok(())
}

/// Writes a file; returns the bytes of its tensors.
fn write(path: &Path, tensors: &[Stored], seed: u64) -> anyhow::Result<u64> {
    let mut header = Map::new();
    let mut end = 0;
    for t in tensors {
        let offsets = [end, end + t.bytes];
        end += t.bytes;
        header.insert(t.name.clone(), json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}));
    }
    let mut head = Value::from(header).to_string();
    head.extend(std::iter::repeat_n(' ', head.len().next_multiple_of(8) - head.len()));
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    file.write_all_at(&(head.len() as u64).to_le_bytes(), 0)?;
    file.write_all_at(head.as_bytes(), 8)?;
    let mut at = 8 + head.len() as u64;
    let mut blocks = Vec::new();
    for t in tensors {
        let block = |from: u64| (at + from, (t.bytes - from).min(BLOCK), t.bits);
        blocks.extend((0..t.bytes).step_by(BLOCK as usize).map(block));
        at += t.bytes;
    }
    blocks.par_iter().try_for_each_init(Vec::new, |buffer: &mut Vec<u64>, &(at, bytes, bits)| {
        let mut x = (seed + at).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        buffer.clear();
        buffer.extend((0..bytes.div_ceil(8)).map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x & bits.and | bits.or
        }));
        file.write_all_at(&bytemuck::cast_slice(buffer)[..bytes as usize], at)
            .with_context(|| format!("writing {}", path.display()))
    })?;
    Ok(end)
}

/// Where a checkpoint is loaded to.
pub enum To {
    /// the CPU backend
    Cpu,
    /// a device
    Cuda(Arc<dyn Gpu>),
}

impl To {
    /// cpu, emulated, none (what arrives is thrown away), or the number of a GPU.
    pub fn open(name: &str) -> anyhow::Result<To> {
        let settings = || Settings { memory: 64 << 30, ..Settings::default() };
        Ok(match name {
            "cpu" => To::Cpu,
            "emulated" => To::Cuda(Arc::new(Emulated::new(settings())?)),
            "none" => To::Cuda(Arc::new(Nowhere::default())),
            number => To::Cuda(Arc::new(Driver::open(ordinal(number)?)?)),
        })
    }

    fn name(&self) -> String {
        match self {
            To::Cpu => "cpu".to_owned(),
            To::Cuda(gpu) => gpu.name(),
        }
    }

    /// Seconds to load a checkpoint, opened for it.
    fn load(&self, c: &Checkpoint, load: LoadOptions) -> anyhow::Result<f64> {
        let start = Instant::now();
        match self {
            To::Cpu => drop(Model::load(&Cpu::default(), c, 1024)?),
            To::Cuda(gpu) => {
                let backend = Cuda::new(gpu.clone(), &c.config, Options { load, ..Options::default() })?;
                let model = Model::load(&backend, c, 1024)?;
                let seconds = start.elapsed().as_secs_f64();
                drop(model);
                return Ok(seconds);
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// A number, or `cuda:` and a number.
pub fn ordinal(name: &str) -> anyhow::Result<usize> {
    match name.strip_prefix("cuda:").unwrap_or(name).parse() {
        Ok(number) => Ok(number),
        Err(_) => bail!("no device {name:?}: expected a number, cuda:N, or for --load none, cpu or emulated"),
    }
}

/// Loads a checkpoint several times, and before or after each reads the same bytes on as many threads and does nothing
/// with them. `cold`: the files are put out of the page cache before each.
pub fn load(dir: &Path, to: &To, options: LoadOptions, (repeats, cold): (usize, bool)) -> anyhow::Result<()> {
    let link = link(to, options)?;
    for turn in 0..repeats {
        let gb = Checkpoint::open(dir)?.weight_bytes() as f64 / 1e9;
        let reading = |at_once| -> anyhow::Result<f64> {
            evict(dir, cold)?;
            Ok(gb / merely_read(&Checkpoint::open(dir)?, options, at_once)?)
        };
        let loading = || -> anyhow::Result<[f64; 4]> {
            evict(dir, cold)?;
            let before = status("VmRSS")?;
            // the mark of the peak goes down to what is there now; where that is not allowed it stays
            let _ = std::fs::write("/proc/self/clear_refs", "5");
            let start = Instant::now();
            let checkpoint = Checkpoint::open(dir)?;
            let open = start.elapsed().as_secs_f64();
            Ok([open, to.load(&checkpoint, options)?, before, status("VmHWM")?])
        };
        // whoever comes later may find more in caches that are not ours: they take turns
        let first = if turn % 2 == 1 { Some(loading()?) } else { None };
        let (read, cached) = (reading(options.buffer)?, reading(options.read)?);
        let [open, seconds, before, peak] = first.map_or_else(loading, Ok)?;
        let rate = gb / seconds;
        let buffers = (options.count() * options.buffer * BUFFERS) as f64 / 1e9;
        let line = json!({
            "what": "load_files", "dir": dir.display().to_string(), "device": to.name(), "cold": cold,
            "threads": options.count(), "gb": gb, "open_s": open, "seconds": seconds, "gb_s": rate, "read_gb_s": read, "read_cached_gb_s": cached,
            "share_of_read": rate / read, "link_gb_s": link, "rss_before_gb": before, "peak_rss_gb": peak,
            "buffers_gb": buffers,
        });
        println!("{line}");
        let sent = link.map_or(String::new(), |link| format!(", sending alone {link:.1} GB/s"));
        eprintln!(
            "{gb:.2} GB in {seconds:.2} s, {rate:.2} GB/s: {:.0} % of {read:.2} GB/s that {} threads read into as many buffers ({cached:.2} GB/s into their caches){sent}; \
             memory {before:.2} GB before, {peak:.2} GB at most",
            100.0 * rate / read,
            options.count(),
        );
    }
    Ok(())
}

/// Puts the files of a directory out of the page cache, as far as they are written.
fn evict(dir: &Path, cold: bool) -> anyhow::Result<()> {
    if !cold {
        return Ok(());
    }
    for entry in std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))? {
        let file = File::open(entry?.path())?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

/// Runs work on so many threads at a time; the first error of any.
fn on_threads(count: usize, work: impl Fn() -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&work)).collect();
        let join = |t: std::thread::ScopedJoinHandle<'_, _>| {
            t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })
}

/// Seconds to read every weight in groups of a buffer's size, `at_once` bytes at a time, into as many buffers as loading
/// has, or, where no more than `at_once` bytes are kept, into memory that the processor's cache holds.
fn merely_read(c: &Checkpoint, options: LoadOptions, at_once: usize) -> anyhow::Result<f64> {
    let weights: Vec<LazyWeight> = c.tensor_names().map(|name| c.lazy(name)).collect::<Result<_, _>>()?;
    let pieces = |w: &LazyWeight| {
        let (step, all) = ((at_once / w.row_bytes().max(1)).max(1), w.rows());
        (0..all).step_by(step).map(move |from| from..(from + step).min(all)).collect::<Vec<_>>()
    };
    let groups: Vec<(&LazyWeight, Range<usize>)> =
        weights.iter().flat_map(|w| pieces(w).into_iter().map(move |rows| (w, rows))).collect();
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    on_threads(options.count(), || {
        let mut spare = VecDeque::from(vec![Vec::new(); if at_once == options.buffer { BUFFERS } else { 1 }]);
        while let Some((w, rows)) = groups.get(next.fetch_add(1, Ordering::Relaxed)) {
            let read = w.read(rows.clone(), spare.pop_front().unwrap_or_default())?;
            spare.push_back(read.into_bytes());
        }
        Ok(())
    })?;
    Ok(start.elapsed().as_secs_f64())
}

/// GB/s of sending alone, on as many threads, of buffers that nobody fills; none where there is no device.
fn link(to: &To, options: LoadOptions) -> anyhow::Result<Option<f64>> {
    let To::Cuda(gpu) = to else { return Ok(None) };
    if gpu.name() == Nowhere::default().name() {
        return Ok(None);
    }
    let at = gpu.alloc(options.buffer)?;
    let total = (8usize << 30).div_ceil(options.buffer);
    let (next, waiting) = (AtomicUsize::new(0), std::sync::Barrier::new(options.count()));
    let began = std::sync::OnceLock::new();
    on_threads(options.count(), || {
        let stage = gpu.stage(options.buffer);
        // nobody sends before all have their buffers
        waiting.wait();
        began.get_or_init(Instant::now);
        let mut stage = stage?;
        while next.fetch_add(1, Ordering::Relaxed) < total {
            stage.next()?;
            stage.send(at, 0..options.buffer)?;
        }
        Ok(stage.arrived()?)
    })?;
    let seconds = began.get().map_or(f64::INFINITY, |began| began.elapsed().as_secs_f64());
    gpu.free(at)?;
    Ok(Some((total * options.buffer) as f64 / seconds / 1e9))
}

/// GB that the system says of this process's memory under a name.
fn status(name: &str) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kb: f64 = line
        .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
        .with_context(|| format!("no {name} in /proc/self/status"))?;
    Ok(kb * 1024.0 / 1e9)
}
