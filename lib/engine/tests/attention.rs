//! `attend_prefill` against a plain loop: every type of cache, tiles of every device, cuts, and values that are not finite.
//! It runs on the device that `CUTE_TEST_DEVICE` names (`cuda:0`), else on an emulated one.

mod selftest;
#[path = "common/device.rs"]
mod testing;

use cute_engine::backend::KvDtype;
use cute_engine::backend::cuda::gpu::{Arg, Gpu, Join, Launch};
use cute_engine::backend::cuda::units::{AttentionUnit, PrefillTile};
use half::bf16;
use selftest::{e4m3, floats, get_floats, put, put_floats, words};
use testing::device;

/// Bytes of shared memory of a block on sm_90 and on sm_120.
const SHARED: [u32; 2] = [232_448, 101_376];
/// The layer that is read, of two.
const LAYER: usize = 1;

/// A number that a cache can hold, and its bytes.
fn number(kv: KvDtype, word: u32) -> (f32, Vec<u8>) {
    let x = (word >> 8) as f32 / (1 << 23) as f32 - 1.0;
    match kv {
        KvDtype::F32 => (x, x.to_le_bytes().into()),
        KvDtype::Bf16 => (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_le_bytes().into()),
        KvDtype::Fp8E4m3 => {
            let (size, sign) = (word as u8 & 0x3f, word as u8 & 0x80);
            (if sign == 0 { e4m3(size) } else { -e4m3(size) }, vec![size | sign])
        }
    }
}

/// Not a number, as a cache holds it.
fn nan(kv: KvDtype) -> Vec<u8> {
    match kv {
        KvDtype::F32 => f32::NAN.to_le_bytes().into(),
        KvDtype::Bf16 => bf16::NAN.to_le_bytes().into(),
        KvDtype::Fp8E4m3 => vec![0x7f],
    }
}

/// One sequence, all of whose keys and values are in the cache.
struct Sequence {
    shape: AttentionUnit,
    len: usize,
    pages: Vec<u32>,
    pool: Vec<u8>,
    /// K, then V: `[token, kv head, column]`
    values: [Vec<f32>; 2],
    /// `[token, ld]`
    proj: Vec<f32>,
    ld: usize,
}

impl Sequence {
    /// Heads and key/value heads, their width, tokens of a page.
    fn new(
        heads: [usize; 2],
        head_dim: usize,
        page_size: usize,
        kv: KvDtype,
        gated: bool,
        len: usize,
    ) -> Sequence {
        let shape = AttentionUnit {
            num_heads: heads[0],
            num_kv_heads: heads[1],
            head_dim,
            rotary_dim: 8,
            gated,
            layers: 2,
            page_size,
            kv_dtype: kv,
            offset_bits: None,
        };
        let count = len.div_ceil(page_size);
        // every other page, backwards
        let pages = (0..count).map(|i| 2 * (count - i) as u32 - 1).collect();
        let ld = ((heads[0] * (1 + usize::from(gated)) + 2 * heads[1]) * head_dim).next_multiple_of(32);
        // peaked scores
        let proj = floats(9, len * ld).into_iter().map(|x| x * 8.0).collect();
        let size = kv.size();
        // what was never written is NaN in every type
        let pool = vec![0xff; 2 * count * 2 * 2 * heads[1] * page_size * head_dim * size];
        let mut all = Sequence { shape, len, pages, pool, values: Default::default(), proj, ld };
        for which in 0..2 {
            for (i, word) in words(10 + which as u64, len * heads[1] * head_dim).into_iter().enumerate() {
                let (x, bytes) = number(kv, word);
                all.values[which].push(x);
                let at = all.place(which, i);
                all.pool[at..at + size].copy_from_slice(&bytes);
            }
        }
        all
    }
    /// Where element `i` of K or V lies in the pool.
    fn place(&self, which: usize, i: usize) -> usize {
        let s = &self.shape;
        let (token, head, column) =
            (i / s.head_dim / s.num_kv_heads, i / s.head_dim % s.num_kv_heads, i % s.head_dim);
        let page = self.pages[token / s.page_size] as usize;
        let entry = ((page * s.layers + LAYER) * 2 + which) * s.num_kv_heads + head;
        ((entry * s.page_size + token % s.page_size) * s.head_dim + column) * s.kv_dtype.size()
    }
    /// The sequence with a NaN in K or V.
    fn with_nan(mut self, which: usize, token: usize, head: usize, column: usize) -> Sequence {
        let at = self.place(which, (token * self.shape.num_kv_heads + head) * self.shape.head_dim + column);
        let nan = nan(self.shape.kv_dtype);
        self.pool[at..at + nan.len()].copy_from_slice(&nan);
        self
    }
    /// The tiles of all devices that this one can run, each once.
    fn tiles(&self, gpu: &dyn Gpu) -> Vec<PrefillTile> {
        let mut all: Vec<PrefillTile> = Vec::new();
        for tile in SHARED.iter().flat_map(|n| self.shape.prefill_tiles((*n).min(gpu.shared_memory()))) {
            if !all.contains(&tile) {
                all.push(tile);
            }
        }
        all
    }

    /// The kernel's rows `[token, heads · width]`, the sequence cut into segments at `cuts`.
    fn attend(&self, gpu: &dyn Gpu, tile: PrefillTile, cuts: &[usize]) -> Vec<f32> {
        let unit = tile.unit(&self.shape);
        let ends: Vec<usize> = cuts.iter().copied().chain([self.len]).collect();
        let starts: Vec<usize> = [0].into_iter().chain(cuts.iter().copied()).collect();
        let ints = |x: &[usize]| put(gpu, &x.iter().map(|n| *n as u32).collect::<Vec<_>>());
        let lens: Vec<usize> = ends.iter().zip(&starts).map(|(e, s)| e - s).collect();
        let width = self.shape.num_heads * self.shape.head_dim;
        let pool = gpu.alloc(self.pool.len()).unwrap();
        gpu.upload(pool, &self.pool).unwrap();
        let out = put_floats(gpu, &vec![-1.0; self.len * width]);
        let pages = self.pages.repeat(starts.len());
        let args = [
            Arg::Ptr(out),
            Arg::Ptr(put_floats(gpu, &self.proj)),
            Arg::Ptr(pool),
            Arg::Ptr(put(gpu, &pages)),
            Arg::Ptr(ints(&starts)),
            Arg::Ptr(ints(&lens)),
            Arg::Ptr(ints(&starts)),
            Arg::U32(self.pages.len() as u32),
            Arg::U32(LAYER as u32),
            Arg::U32(width as u32),
            Arg::U32(self.ld as u32),
        ];
        let smem = tile.smem(&self.shape);
        let rows = lens.iter().max().unwrap().div_ceil(tile.rows());
        let grid = [self.shape.num_heads, rows, starts.len()].map(|n| n as u32);
        let launch = Launch { grid, block: tile.warps as u32 * 32, smem, join: Join::Plain };
        let kernel = gpu.kernel(&unit, "attend_prefill", smem).unwrap();
        gpu.launch(kernel, launch, &args).unwrap();
        gpu.synchronize().unwrap();
        get_floats(gpu, out, self.len * width)
    }

    /// What it should be, in f64.
    fn expected(&self) -> Vec<f64> {
        let s = &self.shape;
        let (d, stride) = (s.head_dim, s.head_dim * (1 + usize::from(s.gated)));
        let mut all = Vec::new();
        for token in 0..self.len {
            for head in 0..s.num_heads {
                let q = &self.proj[token * self.ld + head * stride..][..stride];
                let at = |which: usize, t: usize| {
                    let i = (t * s.num_kv_heads + head * s.num_kv_heads / s.num_heads) * d;
                    &self.values[which][i..i + d]
                };
                let dot = |t| q.iter().zip(at(0, t)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                let scores: Vec<f64> = (0..=token).map(|t| dot(t) / (d as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::MIN, f64::max);
                let p: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
                for column in 0..d {
                    let o: f64 = p.iter().enumerate().map(|(t, p)| p * f64::from(at(1, t)[column])).sum();
                    let gate = if s.gated { 1.0 / (1.0 + (-f64::from(q[d + column])).exp()) } else { 1.0 };
                    all.push(o / p.iter().sum::<f64>() * gate);
                }
            }
        }
        all
    }
}

fn bits(x: Vec<f32>) -> Vec<u32> {
    x.into_iter().map(f32::to_bits).collect()
}

#[test]
fn long_prompts_are_attended_to_16_bits_wherever_they_are_cut() {
    let Some(gpu) = device() else { return };
    for (heads, head_dim, page, kv, gated, len) in [
        ([2, 1], 256, 16, KvDtype::Bf16, true, 300),
        ([1, 1], 256, 48, KvDtype::F32, true, 140),
        ([1, 1], 256, 64, KvDtype::Fp8E4m3, true, 140),
        ([6, 2], 24, 7, KvDtype::F32, false, 130),
        ([3, 3], 88, 1, KvDtype::Bf16, true, 65),
        ([2, 1], 8, 16, KvDtype::Fp8E4m3, true, 300),
    ] {
        let sequence = Sequence::new(heads, head_dim, page, kv, gated, len);
        let expected = sequence.expected();
        let mut of_keys: Vec<(usize, Vec<u32>)> = Vec::new();
        for tile in sequence.tiles(&*gpu) {
            let what = format!("{heads:?} heads of {head_dim}, page {page}, {kv:?}, {tile:?}");
            let got = sequence.attend(&*gpu, tile, &[]);
            let worst = got.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
            println!("{what}: largest difference {worst:.1e}");
            assert!(
                got.iter().zip(&expected).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4),
                "{what}: {worst}"
            );
            let got = bits(got);
            for cuts in [&[1][..], &[17, 63, 64]] {
                assert!(got == bits(sequence.attend(&*gpu, tile, cuts)), "{what}, cut at {cuts:?}");
            }
            if let Some((_, other)) = of_keys.iter().find(|(keys, _)| *keys == tile.keys) {
                assert!(*other == got, "{what}: bits of their own");
            }
            of_keys.push((tile.keys, got));
        }
    }
}

#[test]
fn a_key_or_value_that_is_not_finite_reaches_the_rows_that_see_it_and_no_other() {
    let Some(gpu) = device() else { return };
    for kv in KvDtype::ALL {
        let sequence = || Sequence::new([4, 2], 24, 16, kv, true, 150);
        let tile = sequence().tiles(&*gpu)[0];
        let sound = sequence().attend(&*gpu, tile, &[]);
        for which in 0..2 {
            let spoilt = sequence().with_nan(which, 70, 1, 5);
            for cuts in [&[][..], &[64], &[71, 140]] {
                let got = spoilt.attend(&*gpu, tile, cuts);
                for (i, (got, sound)) in got.iter().zip(&sound).enumerate() {
                    let (token, head) = (i / 24 / 4, i / 24 % 4);
                    let lost = token >= 70 && head / 2 == 1;
                    let right = if lost { got.is_nan() } else { got.to_bits() == sound.to_bits() };
                    assert!(
                        right,
                        "{kv:?}, tensor {which}, cut at {cuts:?}, token {token}, head {head}: {got}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_tile_fits_every_device_and_the_bits_of_one_do_not_depend_on_the_prompt() {
    for head_dim in (8..=256).step_by(8) {
        for kv in KvDtype::ALL {
            let shape = Sequence::new([1, 1], head_dim, 16, kv, true, 1).shape;
            for shared in SHARED {
                let tiles = shape.prefill_tiles(shared);
                assert!(
                    !tiles.is_empty() && tiles.iter().all(|t| t.smem(&shape) <= shared),
                    "{head_dim}, {kv:?}"
                );
                assert!(tiles.iter().all(|t| t.keys == tiles[0].keys), "{head_dim}, {kv:?}: {tiles:?}");
            }
            assert!(shape.prefill_tiles(1 << 10).is_empty());
        }
    }
}
