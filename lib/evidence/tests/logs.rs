//! Logs seen from outside: the incident's own, and every way a log can be damaged.

use cute_evidence::logs::{self, Counters, EventRef, Kind, PackSet, Sink, packs};
use cute_records::{Dispatch, Event, Pool, Record, WriteError};
use std::io::Read;
use std::path::PathBuf;

/// The incident's files, beside the repository; `None` where they are not at hand.
fn evidence(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/evidence")).join(file);
    if !path.exists() {
        println!("skipped: {} is not at hand", path.display());
        return None;
    }
    Some(path)
}

fn extract(log: impl Read) -> (Vec<Record>, Counters) {
    let mut records = Vec::new();
    let mut sink = |record: Record| -> Result<(), WriteError> {
        records.push(record);
        Ok(())
    };
    let counters = logs::extract("log", log, &PackSet::auto().unwrap(), &mut sink).unwrap();
    assert_eq!(counters.matched + counters.ignored + counters.unmatched, counters.lines, "{counters:?}");
    (records, counters)
}

fn pools(records: &[Record]) -> Vec<&Pool> {
    records.iter().filter_map(|r| if let Record::Pool(p) = r { Some(p) } else { None }).collect()
}

fn dispatches(records: &[Record]) -> Vec<&Dispatch> {
    records.iter().filter_map(|r| if let Record::Dispatch(d) = r { Some(d) } else { None }).collect()
}

fn events<'a>(records: &'a [Record], name: &str) -> Vec<&'a Event> {
    let of = |r: &'a Record| if let Record::Event(e) = r { Some(e) } else { None };
    records.iter().filter_map(of).filter(|e| e.event == name).collect()
}

const DISPATCH: &str = "(EngineCore pid=146) INFO 05-13 13:32:02 [_backend.py:1397] [PHASE_E_DISPATCH] \
    layer_name=language_model.model.layers.3.self_attn.attn layer_idx=3 enabled=True restricted_layers=[3, 7] \
    is_decode_only=True use_fusion=True num_seqs=1 resident_cap=96 use_beta_coop=True use_beta_lite=False";

/// What a server prints while it builds its pool.
const BOOT: &str = "\
(APIServer pid=1) INFO 05-10 20:14:02 [utils.py:299]  x  version 0.3.1.dev69+gf79cf418b
(APIServer pid=1) INFO 05-10 20:14:02 [utils.py:233] non-default args: {'model': 'a/b', 'max_model_len': 16384, 'kv_cache_dtype': 'fp8_e4m3', 'mamba_cache_mode': 'align', 'max_num_seqs': 2}
(APIServer pid=1) WARNING 05-10 20:14:07 [config.py:341] Mamba cache mode is set to 'none' when prefix caching is disabled
(EngineCore pid=9) INFO 05-10 20:14:14 [_backend.py:302] CutePagedAttention initialized: 16 Q heads, 2 KV heads, head_dim=128, GQA ratio=8
(EngineCore pid=9) INFO 05-10 20:14:17 [interface.py:601] Setting attention block size to 800 tokens to ensure that attention page size is >= mamba page size.
(EngineCore pid=9) INFO 05-10 20:17:24 [kv_cache_utils.py:833] Overriding num_gpu_blocks=0 with num_gpu_blocks_override=8
(EngineCore pid=9) INFO 05-10 20:17:24 [_backend.py:2303] CutePagedMetadataBuilder: block_size=32, layers=6
(EngineCore pid=9) INFO 05-10 20:17:26 [kv_cache_utils.py:1431] GPU KV cache size: 200,000 tokens
(EngineCore pid=9) INFO 05-10 20:17:26 [kv_cache_utils.py:1436] Maximum concurrency for 16,384 tokens per request: 41.71x
(EngineCore pid=9) INFO 05-10 20:17:28 [core.py:285] init engine (profile, create kv cache, warmup model) took 191.13 seconds
";

#[test]
fn the_incidents_pools_and_dispatches_are_read_from_its_own_logs() {
    for (leg, blocks, coop) in [
        ("soak", 863, 12),
        ("soak_d2_5_2L_3_7_control", 864, 2),
        ("sweep/2L_3_7", 865, 2),
        ("sweep/12L_3_47", 863, 12),
        ("prod_soak_wo8", 861, 0),
    ] {
        let Some(path) = evidence(&format!("{leg}/docker.log")) else { return };
        let (records, counters) = logs::read(&path).unwrap();
        assert_eq!(counters.matched + counters.ignored + counters.unmatched, counters.lines);
        assert_eq!(counters.pack(), Some("nvllm"));
        let [pool] = pools(&records)[..] else { panic!("{leg}: one pool a boot") };
        assert_eq!(pool.num_blocks, Some(blocks), "{leg}: {:?}", pool.rule);
        assert_eq!((pool.block_size, pool.page_size), (Some(1600), Some(64)));
        assert_eq!((pool.block_bytes, pool.token_bytes), (Some(3_276_800), Some(2048)));
        assert_eq!((pool.attention_groups, pool.state_groups), (Some(1), Some(3)));
        assert_eq!((pool.mamba_cache_mode.as_deref(), pool.max_num_seqs), (Some("none"), Some(4)));
        let lines = dispatches(&records);
        assert_eq!(lines.iter().filter(|d| d.use_beta_coop).count(), coop, "{leg}");
        assert!(lines.is_empty() || lines.len() == 16, "{leg}: the production soak had no such lines yet");
        let posts = events(&records, "http_request").iter().filter(|e| e.fields["method"] == "POST").count();
        assert!(posts >= 51, "{leg}: {posts}");
        assert!(records.iter().all(|r| !matches!(r, Record::Finding(_))), "{leg}");
    }
}

#[test]
fn every_pattern_recognises_a_line_made_from_its_own_template() {
    for pattern in packs().iter().flat_map(|p| p.patterns) {
        let mut line = String::from("(EngineCore pid=7) INFO 01-02 03:04:05 [a.py:1] ");
        let mut rest = pattern.template;
        while !rest.is_empty() {
            let plain = rest.find('{').into_iter().chain(rest.find("(?")).chain(rest.find("?)")).min();
            let plain = plain.unwrap_or(rest.len());
            line.push_str(&rest[..plain]);
            rest = &rest[plain..];
            if let Some(inner) = rest.strip_prefix('{') {
                let (value, after) = inner.split_once('}').unwrap();
                line.push_str(match value.split_once(':').unwrap().1 {
                    "int" => "1,234",
                    "num" => "12.5",
                    "bool" => "True",
                    "kv" => "a=1 b=[2, 3]",
                    "dict" => "{'a': 1}",
                    "kwargs" => "a=1, b='x'",
                    words if words.contains('|') => words.split('|').next().unwrap(),
                    _ => "some-word",
                });
                rest = after;
            } else if rest.starts_with("(?") || rest.starts_with("?)") {
                rest = &rest[2..];
            }
        }
        let (records, counters) = extract(line.as_bytes());
        match pattern.record {
            Kind::Event => {
                let Some(Record::Event(e)) = records.first() else { panic!("{}: {line}", pattern.name) };
                assert_eq!(e.event, pattern.name, "{line}");
                assert_eq!(e.source.process.as_deref(), Some("EngineCore pid=7"), "{line}");
            }
            Kind::Pool => assert_eq!(counters.matched, 1, "{line}"),
            Kind::Ignore => assert_eq!(counters.ignored, 1, "{line}"),
            Kind::Dispatch => assert!(matches!(records[..], [Record::Finding(_)]), "{line}: not whole"),
        }
    }
}

#[test]
fn tables_have_no_mistakes_and_are_listed() {
    logs::check_tables().unwrap();
    let all = logs::listing(None).unwrap();
    for pack in packs() {
        assert!(all.contains(pack.name));
        let listing = logs::listing(Some(pack.name)).unwrap();
        assert!(pack.patterns.iter().all(|p| listing.contains(p.name) && listing.contains(p.doc)));
    }
    assert!(logs::listing(Some("sglang")).is_none());
    assert!(PackSet::named("sglang").unwrap_err().to_string().contains("auto, cute, nvllm, vllm"));
}

#[test]
fn a_pool_of_any_geometry_comes_with_the_rule_that_yields_it() {
    let (records, _) = extract(BOOT.as_bytes());
    let [pool] = pools(&records)[..] else { panic!() };
    // 21 blocks of 800 tokens and 3 states = 24 a request; 24 x 41.71 = 1001.04; floor(1001 / 4) x 800 = 200,000
    assert_eq!(pool.num_blocks, Some(1001), "{:?}", pool.rule);
    assert_eq!((pool.block_bytes, pool.token_bytes), (Some(409_600), Some(512)));
    assert_eq!((pool.page_size, pool.tensors, pool.state_blocks_per_request), (Some(32), Some(6), Some(3)));
    let rule = pool.rule.as_deref().unwrap();
    for part in ["ceil(16384/800) = 21", "24 x 41.71 = 1001.04", "floor(1001/4) x 800 = 200,000"] {
        assert!(rule.contains(part), "{rule}");
    }
    assert_eq!(pool.source.as_ref().unwrap().line, 9);
    // it comes as soon as the boot is through, before what follows
    let at = records.iter().position(|r| matches!(r, Record::Pool(_))).unwrap();
    assert!(matches!(&records[at + 1], Record::Event(e) if e.event == "engine_ready"));
}

#[test]
fn newer_servers_print_size_and_concurrency_on_one_line() {
    let log = "\
WARNING 05-01 18:48:54 [config.py:367] Mamba cache mode is set to 'align' for Qwen3_5ForConditionalGeneration by default when prefix caching is enabled
INFO 05-01 18:48:55 [interface.py:601] Setting attention block size to 640 tokens to ensure that attention page size is >= mamba page size.
INFO 05-01 18:48:59 [kv_cache_utils.py:99] GPU KV cache size: 27,852 tokens, Maximum concurrency for 2,048 tokens per request: 13.60x
";
    let (records, counters) = extract(log.as_bytes());
    let [pool] = pools(&records)[..] else { panic!() };
    // 4 blocks of 640 tokens and 2 a state group: 10 with three groups; floor(136 x 2048 / 10) = 27,852
    assert_eq!((pool.num_blocks, pool.state_groups), (Some(136), Some(3)), "{:?}", pool.rule);
    assert_eq!((pool.mamba_cache_mode.as_deref(), counters.matched), (Some("align"), 3));
}

#[test]
fn every_boot_and_every_engine_has_its_own_pool() {
    let second = BOOT.replace("41.71", "20.83").replace("200,000", "100,000").replace("pid=9", "pid=10");
    let (records, _) = extract(format!("{BOOT}{second}").as_bytes());
    assert_eq!(pools(&records).iter().map(|p| p.num_blocks).collect::<Vec<_>>(), [Some(1001), Some(500)]);
    // two engines of one boot, their lines interleaved
    let one: Vec<&str> = BOOT.lines().collect();
    let engine: Vec<String> = one[3..9]
        .iter()
        .flat_map(|l| {
            let other = l
                .replace("EngineCore pid=9", "EngineCore_DP1 pid=11")
                .replace("41.71", "20.83")
                .replace("200,000", "100,000");
            [(*l).to_owned(), other]
        })
        .collect();
    let log = format!("{}\n{}\n{}\n", one[..3].join("\n"), engine.join("\n"), one[9]);
    let (records, _) = extract(log.as_bytes());
    let found: Vec<_> =
        pools(&records).iter().map(|p| (p.num_blocks, p.source.clone().unwrap().process.unwrap())).collect();
    assert_eq!(found, [(Some(1001), "EngineCore pid=9".into()), (Some(500), "EngineCore_DP1 pid=11".into())]);
    // a boot that came to nothing leaves nothing behind, though its process had the same number
    let crashed = one[..6].join("\n").replace("16384", "999999");
    let (records, _) = extract(format!("{crashed}\n{BOOT}").as_bytes());
    assert_eq!(pools(&records).iter().map(|p| p.num_blocks).collect::<Vec<_>>(), [Some(1001)]);
    assert_eq!(pools(&records)[0].tensors, Some(6));
    // a log that ends before the pool is complete says what is missing
    let (records, _) = extract(one[..8].join("\n").as_bytes());
    assert_eq!(pools(&records)[0].num_blocks, None);
    assert!(records.iter().any(|r| matches!(r, Record::Finding(f) if f.check == "pool_not_derived")));
}

#[test]
fn colours_carriage_returns_and_docker_wrapping_change_nothing() {
    let plain = format!("{DISPATCH}\n{BOOT}");
    let strip = |records: Vec<Record>| -> Vec<Record> {
        records
            .into_iter()
            .map(|mut r| {
                match &mut r {
                    Record::Dispatch(d) => (d.source.byte, d.source.line) = (0, 0),
                    Record::Event(e) => (e.source.byte, e.source.line) = (0, 0),
                    Record::Pool(p) => p.source = None,
                    _ => {}
                }
                r
            })
            .collect()
    };
    let expect = strip(extract(plain.as_bytes()).0);
    assert!(expect.len() > 4);
    let coloured = plain
        .replace("(EngineCore", "\x1b[0;36m(EngineCore")
        .replace(") INFO", ")\x1b[0m INFO")
        .replace("tokens", "to\x1b[1mkens");
    let docker: String = plain
        .lines()
        .map(|l| format!("{}\n", serde_json::json!({"log": format!("{l}\n"), "stream": "stderr", "time": "2026-05-10T20:14:02.5Z"})))
        .collect();
    for (name, log) in [("CRLF", plain.replace('\n', "\r\n")), ("colours", coloured), ("docker", docker)] {
        let (records, counters) = extract(log.as_bytes());
        assert_eq!(strip(records), expect, "{name}");
        assert_eq!(counters.lines, 11, "{name}");
    }
}

#[test]
fn dispatch_lines_that_are_not_whole_become_findings_with_their_place() {
    let torn = &DISPATCH[..DISPATCH.len() - 20];
    let glued = format!("{DISPATCH}{DISPATCH}");
    let (records, counters) =
        extract(format!("{DISPATCH}\nother\n{torn}\n{glued}\n{DISPATCH} new_field=7\n{torn}").as_bytes());
    assert_eq!(dispatches(&records).len(), 2);
    assert_eq!(dispatches(&records)[1].other["new_field"], "7");
    let found: Vec<_> = records
        .iter()
        .filter_map(|r| {
            if let Record::Finding(f) = r { Some((f.at.clone().unwrap(), f.message.clone())) } else { None }
        })
        .collect();
    assert_eq!(found.iter().map(|f| f.0.as_str()).collect::<Vec<_>>(), ["log:3", "log:4", "log:6"]);
    assert!(found[0].1.contains("expected use_beta_lite="), "{found:?}");
    assert_eq!((counters.matched, counters.unmatched, counters.torn), (5, 1, true));
}

#[test]
fn every_record_names_its_file_line_byte_process_and_time() {
    let log = format!("first\n\n{DISPATCH}\n");
    let (records, counters) = extract(log.as_bytes());
    let d = dispatches(&records)[0];
    assert_eq!((d.source.file.as_str(), d.source.line, d.source.byte), ("log", 3, 7));
    assert_eq!(&log.as_bytes()[d.source.byte as usize..][..11], b"(EngineCore");
    assert_eq!(d.source.process.as_deref(), Some("EngineCore pid=146"));
    assert_eq!(d.source.timestamp.as_deref(), Some("05-13 13:32:02"));
    assert_eq!((counters.ignored, counters.unmatched, counters.bytes), (1, 1, log.len() as u64));
}

#[test]
fn our_own_lines_and_the_seeds_are_told_apart() {
    let own = format!("{DISPATCH} path=coop outcome=lite reason=launch_failed wo_split=8");
    let (records, counters) = extract(own.as_bytes());
    assert_eq!(dispatches(&records)[0].outcome.as_deref(), Some("lite"));
    assert_eq!(counters.pack(), Some("cute"));
    assert_eq!(extract(DISPATCH.as_bytes()).1.pack(), Some("nvllm"));
    let vllm = "INFO 01-01 00:00:00 [x.py:1] GPU KV cache size: 446,704 tokens\n";
    assert_eq!(extract(vllm.as_bytes()).1.pack(), Some("vllm"));
}

#[test]
fn invalid_utf8_is_read_around() {
    let mut log =
        b"(Engine\xff\xfeCore pid=1) INFO 05-13 13:32:02 [x.py:1] Resolved architecture: A\xffB\n\xff\xff\n"
            .to_vec();
    log.extend_from_slice(DISPATCH.as_bytes());
    let (records, counters) = extract(&log[..]);
    assert_eq!(events(&records, "architecture")[0].fields["architecture"], "A\u{fffd}B");
    assert_eq!((counters.lines, dispatches(&records).len()), (3, 1));
}

/// A reader of `len` bytes without a newline, then a text.
struct LongLine<'a>(u64, &'a [u8]);

impl Read for LongLine<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return self.1.read(buf);
        }
        let n = self.0.min(buf.len() as u64) as usize;
        buf[..n].fill(b'x');
        self.0 -= n as u64;
        Ok(n)
    }
}

#[test]
fn a_line_of_a_hundred_megabytes_costs_only_itself() {
    let rest = format!("\n{DISPATCH}\n");
    let (records, counters) = extract(LongLine(100 << 20, rest.as_bytes()));
    assert_eq!((counters.lines, counters.overlong, counters.matched, counters.unmatched), (2, 1, 1, 1));
    assert_eq!(counters.bytes, (100 << 20) + rest.len() as u64);
    assert_eq!(
        (dispatches(&records)[0].source.line, dispatches(&records)[0].source.byte),
        (2, (100 << 20) + 1)
    );
    // what stands at the start of such a line is still recognised
    let start = format!("{DISPATCH} ");
    let (records, counters) = extract(start.as_bytes().chain(LongLine(3 << 20, rest.as_bytes())));
    assert_eq!((dispatches(&records).len(), counters.lines, counters.torn), (1, 2, false));
    assert!(matches!(records[0], Record::Finding(_)), "cut off in a run of x");
}

#[test]
fn a_failing_reader_is_an_error_and_a_failing_sink_stops_the_log() {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("gone"))
        }
    }
    let packs = PackSet::auto().unwrap();
    let mut fine = |_: Record| -> Result<(), WriteError> { Ok(()) };
    let error = logs::extract("f.log", Broken, &packs, &mut fine).unwrap_err();
    assert_eq!(error.to_string(), "f.log: gone");
    let mut full = |_: Record| -> Result<(), WriteError> { Err(std::io::Error::other("full").into()) };
    assert!(matches!(logs::extract("f", DISPATCH.as_bytes(), &packs, &mut full), Err(logs::Error::Sink(_))));
}

/// Keeps events as JSON and as records.
#[derive(Default)]
struct Both(Vec<(Vec<u8>, Record)>);

impl Sink for Both {
    fn record(&mut self, _: Record) -> Result<(), WriteError> {
        Ok(())
    }
    fn event(&mut self, event: &EventRef<'_>) -> Result<(), WriteError> {
        let mut json = Vec::new();
        event.write_json(&mut json);
        self.0.push((json, event.to_record()));
        Ok(())
    }
}

#[test]
fn an_event_written_as_json_is_the_record_it_stands_for() {
    let log = format!(
        "{BOOT}(A pid=1) ERROR \"quoted\\ back\" \u{3b2}\t end\n(A pid=1) nvllm.ablation.fire_count name=x count=007 a=-0.90 b=nan\n\
         Engine 000: Avg prompt throughput: 7.70 tokens/s, Avg generation throughput: 1.0 tokens/s, Running: 1 reqs, \
         Waiting: 0 reqs, GPU KV cache usage: 0.5%, Prefix cache hit rate: 0.0%\n"
    );
    let mut both = Both::default();
    logs::extract("a \"file\".log", log.as_bytes(), &PackSet::auto().unwrap(), &mut both).unwrap();
    assert!(both.0.len() >= 6);
    for (json, record) in both.0 {
        let got: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(got, serde_json::to_value(&record).unwrap(), "{}", String::from_utf8_lossy(&json));
    }
}
