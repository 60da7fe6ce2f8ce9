//! The text of `kernels/`, built into the program: a binary carries its kernels. A new file is a new word here.

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../../../kernels/", $name)))),*]
    };
}

/// Name and text of every file of `kernels/` that NVRTC sees.
pub const SOURCES: &[(&str, &str)] = sources![
    "argmax.cu",
    "attention.cuh",
    "attention_prefill.cu",
    "attention_step.cu",
    "choose.cu",
    "common.cuh",
    "coop.cuh",
    "coop_attention.cu",
    "coop_gdn.cu",
    "elementwise.cu",
    "embed.cu",
    "experts.cu",
    "gdn.cuh",
    "gdn_chunked.cu",
    "gdn_sequence.cu",
    "gdn_step.cu",
    "gemm.cu",
    "gemm_sm90.cu",
    "linear.cu",
    "linear.cuh",
    "mlp.cu",
    "moe.cu",
    "norm.cu",
    "packed.cuh",
    "probe.cu",
    "ring.cuh",
    "selftest.cu",
    "stream.cu",
    "to_bf16.cu",
    "weights.cuh",
    "wgmma.cuh",
];

/// The text of a file, if there is one of this name.
pub fn text(file: &str) -> Option<&'static str> {
    SOURCES.iter().find(|(name, _)| *name == file).map(|(_, text)| *text)
}

/// Files that the others include.
pub fn headers() -> impl Iterator<Item = (&'static str, &'static str)> {
    SOURCES.iter().copied().filter(|(name, _)| name.ends_with(".cuh"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_file_is_in_the_table() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
            .collect();
        files.sort();
        let mut table: Vec<&str> = SOURCES.iter().map(|(name, _)| *name).collect();
        table.sort();
        assert_eq!(files, table);
    }
}
