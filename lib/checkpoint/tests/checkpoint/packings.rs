//! Every way in which one matrix may be packed: names, shapes and dtypes of its scales, and what is announced of it.

use cute_checkpoint::weight::{e2m1, e4m3, e8m0};
use cute_checkpoint::{Checkpoint, Format};
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// The matrix that is packed, and its extents.
const MODULE: &str = "model.layers.0.mlp.up_proj";
const N: usize = 96;
const K: usize = 48;

type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// Codes that use all of a byte but e4m3's NaN.
fn code(i: usize) -> u8 {
    let code = (i * 37 % 251) as u8;
    if code & 0x7f == 0x7f { 0x11 } else { code }
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// A plain checkpoint in which one matrix was replaced by `parts`, named by the end of their names.
fn packed(parts: &[(&str, Stored)], config: Value, modelopt: Option<Value>) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/bf16");
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let mut tensors: BTreeMap<String, Stored> = SafeTensors::deserialize(&bytes)
        .unwrap()
        .iter()
        .map(|(n, t)| (n.to_owned(), (t.dtype(), t.shape().to_vec(), t.data().to_vec())))
        .collect();
    assert_eq!(tensors.remove(&format!("{MODULE}.weight")).unwrap().1, [N, K]);
    tensors.extend(parts.iter().map(|(end, t)| (format!("{MODULE}.{end}"), t.clone())));
    let dir = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(dir.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    let mut all: Value = serde_json::from_slice(&std::fs::read(from.join("config.json")).unwrap()).unwrap();
    if !config.is_null() {
        all["quantization_config"] = config;
    }
    std::fs::write(dir.path().join("config.json"), all.to_string()).unwrap();
    if let Some(modelopt) = modelopt {
        std::fs::write(dir.path().join("hf_quant_config.json"), modelopt.to_string()).unwrap();
    }
    dir
}

/// Opens, and compares every value with a formula.
fn check(dir: &TempDir, format: Format, value: impl Fn(usize, usize) -> f32) {
    let c = Checkpoint::open(dir.path()).unwrap();
    let w = c.weight("layers.0.mlp.up_proj.weight").unwrap();
    let values = w.to_f32();
    assert_eq!(w.shape(), [N, K]);
    for (i, x) in values.iter().enumerate() {
        assert_eq!(*x, value(i / K, i % K), "[{}, {}]", i / K, i % K);
    }
    let model = c.model(Vec::new(), None, Default::default());
    let groups: Vec<&str> =
        model.formats.iter().filter(|f| f.module == "mlp").map(|f| f.format.as_str()).collect();
    assert_eq!(groups, ["bf16", format.name()]);
}

fn codes8() -> (&'static str, Stored) {
    ("weight", (Dtype::F8_E4M3, vec![N, K], (0..N * K).map(code).collect()))
}

fn value8(n: usize, k: usize) -> f32 {
    e4m3(code(n * K + k))
}

fn hugging_face(block: Value) -> Value {
    json!({"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": block})
}

fn modelopt(algo: &str) -> Value {
    json!({"quant_method": "modelopt", "quant_algo": algo, "kv_cache_scheme": {"num_bits": 8, "type": "float"}})
}

fn compressed(weights: Value) -> Value {
    json!({
        "quant_method": "compressed-tensors", "quantization_status": "compressed", "sparsity_config": {},
        "transform_config": {}, "kv_cache_scheme": null, "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "output_activations": null}},
    })
}

#[test]
fn scales_of_blocks_may_be_floats_or_bare_exponents() {
    // 96 × 48 in blocks of 40 × 32: three by two, none of them whole at the ends
    let scales = [0.5, 3.0, 0.25, 7.0, 1.5, 0.125];
    let at = |n: usize, k: usize| n / 40 * 2 + k / 32;
    let bf16: Vec<u8> = scales.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect();
    let exponents: Vec<u8> = vec![127, 120, 130, 1, 0, 140];
    let tensor = |dtype, bytes| ("weight_scale_inv", (dtype, vec![3, 2], bytes));
    for scale in [tensor(Dtype::BF16, bf16), tensor(Dtype::F32, f32s(&scales))] {
        let dir = packed(&[codes8(), scale], hugging_face(json!([40, 32])), None);
        check(&dir, Format::Fp8Block, |n, k| value8(n, k) * scales[at(n, k)]);
    }
    for dtype in [Dtype::U8, Dtype::F8_E8M0] {
        let dir = packed(&[codes8(), tensor(dtype, exponents.clone())], hugging_face(json!([40, 32])), None);
        check(&dir, Format::Fp8Block, |n, k| value8(n, k) * e8m0(exponents[at(n, k)]));
    }
    // compressed-tensors and ModelOpt have blocks as well, under another name; ModelOpt's of four dimensions
    let block = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [40, 32]});
    let scale = ("weight_scale", (Dtype::F32, vec![3, 2], f32s(&scales)));
    let dir = packed(&[codes8(), scale], compressed(block), None);
    check(&dir, Format::Fp8Block, |n, k| value8(n, k) * scales[at(n, k)]);
    let scale = ("weight_scale", (Dtype::F32, vec![1, 1, 1, 1], f32s(&[0.3])));
    let dir = packed(&[codes8(), scale], modelopt("FP8_PB_WO"), None);
    check(&dir, Format::Fp8Block, |n, k| value8(n, k) * 0.3);
}

#[test]
fn one_scale_for_a_matrix_or_one_an_output() {
    let one = ("weight_scale", (Dtype::F32, vec![], f32s(&[0.007])));
    let input = ("input_scale", (Dtype::F32, vec![], f32s(&[0.5])));
    let tensor = json!({"num_bits": 8, "type": "float", "strategy": "tensor"});
    for config in [modelopt("FP8"), hugging_face(Value::Null), compressed(tensor)] {
        let dir = packed(&[codes8(), one.clone(), input.clone()], config, None);
        check(&dir, Format::Fp8Tensor, |n, k| value8(n, k) * 0.007);
        let skipped = Checkpoint::open(dir.path()).unwrap().skipped().clone();
        assert_eq!(json!(skipped), json!({"activation_scales": 1}));
    }
    let scales: Vec<f32> = (0..N).map(|n| 0.01 * (n + 1) as f32).collect();
    let channel = json!({"num_bits": 8, "type": "float", "strategy": "channel"});
    for shape in [vec![N, 1], vec![N]] {
        for config in [modelopt("FP8_PER_CHANNEL_PER_TOKEN"), compressed(channel.clone())] {
            let scale = ("weight_scale", (Dtype::F32, shape.clone(), f32s(&scales)));
            let dir = packed(&[codes8(), scale], config, None);
            check(&dir, Format::Fp8Channel, |n, k| value8(n, k) * scales[n]);
        }
    }
}

#[test]
fn four_bits_multiply_for_modelopt_and_divide_for_compressed_tensors() {
    let codes: Vec<u8> = (0..N * K / 2).map(|i| (i * 89 % 256) as u8).collect();
    let scales: Vec<u8> = (0..N * K / 16).map(|i| (i * 5 % 0x7f) as u8).collect();
    let global = 0.013f32;
    let parts = |weight, scale_name, global_name, shape: Vec<usize>| {
        [
            (weight, (Dtype::U8, vec![N, K / 2], codes.clone())),
            (scale_name, (Dtype::F8_E4M3, vec![N, K / 16], scales.clone())),
            (global_name, (Dtype::F32, shape, f32s(&[global]))),
        ]
    };
    let value = |n: usize, k: usize| {
        let byte = codes[n * K / 2 + k / 2];
        e2m1(if k.is_multiple_of(2) { byte & 15 } else { byte >> 4 }) * e4m3(scales[n * K / 16 + k / 16])
    };
    let times = |n, k| value(n, k) * global;
    for (algo, shape) in [("NVFP4", vec![]), ("W4A16_NVFP4", vec![1])] {
        let modelopt_parts = parts("weight", "weight_scale", "weight_scale_2", shape);
        check(&packed(&modelopt_parts, modelopt(algo), None), Format::Nvfp4, times);
        // hf_quant_config.json says it alone, or both say the same
        let alone =
            json!({"quantization": {"quant_algo": algo, "group_size": 16, "exclude_modules": ["lm_head"]}});
        check(&packed(&modelopt_parts, Value::Null, Some(alone.clone())), Format::Nvfp4, times);
        check(&packed(&modelopt_parts, modelopt(algo), Some(alone)), Format::Nvfp4, times);
    }
    let group = json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16});
    let dir = packed(
        &parts("weight_packed", "weight_scale", "weight_global_scale", vec![1]),
        compressed(group),
        None,
    );
    check(&dir, Format::Nvfp4, |n, k| value(n, k) / global);
}

#[test]
fn whether_weights_are_packed_is_seen_in_the_tensors_whatever_the_status_says() {
    let scale = ("weight_scale", (Dtype::F32, vec![1], f32s(&[2.0])));
    for status in ["compressed", "frozen", "initialized"] {
        let mut config = compressed(json!({"num_bits": 8, "type": "float", "strategy": "tensor"}));
        config["quantization_status"] = json!(status);
        let dir = packed(&[codes8(), scale.clone()], config.clone(), None);
        check(&dir, Format::Fp8Tensor, |n, k| 2.0 * value8(n, k));
        let plain = ("weight", (Dtype::BF16, vec![N, K], vec![0; 2 * N * K]));
        let error = Checkpoint::open(packed(&[plain], config, None).path()).unwrap_err().to_string();
        assert!(error.ends_with("quantisation compressed is announced: no tensor is packed"), "{error}");
    }
}

#[test]
fn a_scan_finds_scales_that_no_quantiser_writes() {
    // blocks of 40 × 32: three by two; all codes of the first and of the last are zero
    let zero = |n: usize, k: usize| (n < 40 && k < 32) || (n >= 80 && k >= 32);
    let codes: Vec<u8> = (0..N * K).map(|i| if zero(i / K, i % K) { 0x80 } else { 0x38 }).collect();
    let scan = |scales: [f32; 6]| {
        let parts = [
            ("weight", (Dtype::F8_E4M3, vec![N, K], codes.clone())),
            ("weight_scale_inv", (Dtype::F32, vec![3, 2], f32s(&scales))),
        ];
        let dir = packed(&parts, hugging_face(json!([40, 32])), None);
        Checkpoint::open(dir.path()).unwrap().scan(|_| ()).unwrap()
    };
    let name = "layers.0.mlp.up_proj.weight_scale_inv";
    assert_eq!(scan([0.0, 1.0, 2.0, 3.0, 4.0, 0.0]), Default::default());
    let found = scan([0.0, 0.0, -1.0, f32::NAN, 0.0, -0.0]);
    assert_eq!(json!([found.scales, found.non_finite]), json!([{name: 3}, {name: 1}]));

    let (mut parts, _) = halves_and_ones();
    // zero by underflow, minus zero, negative, negative, NaN
    parts[1].1.2[..5].copy_from_slice(&[0, 0x80, 0x81, 0xb8, 0xff]);
    let dir = packed(&parts, modelopt("NVFP4"), None);
    let found = Checkpoint::open(dir.path()).unwrap().scan(|_| ()).unwrap();
    let name = "layers.0.mlp.up_proj.weight_scale";
    assert_eq!(json!([found.scales, found.non_finite]), json!([{name: 2}, {name: 1}]));
}

/// What a value is by its output and input.
type Formula = fn(usize, usize) -> f32;

/// ModelOpt's NVFP4 of 0.5 and 1, one after the other, and their formula.
fn halves_and_ones() -> ([(&'static str, Stored); 3], Formula) {
    // 0x21: low 1 is 0.5, high 2 is 1
    let parts = [
        ("weight", (Dtype::U8, vec![N, K / 2], vec![0x21; N * K / 2])),
        ("weight_scale", (Dtype::F8_E4M3, vec![N, K / 16], vec![0x38; N * K / 16])),
        ("weight_scale_2", (Dtype::F32, vec![], f32s(&[1.0]))),
    ];
    (parts, |_, k| if k.is_multiple_of(2) { 0.5 } else { 1.0 })
}

#[test]
fn the_modules_of_mixed_precision_stand_in_either_file_and_those_of_skipped_towers_may_be_anything() {
    let (parts, value) = halves_and_ones();
    let layers = json!({
        MODULE: {"quant_algo": "NVFP4", "group_size": 16},
        "mtp.layers.0.mlp.experts": {"quant_algo": "FP8_BLOCK_SCALES", "group_size": 128},
        "model.visual.blocks.0.attn.qkv": {"quant_algo": "MXFP8", "group_size": 32},
        "model.visual*": {"quant_algo": "MXFP8"},
    });
    let with = |layers: &Value| {
        let mut q = modelopt("MIXED_PRECISION");
        q["quantized_layers"] = layers.clone();
        q
    };
    let file = |layers: &Value| Some(json!({"quantization": with(layers)}));
    let nothing = Value::Null;
    for (config, other) in [
        (with(&layers), None),
        (with(&layers), file(&nothing)),
        (with(&nothing), file(&layers)),
        (nothing.clone(), file(&layers)),
    ] {
        check(&packed(&parts, config, other), Format::Nvfp4, value);
    }
    let refused = |config: Value, other: Option<Value>, want: &str| {
        let error = Checkpoint::open(packed(&parts, config, other).path()).unwrap_err().to_string();
        assert!(error.ends_with(want), "{error}");
    };
    let want = "quantized_layers: expected an algorithm for each packed module";
    refused(with(&nothing), None, &format!("config.json: no quantization_config.{want}"));
    refused(nothing.clone(), file(&nothing), &format!("hf_quant_config.json: no quantization.{want}"));
    refused(with(&nothing), file(&nothing), &format!("config.json: no quantization_config.{want}"));
    let unread = json!({"model.layers.1.mlp": {"quant_algo": "MXFP8"}});
    refused(with(&unread), None, "block FP8, ModelOpt and compressed-tensors FP8 and NVFP4");
}

#[test]
fn a_module_listed_by_what_holds_it_is_listed() {
    let (parts, value) = halves_and_ones();
    let config = |module: &str| {
        let mut q = modelopt("MIXED_PRECISION");
        q["quantized_layers"] = json!({module: {"quant_algo": "NVFP4", "group_size": 16}});
        q
    };
    for module in [MODULE, "model.layers.0.mlp", "model.language_model.layers.0.mlp.up_proj", "*.mlp.up_proj"]
    {
        check(&packed(&parts, config(module), None), Format::Nvfp4, value);
    }
    let error = Checkpoint::open(packed(&parts, config("model.layers.1.mlp"), None).path()).unwrap_err();
    assert!(error.to_string().ends_with("quantized_layers does not list the module"), "{error}");
}
