//! Which layouts a model's matrices have, as far as kernels compiled ahead of time need to know.

use super::layout::Layout;
use cute_checkpoint::{Checkpoint, Config, Dtype, Format};

/// Layouts of the matrices around attention or the delta rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mixer {
    /// of the projections
    pub proj: Layout,
    /// of the last of them, if it is another
    pub tail: Option<Layout>,
    /// of the matrix back to the residual stream
    pub out: Layout,
}

impl Mixer {
    /// `names`: of the projections, and of the matrix back.
    pub(super) fn defines(&self, names: [&'static str; 2]) -> Vec<(&'static str, String)> {
        let mut defines = vec![(names[0], self.proj.name()), (names[1], self.out.name())];
        defines.extend(self.tail.map(|tail| ("TAIL", tail.name())));
        defines
    }
}

/// Layouts of a model's matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layouts {
    /// of gated-delta-net layers
    pub gdn: Mixer,
    /// of full-attention layers
    pub attention: Mixer,
    /// of `[gate; up]`
    pub gate_up: Layout,
    /// of down
    pub down: Layout,
    /// of a layer's router, and of the gate of its shared expert
    pub router: Layout,
    /// of `[gate; up]` of experts
    pub expert_gate_up: Layout,
    /// of their down
    pub expert_down: Layout,
    /// of `[gate; up]` of the shared expert
    pub shared_gate_up: Layout,
    /// of its down
    pub shared_down: Layout,
    /// of the matrix behind the last norm
    pub lm_head: Layout,
}

impl Layouts {
    /// All plain.
    pub fn plain(c: &Config) -> Layouts {
        let layout = Layout::of(Format::Plain(match c.dtype.as_deref() {
            Some("float32") => Dtype::F32,
            Some("float16") => Dtype::F16,
            _ => Dtype::BF16,
        }));
        let mixer = Mixer { proj: layout, tail: None, out: layout };
        Self::alike(mixer, layout, layout)
    }

    /// The same around attention and the delta rule, and of all MLPs; and of what published quantised checkpoints leave plain.
    fn alike(mixer: Mixer, layout: Layout, plain: Layout) -> Layouts {
        Layouts {
            gdn: mixer,
            attention: mixer,
            gate_up: layout,
            down: layout,
            router: plain,
            expert_gate_up: layout,
            expert_down: layout,
            shared_gate_up: layout,
            shared_down: layout,
            lm_head: plain,
        }
    }

    /// All of one layout, but for what published quantised checkpoints leave plain.
    pub fn packed(c: &Config, layout: Layout) -> Layouts {
        let plain = Self::plain(c).lm_head;
        let mixer = Mixer { proj: layout, tail: None, out: layout };
        let gdn = Mixer { tail: Some(plain).filter(|plain| *plain != layout), ..mixer };
        Layouts { gdn, ..Self::alike(mixer, layout, plain) }
    }

    /// Those of a checkpoint, by the formats of its first layers. Where later layers or the values themselves make
    /// others, their kernels are compiled when they are asked for.
    pub fn of(checkpoint: &Checkpoint) -> Layouts {
        let plain = Self::plain(&checkpoint.config);
        let find = |end: &str, or: Layout| {
            let name = checkpoint.tensor_names().find(|name| name.ends_with(end));
            name.and_then(|name| checkpoint.format(name)).map_or(or, Layout::of)
        };
        let mixer = |proj: &str, last: &str, out: &str, or: Mixer| {
            let (proj, tail) = (find(proj, or.proj), find(last, or.proj));
            let tail = Some(tail).filter(|tail| *tail != proj && !tail.is_packed());
            Mixer { proj, tail, out: find(out, or.out) }
        };
        Layouts {
            gdn: mixer("in_proj_qkv.weight", "in_proj_a.weight", "out_proj.weight", plain.gdn),
            attention: mixer("q_proj.weight", "v_proj.weight", "o_proj.weight", plain.attention),
            gate_up: find("mlp.gate_proj.weight", plain.gate_up),
            down: find("mlp.down_proj.weight", plain.down),
            router: find("mlp.gate.weight", plain.router),
            expert_gate_up: find("experts.0.gate_proj.weight", plain.gate_up),
            expert_down: find("experts.0.down_proj.weight", plain.down),
            shared_gate_up: find("shared_expert.gate_proj.weight", plain.gate_up),
            shared_down: find("shared_expert.down_proj.weight", plain.down),
            lm_head: find("lm_head.weight", find("embed_tokens.weight", plain.lm_head)),
        }
    }
}
