//! `--device`: where the model runs.

use clap::ValueEnum;
use cute_checkpoint::Checkpoint;
use cute_engine::EngineConfig;
use cute_engine::backend::Cpu;
use cute_engine::backend::cuda::gpu::Gpu;
use cute_engine::backend::cuda::layouts::Layouts;
use cute_engine::backend::cuda::{Cuda, Driver, Emulated, Options, Settings};
use std::io::Write;
use std::str::FromStr;
use std::sync::Arc;

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// the first GPU, else the CPU
    Auto,
    /// the CPU
    Cpu,
    /// a GPU by its number
    Cuda(usize),
    /// the CUDA kernels as host code: slow, for debugging them
    Emulated,
}

impl FromStr for Choice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Choice::Auto),
            "cpu" => Ok(Choice::Cpu),
            "cuda" => Ok(Choice::Cuda(0)),
            "emulated" => Ok(Choice::Emulated),
            _ => s
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Choice::Cuda)
                .ok_or_else(|| format!("no device {s:?}: expected auto, cpu, cuda, cuda:N or emulated")),
        }
    }
}

/// How CUDA computes the gated delta rule over a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GdnPrefill {
    /// token by token: any cut of a prompt gives the same bits
    Sequential,
    /// in chunks of 64 tokens on the tensor cores: prompts are cut at multiples of 64
    Chunked,
}

/// A backend, open.
pub enum Device {
    /// the reference
    Cpu(Cpu),
    /// a GPU, or its emulation
    Cuda(Box<Cuda>),
}

impl Device {
    /// Opens what was asked for. `auto` says on stderr why a GPU that is there is not used.
    ///
    /// # Errors
    /// When the device is not there or cannot serve the model, in a sentence.
    pub fn open(
        choice: Choice,
        gdn: GdnPrefill,
        checkpoint: &Checkpoint,
        config: &EngineConfig,
    ) -> anyhow::Result<Self> {
        let gdn_chunked = gdn == GdnPrefill::Chunked;
        let cuda = |gpu: Arc<dyn Gpu>| -> Result<Device, cute_engine::Error> {
            let options = Options { fault: config.fault, gdn_chunked, ..Options::default() };
            Ok(Device::Cuda(Box::new(Cuda::new(gpu, &checkpoint.config, options)?)))
        };
        let real = |ordinal| -> Result<Device, cute_engine::Error> {
            let device = cuda(Arc::new(Driver::open(ordinal)?))?;
            if let Device::Cuda(cuda) = &device {
                cuda.compile_ahead(&checkpoint.config, &Layouts::of(checkpoint))?;
            }
            Ok(device)
        };
        let cpu = || Device::Cpu(Cpu { fault: config.fault, ..Cpu::default() });
        match (choice, config.fault.filter(|f| !f.on_cuda())) {
            (Choice::Cpu | Choice::Auto, Some(_)) => return Ok(cpu()),
            (_, Some(fault)) => {
                anyhow::bail!("--fault {fault} is built into the CPU engine: give --device cpu")
            }
            _ => {}
        }
        let device: anyhow::Result<Self> = match choice {
            Choice::Cpu => Ok(cpu()),
            Choice::Cuda(ordinal) => Ok(real(ordinal)?),
            Choice::Emulated => Ok(cuda(Arc::new(Emulated::new(Settings::default())?))?),
            Choice::Auto if !Driver::installed() => Ok(cpu()),
            Choice::Auto => real(0).or_else(|e| {
                let _ = writeln!(std::io::stderr(), "cute-generate: {e}: running on the CPU");
                Ok(cpu())
            }),
        };
        let device = device?;
        if config.guards.recompute.is_some() && matches!(device, Device::Cuda(_)) {
            anyhow::bail!("--guard recompute is the CPU engine's: give --device cpu");
        }
        Ok(device)
    }
}
