"""Makes special_cases.json: what transformers does with a small tokenizer.json beside one tokenizer_config.json after another.

    python3 lib/checkpoint/tests/checkpoint/make_special_cases.py        # needs transformers (made with 5.17.0)

Each case is a config, whether tokenizer.json has a post-processor that puts a token before a text, and the texts' ids without
and with what belongs around a text, and their decodings without special tokens.
"""
import copy
import json
import tempfile
from pathlib import Path

import transformers


def added(number, content, special):
    return {"id": number, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": special}


TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None, "post_processor": None,
    "decoder": {"type": "Fuse"},
    "added_tokens": [added(3, "<think>", False), added(4, "<s>", True), added(5, "</s>", True)],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2}, "merges": [], "unk_token": None},
}
FIRST = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}},
}
CONFIGS = [{}] + [{name: "<think>"} for name in ["eos_token", "bos_token", "pad_token", "unk_token", "image_token"]] + [
    {"eos_token": {"__type": "AddedToken", "content": "<think>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}},
    {"eos_token": "a"}, {"eos_token": None}, {"eos_token": "</s>", "pad_token": "</s>", "bos_token": None, "add_bos_token": False},
    {"bos_token": "<s>", "add_bos_token": True}, {"bos_token": "<s>", "add_bos_token": False}, {"bos_token": "<s>"},
    {"eos_token": "</s>", "add_eos_token": True}, {"additional_special_tokens": ["<think>"]}, {"extra_special_tokens": ["<think>"]},
    {"added_tokens_decoder": {"3": {k: v for k, v in added(3, "<think>", False).items() if k != "id"}}},
]
TEXTS = ["a<think>b</s>", "ab ba", "<s>a", "", "a <think> b"]


def main():
    cases = []
    for first in [False, True]:
        for config in CONFIGS:
            with tempfile.TemporaryDirectory() as folder:
                tokenizer = copy.deepcopy(TOKENIZER)
                tokenizer["post_processor"] = FIRST if first else None
                Path(folder, "tokenizer.json").write_text(json.dumps(tokenizer))
                Path(folder, "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}))
                t = transformers.AutoTokenizer.from_pretrained(folder)
            for text in TEXTS:
                ids = t(text, add_special_tokens=False)["input_ids"]
                cases.append({"config": config, "first": first, "text": text, "ids": ids, "whole": t(text)["input_ids"],
                              "decoded": t.decode(ids, skip_special_tokens=True)})
    head = json.dumps({"made_with": f"transformers {transformers.__version__}", "tokenizer": TOKENIZER, "first": FIRST})[:-1]
    rows = ",\n".join(json.dumps(case) for case in cases)
    Path(__file__).with_name("special_cases.json").write_text(f'{head}, "cases": [\n{rows}\n]}}\n')
    print(len(cases), "cases")


main()
