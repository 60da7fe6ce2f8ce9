//! Lines of the nvllm fork: CuTe paged attention, Phase E, the zeroing ablation.

use super::{DISPATCH, Pack, Pattern, dispatch, event, pool};

pub(super) const PACK: Pack = Pack {
    name: "nvllm",
    doc: "the nvllm fork of vLLM: CuTe paged attention, Phase E dispatch, zero-on-realloc ablation, replay probes",
    extends: &["vllm"],
    patterns: PATTERNS,
};

const PATTERNS: &[Pattern] = &[
    dispatch(DISPATCH, "[PHASE_E_DISPATCH] {:kv}", "one dispatch decision, once per layer and path"),
    // ---- pool geometry
    pool(
        "attention_geometry",
        "CutePagedAttention initialized: {q_heads:int} Q heads, {kv_heads:int} KV heads, head_dim={head_dim:int}",
        "heads and their size, one line a full-attention layer",
    ),
    pool(
        "metadata_builder",
        "CutePagedMetadataBuilder: block_size={page_size:int}, layers={layers:int}",
        "tokens of a kernel page, layers of the attention group",
    ),
    // ---- Phase E at boot
    event(
        "fallback_raise",
        "CUTE_PHASE_E_FALLBACK_RAISE={value:word} ",
        "a failing beta-coop launch raises instead of falling back",
    ),
    event("fusion_attached", "CuTe fusion attached: {:kv}", "attention fusion bound to a layer"),
    event("fusion_resolved", "CuTe fusion resolved: {:kv}", "weights of the fused layer found"),
    event("mlp_fusion_attached", "CuTe MLP fusion attached: {:kv}", "MLP fusion bound to a layer"),
    event(
        "coop_attached",
        "-coop kernel attached: {:kv}",
        "the cooperative kernel was built; `resident_cap` blocks fit",
    ),
    event(
        "coop_construction_failed",
        "-coop kernel construction failed{message:msg}",
        "the cooperative kernel was not built: dispatch is disabled and the server runs on",
    ),
    event(
        "mlp_tile_preset",
        "Phase D MLP tile preset: {preset:word} {arrow:word} {:kv}",
        "tile sizes of the fused MLP",
    ),
    event("kernel_compiling", "Compiling {kernel:text} (first call", "a kernel is compiled at run time")
        .looks_for(" (first call"),
    event("compile_heartbeat", "-coop compile] t={seconds:int}s alive", "compilation goes on, every 300 s"),
    event(
        "residual_mirror",
        "[RES_MIRROR_OP] {:kv}",
        "largest residual when the mirror buffer is first filled",
    ),
    // ---- Phase E at run time
    event(
        "coop_launch_failed",
        "-coop launch failed (falling back to {to:word}) layer={layer:word}(? nat={nat:int}?)(? {error:text}?)",
        "the dispatch line says coop, beta-lite ran",
    )
    .looks_for("-coop launch failed"),
    event("coop_launch_failed", "-coop launch failed{message:msg}", "the cooperative launch raised"),
    event(
        "lite_launch_failed",
        "-lite launch failed (fallback to {to:text}) layer={layer:word}(? nat={nat:int}?)(? {error:text}?)",
        "the dispatch line says lite, the unfused path ran",
    )
    .looks_for("-lite launch failed"),
    event("lite_launch_failed", "-lite launch failed{message:msg}", "the lite launch raised"),
    event(
        "region_dump",
        "-coop region timing] dumped {bytes:int} bytes (shape={shape:text}) to {path:word}",
        "a region-timing buffer was written",
    )
    .looks_for("-coop region timing] "),
    event("region_timing", "-coop region timing] {message:msg}", "other words of the region timer"),
    event("fire_count", "[BETA_COOP_COUNT] {:kv}", "launches of the cooperative kernel"),
    event("cute_timing", "[CUTE_TIMING] {:kv}", "per-call times"),
    // ---- probes
    event(
        "dispatch_audit",
        "CUTE_DISPATCH_AUDIT: {:kv}",
        "what a step handed to the graph dispatcher, first 100 steps",
    ),
    event("full_graph_probe", "CUTE_FULL_GRAPH_PROBE: {:kv}", "graph mode of a step, at most two lines"),
    event(
        "c2_diag",
        "[C2_DIAG] step={step:int} L={layer:int} nat={nat:int} hidden Linf={hidden_linf:num} rel_med={hidden_rel_med:num} residual Linf={residual_linf:num} rel_med={residual_rel_med:num} {outcome:OK|DIVERGED}",
        "fused against unfused tensors of one layer and step",
    ),
    event("c2_diag", "[C2_DIAG] {message:msg}", "other words of the tensor comparison"),
    event("wo_reset", "[CUTE_WO_RESET] {:kv}", "W_O workspace zeroed, once per pointer and token count"),
    // ---- zeroing of recycled states
    event("sentinel_check", "nvllm.ablation.sentinel_check {:kv}", "whether an ablation gate is on"),
    event("first_fire", "nvllm.ablation.first_fire {:kv}", "an ablation gate acted for the first time"),
    event(
        "fire_count",
        "nvllm.ablation.fire_count {:kv}",
        "how often an ablation gate acted, every 100th time",
    ),
    event("first_fire", "nvllm.{name:word}.first_fire {:kv}", "zero-on-realloc acted for the first time")
        .looks_for(".first_fire "),
    event(
        "fire_count",
        "nvllm.{name:word}.fire_count {:kv}",
        "how often zero-on-realloc acted, every 100th time",
    )
    .looks_for(".fire_count "),
    // ---- kernel cache
    event(
        "kernel_cache",
        "CuTe disk cache {result:HIT|MISS|stored}(? (native)?)(? key={key:word}?)",
        "kernel cache on disk",
    ),
    event(
        "blessed_cache",
        "[blessed-cache gate] verify {result:PASS|FAIL}: {:kv}",
        "files of a blessed cache checked",
    ),
    event("blessed_cache", "[blessed-cache gate] {message:msg}", "other words of the cache gate"),
    event("launch_error", "Error launching {message:msg}", "a kernel launch was refused"),
    event("assertion", "AssertionError(?: {message:msg}?)", "an assertion failed"),
];
