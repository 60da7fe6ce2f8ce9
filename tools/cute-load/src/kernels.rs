//! `--compile`: the kernels of a model compiled ahead of time, also where there is no GPU.

use anyhow::bail;
use cute_checkpoint::Checkpoint;
use cute_cli::Config;
use cute_engine::backend::cuda::compiler::{Compiler, Origin};
use cute_engine::backend::cuda::{Driver, ahead, kernel_cache::Cache, layouts::Layouts};
use std::io::Write;
use std::path::PathBuf;

/// What is compiled, with what, and where to.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Kernels")]
pub struct KernelArgs {
    /// Compile the model's CUDA kernels into the kernel cache; needs NVRTC and no GPU
    #[arg(long)]
    compile: bool,
    /// Architectures to compile for, such as sm_90a (H100, H200), sm_100a (B200), sm_120a (RTX 5090), sm_121a (GB10)
    /// [default: that of the first GPU]
    #[arg(long, value_name = "ARCH", value_delimiter = ',', value_parser = architecture, requires = "compile")]
    arch: Vec<String>,
    /// Directory of compiled kernels [default: cute/kernels in the user's cache directory]
    #[arg(long, value_name = "DIR", env = "CUTE_KERNEL_CACHE")]
    kernel_cache: Option<PathBuf>,
    /// Path of libnvrtc, where the system's loader does not find it
    #[arg(long, value_name = "FILE", env = "CUTE_NVRTC")]
    nvrtc: Option<PathBuf>,
}

/// Fills the cache, when asked to, and says how far that went on stderr.
pub fn compile(args: &KernelArgs, checkpoint: &Checkpoint, config: &mut Config) -> anyhow::Result<()> {
    if !args.compile {
        return Ok(());
    }
    let mut architectures = args.arch.clone();
    if architectures.is_empty() {
        match Driver::architecture(0) {
            Ok(arch) => architectures.push(arch),
            Err(e) => bail!("--compile: {e}; name what to compile for, for example --arch sm_90a"),
        }
    }
    config.resolve("arch", architectures.clone());
    let given = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
    let Some(dir) = given(&args.kernel_cache).or_else(Cache::default_dir) else {
        bail!("--compile: there is no HOME: name a directory with --kernel-cache");
    };
    config.resolve("kernel_cache", dir.display().to_string());
    let compiler = Compiler::new(given(&args.nvrtc), Some(dir.clone()));
    for arch in &architectures {
        let units = ahead::units(&checkpoint.config, &Layouts::of(checkpoint), ahead::Chip::of(arch));
        let done = compiler.compile(&units, arch)?;
        if let Some(why) = done.iter().find_map(|unit| match &unit.origin {
            Origin::NotKept(why) => Some(why),
            Origin::Cache | Origin::Compiled => None,
        }) {
            bail!("--compile: kernels cannot be kept: {why}");
        }
        let compiled = done.iter().filter(|unit| unit.origin == Origin::Compiled).count();
        let found = done.len() - compiled;
        let tool = config.tool();
        let dir = dir.display();
        let _ = writeln!(
            std::io::stderr(),
            "{tool}: kernels for {arch} in {dir}: {compiled} units compiled, {found} were there"
        );
    }
    Ok(())
}

/// `sm_90a` and its like.
fn architecture(word: &str) -> Result<String, String> {
    let digits = word.strip_prefix("sm_").map(|rest| rest.trim_end_matches(['a', 'f']));
    match digits.and_then(|d| d.parse::<u32>().ok()) {
        Some(number) if (90..1000).contains(&number) && word.len() <= 8 => Ok(word.to_owned()),
        _ => Err("expected an architecture from sm_90a on, such as sm_90a or sm_120a".to_owned()),
    }
}
