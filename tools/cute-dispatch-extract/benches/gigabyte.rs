//! The tool on a generated log of one gigabyte: megabytes a second and peak memory.
//!
//! `cargo bench -p cute-dispatch-extract`; `MEGABYTES=20 cargo bench …` for a smaller one.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

fn main() -> std::io::Result<()> {
    // `cargo test --benches` calls this too: then a small log will do
    let test = std::env::args().any(|a| a == "--test");
    let megabytes = std::env::var("MEGABYTES").ok().and_then(|m| m.parse().ok()).unwrap_or(if test {
        5
    } else {
        1000u64
    });
    for (name, every) in [("every line an event", 1), ("one line in ten an event", 10)] {
        let file = tempfile::NamedTempFile::new()?;
        generate(file.as_file(), megabytes * 1_000_000, every)?;
        let start = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_cute-dispatch-extract"))
            .arg(file.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut peak = 0;
        let status = loop {
            peak = peak.max(resident_kib(child.id()));
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name}: {megabytes} MB in {seconds:.2} s, {:.0} MB/s, peak memory {:.1} MB, {status}",
            megabytes as f64 / seconds,
            peak as f64 / 1024.0
        );
        assert!(status.success());
    }
    Ok(())
}

/// Peak resident memory of a process in KiB, 0 where the system does not say.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// A server's log: one line in `every` is one the tables know, a dispatch line now and then.
fn generate(file: &std::fs::File, bytes: u64, every: u64) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::with_capacity(1 << 20, file);
    let (mut written, mut i) = (0u64, 0u64);
    while written < bytes {
        let (m, s) = (i / 60 % 60, i % 60);
        let line = if i.is_multiple_of(5000) {
            format!(
                "(EngineCore pid=146) INFO 05-13 13:{m:02}:{s:02} [_backend.py:1397] [PHASE_E_DISPATCH] \
                 layer_name=language_model.model.layers.3.self_attn.attn layer_idx=3 enabled=True restricted_layers=[3, 7] \
                 is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 use_beta_coop=True use_beta_lite=False\n"
            )
        } else if i.is_multiple_of(every) {
            format!(
                "(APIServer pid=1) INFO 05-10 20:{m:02}:{s:02} [loggers.py:259] Engine 000: Avg prompt throughput: {}.{} tokens/s, \
                 Avg generation throughput: 1.7 tokens/s, Running: 1 reqs, Waiting: 0 reqs, GPU KV cache usage: 0.5%, \
                 Prefix cache hit rate: 0.0%\n",
                i % 90,
                i % 10
            )
        } else {
            format!(
                "(EngineCore pid=146) DEBUG 05-10 20:{m:02}:{s:02} [scheduler.py:{}] step {i} scheduled {{'cmpl-{:032x}': 1}} \
                 running {} budget left {}\n",
                i % 900,
                u128::from(i).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_0C5D),
                i % 4,
                65536 - i % 60000
            )
        };
        out.write_all(line.as_bytes())?;
        written += line.len() as u64;
        i += 1;
    }
    out.flush()
}
