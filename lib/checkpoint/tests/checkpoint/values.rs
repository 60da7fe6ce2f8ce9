//! What packed weights are worth, against values that a script computed from the definitions.

use cute_checkpoint::weight::{e2m1, e4m3};
use cute_checkpoint::{Checkpoint, Format, Fp8, GlobalScale, Nvfp4, Weight};
use safetensors::SafeTensors;
use std::path::PathBuf;

fn formats() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/formats"))
}

/// Tensors of the golden file by name.
struct Golden(Vec<u8>);

impl Golden {
    fn read() -> Golden {
        Golden(std::fs::read(formats().join("values.safetensors")).unwrap())
    }
    fn bytes(&self, name: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().data().to_vec()
    }
    fn f32(&self, name: &str) -> Vec<f32> {
        self.bytes(name).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
    fn shape(&self, name: &str) -> [usize; 2] {
        SafeTensors::deserialize(&self.0).unwrap().tensor(name).unwrap().shape().try_into().unwrap()
    }
}

/// Equal bit for bit, the payload of a NaN aside.
fn same(found: &[f32], want: &[f32], what: &str) {
    assert_eq!(found.len(), want.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(want).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
            "{what} {i}: {a:e}, expected {b:e}"
        );
    }
}

#[test]
fn every_code_is_worth_what_its_definition_says() {
    let golden = Golden::read();
    let codes: Vec<f32> = (0..=255).map(e4m3).collect();
    same(&codes, &golden.f32("e4m3"), "e4m3");
    let codes: Vec<f32> = (0..16).map(e2m1).collect();
    same(&codes, &golden.f32("e2m1"), "e2m1");
}

#[test]
fn every_e2m1_code_under_every_scale_and_either_global_scale_is_rounded_once() {
    let golden = Golden::read();
    let (mut subnormal, mut infinite) = (0, 0);
    for i in 0..5 {
        let world = golden.f32(&format!("nvfp4.{i}.global"))[0];
        for (name, global) in
            [("times", GlobalScale::Multiplier(world)), ("over", GlobalScale::Divisor(world))]
        {
            let (shape, codes) = ([256, 16], golden.bytes("nvfp4.codes"));
            let w = Nvfp4 { name: name.into(), shape, codes, scales: (0..=255).collect(), global };
            let values = w.to_f32();
            same(&values, &golden.f32(&format!("nvfp4.{i}.{name}")), &format!("{name} {world:e}"));
            subnormal += values.iter().filter(|x| x.is_subnormal()).count();
            infinite += values.iter().filter(|x| x.is_infinite()).count();
        }
    }
    assert!(subnormal > 100 && infinite > 100, "the edges are reached: {subnormal}, {infinite}");
}

#[test]
fn fp8_by_channel_and_by_block_is_rounded_once() {
    let golden = Golden::read();
    let fp8 = |name: &str, block: [usize; 2]| {
        let of = |part: &str| format!("{name}.{part}");
        let (codes, scales) = (golden.bytes(&of("codes")), golden.f32(&of("scales")));
        Fp8 { name: name.into(), shape: golden.shape(&of("codes")), codes, scales, block }
    };
    let channel = fp8("channel", [1, 256]);
    same(&channel.to_f32(), &golden.f32("channel.values"), "channel");
    assert_eq!(Weight::Fp8(channel).format(), Format::Fp8Channel);
    let block = fp8("block", [128, 128]);
    assert_eq!(block.shape, [130, 257]);
    same(&block.to_f32(), &golden.f32("block.values"), "block");
    assert_eq!(Weight::Fp8(block).format(), Format::Fp8Block);
}

#[test]
fn matrices_packed_by_either_convention_come_out_as_the_script_has_them() {
    let golden = Golden::read();
    for (name, direction) in [
        ("modelopt", GlobalScale::Multiplier as fn(f32) -> GlobalScale),
        ("compressed", GlobalScale::Divisor),
    ] {
        let of = |part: &str| format!("{name}.{part}");
        let [outputs, half] = golden.shape(&of("codes"));
        let w = Nvfp4 {
            name: name.into(),
            shape: [outputs, 2 * half],
            codes: golden.bytes(&of("codes")),
            scales: golden.bytes(&of("scales")),
            global: direction(golden.f32(&of("global"))[0]),
        };
        same(&w.to_f32(), &golden.f32(&of("values")), name);
        let other = match w.global {
            GlobalScale::Multiplier(s) => GlobalScale::Divisor(s),
            GlobalScale::Divisor(s) => GlobalScale::Multiplier(s),
        };
        assert_ne!(Nvfp4 { global: other, ..w.clone() }.to_f32(), w.to_f32(), "the direction shows");
    }
}

/// The values of a stored matrix of 8-bit floats with one BF16 scale a block, by the formula, one at a time.
fn by_formula(
    file: &SafeTensors<'_>,
    codes: &str,
    scales: &str,
    plane: usize,
    block: [usize; 2],
) -> Vec<f32> {
    let codes = file.tensor(codes).unwrap();
    let inputs = *codes.shape().last().unwrap();
    let scale = file.tensor(scales).unwrap();
    let scale: Vec<f32> =
        scale.data().chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    let (down, across) = (plane.div_ceil(block[0]), inputs.div_ceil(block[1]));
    let value = |(i, code): (usize, &u8)| {
        let (row, k) = (i / inputs, i % inputs);
        e4m3(*code) * scale[(row / plane * down + row % plane / block[0]) * across + k / block[1]]
    };
    codes.data().iter().enumerate().map(value).collect()
}

#[test]
fn experts_fused_in_one_tensor_are_its_rows_with_their_own_scales() {
    let dir = formats().join("moe-fp8-fused");
    let c = Checkpoint::open(&dir).unwrap();
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let base = "model.layers.1.mlp.experts";
    // I = 48, H = 64, blocks of 20 × 32: the up half starts within the third block of rows
    let gate_up = by_formula(
        &file,
        &format!("{base}.gate_up_proj"),
        &format!("{base}.gate_up_proj_scale_inv"),
        96,
        [20, 32],
    );
    let down =
        by_formula(&file, &format!("{base}.down_proj"), &format!("{base}.down_proj_scale_inv"), 64, [20, 32]);
    for e in 0..8 {
        let weight = |name: &str| c.weight(&format!("layers.1.mlp.experts.{e}.{name}.weight")).unwrap();
        let (gate, up) = (weight("gate_proj"), weight("up_proj"));
        assert_eq!((gate.shape(), up.shape()), (&[48, 64][..], &[48, 64][..]));
        let at = e * 96 * 64;
        same(&gate.to_f32(), &gate_up[at..at + 48 * 64], "gate");
        same(&up.to_f32(), &gate_up[at + 48 * 64..at + 96 * 64], "up");
        same(&weight("down_proj").to_f32(), &down[e * 64 * 48..(e + 1) * 64 * 48], "down");
    }
}

#[test]
fn interleaved_projections_are_drawn_head_by_head() {
    let dir = formats().join("next-fp8");
    let c = Checkpoint::open(&dir).unwrap();
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.0.linear_attn.in_proj_qkvz.weight";
    // a group of a key head: q 16, k 16, v 2 · 12, z 2 · 12; two key heads
    let all = by_formula(&file, name, &format!("{name}_scale_inv"), 160, [32, 32]);
    let rows = |at: usize, n: usize| all[at * 64..(at + n) * 64].to_vec();
    let qkv = [rows(0, 16), rows(80, 16), rows(16, 16), rows(96, 16), rows(32, 24), rows(112, 24)].concat();
    let weight = |name: &str| c.weight(&format!("layers.0.linear_attn.{name}.weight")).unwrap().to_f32();
    same(&weight("in_proj_qkv"), &qkv, "qkv");
    same(&weight("in_proj_z"), &[rows(56, 24), rows(136, 24)].concat(), "z");
    // b and a: two value heads a group
    let ba = file.tensor("model.layers.0.linear_attn.in_proj_ba.weight").unwrap();
    let ba: Vec<f32> =
        ba.data().chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
    let rows = |at: usize| ba[at * 64..(at + 2) * 64].to_vec();
    same(&weight("in_proj_b"), &[rows(0), rows(4)].concat(), "b");
    same(&weight("in_proj_a"), &[rows(2), rows(6)].concat(), "a");
}
