//! Tokens chosen on a device: those that the host chooses from the same logits.

mod common;
#[path = "common/device.rs"]
mod testing;

use common::{problems, run_on, tiny};
use cute_checkpoint::{Dtype, Tensor};
use cute_engine::backend::cuda::{Cuda, Options};
use cute_engine::backend::{Backend, Cpu};
use cute_engine::batch::BatchKind;
use cute_engine::sampler::{self, Choice, Stream};
use cute_engine::{EngineConfig, Knobs, SamplingParams};
use testing::{batch, cache_shape, device, on_a_device};

/// A backend for rows of so many logits, and these rows in a buffer of it.
fn with_logits(rows: &[Vec<f32>]) -> Option<(Cuda, <Cuda as Backend>::Buf)> {
    let width = rows[0].len();
    let mut config = tiny().config;
    config.vocab_size = width;
    let b = Cuda::new(device()?, &config, Options::default()).unwrap();
    let n = rows.len();
    let _cache = b.cache(&config, cache_shape(n)).unwrap();
    let bytes = rows.concat().into_iter().flat_map(f32::to_le_bytes).collect();
    let table = Tensor { name: "logits".into(), dtype: Dtype::F32, shape: vec![n, width], bytes };
    let table = b.matrix(&[table]).unwrap();
    let mut logits = b.buf(n, width).unwrap();
    let batch = batch(BatchKind::Prefill, n);
    b.step(&batch, &[], &Knobs::default(), &mut || {
        b.embed(&mut logits, &table, &batch.tokens).map(|()| Vec::new())
    })
    .unwrap();
    Some((b, logits))
}

/// Settings of each kind, alone and together.
fn settings() -> Vec<SamplingParams> {
    let with = |f: &dyn Fn(&mut SamplingParams)| {
        let mut params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        f(&mut params);
        params
    };
    vec![
        with(&|_| ()),
        with(&|p| p.temperature = 0.01),
        with(&|p| p.temperature = 40.0),
        with(&|p| p.top_k = 1),
        with(&|p| p.top_k = 3),
        with(&|p| p.top_k = 1_000_000),
        with(&|p| p.top_p = 0.9),
        with(&|p| p.top_p = 1e-6),
        with(&|p| p.min_p = 0.3),
        with(&|p| p.min_p = 1.0),
        with(&|p| p.repetition_penalty = 1.7),
        with(&|p| (p.temperature, p.repetition_penalty) = (0.0, 3.0)),
        with(&|p| (p.temperature, p.top_k, p.top_p, p.min_p) = (3.0, 50, 0.8, 0.01)),
        with(&|p| (p.top_k, p.top_p, p.repetition_penalty) = (5, 0.99, 0.5)),
    ]
}

#[test]
fn a_device_chooses_the_tokens_that_the_host_does() {
    let widths: &[usize] = if on_a_device() { &[1, 2, 31, 700, 248_320] } else { &[1, 2, 700] };
    for &width in widths {
        let mut stream = Stream::new(width as u64);
        let mut rows: Vec<Vec<f32>> = (0..settings().len())
            .map(|_| (0..width).map(|_| (stream.uniform() * 24.0 - 12.0) as f32).collect())
            .collect();
        // many equal ones, none finite but one
        rows[0].iter_mut().for_each(|x| *x = x.round());
        rows[6].iter_mut().for_each(|x| *x = 1.5);
        rows[4].iter_mut().skip(1).for_each(|x| *x = f32::NEG_INFINITY);
        let Some((b, mut logits)) = with_logits(&rows) else { return };
        for round in 0..3 {
            let seen = [0, width as u32 / 2, width as u32 / 2, width as u32 - 1];
            let choice = |(row, params): (usize, &SamplingParams), stream: &mut Stream| {
                Choice::new(row, params, seen.into_iter(), stream)
            };
            let mut choices: Vec<Choice> =
                settings().iter().enumerate().map(|c| choice(c, &mut stream)).collect();
            if round == 2 {
                choices.reverse();
                choices[0].random = u64::MAX;
                choices[1].random = 0;
            }
            let expected: Vec<u32> = choices.iter().map(|c| sampler::choose(&mut rows[c.row], c)).collect();
            assert_eq!(b.choose(&mut logits, &choices).unwrap(), expected, "{width} logits, round {round}");
        }
        assert_eq!(b.read(&logits, rows.len()).unwrap(), rows.concat(), "penalties");
    }
}

#[test]
fn sampled_replies_need_their_seed_alone() {
    let Some(gpu) = device() else { return };
    let checkpoint = tiny();
    let params =
        SamplingParams { temperature: 1.0, top_p: 0.95, seed: 7, max_tokens: 8, ..SamplingParams::default() };
    let config = EngineConfig { max_model_len: 128, ..EngineConfig::default() };
    let prompts = problems(&checkpoint, 3);
    let on_device = |prompts: &[Vec<u32>]| {
        let backend = Cuda::new(gpu.clone(), &checkpoint.config, Options::default()).unwrap();
        let run = run_on(backend, &checkpoint, config.clone(), prompts, &params);
        run.outputs.into_iter().map(|o| o.token_ids).collect::<Vec<_>>()
    };
    let together = on_device(&prompts);
    assert_eq!(on_device(&prompts[1..2]), together[1..2], "alone and among others");
    let on_cpu = run_on(Cpu::default(), &checkpoint, config.clone(), &prompts, &params);
    let on_cpu: Vec<_> = on_cpu.outputs.into_iter().map(|o| o.token_ids).collect();
    assert_eq!(on_cpu, together, "the tiny model's tokens are far enough apart");
}
