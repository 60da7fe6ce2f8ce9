#!/usr/bin/env python3
"""Make tests/golden: small models with the logits, and texts with the tokens, that another implementation gives.

    python3 make_golden.py                    # everything
    python3 make_golden.py random             # the random-weight models        (torch, transformers)
    python3 make_golden.py tiny               # examples/tiny-hybrid, greedily  (torch, transformers)
    python3 make_golden.py text               # tokenizer and chat template     (tokenizers, transformers)

The reference is transformers' own Qwen3_5ForCausalLM on the CPU in float32, with eager attention and its plain PyTorch
gated delta rule. Every model is small enough to commit, has every parameter away from its neutral value, and is fed a
prompt that crosses the 64- and 128-token page boundaries. README.md, also written here, says how much each of a list
of plausible mistakes would move the logits, so that a passing test means something.
"""

import argparse
import contextlib
import json
import math
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
TINY = HERE.parent.parent / "examples" / "tiny-hybrid"
ARITH = HERE.parent.parent / "examples" / "arith-50.jsonl"

T = 150  # prompt length
POSITIONS = [0, 1, 2, 31, 62, 63, 64, 65, 126, 127, 128, 149]
NEW = 24  # greedy tokens after the prompt
MARGIN = 0.02  # smallest accepted gap between the two best logits of a greedy step

# ------------------------------------------------------------------------------------------------ random models


def text_config(**kw):
    """A flat text config with only the keys a checkpoint must have; `layer_types` only where a case gives them."""
    base = {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "attention_bias": False,
        "attn_output_gate": True,
        "dtype": "float32",
        "eos_token_id": 0,
        "hidden_act": "silu",
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
    }
    return {**base, **kw}


def rope(theta, factor, section):
    return {
        "rope_type": "default",
        "rope_theta": theta,
        "partial_rotary_factor": factor,
        "mrope_interleaved": True,
        "mrope_section": section,
    }


L, F = "linear_attention", "full_attention"

# name -> (what it is for, config.json, how it is stored)
CASES = {
    "odd-sizes": (
        "odd sizes, Dk != Dv, R = 1, 3 query heads on 1 kv head, untied; `layer_types` absent, interval 4",
        text_config(
            vocab_size=97, hidden_size=40, intermediate_size=72, num_hidden_layers=4, full_attention_interval=4,
            num_attention_heads=3, num_key_value_heads=1, head_dim=24,
            linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=12, linear_value_head_dim=20,
            rope_parameters=rope(10000.0, 0.25, [1, 1, 1]), tie_word_embeddings=False,
        ),
        {},
    ),
    "three-to-one": (
        "value heads = 3 x key heads, first layer full attention, two of them, tied, rms_norm_eps 1e-5",
        text_config(
            vocab_size=101, hidden_size=32, intermediate_size=48, num_hidden_layers=5, layer_types=[F, L, L, F, L],
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            linear_num_key_heads=2, linear_num_value_heads=6, linear_key_head_dim=16, linear_value_head_dim=16,
            rms_norm_eps=1e-5, rope_parameters=rope(10000.0, 0.25, [1, 1, 0]), tie_word_embeddings=True,
        ),
        {},
    ),
    "head-256": (
        "head_dim 256, rotary on 64, rope_theta 1e7: the attention geometry of the published models",
        text_config(
            vocab_size=64, hidden_size=24, intermediate_size=40, num_hidden_layers=3, layer_types=[L, F, L],
            num_attention_heads=2, num_key_value_heads=1, head_dim=256,
            linear_num_key_heads=1, linear_num_value_heads=2, linear_key_head_dim=32, linear_value_head_dim=32,
            rope_parameters=rope(10000000.0, 0.25, [11, 11, 10]), partial_rotary_factor=0.25, tie_word_embeddings=False,
        ),
        {},
    ),
    "sharded": (
        "three shards and an index, tied; `layer_types` absent, interval 3",
        text_config(
            vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=5, full_attention_interval=3,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
            rope_parameters=rope(10000.0, 0.25, [1, 1, 0]), tie_word_embeddings=True,
        ),
        {"shards": 3},
    ),
    "wrapper": (
        "`Qwen3_5ForConditionalGeneration`: nested text_config, `model.language_model.*`, vision and MTP tensors to skip, "
        "`tie_word_embeddings` at the top level only; 6 query heads on 3 kv heads",
        {
            "architectures": ["Qwen3_5ForConditionalGeneration"],
            "model_type": "qwen3_5",
            "image_token_id": 93,
            "video_token_id": 94,
            "vision_start_token_id": 91,
            "vision_end_token_id": 92,
            "tie_word_embeddings": True,
            "text_config": {
                k: v
                for k, v in text_config(
                    vocab_size=96, hidden_size=32, intermediate_size=56, num_hidden_layers=4, layer_types=[L, L, L, F],
                    full_attention_interval=4, num_attention_heads=6, num_key_value_heads=3, head_dim=16,
                    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
                    mamba_ssm_dtype="float32", mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False,
                    rope_parameters=rope(10000.0, 0.25, [1, 1, 0]),
                ).items()
                if k != "architectures"
            },
            "vision_config": {
                "model_type": "qwen3_5", "depth": 1, "hidden_size": 8, "intermediate_size": 16, "num_heads": 2,
                "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
                "out_hidden_size": 32, "num_position_embeddings": 16, "hidden_act": "gelu_pytorch_tanh",
            },
        },
        {"prefix": "model.language_model.", "extra": True},
    ),
    "bf16": (
        "weights stored as BF16, A_log and the gated norm as F32; the logits are those of the rounded weights in float32",
        text_config(
            dtype="bfloat16",
            vocab_size=160, hidden_size=48, intermediate_size=96, num_hidden_layers=5, layer_types=[L, L, F, L, F],
            num_attention_heads=4, num_key_value_heads=2, head_dim=32,
            linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=24, linear_value_head_dim=24,
            rope_parameters=rope(1000000.0, 0.25, [2, 1, 1]), tie_word_embeddings=False,
        ),
        {"bf16": True},
    ),
    "old-keys": (
        "rope_theta and partial_rotary_factor at the text level as older files have them, one GDN head pair, half the head "
        "rotated; a flat config with `model.language_model.*` names, as a re-saved wrapper has",
        text_config(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, layer_types=[F, L, L],
            num_attention_heads=2, num_key_value_heads=2, head_dim=16,
            linear_num_key_heads=1, linear_num_value_heads=1, linear_key_head_dim=8, linear_value_head_dim=8,
            rope_theta=500000.0, partial_rotary_factor=0.5, tie_word_embeddings=False,
        ),
        {"prefix": "model.language_model."},
    ),
}  # fmt: skip


def flat(config):
    """The text keys of either shape of config.json, with the tie flag of whichever level has it."""
    text = dict(config.get("text_config", config))
    text.setdefault("tie_word_embeddings", config.get("tie_word_embeddings", False))
    return text


def build(config, seed, bf16):
    """transformers' model with every parameter random; with bf16, rounded as it will be stored."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

    text = flat(config)
    model = AutoModelForCausalLM.from_config(Qwen3_5TextConfig.from_dict(text), dtype=torch.float32, attn_implementation="eager")
    assert type(model).__name__ == "Qwen3_5ForCausalLM" and model.dtype == torch.float32
    randomise(model, text, seed)
    if bf16:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if not name.endswith(("A_log", "linear_attn.norm.weight")):
                    p.copy_(p.to(torch.bfloat16).float())
    return model.eval()


def randomise(model, text, seed):
    """Every parameter of a model of the family away from its neutral value."""
    import torch

    g = torch.Generator().manual_seed(seed)

    def normal(shape, mean, std):
        return torch.randn(shape, generator=g) * std + mean

    def log_uniform(shape, low, high):
        return (torch.rand(shape, generator=g) * math.log(high / low) + math.log(low)).exp()

    rotary = 2 * model.model.rotary_emb.inv_freq.numel()
    key_dim = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    with torch.no_grad():
        for name, p in model.named_parameters():
            last = ".".join(name.split(".")[-2:])
            if last == "embed_tokens.weight":  # tied: its scale is that of the logits
                p.copy_(normal(p.shape, 0.0, 2 / math.sqrt(p.shape[1]) if text["tie_word_embeddings"] else 1.0))
            elif last == "lm_head.weight":
                p.copy_(normal(p.shape, 0.0, 2 / math.sqrt(p.shape[1])))
            elif last == "linear_attn.A_log":
                p.copy_(log_uniform(p.shape, 0.5, 4.0).log())
            elif last == "linear_attn.dt_bias":  # dt from 0.003 to 0.5: some heads forget at once, some never
                p.copy_(torch.log(torch.expm1(log_uniform(p.shape, 0.003, 0.5))))
            elif name.endswith("linear_attn.norm.weight"):
                p.copy_(normal(p.shape, 1.0, 0.3))
            elif last in ("q_norm.weight", "k_norm.weight"):  # pointed attention, most of it through the rotated part
                p.copy_(normal(p.shape, 0.4, 0.3))
                p[:rotary] += 0.6
            elif p.dim() == 1:
                p.copy_(normal(p.shape, 0.0, 0.3))
            elif last == "conv1d.weight":
                p.copy_(normal(p.shape, 0.0, 0.5))
            else:
                gain = {"in_proj_a.weight": 0.7, "in_proj_b.weight": 1.5}.get(last, 1.2)
                p.copy_(normal(p.shape, 0.0, gain / math.sqrt(p.shape[-1])))
                if last == "in_proj_qkv.weight":
                    p[2 * key_dim :] *= 0.1  # small values: the gated norm's eps and the scale of q then show


def store(folder, config, model, how, seed):
    """config.json exactly as given, and the tensors named, typed and split as the case says."""
    import torch
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tied = flat(config)["tie_word_embeddings"]
    tensors = {}
    for name, p in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        if how.get("bf16") and not name.endswith(("A_log", "linear_attn.norm.weight")):
            p = p.to(torch.bfloat16)
        if name.startswith("model."):
            name = how.get("prefix", "model.") + name[len("model.") :]
        tensors[name] = p.contiguous().clone()
    if how.get("extra"):
        g, h = torch.Generator().manual_seed(seed + 1), flat(config)["hidden_size"]
        for name, shape in {
            "model.visual.patch_embed.proj.weight": (8, 3, 2, 4, 4),
            "model.visual.pos_embed.weight": (16, 8),
            "model.visual.blocks.0.norm1.weight": (8,),
            "model.visual.blocks.0.attn.qkv.weight": (24, 8),
            "mtp.fc.weight": (h, 2 * h),
            "mtp.norm.weight": (h,),
            "mtp.layers.0.input_layernorm.weight": (h,),
        }.items():
            tensors[name] = torch.randn(shape, generator=g)

    shards = how.get("shards", 1)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    parts, filled = [{} for _ in range(shards)], 0
    for name, t in sorted(tensors.items()):
        parts[min(shards - 1, filled * shards // total)][name] = t
        filled += t.numel() * t.element_size()
    index = {"metadata": {"total_size": total}, "weight_map": {}}
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        index["weight_map"].update({name: file for name in part})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def greedy(model, ids, new, stops=()):
    """Prefill, then one cached step per token: (tokens, top-1 minus top-2 logit of each)."""
    import torch

    out, margins, cache = [], [], None
    step = torch.tensor([ids])
    with torch.no_grad():
        while len(out) < new and not (out and out[-1] in stops):
            r = model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, top = r.past_key_values, r.logits[0, -1].topk(2)
            out.append(int(top.indices[0]))
            margins.append(float(top.values[0] - top.values[1]))
            step = torch.tensor([[out[-1]]])
    return out, margins


def forward(model, ids):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def make_random(out):
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    torch.set_num_threads(1)  # tiny products: more threads only cost time
    rows, table, failed = [], {}, []
    for number, (name, (purpose, config, how)) in enumerate(CASES.items()):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        seed = 1000 + 100 * number
        model = build(config, seed, how.get("bf16"))
        store(folder, config, model, how, seed)
        vocab = flat(config)["vocab_size"]
        for attempt in range(50):
            g = torch.Generator().manual_seed(seed + 10 + attempt)
            ids = torch.randint(0, vocab, (T,), generator=g).tolist()
            tokens, margins = greedy(model, ids, NEW)
            if min(margins) > MARGIN:
                break
        else:
            raise SystemExit(f"{name}: no prompt with margins above {MARGIN}")
        logits = forward(model, ids)

        # Cached steps against one pass over everything, and the stored files against the model in memory.
        whole = forward(model, ids + tokens[:-1])[T - 1 :]
        if whole.argmax(-1).tolist() != tokens:
            failed.append(f"{name}: cached steps and one pass disagree")
        text = Qwen3_5TextConfig.from_dict(flat(config))
        again = Qwen3_5ForCausalLM.from_pretrained(folder, config=text, dtype=torch.float32, attn_implementation="eager")
        drift = float((forward(again.eval(), ids) - logits).abs().max())
        if not drift < 1e-5:
            failed.append(f"{name}: the stored files give other logits, by {drift}")

        save_file(
            {
                "input_ids": torch.tensor(ids),
                "positions": torch.tensor(POSITIONS),
                "logits": logits[POSITIONS].contiguous(),
                "greedy_ids": torch.tensor(tokens),
                "margins": torch.tensor(margins),
            },
            folder.parent / f"{folder.name}.expected.safetensors",
        )
        table[name] = sensitivity(model, ids, logits)
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e3
        rows.append(f"| `{name}` | {purpose} | {size:.0f} | {logits.std():.2f} | {min(margins):.3f} |")
        print(f"{name}: {size:.0f} kB, logit std {logits.std():.2f}, smallest margin {min(margins):.3f}, prompt {attempt}, reload {drift:.1e}", flush=True)
        for mistake, value in table[name].items():
            print(f"    {mistake:48s} {'-' if value is None else format(value, '.1e')}")
    if failed:
        raise SystemExit("\n".join(failed))
    return rows, table


# ------------------------------------------------------------------------------------------------ mistakes

EQUAL = 1e-4  # a change below this is rounding: the mistake cannot be made on that model


def sensitivity(model, ids, logits):
    """Make one mistake at a time: largest change of a logit, over the logits' std; None where it changes nothing."""
    out = {}
    for name, mistake in MISTAKES.items():
        saved = {k: v.clone() for k, v in model.state_dict().items()}
        freq = model.model.rotary_emb.inv_freq.clone()
        with contextlib.ExitStack() as stack:
            mistake(model, stack)
            wrong = forward(model, ids)
        model.load_state_dict(saved)
        model.model.rotary_emb.inv_freq = freq
        change = float((wrong - logits).abs().max() / logits.std())
        out[name] = None if change < EQUAL and name != NO_MISTAKE else change
    assert float((forward(model, ids) - logits).abs().max()) == 0.0
    return out


def patch(stack, name, function):
    """Replace a function of transformers' module until the stack unwinds."""
    from unittest import mock

    from transformers.models.qwen3_5 import modeling_qwen3_5 as module

    stack.enter_context(mock.patch.object(module, name, function))


def original(name):
    from transformers.models.qwen3_5 import modeling_qwen3_5 as module

    return getattr(module, name)


def weights(change):
    """A mistake that amounts to other weights: change(name, parameter, config) -> new values or None."""

    def apply(model, stack):
        import torch

        with torch.no_grad():
            for name, p in model.named_parameters():
                new = change(name, p, model.config)
                if new is not None:
                    p.copy_(new)

    return apply


def zero_centred(name):
    return name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")


def swap_ab(model, stack):
    import torch

    with torch.no_grad():
        for layer in model.model.layers:
            if hasattr(layer, "linear_attn"):
                a, b = layer.linear_attn.in_proj_a.weight, layer.linear_attn.in_proj_b.weight
                a_was = a.clone()
                a.copy_(b), b.copy_(a_was)


def split_all_q_then_all_gates(name, p, c):
    if name.endswith("q_proj.weight"):
        return p.view(2, c.num_attention_heads, c.head_dim, -1).transpose(0, 1).reshape(p.shape)


def eps(value):
    def apply(model, stack):
        from unittest import mock

        for module in model.modules():
            for attribute in ("eps", "variance_epsilon"):
                if isinstance(getattr(module, attribute, None), float):
                    stack.enter_context(mock.patch.object(module, attribute, value))

    return apply


def inv_freq(values):
    def apply(model, stack):
        emb = model.model.rotary_emb
        emb.inv_freq = values(emb.inv_freq, emb.config.rope_parameters["rope_theta"], emb.config.head_dim)

    return apply


def powers(theta, count, denominator):
    import torch

    return 1.0 / theta ** (torch.arange(0, 2 * count, 2, dtype=torch.float) / denominator)


def interleaved_pairs(model, stack):
    import torch

    def turn(u, cos, sin):
        n = cos.shape[-1]
        c, s = cos[..., : n // 2].unsqueeze(1), sin[..., : n // 2].unsqueeze(1)
        a, b = u[..., 0:n:2], u[..., 1:n:2]
        return torch.cat([torch.stack([a * c - b * s, b * c + a * s], -1).flatten(-2), u[..., n:]], -1)

    patch(stack, "apply_rotary_pos_emb", lambda q, k, cos, sin: (turn(q, cos, sin), turn(k, cos, sin)))


def rope_before_norm(model, stack):
    apply, current = original("apply_rotary_pos_emb"), []

    def late(q, k, cos, sin):
        attention = current[-1]
        wq, wk = 1 + attention.q_norm.weight, 1 + attention.k_norm.weight
        q, k = apply(q / wq, k / wk, cos, sin)
        return q * wq, k * wk

    for layer in model.model.layers:
        if hasattr(layer, "self_attn"):
            handle = layer.self_attn.register_forward_pre_hook(lambda m, args: current.append(m))
            stack.callback(handle.remove)
    patch(stack, "apply_rotary_pos_emb", late)


def kv_head_modulo(model, stack):
    patch(stack, "repeat_kv", lambda x, n: x.repeat(1, n, 1, 1))


def gate_silu(model, stack):
    import torch

    class Torch:
        def __getattr__(self, name):
            return torch.nn.functional.silu if name == "sigmoid" else getattr(torch, name)

    patch(stack, "torch", Torch())


def no_attention_mask(model, stack):
    eager = original("eager_attention_forward")

    def attend(module, q, k, v, mask, **kw):
        return eager(module, q, k, v, None, **kw)

    patch(stack, "eager_attention_forward", attend)


def gated_norm(forward_of):
    def apply(model, stack):
        from unittest import mock

        kind = original("Qwen3_5RMSNormGated")
        heads = model.config.linear_num_value_heads
        stack.enter_context(mock.patch.object(kind, "forward", lambda m, x, z: forward_of(m, x, z, heads)))

    return apply


def rms(m, x):
    import torch

    return m.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + m.variance_epsilon))


def silu(x):
    import torch

    return torch.nn.functional.silu(x)


def norm_over_all_heads(m, x, z, heads):
    import torch

    joint = x.reshape(-1, heads * x.shape[-1])
    joint = joint * torch.rsqrt(joint.pow(2).mean(-1, keepdim=True) + m.variance_epsilon)
    return m.weight * joint.reshape(x.shape) * silu(z)


def no_silu_on_v(model, stack):
    import torch

    conv = original("causal_conv1d_fn")
    qk = 2 * model.config.linear_num_key_heads * model.config.linear_key_head_dim

    def half(x, weight, bias, activation=None, **kw):
        y = conv(x, weight, bias, activation=None)
        return torch.cat([silu(y[:, :qk]), y[:, qk:]], dim=1)

    patch(stack, "causal_conv1d_fn", half)


def l2_mean(model, stack):
    import torch

    patch(stack, "l2norm", lambda x, dim=-1, eps=1e-6: x * torch.rsqrt(x.pow(2).mean(dim=dim, keepdim=True) + eps))


def delta_rule(**change):
    """The recurrence one token at a time, with one thing done differently."""

    def apply(model, stack):
        import torch

        c = model.config
        l2norm, ratio = original("l2norm"), c.linear_num_value_heads // c.linear_num_key_heads

        def rule(query, key, value, g, beta, **kw):
            q, k, v = (x.transpose(1, 2) for x in (query, key, value))
            g, b = g.transpose(1, 2)[..., None, None], beta.transpose(1, 2)[..., None, None]
            if change.get("tiled"):
                heads = [(h % c.linear_num_key_heads) * ratio for h in range(c.linear_num_value_heads)]
                q, k = q[:, heads], k[:, heads]
            q, k = l2norm(q), l2norm(k) * change.get("k_scale", lambda d: 1.0)(k.shape[-1])
            q = q * change.get("q_scale", lambda d: d**-0.5)(q.shape[-1])
            s = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1])
            out = torch.zeros(v.shape)
            for t in range(k.shape[2]):
                kt, qt, vt = k[:, :, t, :, None], q[:, :, t, :, None], v[:, :, t, None, :]
                before = s
                s = s * (1.0 if change.get("no_decay") else g[:, :, t].exp())
                read = (before if change.get("undecayed") else s).mul(kt).sum(-2, keepdim=True)
                old = s
                s = s + kt * ((vt - read) * (1.0 if change.get("no_beta") else b[:, :, t]))
                out[:, :, t] = (old if change.get("read_first") else s).mul(qt).sum(-2)
            return out.transpose(1, 2), None

        patch(stack, "torch_chunk_gated_delta_rule", rule)

    return apply


NO_MISTAKE = "(the recurrence token by token, no mistake)"
MISTAKES = {
    NO_MISTAKE: delta_rule(),
    "RMSNorm weight w instead of 1 + w": weights(lambda n, p, c: p - 1 if zero_centred(n) else None),
    "rms_norm_eps ten times as large": lambda m, s: eps(10 * m.config.rms_norm_eps)(m, s),
    "gated norm 1 + w": weights(lambda n, p, c: p + 1 if n.endswith("linear_attn.norm.weight") else None),
    "gated norm over all heads jointly": gated_norm(norm_over_all_heads),
    "z gate before the norm": gated_norm(lambda m, x, z, h: rms(m, x * silu(z))),
    "z gate sigmoid instead of silu": gated_norm(lambda m, x, z, h: rms(m, x) * z.sigmoid()),
    "attention gate silu instead of sigmoid": gate_silu,
    "q_proj split as all q, then all gates": weights(split_all_q_then_all_gates),
    "attention not causal": no_attention_mask,
    "kv head h % nkv": kv_head_modulo,
    "rope missing": inv_freq(lambda f, theta, hd: f * 0),
    "rope before the q and k norms": rope_before_norm,
    "rope on pairs (2i, 2i + 1)": interleaved_pairs,
    "rope denominator head_dim": inv_freq(lambda f, theta, hd: powers(theta, f.numel(), hd)),
    "rope on the whole head": inv_freq(lambda f, theta, hd: powers(theta, hd // 2, hd)),
    "rope theta ten times as large": inv_freq(lambda f, theta, hd: powers(10 * theta, f.numel(), 2 * f.numel())),
    "GDN key head h % Hk": delta_rule(tiled=True),
    "conv taps reversed": weights(lambda n, p, c: p.flip(-1) if n.endswith("conv1d.weight") else None),
    "no SiLU on v": no_silu_on_v,
    "l2norm by the mean": l2_mean,
    "q without Dk^-0.5": delta_rule(q_scale=lambda d: 1.0),
    "k with Dk^-0.5": delta_rule(k_scale=lambda d: d**-0.5),
    "delta read from the undecayed state": delta_rule(undecayed=True),
    "output read before the write": delta_rule(read_first=True),
    "no decay": delta_rule(no_decay=True),
    "no beta": delta_rule(no_beta=True),
    "no dt_bias": weights(lambda n, p, c: p * 0 if n.endswith("dt_bias") else None),
    "a and b swapped": swap_ab,
}


# ------------------------------------------------------------------------------------------------ tiny-hybrid


def extract(text):
    m = re.search(r"#### (-?\d+)", text)
    return int(m.group(1)) if m else None


_worker = {}


def _load():
    import torch
    from tokenizers import Tokenizer
    from transformers import Qwen3_5ForCausalLM

    torch.set_num_threads(1)
    _worker["tok"] = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    model = Qwen3_5ForCausalLM.from_pretrained(TINY, dtype=torch.float32, attn_implementation="eager")
    _worker["model"] = model.eval()


def _solve(line):
    """One problem: prompt ids, greedy ids with the stop token, margins, text."""
    tok, model = _worker["tok"], _worker["model"]
    prompt = tok.encode(f"Question: {line['question']}\nAnswer:").ids
    stops = model.generation_config.eos_token_id
    ids, margins = greedy(model, prompt, 128, stops)
    return prompt, ids, margins, tok.decode(ids)


def make_tiny(out, workers):
    import multiprocessing

    lines = [json.loads(x) for x in ARITH.read_text().splitlines()]
    with multiprocessing.get_context("spawn").Pool(workers, _load) as pool:
        solved = pool.map(_solve, lines, chunksize=1)
    problems, traces, right_wanted = [], [], 4
    for i, (line, (prompt, ids, margins, text)) in enumerate(zip(lines, solved)):
        gold = extract(line["answer"])
        ok = extract(text) == gold
        problems.append(
            {"index": i, "gold": gold, "answer": extract(text), "correct": ok, "tokens": len(ids), "min_margin": round(min(margins), 6)}
        )
        # Traced: the first four right ones with comfortable margins, and the miss with the widest.
        if ok and right_wanted and min(margins) > 0.1:
            right_wanted -= 1
            traces.append(i)
    misses = [p for p in problems if not p["correct"]]
    if misses:
        traces.append(max(misses, key=lambda p: p["min_margin"])["index"])
    doc = {
        "model": "examples/tiny-hybrid",
        "prompts": "examples/arith-50.jsonl",
        "form": "Question: {question}\nAnswer:",
        "dtype": "float32",
        "correct": sum(p["correct"] for p in problems),
        "traces": [
            {
                "index": i,
                "prompt_ids": solved[i][0],
                "greedy_ids": solved[i][1],
                "min_margin": round(min(solved[i][2]), 6),
                "text": solved[i][3],
                "correct": problems[i]["correct"],
            }
            for i in traces
        ],
        "problems": problems,
    }
    write_rows(out / "tiny-hybrid.json", doc)
    low = sorted(p["min_margin"] for p in problems)[:5]
    print(f"tiny-hybrid: {doc['correct']}/50, traces {traces}, smallest margins {low}", flush=True)


# ------------------------------------------------------------------------------------------------ tokens and chat

TEXTS = [
    "", " ", "  ", "a", "!", "Hello, world!", "Question: How many apples?\nAnswer:", "The boxes hold 5 * 197 = 985 stickers.",
    "#### 1213", "0", "1234567890", "3.14", "1,000,000", "-5", "7 8  9   10", "x2y3", "don't I'LL we've O'Neil",
    "\n", "\n\n\n", "a\n\nb\n", "line\r\nline\r\n", "\ttab\tand  spaces   ", "trailing space ", "  leading",
    "caf\u00e9", "cafe\u0301", "\u2126 \u212b \ufb01", "\u00bd \u00b2 \u2167 \u0663\u0664", "na\u00efve Stra\u00dfe \u0141\u00f3d\u017a",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f", "\u0645\u0631\u062d\u0628\u0627",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\ud55c\uad6d\uc5b4", "\U0001f642", "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea", "non\u00a0breaking \u200bzero",
    "\ufeffbom", "nul\u0000byte", "fn main() { println!(\"{}\", 1 << 4); }", "a_b-c+d=e/f*g%h", "....!!!???", "<|endoftext|>",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b <|im_end|> c", "<|im_end", "<|unknown|>", "<|endoftext|><|endoftext|>",
    "Kim Kim kim KIM", "The ferry leaves with 205 people. " * 4,
]  # fmt: skip

CHATS = [
    ([{"role": "user", "content": "How many apples are 2 + 3 apples?"}], True),
    ([{"role": "system", "content": "You solve arithmetic problems step by step."}, {"role": "user", "content": "2 * 3?"}], True),
    ([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "1 + 1 = 2\n#### 2"}, {"role": "user", "content": "And 2 + 2?"}], True),
    ([{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "1 + 1 = 2\n#### 2"}], False),
    ([{"role": "user", "content": "  spaces, \"quotes\", <tags> & \u00fcml\u00e4uts \U0001f642\n\nand lines  "}], True),
    ([{"role": "user", "content": ""}], True),
]  # fmt: skip


def make_text(out):
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    tok = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    auto = AutoTokenizer.from_pretrained(TINY)
    encode = []
    for text in TEXTS:
        ids = tok.encode(text, add_special_tokens=False).ids
        assert ids == auto(text, add_special_tokens=False)["input_ids"], text
        encode.append({"text": text, "ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False), "decoded_skip_special": tok.decode(ids)})
    smile = tok.encode("\U0001f642").ids
    pieces = [smile[:k] for k in range(1, len(smile))] + [smile[1:], [0], [220, 220], [tok.get_vocab_size() - 1, 0, tok.get_vocab_size() - 3]]
    decode = [{"ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False), "decoded_skip_special": tok.decode(ids)} for ids in pieces]
    special = {t: tok.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}
    write_rows(out / "tokenize.json", {"tokenizer": "examples/tiny-hybrid", "vocab_size": tok.get_vocab_size(), "special": special, "encode": encode, "decode": decode})

    chats = []
    for messages, prompt in CHATS:
        text = auto.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        chats.append({"messages": messages, "add_generation_prompt": prompt, "text": text, "ids": tok.encode(text, add_special_tokens=False).ids})
    write_rows(out / "chat.json", {"model": "examples/tiny-hybrid", "chats": chats})
    print(f"text: {len(encode)} strings, {len(decode)} id lists, {len(chats)} chats", flush=True)


def write_rows(path, doc):
    """JSON with one line per element of each list of objects: diffs stay readable."""
    parts = []
    for key, value in doc.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            body = ",\n".join("    " + json.dumps(x) for x in value)
            parts.append(f"  {json.dumps(key)}: [\n{body}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


# ------------------------------------------------------------------------------------------------ README

README = """# Golden data

What another implementation gives for small models and for texts, to compare the engine with. Made by `make_golden.py`
with transformers {transformers}, torch {torch}, tokenizers {tokenizers}: `Qwen3_5ForCausalLM` on the CPU in float32,
eager attention, its plain PyTorch gated delta rule. Nothing here is edited by hand; to make it again, after
`examples/tiny-hybrid` say:

    python3 tests/golden/make_golden.py

## Files

| file | holds |
|---|---|
| `<model>/config.json`, `*.safetensors` | a checkpoint with random weights, every parameter away from its neutral value |
| `<model>.expected.safetensors` | `input_ids` i64 [{T}] · `positions` i64 [{n}] · `logits` f32 [{n}, V], the rows at `positions` · `greedy_ids` i64 [{new}], the continuation · `margins` f32 [{new}], best minus second-best logit at each |
| `tiny-hybrid.json` | `examples/tiny-hybrid` on `examples/arith-50.jsonl`, plain form, greedy: five traces with all ids, and answer, correctness and smallest margin of all fifty |
| `tokenize.json` | strings with their ids and both decodings, and id lists that are no whole text |
| `chat.json` | message lists with the rendered text and its ids |

Quantised, MoE and qwen3_next models are in [formats](formats/README.md), made by a script of their own. So are chat templates: `templates/`
holds five, written for this test with what published ones use, and `templates.json`, what transformers' `apply_chat_template` makes of
them (`templates/make_templates.py`).

Decoding joins bytes and replaces what is not UTF-8 by U+FFFD. Encoding normalises to NFC first, so `decoded` is not always `text`.

## The random models

| model | what for | kB | logit std | smallest margin |
|---|---|---:|---:|---:|
{rows}

Prompts of {T} tokens cross the 64- and 128-token page boundaries; `positions` stand on both sides of them.

## What a mistake would show

One mistake at a time, made in the reference: the largest change of any logit of the prompt, divided by the logits' standard
deviation; – where the mistake changes nothing on that model. The first row is no mistake: the recurrence one token at a
time instead of in chunks, which is how far float32 itself reaches.

| mistake | {names} |
|---|{dashes}
{table}
"""


def write_readme(out, rows, table):
    import tokenizers
    import torch
    import transformers

    def cell(value):
        if value is not None and math.isnan(value):
            return "diverges"
        return "–" if value is None else f"{value:.0e}" if value < 0.001 else f"{value:.2g}"

    lines = [f"| {m} | " + " | ".join(cell(table[name][m]) for name in table) + " |" for m in MISTAKES]
    (out / "README.md").write_text(
        README.format(
            transformers=transformers.__version__,
            torch=torch.__version__.split("+")[0],
            tokenizers=tokenizers.__version__,
            T=T,
            n=len(POSITIONS),
            new=NEW,
            rows="\n".join(rows),
            names=" | ".join(table),
            dashes="---:|" * len(table),
            table="\n".join(lines),
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("parts", nargs="*", metavar="PART", help="random, tiny, text; default all")
    p.add_argument("--out", type=Path, default=HERE)
    p.add_argument("--workers", type=int, default=8, help="processes for tiny-hybrid's fifty problems")
    args = p.parse_args()
    parts = args.parts or ["random", "tiny", "text"]
    if unknown := set(parts) - {"random", "tiny", "text"}:
        p.error(f"no such part: {', '.join(unknown)}")
    args.out.mkdir(parents=True, exist_ok=True)
    if "text" in parts:
        make_text(args.out)
    if "random" in parts:
        write_readme(args.out, *make_random(args.out))
    if "tiny" in parts:
        make_tiny(args.out, args.workers)


if __name__ == "__main__":
    main()
