//! Which path a full-attention layer takes in a step, why, and the log line that says so.
//!
//! The rule is [`choose`], a pure function. The [`Dispatcher`] applies it, keeps the fused paths' workspaces,
//! and writes one `[PHASE_E_DISPATCH]` line per layer and distinct decision, after the launch, so that the
//! intended `path=` and the `outcome=` can differ in the log and be caught.

use crate::Error;
use crate::backend::{Backend, Regions, Workspace};
use crate::batch::{Batch, BatchKind};
use crate::fault::Fault;
use crate::knobs::{Knobs, PathKnob};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// How a full-attention layer's attention and MLP are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Path {
    /// one cooperative launch
    Coop,
    /// paged attention, then one fused MLP
    Lite,
    /// separate operations
    Paged,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::Coop => "coop",
            Path::Lite => "lite",
            Path::Paged => "paged",
        })
    }
}

/// A path and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// the path
    pub path: Path,
    /// one word
    pub reason: &'static str,
}

/// What the rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// no row is a prompt's
    pub is_decode_only: bool,
    /// the layer may take a fused path
    pub layer_allowed: bool,
    /// the layer has experts in place of the MLP that fused paths compute
    pub sparse: bool,
    /// sequences in the batch
    pub num_seqs: usize,
    /// blocks its cooperative launch has
    pub blocks: usize,
    /// rows the workspaces hold
    pub cap_tokens: usize,
    /// blocks resident at once
    pub resident_cap: usize,
}

/// The rule.
pub fn choose(fusion: bool, path: PathKnob, s: &Situation) -> Decision {
    let decision = |path, reason| Decision { path, reason };
    if !fusion {
        return decision(Path::Paged, "fusion_off");
    }
    if !s.is_decode_only {
        return decision(Path::Paged, "prefill");
    }
    if !s.layer_allowed {
        return decision(Path::Paged, "layer_not_listed");
    }
    if s.sparse {
        return decision(Path::Paged, "mixture_of_experts");
    }
    if s.num_seqs > s.cap_tokens {
        return decision(Path::Paged, "batch_exceeds_workspace");
    }
    let fits = s.blocks <= s.resident_cap;
    match path {
        PathKnob::Lite => decision(Path::Lite, "path_lite"),
        PathKnob::Coop if fits => decision(Path::Coop, "path_coop"),
        PathKnob::Coop => decision(Path::Paged, "grid_exceeds_resident_cap"),
        PathKnob::Auto if fits => decision(Path::Coop, "grid_fits"),
        PathKnob::Auto => decision(Path::Lite, "grid_exceeds_resident_cap"),
    }
}

/// What ran in a full-attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// the layer
    pub layer: usize,
    /// the path that ran
    pub path: Path,
    /// how often its W_O slots and its MLP's partial sums were zeroed for it, where the backend counts that
    pub resets: Option<[u64; 2]>,
}

/// Where the log lines go.
pub type LogSink = Box<dyn FnMut(&str) + Send>;

/// Applies the rule, layer by layer.
pub struct Dispatcher<B: Backend> {
    knobs: Knobs,
    workspaces: BTreeMap<usize, Workspace<B>>,
    /// layers with experts
    sparse: BTreeSet<usize>,
    cap_tokens: usize,
    resident_cap: usize,
    fault: Option<Fault>,
    absent: usize,
    seen: BTreeSet<(usize, Path, Path, &'static str)>,
    last_step: Vec<Launch>,
    log: LogSink,
}

impl<B: Backend> Dispatcher<B> {
    /// Workspaces for up to `rows` sequences in every allowed layer; lines go to `log`.
    ///
    /// # Errors
    /// When the device has no memory for the workspaces.
    pub fn new(
        backend: &B,
        config: &cute_checkpoint::Config,
        knobs: Knobs,
        rows: usize,
        fault: Option<Fault>,
        log: LogSink,
    ) -> Result<Self, Error> {
        let mut workspaces = BTreeMap::new();
        if knobs.fusion {
            let slots = config.num_key_value_heads * knobs.wo_split;
            let dense = |l: &usize| knobs.allows(*l) && !config.is_sparse(*l);
            for layer in config.full_attention_layers().into_iter().filter(dense) {
                let mut ws =
                    Workspace::new(backend, rows, config.hidden_size, config.intermediate_size, slots)?;
                ws.regions.on = knobs.region_timing;
                ws.fault = fault;
                workspaces.insert(layer, ws);
            }
        }
        let device_cap = backend.resident_cap().min(backend.coop_blocks(rows));
        Ok(Dispatcher {
            resident_cap: knobs.resident_cap.unwrap_or(device_cap),
            knobs,
            workspaces,
            sparse: (0..config.num_hidden_layers).filter(|l| config.is_sparse(*l)).collect(),
            cap_tokens: rows.min(backend.fused_rows()),
            fault,
            absent: 0,
            seen: BTreeSet::new(),
            last_step: Vec::new(),
            log,
        })
    }

    /// Leaves out the checks that a fault would run into.
    pub(crate) fn unguarded(mut self, unguarded: bool) -> Self {
        self.workspaces.values_mut().for_each(|ws| ws.unguarded = unguarded);
        self
    }

    /// The resolved knobs.
    pub fn config(&self) -> &Knobs {
        &self.knobs
    }
    /// The fused paths' workspace of a layer.
    pub fn workspace(&mut self, layer: usize) -> Option<&mut Workspace<B>> {
        self.workspaces.get_mut(&layer)
    }
    /// Launches and resets of all workspaces.
    pub fn launches(&self) -> (u64, u64) {
        self.workspaces.values().fold((0, 0), |(l, r), ws| (l + ws.launches, r + ws.resets))
    }
    /// Time by phase of each layer's cooperative launches, where it was taken.
    pub fn regions(&self) -> impl Iterator<Item = (usize, &Regions)> {
        self.workspaces.iter().map(|(layer, ws)| (*layer, &ws.regions)).filter(|(_, r)| r.launches > 0)
    }
    /// Takes the phases of a layer's last cooperative launch from the device, when they are wanted.
    pub(crate) fn read_regions(&mut self, backend: &B, layer: usize) -> Result<(), Error> {
        match self.workspaces.get_mut(&layer) {
            Some(ws) if ws.regions.on => backend.read_regions(layer, &mut ws.regions),
            _ => Ok(()),
        }
    }
    /// The fault, if any.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// So many sequences of the coming steps are not computed, and yet count when a path is chosen.
    pub(crate) fn set_absent(&mut self, sequences: usize) {
        self.absent = sequences;
    }

    /// Whether gated-delta-net layers run as one cooperative launch in this step.
    pub(crate) fn coop_gdn(&self, backend: &B, batch: &Batch) -> bool {
        self.knobs.coop_gdn
            && batch.kind == BatchKind::Decode
            && batch.segments.len() + self.absent <= self.cap_tokens
            && backend.coop_blocks(batch.segments.len() + self.absent) <= self.resident_cap
    }

    /// Fills every workspace with NaN.
    pub(crate) fn poison(&mut self, backend: &B) -> Result<(), Error> {
        self.workspaces.values_mut().try_for_each(|ws| ws.poison(backend))
    }
    /// The next step begins.
    pub(crate) fn begin_step(&mut self) {
        self.last_step.clear();
    }
    /// What ran in the last step, layer by layer.
    pub(crate) fn last_step(&self) -> &[Launch] {
        &self.last_step
    }
    /// Where the workspaces of each layer lie.
    pub(crate) fn addresses(&self, backend: &B) -> impl Iterator<Item = (usize, Vec<(&'static str, u64)>)> {
        self.workspaces.iter().map(|(layer, ws)| (*layer, backend.workspace_addresses(ws)))
    }

    /// Applies the rule to a layer and a batch.
    pub(crate) fn decide(&self, backend: &B, layer: usize, batch: &Batch) -> Decision {
        let num_seqs = batch.segments.len() + self.absent;
        let situation = Situation {
            is_decode_only: batch.kind == BatchKind::Decode,
            layer_allowed: self.knobs.allows(layer),
            sparse: self.sparse.contains(&layer),
            num_seqs,
            blocks: backend.coop_blocks(num_seqs),
            cap_tokens: self.cap_tokens,
            resident_cap: self.resident_cap,
        };
        choose(self.knobs.fusion, self.knobs.path, &situation)
    }

    /// A cooperative launch failed: an error when falling back is forbidden, else a warning.
    pub(crate) fn fallback(&mut self, layer: usize, decision: &Decision, error: Error) -> Result<(), Error> {
        if self.knobs.fallback_raise {
            return Err(error);
        }
        if self.knobs.dispatch_log
            && !self.seen.iter().any(|(l, p, o, _)| (*l, *p) == (layer, decision.path) && o != p)
        {
            (self.log)(&format!(
                "CuTe Phase E beta-coop launch failed (falling back to beta-lite) layer={layer} {error}"
            ));
        }
        Ok(())
    }

    /// Takes note of what ran, holds it against the workspaces' counters, and logs it once per distinct line.
    pub(crate) fn launched(
        &mut self,
        layer: usize,
        batch: &Batch,
        decision: &Decision,
        outcome: Path,
    ) -> Result<(), Error> {
        let mut resets = None;
        if let Some(ws) = self.workspaces.get_mut(&layer).filter(|_| outcome != Path::Paged) {
            ws.launched(layer, outcome == Path::Coop)?;
            resets = ws.resets_since();
        }
        self.last_step.push(Launch { layer, path: outcome, resets });
        let decode = batch.kind == BatchKind::Decode;
        if !decode
            || !self.knobs.dispatch_log
            || !self.seen.insert((layer, decision.path, outcome, decision.reason))
        {
            return Ok(());
        }
        let python = |b: bool| if b { "True" } else { "False" };
        let restricted = self.knobs.layers.as_ref().map_or("None".to_owned(), |l| format!("{l:?}"));
        (self.log)(&format!(
            "[PHASE_E_DISPATCH] layer_name=model.layers.{layer}.self_attn.attn layer_idx={layer} enabled={} \
             restricted_layers={restricted} is_decode_only=True use_fusion={} num_seqs={} resident_cap={} \
             use_beta_coop={} use_beta_lite={} path={} outcome={outcome} reason={} wo_split={}",
            python(self.knobs.fusion),
            python(decision.path != Path::Paged),
            batch.segments.len() + self.absent,
            self.resident_cap,
            python(decision.path == Path::Coop),
            python(decision.path == Path::Lite),
            decision.path,
            decision.reason,
            self.knobs.wo_split,
        ));
        Ok(())
    }
}
