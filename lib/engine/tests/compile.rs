//! Every kernel compiles for every architecture, without a GPU, and what it needs is printed. Without NVRTC these skip.

use cute_checkpoint::{Config, Moe};
use cute_engine::backend::cuda::Layout;
use cute_engine::backend::cuda::ahead::{Chip, units};
use cute_engine::backend::cuda::compiler::{Compiler, Origin, in_parallel};
use cute_engine::backend::cuda::cubin::{Needs, needs};
use cute_engine::backend::cuda::gpu::Unit;
use cute_engine::backend::cuda::layouts::Layouts;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const ARCHITECTURES: [&str; 4] = ["sm_90a", "sm_100a", "sm_120a", "sm_121a"];

/// Kernels that may use local memory, each with its reason.
const MAY_SPILL: &[&str] = &[];

/// A compiler that keeps its cubins in `cache`, or none, if no NVRTC is named and none is found.
fn compiler(cache: Option<PathBuf>) -> Option<Compiler> {
    let library = std::env::var_os("CUTE_NVRTC").map(PathBuf::from);
    let named = library.is_some();
    let compiler = Compiler::new(library, cache);
    match compiler.nvrtc() {
        Ok(_) => Some(compiler),
        Err(error) if named => panic!("{error}"),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The tiny model, the shapes of a large one and of a large mixture of experts, and a tiny mixture.
fn configs() -> [Config; 4] {
    let file = root().join("examples/tiny-hybrid/config.json");
    let tiny = std::fs::read_to_string(&file).unwrap();
    let tiny = Config::parse(("config.json", tiny.as_bytes()), None).unwrap();
    let large = Config {
        vocab_size: 248_320,
        hidden_size: 5120,
        intermediate_size: 17_408,
        num_hidden_layers: 64,
        layer_types: tiny.layer_types[..4].repeat(16),
        num_attention_heads: 24,
        num_key_value_heads: 4,
        head_dim: 256,
        linear_num_key_heads: 16,
        linear_num_value_heads: 48,
        linear_key_head_dim: 128,
        linear_value_head_dim: 128,
        max_position_embeddings: 262_144,
        tie_word_embeddings: false,
        ..tiny.clone()
    };
    let moe = |num_experts, moe_intermediate_size| Moe {
        num_experts,
        num_experts_per_tok: 8,
        moe_intermediate_size,
        shared_expert_intermediate_size: moe_intermediate_size,
        norm_topk_prob: true,
        sparse: vec![true; 64],
    };
    let experts = Config {
        hidden_size: 2048,
        intermediate_size: 0,
        num_hidden_layers: 40,
        layer_types: tiny.layer_types[..4].repeat(10),
        num_attention_heads: 16,
        num_key_value_heads: 2,
        linear_num_value_heads: 32,
        moe: Some(moe(256, 512)),
        ..large.clone()
    };
    let few = Config { intermediate_size: 0, moe: Some(moe(8, 48)), ..tiny.clone() };
    [tiny, large, experts, few]
}

/// Units of a model whose matrices are packed.
fn units_of(config: &Config, layout: Layout, chip: Chip) -> Vec<Unit> {
    units(config, &Layouts::packed(config, layout), chip)
}

fn probe(block: &str) -> Unit {
    Unit { file: "probe.cu", defines: vec![("BLOCK", block.to_owned())] }
}

#[test]
fn every_unit_compiles_for_every_architecture_and_spills_nothing() {
    let Some(compiler) = compiler(None) else { return };
    let mut jobs: BTreeSet<(Unit, &str)> = BTreeSet::new();
    for arch in ARCHITECTURES {
        let chip = Chip::of(arch);
        let [tiny, large, experts, few] = &configs();
        let plain = |c: &Config| units(c, &Layouts::plain(c), chip);
        // the tiny mixture is the tiny model but for its experts
        let of_experts =
            |unit: &Unit| unit.file == "experts.cu" || unit.defines.iter().any(|d| d.0 == "EXPERTS");
        let few = plain(few).into_iter().filter(of_experts);
        let all = [tiny, large, experts].into_iter().flat_map(plain);
        jobs.extend(all.chain(few).map(|unit| (unit, arch)));
        for layout in [Layout::Fp8, Layout::Nvfp4] {
            // one type of K and V stands for all
            let of_kv =
                |unit: &Unit| unit.defines.iter().all(|(name, value)| *name != "KV_TYPE" || value == "1");
            let units = units_of(large, layout, chip).into_iter().filter(of_kv);
            let experts = units_of(experts, layout, chip).into_iter().filter(of_experts);
            jobs.extend(units.chain(experts).map(|unit| (unit, arch)));
        }
        jobs.insert((probe("256"), arch));
    }
    let jobs: Vec<(Unit, &str)> = jobs.into_iter().collect();
    let done = in_parallel(jobs.len(), |i| {
        let (unit, arch) = &jobs[i];
        compiler.compile(std::slice::from_ref(unit), arch).map(|mut compiled| compiled.remove(0).cubin)
    })
    .unwrap();
    let mut wrong = Vec::new();
    println!("{:>9} {:>9} {:>12} {:>6}  kernel", "arch", "registers", "shared bytes", "stack");
    for ((unit, arch), cubin) in jobs.iter().zip(done) {
        let defines: Vec<String> =
            unit.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let defines = defines.join(" ");
        match cubin.map_err(|e| e.to_string()).and_then(|cubin| needs(&cubin)) {
            Err(error) => wrong.push(error),
            Ok(kernels) if kernels.is_empty() => wrong.push(format!("{} has no kernel", unit.file)),
            Ok(kernels) => {
                for Needs { name, registers, stack, shared, .. } in kernels {
                    println!("{arch:>9} {registers:>9} {shared:>12} {stack:>6}  {name} {defines}");
                    if stack > 0 && !MAY_SPILL.contains(&name.as_str()) {
                        wrong.push(format!(
                            "{name} with {defines} for {arch} uses {stack} bytes of local memory a thread"
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// 128 values a thread are kept over a barrier, and 1024 threads in a block leave 64 registers each at most.
const SPILLS: &str = r#"
#include "common.cuh"
extern "C" __global__ void __launch_bounds__(1024) spills(float* x, const float* y) {
    float a[128];
    for (int i = 0; i < 128; i++) a[i] = y[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; i++) x[i * 1024 + threadIdx.x] += a[i] * a[127 - i];
}
extern "C" __global__ void fits(float* x, int k, u64 z, char c, float3 v) {
    __shared__ float s[32];
    s[threadIdx.x] = x[k];
    __syncthreads();
    x[k] = s[31 - threadIdx.x] + z + c + v.y;
}
"#;

#[test]
fn spills_shared_memory_and_parameters_of_a_kernel_are_read_from_its_cubin() {
    let Some(compiler) = compiler(None) else { return };
    for arch in ARCHITECTURES {
        let options = [format!("--gpu-architecture={arch}")];
        let cubin = compiler.nvrtc().unwrap().compile("spills.cu", SPILLS, &options).unwrap();
        let [fits, spills] = &needs(&cubin).unwrap()[..] else { panic!("not two kernels") };
        assert_eq!((fits.name.as_str(), spills.name.as_str()), ("fits", "spills"));
        assert!(spills.registers <= 64 && spills.stack >= 128, "{spills:?}");
        assert_eq!((fits.stack, &fits.parameters[..]), (0, &[8, 4, 8, 1, 12][..]));
        assert_eq!(spills.parameters, [8, 8]);
        // 32 floats, and what the system keeps for itself.
        assert_eq!((fits.shared, spills.shared), (32 * 4 + 1024, 0));
    }
}

#[test]
fn an_error_names_unit_architecture_file_and_line() {
    let Some(compiler) = compiler(None) else { return };
    let error = compiler.compile(&[probe("many")], "sm_90a").unwrap_err().to_string();
    for part in
        ["probe.cu with BLOCK=many for sm_90a", "NVRTC 1", "kernels/probe.cu(", "\"many\" is undefined"]
    {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let error = compiler.compile(&[probe("64")], "sm_1").unwrap_err().to_string();
    assert!(error.contains("for sm_1") && error.contains("--gpu-architecture"), "{error}");
    let unknown = Unit { file: "nowhere.cu", defines: vec![] };
    let error = compiler.compile(&[unknown], "sm_90a").unwrap_err().to_string();
    assert!(error.contains("\"nowhere.cu\"") && error.contains("probe.cu"), "{error}");
}

#[test]
fn a_kernel_is_compiled_once_and_a_damaged_one_again() {
    let dir = tempfile::tempdir().unwrap();
    let Some(compiler) = compiler(Some(dir.path().into())) else { return };
    let units = [probe("64"), probe("128"), probe("64")];
    let first = compiler.compile(&units[..2], "sm_90a").unwrap();
    assert!(first.iter().all(|c| c.origin == Origin::Compiled));
    assert_ne!(first[0].cubin, first[1].cubin);
    let second = compiler.compile(&units, "sm_90a").unwrap();
    assert!(second.iter().all(|c| c.origin == Origin::Cache));
    let cubins: Vec<_> = second.iter().map(|c| &c.cubin).collect();
    assert_eq!(cubins, [&first[0].cubin, &first[1].cubin, &first[0].cubin]);
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    }
    let third = compiler.compile(&units[..2], "sm_90a").unwrap();
    assert!(third.iter().all(|c| c.origin == Origin::Compiled));
    assert_eq!(third[0].cubin, first[0].cubin, "the same text, options and compiler make another cubin");
}

#[test]
fn without_a_writable_cache_kernels_compile_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let Some(compiler) = compiler(Some(file)) else { return };
    let compiled = compiler.compile(&[probe("64")], "sm_90a").unwrap();
    assert!(matches!(compiled[0].origin, Origin::NotKept(_)));
    assert!(!needs(&compiled[0].cubin).unwrap().is_empty());
}

#[test]
fn a_filled_cache_serves_where_there_is_no_compiler() {
    let dir = tempfile::tempdir().unwrap();
    let bare = Compiler::new(None, Some(dir.path().into()));
    if bare.nvrtc().is_ok() {
        println!("skipped: the loader finds an NVRTC");
        return;
    }
    let error = bare.compile(&[probe("64")], "sm_90a").unwrap_err().to_string();
    for part in ["probe.cu with BLOCK=64", &*dir.path().display().to_string(), "libnvrtc", "CUTE_NVRTC"] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    let Some(compiler) = compiler(Some(dir.path().into())) else { return };
    let compiled = compiler.compile(&[probe("64")], "sm_90a").unwrap();
    let found = bare.compile(&[probe("64")], "sm_90a").unwrap();
    assert_eq!((&found[0].cubin, &found[0].origin), (&compiled[0].cubin, &Origin::Cache));
}

#[test]
fn a_library_that_was_named_is_not_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("libnvrtc.so.13");
    let named = Compiler::new(Some(missing.clone()), Some(dir.path().into()));
    let error = named.compile(&[probe("64")], "sm_90a").unwrap_err().to_string();
    assert!(error.starts_with(&format!("CUTE_NVRTC {}", missing.display())), "{error}");
}
