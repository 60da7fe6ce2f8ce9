//! Quantised, MoE and qwen3_next models in the engine: what a sequence's bits may depend on, what is read, and what a
//! device refuses. Their logits against another implementation's are in golden.rs.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::{expected, format_models, greedy, logits, random_floats, root, run, run_on};
use cute_checkpoint::Checkpoint;
use cute_engine::backend::cpu::Cpu;
use cute_engine::backend::cuda::{Cuda, Options};
use cute_engine::backend::{Backend, CacheShape, KvDtype, Taken, top_k};
use cute_engine::batch::BatchKind;
use cute_engine::dispatch::Dispatcher;
use cute_engine::guard::Guard;
use cute_engine::knobs::PathKnob;
use cute_engine::model::{Model, Scratch};
use cute_engine::{EngineConfig, Knobs};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn dir(name: &str) -> PathBuf {
    root().join("tests/golden/formats").join(name)
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&dir(name)).unwrap()
}

/// A tensor's dtype, shape and bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// A copy of a golden model whose tensors, and config.json as text, were edited.
fn edited(
    name: &str,
    edit: impl FnOnce(&mut BTreeMap<String, Stored>, &mut String),
) -> (TempDir, Checkpoint) {
    let from = dir(name);
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: BTreeMap<String, Stored> = file
        .iter()
        .map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    let mut config = std::fs::read_to_string(from.join("config.json")).unwrap();
    edit(&mut tensors, &mut config);
    let to = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(to.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    std::fs::write(to.path().join("config.json"), config).unwrap();
    let checkpoint = Checkpoint::open(to.path()).unwrap();
    (to, checkpoint)
}

/// Bits of the logits of a golden prompt.
fn bits(checkpoint: &Checkpoint, like: &str, cuts: &[usize]) -> Vec<u32> {
    let e = expected(&dir(like));
    logits(&Cpu::default(), checkpoint, &e, cuts).into_iter().map(f32::to_bits).collect()
}

fn prompts(vocab: usize) -> Vec<Vec<u32>> {
    let lens = [1, 70, 9, 33, 2, 64, 17, 5];
    let random = |(i, len): (usize, &usize)| -> Vec<u32> {
        random_floats(i as u64 + 1, *len).iter().map(|x| ((x + 1.0) / 2.0 * vocab as f32) as u32).collect()
    };
    lens.iter().enumerate().map(random).collect()
}

#[test]
fn neighbours_slots_and_chunks_do_not_change_a_bit_of_a_mixture_of_experts() {
    for name in ["moe", "moe-nvfp4", "next"] {
        let checkpoint = open(name);
        let prompts = prompts(checkpoint.config.vocab_size);
        let base = EngineConfig { max_model_len: 128, ..EngineConfig::default() };
        let alone = |p: &Vec<u32>| {
            run(&checkpoint, base.clone(), std::slice::from_ref(p), &greedy(12)).fingerprints().remove(0)
        };
        let expected: Vec<String> = prompts.iter().map(alone).collect();
        for (max_num_seqs, max_num_batched_tokens) in [(1, 256), (3, 7), (8, 64), (8, 1), (5, 1000)] {
            let config = EngineConfig { max_num_seqs, max_num_batched_tokens, ..base.clone() };
            let together = run(&checkpoint, config, &prompts, &greedy(12)).fingerprints();
            assert_eq!(
                together, expected,
                "{name}: {max_num_seqs} sequences, {max_num_batched_tokens} tokens"
            );
        }
        let mut reversed = prompts.clone();
        reversed.reverse();
        let mut backwards = run(&checkpoint, base.clone(), &reversed, &greedy(12)).fingerprints();
        backwards.reverse();
        assert_eq!(backwards, expected, "{name}: in reverse order");
        let mut again = prompts.clone();
        again.extend(prompts.clone());
        let one = EngineConfig { max_num_seqs: 1, ..base };
        let twice = run(&checkpoint, one, &again, &greedy(12)).fingerprints();
        assert_eq!(twice, [expected.clone(), expected].concat(), "{name}: in recycled slots");
    }
}

#[test]
fn experts_stored_one_by_one_are_the_same_model_as_fused_ones() {
    let split = |tensors: &mut BTreeMap<String, Stored>, _: &mut String| {
        let fused: Vec<String> = tensors.keys().filter(|n| n.contains(".experts.")).cloned().collect();
        assert_eq!(fused.len(), 6);
        for name in fused {
            let (dtype, shape, bytes) = tensors.remove(&name).unwrap();
            let (base, kind) = name.rsplit_once('.').unwrap();
            let names: &[&str] =
                if kind == "gate_up_proj" { &["gate_proj", "up_proj"] } else { &["down_proj"] };
            let each = bytes.len() / shape[0] / names.len();
            let mut pieces = bytes.chunks_exact(each);
            for e in 0..shape[0] {
                for part in names {
                    let shape = vec![shape[1] / names.len(), shape[2]];
                    let piece = pieces.next().unwrap().to_vec();
                    tensors.insert(format!("{base}.{e}.{part}.weight"), (dtype, shape, piece));
                }
            }
        }
    };
    let (_dir, one_by_one) = edited("moe", split);
    let fused = open("moe");
    assert_eq!(bits(&one_by_one, "moe", &[]), bits(&fused, "moe", &[]));
    assert_eq!(one_by_one.weight_bytes(), fused.weight_bytes());
    assert_eq!(one_by_one.tensor_names().collect::<Vec<_>>(), fused.tensor_names().collect::<Vec<_>>());
}

#[test]
fn an_expert_that_no_row_takes_is_not_read() {
    // A router of zeros finds all experts equal and takes the lowest three. What is NaN in the others must not show.
    let poison = |tensors: &mut BTreeMap<String, Stored>, _: &mut String| {
        for (name, (_, shape, bytes)) in tensors.iter_mut() {
            if name.ends_with("mlp.gate.weight") {
                bytes.fill(0);
                assert_eq!(shape[0], 8);
            } else if name.contains(".experts.") {
                let each = bytes.len() / 8;
                bytes[3 * each..].fill(0xff); // bf16 NaN
            }
        }
    };
    let zeros = |tensors: &mut BTreeMap<String, Stored>, _: &mut String| {
        for (_, (_, _, bytes)) in tensors.iter_mut().filter(|(n, _)| n.ends_with("mlp.gate.weight")) {
            bytes.fill(0);
        }
    };
    let (_a, sound) = edited("moe", zeros);
    let (_b, poisoned) = edited("moe", poison);
    assert_eq!(bits(&poisoned, "moe", &[]), bits(&sound, "moe", &[]));
    let taken = top_k(&[0.0; 8], 3, true);
    assert_eq!(taken.iter().map(|t: &Taken| t.expert).collect::<Vec<_>>(), [0, 1, 2]);
}

#[test]
fn layers_with_experts_take_the_paged_path_and_say_why() {
    let checkpoint = open("moe");
    let prompts = prompts(checkpoint.config.vocab_size);
    let with = |path, fusion| EngineConfig {
        max_model_len: 128,
        knobs: Knobs { path, fusion, ..Knobs::default() },
        ..EngineConfig::default()
    };
    let plain = run(&checkpoint, with(PathKnob::Auto, false), &prompts, &greedy(6));
    for path in [PathKnob::Auto, PathKnob::Lite, PathKnob::Coop] {
        let fused = run(&checkpoint, with(path, true), &prompts, &greedy(6));
        assert_eq!(fused.fingerprints(), plain.fingerprints());
        let line = "path=paged outcome=paged reason=mixture_of_experts";
        assert!(!fused.log.is_empty() && fused.log.iter().all(|l| l.contains(line)), "{:?}", fused.log);
    }
    // A layer of mlp_only_layers and a packed dense model have a dense MLP, and the fused paths.
    let dense = run(&open("modelopt-mixed"), with(PathKnob::Lite, true), &prompts, &greedy(6));
    assert!(dense.log.iter().all(|l| l.contains("path=lite outcome=lite")), "{:?}", dense.log);
}

/// Dense models with packed weights, and what they do not run without: every path takes them.
#[test]
fn packed_models_answer_on_cuda_as_transformers_does_on_every_path() {
    let Some(gpu) = testing::device() else { return };
    // FP8 and NVFP4 in one layer, and plain rows below packed ones; on a device, the others too
    let names = ["modelopt-mixed", "compressed-mixed", "fp8-block"];
    let cuts = if testing::on_a_device() { &[&[][..], &[70]][..] } else { &[&[70][..]][..] };
    let cuda = |c: &Checkpoint| Cuda::new(gpu.clone(), &c.config, Options::default()).unwrap();
    for name in names {
        let (checkpoint, e) = (open(name), expected(&dir(name)));
        for cuts in cuts {
            let ours = logits(&cuda(&checkpoint), &checkpoint, &e, cuts);
            let worst = ours.iter().zip(&e.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name} cut at {cuts:?}: largest difference {worst:e}");
            assert!(ours.len() == e.logits.len() && worst < 1e-3, "{name}: {worst:e}");
        }
        if !testing::on_a_device() && name != names[0] {
            continue;
        }
        let mut answers = Vec::new();
        for (path, fusion, coop_gdn) in [
            (PathKnob::Auto, false, false),
            (PathKnob::Lite, true, false),
            (PathKnob::Coop, true, false),
            (PathKnob::Coop, true, true),
        ] {
            let knobs = Knobs { path, fusion, coop_gdn, ..Knobs::default() };
            let config =
                EngineConfig { max_model_len: 256, max_num_seqs: 3, knobs, ..EngineConfig::default() };
            let prompts = [e.input_ids.clone(), e.input_ids[..9].to_vec()];
            let run = run_on(cuda(&checkpoint), &checkpoint, config, &prompts, &greedy(e.greedy_ids.len()));
            assert_eq!(run.outputs[0].token_ids, e.greedy_ids, "{name}: {path:?}");
            let outcome =
                if fusion { format!("outcome={path:?}").to_lowercase() } else { "outcome=paged".into() };
            assert!(!run.log.is_empty() && run.log.iter().all(|l| l.contains(&outcome)), "{:?}", run.log);
            answers.push(run.outputs[1].token_ids.clone());
        }
        assert!(answers.windows(2).all(|w| w[0] == w[1]), "{name}: {answers:?}");
    }
}

#[test]
fn mixtures_of_experts_answer_on_cuda_as_transformers_does() {
    let Some(gpu) = testing::device() else { return };
    // plain, FP8 and NVFP4 experts; a dense layer among sparse ones, weights that are not normalised
    let names = ["moe", "moe-nvfp4", "next", "moe-fp8-fused", "next-fp8"];
    let cuts = if testing::on_a_device() { &[&[][..], &[70], &[1, 149]][..] } else { &[&[70][..]][..] };
    let cuda = |c: &Checkpoint, options| Cuda::new(gpu.clone(), &c.config, options).unwrap();
    for name in names {
        let (checkpoint, e) = (open(name), expected(&dir(name)));
        for cuts in cuts {
            let ours = logits(&cuda(&checkpoint, Options::default()), &checkpoint, &e, cuts);
            let worst = ours.iter().zip(&e.logits).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{name} cut at {cuts:?}: largest difference {worst:e}");
            assert!(ours.len() == e.logits.len() && worst < 1e-3, "{name}: {worst:e}");
        }
        if !testing::on_a_device() && !["moe", "next"].contains(&name) {
            continue;
        }
        let prompts = [e.input_ids.clone(), e.input_ids[..9].to_vec(), e.input_ids[3..5].to_vec()];
        let mut answers = Vec::new();
        for (max_num_seqs, max_num_batched_tokens, graphs, path) in
            [(3, 512, true, PathKnob::Auto), (1, 31, true, PathKnob::Lite), (2, 512, false, PathKnob::Coop)]
        {
            let knobs = Knobs { path, coop_gdn: true, ..Knobs::default() };
            let base = EngineConfig { max_model_len: 256, knobs, ..EngineConfig::default() };
            let config = EngineConfig { max_num_seqs, max_num_batched_tokens, ..base };
            let options = Options { graphs, ..Options::default() };
            let tokens = greedy(e.greedy_ids.len());
            let run = run_on(cuda(&checkpoint, options), &checkpoint, config, &prompts, &tokens);
            assert_eq!(run.outputs[0].token_ids, e.greedy_ids, "{name}: {path:?}");
            let why = "path=paged outcome=paged reason=mixture_of_experts";
            assert!(!run.log.is_empty() && run.log.iter().all(|l| l.contains(why)), "{name}: {:?}", run.log);
            answers.push(run.fingerprints());
        }
        // in a batch, alone with its prompt in pieces, and in steps that are not recorded
        assert!(answers.iter().all(|a| *a == answers[0]), "{name}: {answers:?}");
    }
}

/// A step that is watched reads the host's copies; its bits are those of one that is not, poison or none.
#[test]
fn a_nan_in_an_expert_is_blamed_on_it_by_a_watched_device() {
    let Some(gpu) = testing::device() else { return };
    // the router of zeros takes experts 0, 1 and 2
    let with = |nan: &'static [(&'static str, usize)]| {
        edited("moe", move |tensors, _| {
            for (name, (_, _, bytes)) in tensors.iter_mut() {
                let each = bytes.len() / 8;
                if name.ends_with("mlp.gate.weight") {
                    bytes.fill(0);
                }
                for (_, expert) in nan.iter().filter(|(end, _)| name.ends_with(end)) {
                    bytes[expert * each..][..4].fill(0xff);
                }
            }
        })
    };
    let ends = |checkpoint: &Checkpoint, config: EngineConfig| {
        let cuda = Cuda::new(gpu.clone(), &checkpoint.config, Options::default()).unwrap();
        let prompts: Vec<Vec<u32>> = (1..4).map(|n| (0..3 * n).collect()).collect();
        let base = EngineConfig { max_model_len: 48, max_num_seqs: 2, page_size: 16, ..config };
        run_on(cuda, checkpoint, base, &prompts, &greedy(5))
    };
    let watched = EngineConfig {
        trace_nonfinite: true,
        poison: true,
        guards: [Guard::Slot0].into_iter().collect(),
        ..EngineConfig::default()
    };
    let (_dir, sound) = with(&[("layers.1.mlp.experts.down_proj", 3)]);
    let plain = ends(&sound, EngineConfig::default());
    let run = ends(&sound, watched.clone());
    assert_eq!((&run.findings, run.fingerprints()), (&vec![], plain.fingerprints()));
    let guards = [Guard::Slot0, Guard::Capture].into_iter().collect();
    let recorded = ends(&sound, EngineConfig { poison: true, guards, ..EngineConfig::default() });
    assert_eq!((&recorded.findings, recorded.fingerprints()), (&vec![], plain.fingerprints()));

    let (_dir, broken) = with(&[("layers.1.mlp.experts.down_proj", 2)]);
    let run = ends(&broken, watched);
    let traced: Vec<_> = run.findings.iter().filter(|f| f.check == "nonfinite_value").collect();
    assert_eq!(traced.len(), 3, "{:?}", run.findings);
    for f in traced {
        assert_eq!((f.layer, f.data["phase"].as_str()), (Some(1), Some("expert")), "{f:?}");
    }
}

#[test]
fn a_step_with_experts_is_recorded_once_and_replayed() {
    // a recording refuses copies to and from the host, so there are none
    let Some(gpu) = testing::device() else { return };
    let checkpoint = open("moe");
    let backend = Cuda::new(gpu, &checkpoint.config, Options::default()).unwrap();
    let model = Model::load(&backend, &checkpoint, 64).unwrap();
    let shape = CacheShape {
        num_pages: 4,
        page_size: 64,
        kv_dtype: KvDtype::F32,
        num_slots: 4,
        max_rows: 3,
        max_len: 64,
    };
    let mut cache = backend.cache(&checkpoint.config, shape).unwrap();
    let mut scratch = Scratch::new(&backend, &checkpoint.config, 3, 3).unwrap();
    let log = Box::new(|_: &str| ());
    let knobs = Knobs::default();
    let mut dispatcher = Dispatcher::new(&backend, &checkpoint.config, knobs, 3, None, log).unwrap();
    for (rows, recordings) in [(1, 0), (1, 1), (1, 1), (3, 1), (3, 2), (1, 2), (3, 2)] {
        let batch = testing::batch(BatchKind::Decode, rows);
        let before = backend.experts_read().unwrap();
        let top = model.forward(&backend, &batch, &mut cache, &mut scratch, &mut dispatcher).unwrap();
        assert!(top.len() == rows && top.iter().all(Option::is_some));
        assert_eq!(backend.recordings(), recordings, "{rows} rows");
        let read = backend.experts_read().unwrap() - before;
        // three layers, of three experts each for one row
        let expected = if rows == 1 { 9..=9 } else { 9..=24 };
        assert!(expected.contains(&read), "{rows} rows read {read} experts");
    }
}

#[test]
fn a_packed_model_says_what_it_is_made_of() {
    let model = |name: &str| {
        let c = open(name);
        let groups: Vec<(String, String, u64, u64)> = c
            .model(Vec::new(), None, Default::default())
            .formats
            .into_iter()
            .map(|f| (f.module, f.format, f.tensors, f.bytes))
            .collect();
        (c, groups)
    };
    let (c, groups) = model("modelopt-mixed");
    let group =
        |module: &str, format: &str, tensors, bytes| (module.to_owned(), format.to_owned(), tensors, bytes);
    // 3 matrices of 96·64 values in each of two layers: half a byte a value, a byte for 16 of them, 4 for the whole.
    let mlp = 6 * (96 * 64 / 2 + 96 * 64 / 16 + 4);
    assert!(groups.contains(&group("mlp", "nvfp4", 6, mlp)), "{groups:?}");
    assert!(groups.contains(&group("lm_head", "nvfp4", 1, 64 * 64 / 2 + 64 * 64 / 16 + 4)), "{groups:?}");
    // q 2·64, k and v 32, o 64 rows of 64 inputs, a byte each and a scale of 4 a matrix
    assert!(
        groups.contains(&group("self_attn", "fp8_tensor", 4, (128 + 32 + 32 + 64) * 64 + 4 * 4)),
        "{groups:?}"
    );
    assert_eq!(serde_json::json!(c.skipped()), serde_json::json!({"activation_scales": 14, "kv_scales": 2}));
    assert_eq!(c.weight_bytes(), groups.iter().map(|g| g.3).sum::<u64>());
    let parameters = c.model(Vec::new(), None, Default::default()).parameters;
    assert!(c.unpacked_bytes() > 3 * parameters && c.unpacked_bytes() <= 4 * parameters);
    assert!(c.weight_bytes() < 2 * parameters);

    let (c, groups) = model("moe-fp8-fused");
    // 8 experts of 96·64 codes with 5·2 scales of 2 bytes; 8 of 64·48 with 4·2; two layers
    let experts = 2 * 8 * ((96 * 64 + 5 * 2 * 2) + (64 * 48 + 4 * 2 * 2));
    assert!(groups.contains(&group("experts", "fp8_block", 4, experts)), "{groups:?}");
    assert_eq!(c.quantization.as_ref().map(|q| q.algo.as_str()), Some("fp8"));
    let (c, _) = model("fp8-block");
    assert_eq!(serde_json::json!(c.skipped()), serde_json::json!({"mtp": 3, "vision": 1}));
}

#[test]
fn a_golden_checkpoint_of_every_format_is_there() {
    let names: Vec<String> = format_models()
        .iter()
        .map(|p: &PathBuf| Path::new(p).file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let formats: std::collections::BTreeSet<&str> =
        names.iter().flat_map(|n| open(n).formats()).map(|f| f.name()).collect();
    let all = ["bf16", "f32", "fp8_block", "fp8_channel", "fp8_tensor", "nvfp4"];
    assert_eq!(formats.into_iter().collect::<Vec<_>>(), all);
}
