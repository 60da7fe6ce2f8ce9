//! `--device`: where the model runs.

use cute_checkpoint::Checkpoint;
use cute_engine::EngineConfig;
use cute_engine::backend::Cpu;
use cute_engine::backend::cuda::gpu::Gpu;
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
    pub fn open(choice: Choice, checkpoint: &Checkpoint, config: &EngineConfig) -> anyhow::Result<Self> {
        let cuda = |gpu: Arc<dyn Gpu>| -> Result<Device, cute_engine::Error> {
            let options = Options { fault: config.fault, ..Options::default() };
            Ok(Device::Cuda(Box::new(Cuda::new(gpu, &checkpoint.config, options)?)))
        };
        let real = |ordinal| -> Result<Device, cute_engine::Error> {
            let device = cuda(Arc::new(Driver::open(ordinal)?))?;
            if let Device::Cuda(cuda) = &device {
                cuda.compile_ahead(&checkpoint.config)?;
            }
            Ok(device)
        };
        let cpu = || Device::Cpu(Cpu { fault: config.fault, ..Cpu::default() });
        match choice {
            Choice::Cpu => Ok(cpu()),
            Choice::Cuda(ordinal) => Ok(real(ordinal)?),
            Choice::Emulated => Ok(cuda(Arc::new(Emulated::new(Settings::default())?))?),
            Choice::Auto if !Driver::installed() => Ok(cpu()),
            Choice::Auto => real(0).or_else(|e| {
                let _ = writeln!(std::io::stderr(), "cute-generate: {e}: running on the CPU");
                Ok(cpu())
            }),
        }
    }
}
