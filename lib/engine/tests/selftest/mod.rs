//! `kernels/selftest.cu` on any device, compared with plain loops: the same claims hold for a GPU and for its emulation.
#![allow(dead_code)] // each test binary uses what it needs

use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::gpu::{Arg, Join, Launch, Ptr, Unit};
use half::{bf16, f16};

/// The unit of all kernels here.
pub fn unit() -> Unit {
    Unit { file: "selftest.cu", defines: vec![] }
}

/// A fixed sequence of words.
pub fn words(seed: u64, n: usize) -> Vec<u32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 32) as u32
    };
    (0..n).map(|_| next()).collect()
}

/// A fixed sequence of floats within ±1.
pub fn floats(seed: u64, n: usize) -> Vec<f32> {
    words(seed, n).into_iter().map(|w| (w >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// A buffer with these words.
pub fn put(gpu: &dyn Gpu, words: &[u32]) -> Ptr {
    let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
    let at = gpu.alloc(bytes.len()).unwrap();
    gpu.upload(at, &bytes).unwrap();
    at
}

/// A buffer with these floats.
pub fn put_floats(gpu: &dyn Gpu, floats: &[f32]) -> Ptr {
    put(gpu, &floats.iter().map(|f| f.to_bits()).collect::<Vec<_>>())
}

/// The first `n` words of a buffer.
pub fn get(gpu: &dyn Gpu, at: Ptr, n: usize) -> Vec<u32> {
    let mut bytes = vec![0; n * 4];
    gpu.download(&mut bytes, at).unwrap();
    bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The first `n` floats of a buffer.
pub fn get_floats(gpu: &dyn Gpu, at: Ptr, n: usize) -> Vec<f32> {
    get(gpu, at, n).into_iter().map(f32::from_bits).collect()
}

/// A plain launch of a kernel of the self-test.
pub fn launch(gpu: &dyn Gpu, name: &str, blocks: u32, block: u32, smem: u32, args: &[Arg]) {
    let kernel = gpu.kernel(&unit(), name, smem).unwrap();
    let launch = Launch { grid: [blocks, 1, 1], block, smem, join: Join::Plain };
    gpu.launch(kernel, launch, args).unwrap();
}

/// Shuffles, votes and sums of a warp.
pub fn exchanges_of_a_warp(gpu: &dyn Gpu) {
    let x = words(1, 32);
    let (input, out) = (put(gpu, &x), gpu.alloc(16 * 32 * 4).unwrap());
    launch(gpu, "selftest_warp", 1, 32, 0, &[Arg::Ptr(out), Arg::Ptr(input)]);
    let got = get(gpu, out, 16 * 32);
    let f: Vec<f32> = x.iter().map(|w| (w & 0xffff) as f32).collect();
    let ballot = x.iter().enumerate().map(|(i, w)| (w & 1) << i).sum();
    let or_own = |i: usize, from: usize, inside: bool| x[if inside { from } else { i }];
    for i in 0..32 {
        let expected = [
            x[i ^ 5],
            or_own(i, i + 3, i + 3 < 32),
            or_own(i, i.wrapping_sub(7), i >= 7),
            x[9],
            x[(i * 7 + 3) % 32],
            or_own(i, i ^ 12, i & 8 != 0),
            or_own(i, i + 3, i % 8 + 3 < 8),
            or_own(i, i.wrapping_sub(3), i % 16 >= 3),
            x[i / 4 * 4 + 1],
            f[i ^ 16].to_bits(),
            if i == 0 { -31 } else { -(i as i32) } as u32,
            ballot,
            1,
            2,
            f.iter().sum::<f32>().to_bits(), // small integers: every order gives the same
            f.iter().copied().fold(0.0, f32::max).to_bits(),
        ];
        for (k, want) in expected.into_iter().enumerate() {
            assert_eq!(got[k * 32 + i], want, "exchange {k}, lane {i}");
        }
    }
}

/// Floats whose rounding is worth a look: around every e4m3 and many bf16 values, and the special ones.
fn awkward_floats() -> Vec<f32> {
    let special =
        [0.0, f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, 448.0, 464.0, 480.0, 1e9];
    let mut all: Vec<f32> = special.to_vec();
    for code in 0..0x7fu8 {
        let (a, b) = (e4m3(code), e4m3((code + 1).min(0x7e)));
        for x in [a, b, a + (b - a) / 2.0, a + (b - a) / 4.0] {
            all.extend([x, f32::from_bits(x.to_bits().wrapping_sub(1)), f32::from_bits(x.to_bits() + 1)]);
        }
    }
    all.extend(words(2, 4096).into_iter().map(f32::from_bits));
    all.extend(words(3, 2048).into_iter().map(|w| f32::from_bits(w & 0xffff_0000 | 0x8000)));
    all.extend(floats(4, 2048).into_iter().map(|x| x * 500.0));
    let negative: Vec<f32> = all.iter().map(|x| -x).collect();
    all.extend(negative);
    all
}

/// The value of an e4m3 code below 0x7f.
pub fn e4m3(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
    if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) }
}

/// The e4m3 code nearest to `x`, even codes at ties, largest values kept, NaN 0x7f.
fn nearest_e4m3(x: f32) -> u8 {
    if x.is_nan() {
        return 0x7f;
    }
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let size = f64::from(x.abs().min(1e6));
    let distance = |code: u8| (f64::from(e4m3(code)) - size).abs();
    let best = (0..=0x7e).min_by(|a, b| distance(*a).total_cmp(&distance(*b)).then((a & 1).cmp(&(b & 1))));
    sign | best.unwrap()
}

/// Rounding to bf16 and to e4m3.
pub fn floats_are_packed_to_the_nearest(gpu: &dyn Gpu) {
    let x = awkward_floats();
    let n = x.len() / 2;
    let input = put_floats(gpu, &x);
    let (to_bf16, to_e4m3) = (gpu.alloc(n * 4).unwrap(), gpu.alloc(n * 4).unwrap());
    let args = [Arg::Ptr(to_bf16), Arg::Ptr(to_e4m3), Arg::Ptr(input), Arg::U32(n as u32)];
    launch(gpu, "selftest_pack", n.div_ceil(256) as u32, 256, 0, &args);
    let (got_bf16, got_e4m3) = (get(gpu, to_bf16, n), get(gpu, to_e4m3, n));
    for (i, &x) in x[..2 * n].iter().enumerate() {
        let got = bf16::from_bits((got_bf16[i / 2] >> (16 * (i % 2))) as u16);
        let want = bf16::from_f32(x);
        assert!(
            got.to_bits() == want.to_bits() || x.is_nan() && got.is_nan(),
            "{x:e} to bf16: {got} for {want}"
        );
        let got = (got_e4m3[i / 2] >> (8 * (i % 2))) as u8;
        assert_eq!(got, nearest_e4m3(x), "{x:e} ({:#x}) to e4m3", x.to_bits());
        assert!(got_e4m3[i / 2] <= 0xffff);
    }
}

/// Every e4m3 code to f16 and back, every f16 to f32.
pub fn small_floats_are_unpacked_exactly(gpu: &dyn Gpu) {
    let (to_f16, to_f32) = (gpu.alloc(65536 * 4).unwrap(), gpu.alloc(65536 * 4).unwrap());
    launch(gpu, "selftest_unpack", 256, 256, 0, &[Arg::Ptr(to_f16), Arg::Ptr(to_f32)]);
    let (got_f16, got_f32) = (get(gpu, to_f16, 65536), get_floats(gpu, to_f32, 65536));
    for i in 0..65536u32 {
        let want = f16::from_bits(i as u16).to_f32();
        let got = got_f32[i as usize];
        assert!(
            got.to_bits() == want.to_bits() || want.is_nan() && got.is_nan(),
            "f16 {i:#x}: {got} for {want}"
        );
        for half in 0..2 {
            let code = (i >> (8 * half)) as u8;
            let got = f16::from_bits((got_f16[i as usize] >> (16 * half)) as u16).to_f32();
            let want = if code & 0x7f == 0x7f { f32::NAN } else { e4m3(code & 0x7f) };
            let want = if code & 0x80 == 0 { want } else { -want };
            assert!(got.to_bits() == want.to_bits() || want.is_nan() && got.is_nan(), "e4m3 {code:#x}");
            assert!(want.is_nan() || nearest_e4m3(want) == code);
        }
    }
}

/// A product of tensor cores, its operands through `ldmatrix`. Integers, so that every order of the sum is exact.
pub fn a_tensor_core_multiplies(gpu: &dyn Gpu) {
    for seed in 0..8 {
        let small =
            |seed, n| words(seed, n).into_iter().map(|w| (w % 65) as f32 - 32.0).collect::<Vec<f32>>();
        let (a, b, c) = (small(3 * seed, 256), small(3 * seed + 1, 128), small(3 * seed + 2, 128));
        let pairs = |x: &[f32]| -> Vec<u32> {
            let bits = |x| u32::from(bf16::from_f32(x).to_bits());
            x.chunks_exact(2).map(|p| bits(p[0]) | bits(p[1]) << 16).collect()
        };
        let d = gpu.alloc(128 * 4).unwrap();
        let args = [
            Arg::Ptr(d),
            Arg::Ptr(put_floats(gpu, &c)),
            Arg::Ptr(put(gpu, &pairs(&a))),
            Arg::Ptr(put(gpu, &pairs(&b))),
        ];
        launch(gpu, "selftest_mma", 1, 32, 512, &args);
        let got = get_floats(gpu, d, 128);
        for row in 0..16 {
            for column in 0..8 {
                let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[column * 16 + k]).sum();
                let want = c[row * 8 + column] + sum;
                assert_eq!(got[row * 8 + column], want, "row {row}, column {column}, seed {seed}");
            }
        }
    }
}

/// Matrices from shared memory, rows in an order of their own.
pub fn matrices_come_in_fragments(gpu: &dyn Gpu) {
    let rows = words(5, 32 * 4);
    let (input, out) = (put(gpu, &rows), gpu.alloc(1024).unwrap());
    launch(gpu, "selftest_ldmatrix", 1, 32, 512, &[Arg::Ptr(out), Arg::Ptr(input)]);
    let got = get(gpu, out, 256);
    for lane in 0..32 {
        for m in 0..4 {
            let row = |i: usize| &rows[(m * 8 + i) * 5 % 32 * 4..][..4];
            let (i, j) = (lane / 4, lane % 4);
            assert_eq!(got[lane * 4 + m], row(i)[j], "lane {lane}, matrix {m}");
            let element = |r: usize| row(r)[i / 2] >> (i % 2 * 16) & 0xffff;
            let pair = element(2 * j) | element(2 * j + 1) << 16;
            assert_eq!(got[128 + lane * 4 + m], pair, "lane {lane}, matrix {m}, transposed");
        }
    }
}

/// A ring of asynchronous copies.
pub fn copies_arrive_in_their_order(gpu: &dyn Gpu) {
    for n in [1, 2, 3, 10] {
        let data = words(6, n * 128);
        let (input, out) = (put(gpu, &data), gpu.alloc(n * 512).unwrap());
        let args = [Arg::Ptr(out), Arg::Ptr(input), Arg::U32(n as u32)];
        launch(gpu, "selftest_copy", 1, 32, 3 * 512, &args);
        let got = get(gpu, out, n * 128);
        for (i, piece) in got.chunks_exact(4).enumerate() {
            let from = i / 32 * 32 + 31 - i % 32;
            assert_eq!(piece, &data[from * 4..from * 4 + 4], "piece {i} of {n} rounds");
        }
    }
}

/// A ring of bulk copies between barriers.
pub fn bulk_copies_arrive_at_their_barriers(gpu: &dyn Gpu) {
    for n in [1, 2, 3, 9] {
        let data = words(8, n * 256);
        let (input, out) = (put(gpu, &data), gpu.alloc(n * 1024).unwrap());
        let args = [Arg::Ptr(out), Arg::Ptr(input), Arg::U32(n as u32)];
        launch(gpu, "selftest_bulk", 1, 64, 32 + 2 * 1024, &args);
        assert_eq!(get(gpu, out, n * 256), data, "{n} pieces");
    }
}

/// Sums over blocks.
pub fn a_block_adds_up(gpu: &dyn Gpu) {
    let x: Vec<f32> = words(7, 5 * 256).into_iter().map(|w| (w % 1000) as f32).collect();
    let (input, out) = (put_floats(gpu, &x), gpu.alloc(5 * 4).unwrap());
    launch(gpu, "selftest_block_sum", 5, 256, 32, &[Arg::Ptr(out), Arg::Ptr(input)]);
    let want: Vec<f32> = x.chunks_exact(256).map(|c| c.iter().sum()).collect();
    assert_eq!(get_floats(gpu, out, 5), want);
}

/// Rounds of all blocks with a barrier of the grid between them.
pub fn a_grid_meets_at_its_barrier(gpu: &dyn Gpu) {
    let kernel = gpu.kernel(&unit(), "selftest_grid", 0).unwrap();
    let blocks = gpu.occupancy(kernel, 256, 0).unwrap().min(2) * gpu.multiprocessors();
    let mut values = words(8, blocks as usize);
    let state = put(gpu, &[values.clone(), vec![0; blocks as usize]].concat());
    let count = put(gpu, &[0]);
    let launch = Launch { grid: [blocks, 1, 1], block: 256, smem: 0, join: Join::Cooperative };
    gpu.launch(kernel, launch, &[Arg::Ptr(state), Arg::Ptr(count), Arg::U32(4)]).unwrap();
    for _ in 0..4 {
        let sum = (1..).zip(&values).fold(0u32, |sum, (b, v)| sum.wrapping_add(v.wrapping_mul(b)));
        values = (0..blocks).map(|b| sum.wrapping_add(b)).collect();
    }
    assert_eq!(get(gpu, state, blocks as usize), values);
    assert_eq!(get(gpu, count, 1), [4 * blocks]);
}

/// Atomic operations of many threads on the same cells.
pub fn no_atomic_change_is_lost(gpu: &dyn Gpu) {
    let out = put(gpu, &[0, 0, -5000i32 as u32, 0, 0, 0, 0, 0]);
    let sum = put_floats(gpu, &[0.0]);
    let wide = put(gpu, &[7, 0, 0, 0]);
    launch(gpu, "selftest_atomics", 5, 64, 0, &[Arg::Ptr(out), Arg::Ptr(sum), Arg::Ptr(wide)]);
    let n = 320u32;
    let largest = (0..n).map(|i| i ^ 21).max().unwrap();
    let want = [n * (n - 1) / 2, largest, (n as i32 - 1 - 1000) as u32, -(n as i32) as u32, 1, 1, 2 * n, 0];
    assert_eq!(get(gpu, out, 8), want);
    assert_eq!(get_floats(gpu, sum, 1), [n as f32 / 2.0]);
    assert_eq!(get(gpu, wide, 4), [7, n, 0, (n - 1) << 1]);
}

/// Functions of the device within a few units in the last place of the host's.
pub fn functions_are_what_they_are_called(gpu: &dyn Gpu) {
    let mut x = vec![0.5, 1.5, 2.5, -0.5, -1.5, 3e9, -3e9, 0.0, 20.0, 20.5, 25.0, -87.0, 80.0];
    x.extend(floats(9, 500).iter().map(|v| v * 10.0));
    x.push(f32::NAN);
    let n = x.len();
    let (input, out) = (put_floats(gpu, &x), gpu.alloc(8 * n * 4).unwrap());
    let args = [Arg::Ptr(out), Arg::Ptr(input), Arg::U32(n as u32)];
    launch(gpu, "selftest_math", n.div_ceil(256) as u32, 256, 0, &args);
    let got = get(gpu, out, 8 * n);
    for (i, &v) in x.iter().enumerate() {
        let wide = f64::from(v);
        assert_eq!(got[i] as i32, v.round_ties_even() as i32, "float2int of {v}");
        let functions: [(&str, f64, f32); 6] = [
            ("rsqrt", 1.0 / wide.sqrt(), 1e-6),
            ("exp", wide.exp(), 1e-6),
            ("softplus", wide.exp().ln_1p(), 1e-6),
            ("silu", wide / (1.0 + (-wide).exp()), 1e-6),
            ("fma", f64::from(v.mul_add(v, -v)), 0.0),
            ("clamp", f64::from(if v.is_nan() { 2.0 } else { v.clamp(-2.0, 2.0) }), 0.0),
        ];
        for (k, (name, want, tolerance)) in functions.into_iter().enumerate() {
            let (got, want) = (f32::from_bits(got[(k + 1) * n + i]), want as f32);
            let near =
                got == want || (got - want).abs() <= tolerance * want.abs() + 1e-37 * tolerance.signum();
            // fminf and fmaxf drop a NaN.
            assert!(near || got.is_nan() && want.is_nan(), "{name} of {v}: {got} for {want}");
        }
        assert_eq!(got[7 * n + i], (i as u32).clamp(7, 100));
    }
}
