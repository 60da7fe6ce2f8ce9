#!/usr/bin/env python3
"""Make tests/golden/formats: packed weights with their values, and small quantised and MoE models with their logits.

    python3 make_formats.py            # everything   (numpy, torch, transformers; as make_golden.py)
    python3 make_formats.py values     # codes, scales and what they are worth
    python3 make_formats.py models     # quantised, MoE and qwen3_next models

The values are computed here from the definitions of e2m1 and e4m3 in float64 and rounded to float32 once; nothing of
the engine, of torch's 8-bit types or of a quantisation package is used for them (torch's e4m3 is compared once). The
models are transformers' own classes in float32 on the CPU, holding exactly those values. Every logit of a model depends
on the mistakes listed at the end of this file by far more than the tests' tolerance; the script fails where it does not.
"""

import argparse
import contextlib
import json
import math
from pathlib import Path

import numpy as np
from make_golden import F, HERE, L, MARGIN, NEW, POSITIONS, T, flat, forward, greedy, randomise, rope, text_config

OUT = HERE / "formats"

# ------------------------------------------------------------------------------------------------ numbers

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3_value(code):
    """sign · 2^(e − 7) · 1.mmm; e = 0 is subnormal, and all ones is NaN: there is no infinity."""
    sign, e, m = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return math.nan
    return sign * (m * 2.0**-9 if e == 0 else (8 + m) * 2.0 ** (e - 10))


E4M3 = np.array([e4m3_value(code) for code in range(256)])


def nearest(x, table):
    """Code of the nearest value, of two equally near the one with the even code."""
    codes = np.array([c for c in range(len(table)) if not np.isnan(table[c])])
    d = np.abs(x[..., None] - table[codes])
    best = d.min(-1, keepdims=True)
    even = (d == best) & (codes % 2 == 0)
    return codes[np.where(even.any(-1), even.argmax(-1), d.argmin(-1))].astype(np.uint8)


def e4m3_codes(x):
    """Nearest e4m3 codes; beyond 448 saturated."""
    magnitude = nearest(np.minimum(np.abs(x), 448.0), E4M3[:127])
    return (magnitude | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)


def bf16(x):
    """Rounded to bfloat16, as float32."""
    import torch

    return torch.tensor(np.asarray(x, np.float32)).to(torch.bfloat16).float().numpy()


def once(x):
    """float64 rounded to float32: the only rounding."""
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


# ------------------------------------------------------------------------------------------------ formats


def blocks(scales, block, shape):
    """A scale for every value of a matrix."""
    return np.repeat(np.repeat(scales, block[0], 0), block[1], 1)[: shape[0], : shape[1]]


def fp8_blocks(w, block):
    """(codes [N, K], bfloat16 scales [⌈N/b⌉, ⌈K/b⌉] as float32, values [N, K])"""
    n, k = w.shape
    down, across = -(-n // block[0]), -(-k // block[1])
    scales = np.ones((down, across))
    for i in range(down):
        for j in range(across):
            part = w[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]]
            scales[i, j] = max(np.abs(part).max() / 448, 1e-12)
    scales = bf16(scales).astype(np.float64)
    every = blocks(scales, block, w.shape)
    codes = e4m3_codes(w / every)
    return codes, scales.astype(np.float32), once(E4M3[codes] * every)


def fp8_scaled(w, scale):
    """(codes, values) with one scale, or one a row."""
    scale = np.asarray(scale, np.float32).astype(np.float64)
    codes = e4m3_codes(w / scale)
    return codes, once(E4M3[codes] * scale)


def nvfp4(w, divides):
    """(packed codes [N, K/2], scale codes [N, K/16], global scale, values [N, K]); the global scale divides or multiplies."""
    n, k = w.shape
    amax = np.abs(w).max()
    world = np.float32(2688 / amax) if divides else np.float32(amax / 2688)
    step = 1 / np.float64(world) if divides else np.float64(world)
    scales = e4m3_codes(np.abs(w.reshape(n, k // 16, 16)).max(-1) / (6 * step))
    scales = np.where(scales == 0, 1, scales).astype(np.uint8)
    every = np.repeat(E4M3[scales], 16, 1)
    codes = nearest(np.abs(w) / (every * step), E2M1[:8]) | np.where(w < 0, 8, 0).astype(np.uint8)
    return pack(codes), scales, world, nvfp4_values(codes, every, world, divides)


def pack(codes):
    """Two codes a byte, the even one low."""
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)


def nvfp4_values(codes, scales, world, divides):
    product = E2M1[codes] * scales
    with np.errstate(over="ignore"):
        return once(product / np.float64(world) if divides else product * np.float64(world))


# ------------------------------------------------------------------------------------------------ values


def make_values(out):
    import torch
    from safetensors.torch import save_file

    theirs = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    assert np.array_equal(theirs, E4M3, equal_nan=True) and math.copysign(1, E4M3[0x80]) == math.copysign(1, theirs[0x80]) == -1
    assert (nearest(np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]), E2M1[:8]) == [0, 2, 2, 4, 4, 6, 6]).all()
    assert (e4m3_codes(np.array([1e9, -1e9, 464.0, 2.0**-10])) == [0x7E, 0xFE, 0x7E, 0]).all()
    tensors = {"e4m3": torch.tensor(E4M3.astype(np.float32)), "e2m1": torch.tensor(E2M1.astype(np.float32))}

    # Every e2m1 code under every e4m3 scale, subnormal ones and NaN among them, and global scales of either direction:
    # ordinary, so small that values are subnormal or zero, so large that they are infinite.
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 1))
    every = np.repeat(E4M3[:, None], 16, 1)
    worlds = [3.560e-5, 1.0, 1.2e-41, 2.9e38, 0.7]
    for i, world in enumerate(worlds):
        world = np.float32(world)
        tensors[f"nvfp4.{i}.global"] = torch.tensor(world)
        for name, divides in [("times", False), ("over", True)]:
            tensors[f"nvfp4.{i}.{name}"] = torch.tensor(nvfp4_values(codes, every, world, divides))
    tensors["nvfp4.codes"] = torch.tensor(pack(codes))

    # Every e4m3 code under scales ordinary, subnormal and saturating: [256 scales' rows] would repeat, so one row each.
    scales = np.array([[1.0], [0.0123], [3e-39], [1e38], [-2.0]], np.float32)
    codes = np.tile(np.arange(256, dtype=np.uint8), (5, 1))
    with np.errstate(over="ignore"):
        tensors["channel.values"] = torch.tensor(once(E4M3[codes] * scales.astype(np.float64)))
    tensors["channel.codes"], tensors["channel.scales"] = torch.tensor(codes), torch.tensor(scales)

    # Blocks that end before 128: [130, 257].
    g = np.random.default_rng(7)
    codes, scales, values = fp8_blocks(g.normal(size=(130, 257)), (128, 128))
    assert scales.shape == (2, 3)
    tensors["block.codes"], tensors["block.scales"] = torch.tensor(codes), torch.tensor(scales)
    tensors["block.values"] = torch.tensor(values)

    # A matrix that was packed, both ways.
    w = g.normal(size=(6, 64)) * np.exp(g.normal(size=(6, 64)) * 2)
    w[3, 16:32] = 0  # a block of zeros
    for name, divides in [("modelopt", False), ("compressed", True)]:
        codes, scales, world, values = nvfp4(w, divides)
        assert np.abs(values - w).max() <= np.abs(w).max() / 4
        tensors |= {
            f"{name}.codes": torch.tensor(codes),
            f"{name}.scales": torch.tensor(scales),
            f"{name}.global": torch.tensor(world),
            f"{name}.values": torch.tensor(values),
        }
    save_file({k: v.contiguous() for k, v in tensors.items()}, out / "values.safetensors")
    print(f"values: {sum(v.numel() for v in tensors.values())} numbers")


# ------------------------------------------------------------------------------------------------ models


def dense(**kw):
    base = dict(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, layer_types=[L, F],
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16,
        rope_parameters=rope(10000.0, 0.25, [1, 1, 0]), tie_word_embeddings=False, eos_token_id=0,
    )  # fmt: skip
    return text_config(**{**base, **kw})


def moe(**kw):
    kw = {
        "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text",
        "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 32,
        **kw,
    }  # fmt: skip
    config = dense(**kw)
    del config["intermediate_size"]
    return config


def wrapper(config, name):
    inner = {k: v for k, v in config.items() if k != "architectures"}
    outer = inner["model_type"].removesuffix("_text")
    vision = {"depth": 1, "hidden_size": 8, "model_type": outer}
    return {"architectures": [name], "model_type": outer, "text_config": inner, "vision_config": vision}


def next_config(**kw):
    config = dense(architectures=["Qwen3NextForCausalLM"], model_type="qwen3_next", num_experts=6, num_experts_per_tok=2,
                   moe_intermediate_size=32, shared_expert_intermediate_size=48, rope_theta=10000.0,
                   partial_rotary_factor=0.25, rope_scaling=None, **kw)  # fmt: skip
    del config["rope_parameters"], config["attn_output_gate"]
    return config


BLOCK_FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
SIDE_FP8 = ["lm_head", "model.embed_tokens", "mlp.gate", "mlp.shared_expert_gate"]


def fp8_ignored(layers, prefix="model.language_model."):
    ab = [f"{prefix}layers.{i}.linear_attn.{p}" for i in range(layers) for p in ("in_proj_a", "in_proj_b")]
    return [*SIDE_FP8, *ab, "model.visual", "mtp.fc"]


def is_matrix(name):
    return name.endswith(("_proj.weight", "in_proj_qkv.weight", "in_proj_z.weight", "in_proj_qkvz.weight"))


# name -> (what it is for, config.json, how the module of a weight is packed, how it is stored)
def cases():
    fp8 = lambda name: "block" if is_matrix(name) else None  # noqa: E731

    def mixed(name):
        if ".mlp." in name or name == "lm_head.weight":
            return "modelopt4"
        return "tensor8" if is_matrix(name) else None

    def compressed(name):
        if ".mlp." in name:
            return "compressed4"
        return "channel8" if ".self_attn." in name and is_matrix(name) else None

    experts4 = lambda name: "modelopt4" if ".mlp.experts." in name else None  # noqa: E731
    experts8 = lambda name: "block" if ".mlp.experts." in name else None  # noqa: E731
    next8 = lambda name: "block" if is_matrix(name) or ".mlp.experts." in name else None  # noqa: E731
    plain = lambda name: None  # noqa: E731
    weights = lambda **kw: {"targets": ["Linear"], "weights": {"type": "float", "symmetric": True, "dynamic": False, **kw}}  # noqa: E731
    return {
        "fp8-block": (
            "Hugging Face block FP8 with BF16 scales, sizes that are no multiples of 128, a wrapper with vision and MTP tensors",
            wrapper(
                dense(hidden_size=144, intermediate_size=200, linear_key_head_dim=24, linear_value_head_dim=40, head_dim=48),
                "Qwen3_5ForConditionalGeneration",
            )
            | {"quantization_config": {**BLOCK_FP8, "modules_to_not_convert": fp8_ignored(2)}},
            fp8,
            {"prefix": "model.language_model.", "extra": True},
        ),
        "modelopt-mixed": (
            "ModelOpt MIXED_PRECISION: MLP and lm_head NVFP4, attention and linear attention FP8 with one scale each, input and KV scales",
            wrapper(dense(), "Qwen3_5ForConditionalGeneration"),
            mixed,
            {"prefix": "model.language_model.", "modelopt": "MIXED_PRECISION", "kv": True},
        ),
        "compressed-mixed": (
            "compressed-tensors: MLP nvfp4-pack-quantized, self_attn FP8 by channel, linear_attn and lm_head ignored",
            dense(tie_word_embeddings=True)
            | {
                "quantization_config": {
                    "quant_method": "compressed-tensors",
                    "format": "mixed-precision",
                    "quantization_status": "compressed",
                    "ignore": ["lm_head", "re:.*linear_attn.*", "re:.*mtp.*"],
                    "config_groups": {
                        "group_0": {**weights(num_bits=4, strategy="tensor_group", group_size=16), "format": "nvfp4-pack-quantized"},
                        "group_1": {**weights(num_bits=8, strategy="channel"), "format": "float-quantized"},
                    },
                }
            },
            compressed,
            {},
        ),
        "moe": (
            "qwen3_5_moe, experts fused in 3-D tensors, 3 of 8 experts",
            moe(num_hidden_layers=3, layer_types=[L, F, L]),
            plain,
            {"fused": True},
        ),
        "moe-nvfp4": (
            "qwen3_5_moe, ModelOpt NVFP4 routed experts one by one, everything else plain",
            wrapper(moe(), "Qwen3_5MoeForConditionalGeneration"),
            experts4,
            {"prefix": "model.language_model.", "modelopt": "NVFP4"},
        ),
        "moe-fp8-fused": (
            "qwen3_5_moe, fused experts in block FP8 whose blocks cross the gate and up halves",
            moe() | {"quantization_config": {**BLOCK_FP8, "weight_block_size": [20, 32]}},
            experts8,
            {"fused": True, "block": (20, 32)},
        ),
        "next": (
            "qwen3_next: interleaved projections, experts one by one, a layer of mlp_only_layers, norm_topk_prob false",
            next_config(num_hidden_layers=4, layer_types=[L, F, L, L], mlp_only_layers=[3], decoder_sparse_step=1, norm_topk_prob=False),
            plain,
            {},
        ),
        "next-fp8": (
            "qwen3_next in block FP8 whose blocks cross the key heads of the interleaved projections, decoder_sparse_step 2",
            next_config(full_attention_interval=2, decoder_sparse_step=2, norm_topk_prob=True, linear_value_head_dim=12)
            | {"quantization_config": {**BLOCK_FP8, "weight_block_size": [32, 32]}},
            next8,
            {"block": (32, 32)},
        ),
    }


def model_class(text):
    import transformers as t

    return {
        "qwen3_5_text": (t.Qwen3_5ForCausalLM, t.Qwen3_5TextConfig),
        "qwen3_5_moe_text": (t.Qwen3_5MoeForCausalLM, t.Qwen3_5MoeTextConfig),
        "qwen3_next": (t.Qwen3NextForCausalLM, t.Qwen3NextConfig),
    }[text["model_type"]]


def modules(name, p, fused):
    """(stored name, values) of each weight that a parameter is stored as: fused experts one by one unless they stay fused."""
    if fused or ".mlp.experts." not in name:
        yield name, p
        return
    base = name.rsplit(".", 1)[0]
    for e in range(p.shape[0]):
        if name.endswith("gate_up_proj"):
            gate, up = np.split(p[e], 2)
            yield f"{base}.{e}.gate_proj.weight", gate
            yield f"{base}.{e}.up_proj.weight", up
        else:
            yield f"{base}.{e}.down_proj.weight", p[e]


def packed(name, w, kind, how):
    """(tensors by name, values) of one weight."""
    import torch

    base, tensors = name.removesuffix(".weight"), {}
    raw = lambda codes: torch.tensor(codes)  # noqa: E731
    as_e4m3 = lambda codes: torch.tensor(codes).view(torch.float8_e4m3fn)  # noqa: E731
    f32 = lambda x: torch.tensor(np.asarray(x, np.float32))  # noqa: E731
    if kind == "block":
        block = how.get("block", (128, 128))
        scale = f"{base}_scale_inv" if base == name else f"{base}.weight_scale_inv"
        planes = [fp8_blocks(plane, block) for plane in (w if w.ndim == 3 else w[None])]
        codes, scales, values = (np.stack(x) if w.ndim == 3 else x[0] for x in zip(*planes))
        tensors = {name: as_e4m3(codes), scale: torch.tensor(scales).to(torch.bfloat16)}
    elif kind == "tensor8":
        scale = np.abs(w).max() / 448
        codes, values = fp8_scaled(w, scale)
        tensors = {name: as_e4m3(codes), f"{base}.weight_scale": f32(scale), f"{base}.input_scale": f32(0.02)}
    elif kind == "channel8":
        scale = np.abs(w).max(1, keepdims=True) / 448
        codes, values = fp8_scaled(w, scale)
        tensors = {name: as_e4m3(codes), f"{base}.weight_scale": f32(scale)}
    elif kind == "modelopt4":
        codes, scales, world, values = nvfp4(w, False)
        tensors = {
            name: raw(codes), f"{base}.weight_scale": as_e4m3(scales), f"{base}.weight_scale_2": f32(world),
            f"{base}.input_scale": f32(0.01),
        }  # fmt: skip
    elif kind == "compressed4":
        codes, scales, world, values = nvfp4(w, True)
        tensors = {
            f"{base}.weight_packed": raw(codes), f"{base}.weight_scale": as_e4m3(scales),
            f"{base}.weight_global_scale": f32([world]), f"{base}.input_global_scale": f32([100.0]),
        }  # fmt: skip
    return tensors, values


def build_and_store(folder, config, kind_of, how, seed):
    """A model that holds the values of the packed weights, and the files they come from."""
    import torch
    from safetensors.torch import save_file

    text = flat(config)
    make, make_config = model_class(text)
    settings = make_config.from_dict({k: v for k, v in text.items() if k != "quantization_config"})
    model = make._from_config(settings, dtype=torch.float32, attn_implementation="eager")
    randomise(model, text, seed)
    model.eval()
    prefix, tensors, algos = how.get("prefix", "model."), {}, {}
    stored = lambda name: prefix + name[len("model.") :] if name.startswith("model.") else name  # noqa: E731
    with torch.no_grad():
        for name, p in model.named_parameters():
            whole, values = p.numpy().astype(np.float64), []
            for part, w in modules(name, whole, how.get("fused")):
                kind = kind_of(part)
                if kind is None:
                    w = w.astype(np.float32) if w.ndim == 1 else bf16(w)
                    t = torch.tensor(w)
                    tensors[stored(part)] = t if w.ndim == 1 else t.to(torch.bfloat16)
                else:
                    made, w = packed(stored(part), w, kind, how)
                    tensors |= made
                    algos[stored(part).removesuffix(".weight")] = "FP8" if kind == "tensor8" else "NVFP4"
                values.append(torch.tensor(w))
            if len(values) > 1 and name.endswith("gate_up_proj"):
                values = [torch.cat(values[i : i + 2]) for i in range(0, len(values), 2)]
            p.copy_(values[0] if len(values) == 1 else torch.stack(values))
    if text["tie_word_embeddings"]:
        tensors.pop("lm_head.weight", None)
    if how.get("kv"):
        for i, kind in enumerate(text["layer_types"]):
            if kind == F:
                tensors[f"{prefix}layers.{i}.self_attn.k_proj.k_scale"] = torch.tensor(0.5)
                tensors[f"{prefix}layers.{i}.self_attn.v_proj.v_scale"] = torch.tensor(0.25)
    if how.get("extra"):
        h = text["hidden_size"]
        tensors["mtp.fc.weight"] = torch.ones(h, 2 * h).to(torch.bfloat16)
        tensors["mtp.layers.0.mlp.up_proj.weight"] = torch.zeros(4, h, dtype=torch.float8_e4m3fn)
        tensors["mtp.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(1, 2).to(torch.bfloat16)
        tensors["model.visual.pos_embed.weight"] = torch.ones(16, 8)
    if algo := how.get("modelopt"):
        q = {"quant_algo": algo, "kv_cache_quant_algo": "FP8" if how.get("kv") else None, "group_size": 16,
             "exclude_modules": ["lm_head", "*linear_attn*", "*self_attn*", "*shared_expert*", "*mlp.gate", "mtp*"]}  # fmt: skip
        if algo == "MIXED_PRECISION":
            del q["exclude_modules"], q["group_size"]
            q["quantized_layers"] = {
                name: {"quant_algo": a} | ({"group_size": 16} if a == "NVFP4" else {}) for name, a in algos.items()
            }
        write(folder / "hf_quant_config.json", {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": q})
        inner = {k: v for k, v in q.items() if k != "exclude_modules"} | {"ignore": q.get("exclude_modules", [])}
        config["quantization_config"] = {"quant_method": "modelopt", **inner}
    write(folder / "config.json", config)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return model


def write(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


def router_gap(model, ids):
    """Smallest difference of the last expert taken and the first left, over tokens and layers; None without experts."""
    gaps, hooks = [], []

    def look(module, _, result):
        p = result[0].float().softmax(-1).sort(-1, descending=True).values
        gaps.append(float((p[:, module.top_k - 1] - p[:, module.top_k]).min()))

    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            hooks.append(module.register_forward_hook(look))
    forward(model, ids)
    for hook in hooks:
        hook.remove()
    return min(gaps, default=None)


def make_models(out):
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    rows = []
    for number, (name, (purpose, config, kind_of, how)) in enumerate(cases().items()):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        seed = 5000 + 100 * number
        model = build_and_store(folder, config, kind_of, how, seed)
        vocab = flat(config)["vocab_size"]
        for attempt in range(200):
            ids = torch.randint(0, vocab, (T,), generator=torch.Generator().manual_seed(seed + 1 + attempt)).tolist()
            tokens, margins = greedy(model, ids, NEW)
            gap = router_gap(model, ids + tokens)
            if min(margins) > MARGIN and (gap is None or gap > 1e-5):
                break
        else:
            raise SystemExit(f"{name}: no prompt with margins above {MARGIN}")
        logits = forward(model, ids)
        save_file(
            {
                "input_ids": torch.tensor(ids),
                "positions": torch.tensor(POSITIONS),
                "logits": logits[POSITIONS].contiguous(),
                "greedy_ids": torch.tensor(tokens),
                "margins": torch.tensor(margins),
            },
            out / f"{name}.expected.safetensors",
        )
        for mistake, change in mistakes(model, ids, logits):
            print(f"    {mistake:36s} {change:.1e}")
            assert change > 0.02, f"{name}: {mistake} would pass"
        size = sum(f.stat().st_size for f in folder.iterdir()) / 1e3
        gap = "–" if gap is None else f"{gap:.0e}"
        rows.append(f"| `{name}` | {purpose} | {size:.0f} | {float(logits.std()):.2f} | {min(margins):.3f} | {gap} |")
        print(rows[-1], flush=True)
    (out / "README.md").write_text(
        README.format(rows="\n".join(rows), transformers=__import__("transformers").__version__, torch=torch.__version__.split("+")[0])
    )


README = """# Packed and MoE golden data

Made by `tests/golden/make_formats.py` with transformers {transformers}, torch {torch}; its head says how. Nothing here is edited by
hand. `values.safetensors` holds codes, scales and the float32 values that they stand for: every e2m1 code under every e4m3
scale and global scales of both directions, every e4m3 code, blocks that end early. Each model stands beside its
`<model>.expected.safetensors`, which is laid out as in [the other golden data](../README.md).

| model | what for | kB | logit std | smallest margin | smallest router gap |
|---|---|---:|---:|---:|---:|
{rows}

The router gap is that of the probabilities of the last expert taken and the first left, over all tokens and layers: a
smaller one than float32's error would make the choice a matter of rounding.
"""

# ------------------------------------------------------------------------------------------------ mistakes


def mistakes(model, ids, logits):
    """Largest change of a logit over the logits' deviation, for one mistake at a time."""
    import torch

    def change(edit):
        saved = {k: v.clone() for k, v in model.state_dict().items()}
        with contextlib.ExitStack() as stack, torch.no_grad():
            edit(stack)
            wrong = forward(model, ids)
        model.load_state_dict(saved)
        return float((wrong - logits).abs().max() / logits.std())

    def each(end, f):
        return lambda _: [p.copy_(f(p)) for n, p in model.named_parameters() if n.endswith(end)]

    names = {n.rsplit("layers.", 1)[-1].split(".", 1)[-1] for n, _ in model.named_parameters()}
    if "mlp.experts.gate_up_proj" in names:
        yield "gate and up swapped", change(each("experts.gate_up_proj", lambda p: torch.cat(p.chunk(2, 1)[::-1], 1)))
        yield "experts off by one", change(each("experts.down_proj", lambda p: p.roll(1, 0)))
        yield "shared gate open", change(each("shared_expert_gate.weight", lambda p: p * 0))
        yield "shared expert missing", change(each("shared_expert.down_proj.weight", lambda p: p * 0))
        yield "one expert fewer", change(lambda s: top_k(model, s, lambda k: k - 1))
    if "linear_attn.in_proj_qkvz.weight" in names:
        yield "qkvz not interleaved", change(each("in_proj_qkvz.weight", lambda p: p.reshape(2, -1, p.shape[1]).transpose(0, 1).reshape(p.shape)))
        yield "b and a not interleaved", change(each("in_proj_ba.weight", lambda p: p.reshape(2, 2, -1, p.shape[1]).transpose(0, 1).reshape(p.shape)))
    yield "rows of a matrix rolled", change(each("o_proj.weight", lambda p: p.roll(1, 0)))


def top_k(model, stack, f):
    for module in model.modules():
        if hasattr(module, "top_k") and hasattr(module, "num_experts"):
            stack.callback(setattr, module, "top_k", module.top_k)
            module.top_k = f(module.top_k)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["all", "values", "models"])
    what = parser.parse_args().what
    OUT.mkdir(exist_ok=True)
    if what in ("all", "values"):
        make_values(OUT)
    if what in ("all", "models"):
        make_models(OUT)


if __name__ == "__main__":
    main()
