//! The `CUTE_*` knobs of the dispatch rule, resolved. Everything malformed refuses to start.

use cute_checkpoint::Config;

/// `CUTE_PHASE_E_PATH`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PathKnob {
    /// coop where it fits, else lite
    #[default]
    Auto,
    /// coop where it fits, else paged
    Coop,
    /// lite
    Lite,
}

/// The resolved knobs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Knobs {
    /// `CUTE_PHASE_E_FUSION`: fused paths at all
    pub fusion: bool,
    /// `CUTE_PHASE_E_PATH`
    pub path: PathKnob,
    /// `CUTE_PHASE_E_LAYERS`: layers that may take a fused path; `None` is all
    pub layers: Option<Vec<usize>>,
    /// `CUTE_PHASE_E_FALLBACK_RAISE`: a failed launch is an error
    pub fallback_raise: bool,
    /// `CUTE_PHASE_E_DISPATCH_LOG`
    pub dispatch_log: bool,
    /// `CUTE_WO_SPLIT`: 1, 2, 4 or 8
    pub wo_split: usize,
    /// `CUTE_BETA_REGION_TIMING`: time the phases of cooperative launches
    pub region_timing: bool,
    /// gated-delta-net layers run as one cooperative launch too
    pub coop_gdn: bool,
    /// blocks resident at once, instead of what the device reports
    pub resident_cap: Option<usize>,
}

impl Default for Knobs {
    fn default() -> Self {
        Knobs {
            fusion: true,
            path: PathKnob::Auto,
            layers: None,
            fallback_raise: false,
            dispatch_log: true,
            wo_split: 1,
            region_timing: false,
            coop_gdn: false,
            resident_cap: None,
        }
    }
}

impl Knobs {
    /// Whether a layer may take a fused path.
    pub fn allows(&self, layer: usize) -> bool {
        self.layers.as_ref().is_none_or(|l| l.contains(&layer))
    }

    /// Checks the knobs against a model.
    ///
    /// # Errors
    /// A sentence naming the layer that is no full-attention layer, or the split that is not possible.
    pub fn validate(&self, config: &Config) -> Result<(), String> {
        let full = config.full_attention_layers();
        if let Some(bad) = self.layers.iter().flatten().find(|l| !full.contains(l)) {
            return Err(format!(
                "CUTE_PHASE_E_LAYERS: layer {bad} is no full-attention layer of this model: expected some of {full:?}"
            ));
        }
        let group = config.num_attention_heads * config.head_dim / config.num_key_value_heads.max(1);
        if !matches!(self.wo_split, 1 | 2 | 4 | 8) || self.wo_split > group {
            return Err(format!("CUTE_WO_SPLIT: {} is not possible: expected 1, 2, 4 or 8", self.wo_split));
        }
        Ok(())
    }
}

/// Parses a switch: `0` or `1`, nothing else.
///
/// # Errors
/// A sentence with the value.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "0" => Ok(false),
        "1" => Ok(true),
        _ => Err(format!("{text:?} is no switch: expected 0 or 1")),
    }
}

/// Parses `auto`, `coop` or `lite`, in any case.
///
/// # Errors
/// A sentence with the value.
pub fn parse_path(text: &str) -> Result<PathKnob, String> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => Ok(PathKnob::Auto),
        "coop" => Ok(PathKnob::Coop),
        "lite" => Ok(PathKnob::Lite),
        _ => Err(format!("{text:?} is no path: expected auto, coop or lite")),
    }
}

/// Parses a comma-separated list of layer indices; an empty text is all layers.
///
/// # Errors
/// A sentence with the part that is no index, or is there twice.
pub fn parse_layers(text: &str) -> Result<Option<Vec<usize>>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let mut layers = Vec::new();
    for part in text.split(',').map(str::trim) {
        let layer: usize = part.parse().map_err(|_| {
            format!("{part:?} in {text:?} is no layer index: expected comma-separated integers like 3,7")
        })?;
        if layers.contains(&layer) {
            return Err(format!("layer {layer} stands twice in {text:?}"));
        }
        layers.push(layer);
    }
    Ok(Some(layers))
}

/// Parses a split of W_O.
///
/// # Errors
/// A sentence with the value.
pub fn parse_wo_split(text: &str) -> Result<usize, String> {
    match text {
        "1" | "2" | "4" | "8" => Ok(usize::from(text.as_bytes()[0] - b'0')),
        _ => Err(format!("{text:?} is no split of W_O: expected 1, 2, 4 or 8")),
    }
}
