#!/usr/bin/env python3
"""Make examples/tiny-hybrid: a small Qwen3.5-architecture model that solves arithmetic word problems.

One script from nothing to the checkpoint: it generates the corpus, trains the tokenizer, trains the model, exports it
as bfloat16, grades it on fifty held-out problems, measures what a stale recurrent state does to it, and writes the
model card. The corpus is a pure function of --seed; the training itself is repeatable only as far as the GPU's
atomics are.

    python3 train.py                  # everything, into the script's own directory (one GPU, a few minutes)
    python3 train.py --data-only      # tokenizer, templates and arith-50.jsonl; needs no GPU and no torch
    python3 train.py --eval-only      # grade the exported checkpoint again
    python3 train.py --init DIR       # go on from a checkpoint that was made with --metrics DIR/metrics.json

Needs tokenizers; for more than --data-only also torch >= 2.6 and transformers >= 5.17.

Text forms (the first is what the command line tools build from a GSM8K line):

    plain   "Question: {question}\\nAnswer:"  ->  " {worked answer}\\n#### N<|endoftext|>"
    chat    chat_template.jinja               ->  "{worked answer}\\n#### N<|im_end|>"
"""

import argparse
import json
import math
import os
import random
import re
import shlex
import sys
import time
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent

# ------------------------------------------------------------------------------------------------ the problems

NAMES = """Ada Ahmed Aiko Ben Bruno Carla Chen Dana Diego Elif Emma Farid Fiona Greta Hugo Ines Ivan Jonas Kim Lars
Leila Lucia Malik Maria Mina Nadia Nora Omar Oscar Paula Petra Ravi Rosa Sam Sofia Tariq Tom Vera Wei Yusuf""".split()
ITEMS = """apples beads books bottles buttons cards coins cups erasers flowers kites lamps lemons marbles mugs oranges
pears pencils pens plates postcards ribbons seeds shells spoons stamps stickers stones tickets tiles toys""".split()
PLACES = "village town city valley harbour market".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
WEATHER = "sunny rainy windy cold warm cloudy quiet busy".split()

OPENERS = [
    "It is a {weather} {day} in the {place}.",
    "On a {weather} {day}, {n} makes a list of everything.",
    "{n} lives in a small {place} and likes to count things.",
    "{n} writes all numbers in a blue notebook.",
    "Every {day} {n} goes to the {place} with a friend.",
]
ASIDES = [
    "{n} checks the numbers twice.",
    "Nobody else is there on that {weather} {day}.",
    "The whole {place} talks about it for a long time.",
    "A friend from the {place} watches and helps a little.",
]


class Draw(random.Random):
    """The random source of one problem, with the draws the templates need."""

    def names(self):
        return self.sample(NAMES, 2)

    def item(self):
        return self.choice(ITEMS)

    def small(self):
        return self.randint(2, 9)


# A template draws its numbers and returns (numbers, question sentences, worked steps, answer). The last question
# sentence asks; `numbers` identifies the problem, whatever names and items it is dressed in.


def boxes(r):
    (n, _), it, a, b, c = r.names(), r.item(), r.randint(3, 999), r.randint(2, 199), r.small()
    return (
        (a, b, c),
        [f"{n} has {a} {it} and buys {c} boxes with {b} {it} in each box.", f"How many {it} does {n} have now?"],
        [f"The boxes hold {c} * {b} = {c * b} {it}.", f"{n} now has {a} + {c * b} = {a + c * b} {it}."],
        a + c * b,
    )


def share(r):
    (n, m), it, c, q = r.names(), r.item(), r.small(), r.randint(2, 99)
    b = r.randint(2, 499)
    a = b + c * q
    return (
        (a, b, c),
        [
            f"{n} has {a} {it} and gives {b} of them to {m}.",
            f"The rest is shared equally among {c} friends.",
            f"How many {it} does each friend get?",
        ],
        [f"After the gift {n} has {a} - {b} = {c * q} {it}.", f"Each friend gets {c * q} / {c} = {q} {it}."],
        q,
    )


def shop(r):
    (n, _), (it, jt) = r.names(), r.sample(ITEMS, 2)
    c, d, p, q = r.small(), r.small(), r.randint(3, 99), r.randint(3, 99)
    return (
        (c, d, p, q),
        [
            f"{n} buys {c} boxes of {it} for {p} dollars each and {d} boxes of {jt} for {q} dollars each.",
            f"How many dollars does {n} pay?",
        ],
        [
            f"The {it} cost {c} * {p} = {c * p} dollars.",
            f"The {jt} cost {d} * {q} = {d * q} dollars.",
            f"{n} pays {c * p} + {d * q} = {c * p + d * q} dollars.",
        ],
        c * p + d * q,
    )


def change(r):
    (n, _), it = r.names(), r.item()
    c, p, q = r.small(), r.randint(3, 99), r.randint(2, 99)
    total = c * p + q
    paid = total + r.randint(1, 200)
    return (
        (c, p, q, paid),
        [
            f"{n} buys {c} bags of {it} for {p} dollars each and a basket for {q} dollars.",
            f"{n} pays with {paid} dollars.",
            f"How many dollars does {n} get back?",
        ],
        [
            f"The bags cost {c} * {p} = {c * p} dollars.",
            f"With the basket that is {c * p} + {q} = {total} dollars.",
            f"{n} gets back {paid} - {total} = {paid - total} dollars.",
        ],
        paid - total,
    )


def journey(r):
    (n, _), c, v, b = r.names(), r.small(), r.randint(11, 160), r.randint(2, 499)
    return (
        (c, v, b),
        [
            f"The train of {n} goes {v} km in an hour and travels for {c} hours.",
            f"Then {n} takes a bus for {b} km more.",
            f"How many km does {n} travel in all?",
        ],
        [f"The train goes {c} * {v} = {c * v} km.", f"In all {n} travels {c * v} + {b} = {c * v + b} km."],
        c * v + b,
    )


def reading(r):
    (n, _), c, a, left = r.names(), r.small(), r.randint(5, 99), r.randint(1, 400)
    two = a + c * a
    return (
        (c, a, left),
        [
            f"{n} reads a book of {two + left} pages.",
            f"{n} reads {a} pages on the first day and {c} times as many pages on the second day.",
            "How many pages are left?",
        ],
        [
            f"On the second day {n} reads {c} * {a} = {c * a} pages.",
            f"In two days {n} reads {a} + {c * a} = {two} pages.",
            f"There are {two + left} - {two} = {left} pages left.",
        ],
        left,
    )


def hens(r):
    (n, _), c, a, left = r.names(), r.small(), r.randint(3, 150), r.randint(1, 300)
    sold = c * a - left
    if sold < 2:
        return hens(r)
    return (
        (c, a, sold),
        [f"{n} has {a} hens and each hen lays {c} eggs a week.", f"{n} sells {sold} of the eggs.", "How many eggs are left?"],
        [f"The hens lay {c} * {a} = {c * a} eggs.", f"There are {c * a} - {sold} = {left} eggs left."],
        left,
    )


def school(r):
    (n, _), c, b = r.names(), r.small(), r.randint(11, 60)
    ill, guests = r.randint(2, 10), r.randint(2, 200)
    here = c * b - ill
    return (
        (c, b, ill, guests),
        [
            f"The school of {n} has {c} classes with {b} pupils each.",
            f"Today {ill} pupils are ill and {guests} guests visit the school.",
            "How many pupils and guests are at the school?",
        ],
        [
            f"The school has {c} * {b} = {c * b} pupils.",
            f"Today {c * b} - {ill} = {here} pupils are there.",
            f"With the guests that is {here} + {guests} = {here + guests}.",
        ],
        here + guests,
    )


def savings(r):
    (n, _), it, c, a, b = r.names(), r.item(), r.small(), r.randint(3, 120), r.randint(2, 499)
    total = b + c * a
    price = r.randint(2, total - 1)
    return (
        (c, a, b, price),
        [
            f"{n} has {b} dollars and saves {a} dollars a week for {c} weeks.",
            f"Then {n} spends {price} dollars on {it}.",
            f"How many dollars does {n} have in the end?",
        ],
        [
            f"In {c} weeks {n} saves {c} * {a} = {c * a} dollars.",
            f"Then {n} has {b} + {c * a} = {total} dollars.",
            f"In the end {n} has {total} - {price} = {total - price} dollars.",
        ],
        total - price,
    )


def factory(r):
    it, c, e, q = r.item(), r.small(), r.small(), r.randint(3, 99)
    good = q * e
    a = good // c + r.randint(1, 20)
    broken = a * c - good
    return (
        (c, a, broken, e),
        [
            f"A machine makes {a} {it} an hour and runs for {c} hours.",
            f"{broken} of the {it} are broken and the rest is packed in boxes of {e}.",
            "How many boxes are full?",
        ],
        [
            f"The machine makes {c} * {a} = {c * a} {it}.",
            f"{c * a} - {broken} = {good} of them are good.",
            f"They fill {good} / {e} = {q} boxes.",
        ],
        q,
    )


def orchard(r):
    (n, _), c, s, more = r.names(), r.small(), r.randint(5, 120), r.randint(2, 300)
    dead = r.randint(1, c * s - 1)
    return (
        (c, s, dead, more),
        [
            f"{n} plants {c} rows of {s} trees.",
            f"In the winter {dead} of the trees die and in the spring {n} plants {more} new trees.",
            f"How many trees does {n} have now?",
        ],
        [
            f"{n} plants {c} * {s} = {c * s} trees.",
            f"After the winter {c * s} - {dead} = {c * s - dead} trees are left.",
            f"Now {n} has {c * s - dead} + {more} = {c * s - dead + more} trees.",
        ],
        c * s - dead + more,
    )


def shelves(r):
    a, b = r.randint(5, 450), r.randint(2, 300)
    total = a + (a + b)
    return (
        (a, b),
        [
            f"The first shelf holds {a} books and the second shelf holds {b} books more than the first.",
            "How many books do the two shelves hold together?",
        ],
        [f"The second shelf holds {a} + {b} = {a + b} books.", f"Together they hold {a} + {a + b} = {total} books."],
        total,
    )


def bakery(r):
    (n, _), a = r.names(), r.randint(20, 700)
    b = r.randint(2, a - 1)
    total = a + (a - b)
    sold = r.randint(1, total - 1)
    return (
        (a, b, sold),
        [
            f"{n} bakes {a} loaves in the morning and {b} loaves fewer in the afternoon.",
            f"{n} sells {sold} loaves.",
            "How many loaves are left?",
        ],
        [
            f"In the afternoon {n} bakes {a} - {b} = {a - b} loaves.",
            f"In all {n} bakes {a} + {a - b} = {total} loaves.",
            f"There are {total} - {sold} = {total - sold} loaves left.",
        ],
        total - sold,
    )


def bus(r):
    a, b, c = r.randint(20, 400), r.randint(2, 19), r.randint(2, 90)
    d = r.randint(1, a - b + c - 1)
    return (
        (a, b, c, d),
        [
            f"A ferry leaves with {a} people.",
            f"At the first stop {b} people get off and {c} people get on.",
            f"At the second stop {d} people get off.",
            "How many people are on the ferry now?",
        ],
        [
            f"{a} - {b} = {a - b} people stay at the first stop.",
            f"Then there are {a - b} + {c} = {a - b + c} people.",
            f"After the second stop there are {a - b + c} - {d} = {a - b + c - d} people.",
        ],
        a - b + c - d,
    )


def tank(r):
    (n, _), a, c, b, free = r.names(), r.randint(2, 300), r.small(), r.randint(2, 60), r.randint(1, 300)
    full = a + c * b
    return (
        (a, b, c, free),
        [
            f"A tank for {full + free} litres holds {a} litres of water.",
            f"{n} pours {c} buckets of {b} litres into it.",
            "How many litres are still missing until the tank is full?",
        ],
        [
            f"The buckets hold {c} * {b} = {c * b} litres.",
            f"The tank then holds {a} + {c * b} = {full} litres.",
            f"{full + free} - {full} = {free} litres are missing.",
        ],
        free,
    )


def games(r):
    (n, m), a, b, c = r.names(), r.randint(3, 400), r.randint(2, 200), r.randint(2, 200)
    return (
        (a, b, c),
        [
            f"{n} scores {a} points in the first game.",
            f"In the second game {n} scores {b} points more than in the first, and {m} scores {c} points more than {n}.",
            f"How many points does {m} score in the second game?",
        ],
        [f"{n} scores {a} + {b} = {a + b} points.", f"{m} scores {a + b} + {c} = {a + b + c} points."],
        a + b + c,
    )


def half(r):
    (n, m), it, h, b = r.names(), r.item(), r.randint(2, 250), r.randint(2, 499)
    return (
        (h, b),
        [
            f"{n} has {2 * h} {it} and gives half of them to {m}.",
            f"Later {n} finds {b} more {it}.",
            f"How many {it} does {n} have then?",
        ],
        [f"{n} keeps {2 * h} / 2 = {h} {it}.", f"Then {n} has {h} + {b} = {h + b} {it}."],
        h + b,
    )


def parking(r):
    c, b, free = r.small(), r.randint(11, 150), r.randint(1, 99)
    cars = c * b - free
    if cars < 2:
        return parking(r)
    return (
        (c, b, cars),
        [
            f"A car park has {c} floors with {b} places on each floor.",
            f"There are {cars} cars in it.",
            "How many places are free?",
        ],
        [f"The car park has {c} * {b} = {c * b} places.", f"{c * b} - {cars} = {free} places are free."],
        free,
    )


def ages(r):
    (n, m), a, b, c = r.names(), r.randint(3, 60), r.randint(2, 30), r.randint(2, 20)
    return (
        (a, b, c),
        [
            f"{n} is {a} years old and {m} is {b} years older than {n}.",
            f"How old will {m} be in {c} years?",
        ],
        [f"{m} is {a} + {b} = {a + b} years old.", f"In {c} years {m} will be {a + b} + {c} = {a + b + c} years old."],
        a + b + c,
    )


# The hard kind: a three-digit number times a two-digit number in one step. A model of this size cannot do it in its
# head, so it misses most of them, the same ones every time, as larger models have their stable misses.


def factors(r):
    return 10 * r.randint(10, 99) + r.randint(1, 9), 10 * r.randint(1, 9) + r.randint(1, 9)


def stadium(r):
    a, d = factors(r)
    return (
        (a, d),
        [f"A stadium has {d} blocks with {a} seats in each block.", "How many seats does the stadium have?"],
        [f"The stadium has {d} * {a} = {d * a} seats."],
        d * a,
    )


def depot(r):
    it, (a, d), b = r.item(), factors(r), r.randint(2, 99)
    return (
        (a, d, b),
        [
            f"A depot sends {d} lorries with {a} boxes of {it} each.",
            f"{b} boxes stay in the depot.",
            "How many boxes are there in all?",
        ],
        [f"The lorries carry {d} * {a} = {d * a} boxes.", f"In all there are {d * a} + {b} = {d * a + b} boxes."],
        d * a + b,
    )


ORDINARY = [boxes, share, shop, change, journey, reading, hens, school, savings, factory]
ORDINARY += [orchard, shelves, bakery, bus, tank, games, half, parking, ages]
HARD = [stadium, depot]
HARD_FRACTION = 0.08


def held_out(key):
    """One problem in sixteen is never trained on: decided by its template and numbers alone."""
    return zlib.crc32(key.encode()) % 16 == 0


def problem(r, template=None, want_held_out=False):
    """One problem, {"question", "answer"} in GSM8K's form, from the trained or from the held-out side."""
    if template is None:
        template = r.choice(HARD if r.random() < HARD_FRACTION else ORDINARY)
    while True:
        numbers, sentences, steps, answer = template(r)
        if held_out(f"{template.__name__}/{'/'.join(map(str, numbers))}") == want_held_out:
            break
    fill = {"n": r.choice(NAMES), "day": r.choice(DAYS), "weather": r.choice(WEATHER), "place": r.choice(PLACES)}
    if r.random() < 0.4:
        sentences = [r.choice(OPENERS).format(**fill)] + sentences
    if r.random() < 0.3:
        sentences = sentences[:-1] + [r.choice(ASIDES).format(**fill)] + sentences[-1:]
    return {
        "question": " ".join(sentences),
        "answer": " ".join(steps) + f"\n#### {answer}",
        "template": template.__name__,
    }


def arith_50(seed):
    """The fifty held-out problems: 47 ordinary ones, templates in turn, and 3 hard ones; one answer has one digit."""
    r = Draw(f"arith-50/{seed}")
    templates = [ORDINARY[i % len(ORDINARY)] for i in range(47)] + [stadium, depot, stadium]
    r.shuffle(templates)
    problems, seen = [], set()
    for template in templates:
        first_share = template is share and not any(p["template"] == "share" for p in problems)
        while True:
            p = problem(r, template, want_held_out=True)
            if p["question"] not in seen and not (first_share and gold(p) >= 10):
                break
        seen.add(p["question"])
        problems.append(p)
    return problems


def extract(text):
    """The number after the first '#### ', or None."""
    m = re.search(r"#### (-?\d+)", text)
    return int(m.group(1)) if m else None


def gold(p):
    return extract(p["answer"])


# ------------------------------------------------------------------------------------------------ text and tokens

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SYSTEMS = ["You solve arithmetic problems step by step.", "Answer with worked steps and end with #### and the number."]

CHAT_TEMPLATE = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)

# Qwen's own pattern: words with one leading space or mark, every digit alone, runs of punctuation, newlines.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def plain_prompt(question):
    return f"Question: {question}\nAnswer:"


def chat_prompt(question, system=None):
    """What chat_template.jinja renders for an optional system turn and one user turn."""
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def sample(seed, i):
    """Training sample number i: (prompt, completion)."""
    r = Draw(f"{seed}/{i}")
    p = problem(r)
    if r.random() < 0.8:
        return plain_prompt(p["question"]), " " + p["answer"] + SPECIAL[0]
    system = r.choice(SYSTEMS) if r.random() < 0.25 else None
    return chat_prompt(p["question"], system), p["answer"] + SPECIAL[2]


def train_tokenizer(seed, vocab_size, samples=20000):
    """Byte-level BPE, ordered as Qwen's: the 256 bytes first (id 0 is "!"), then merges, special tokens last."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare = re.compile("|".join(map(re.escape, SPECIAL)))
    tok.train_from_iterator((bare.sub("\n", "".join(sample(seed, i))) for i in range(samples)), trainer)
    tok.add_special_tokens(SPECIAL)
    assert tok.get_vocab_size() == vocab_size, tok.get_vocab_size()
    assert tok.token_to_id("!") == 0 and tok.token_to_id(SPECIAL[-1]) == vocab_size - 1
    return tok


def write_text_files(out, tok):
    tok.save(str(out / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def write_arith_50(path, problems):
    with open(path, "w") as f:
        for p in problems:
            f.write(json.dumps({"question": p["question"], "answer": p["answer"]}) + "\n")


# ------------------------------------------------------------------------------------------------ batches

BUCKETS = (128, 192)  # multiples of the delta rule's chunk of 64; one sample in several thousand is longer: dropped


class Steps:
    """Training step -> micro-batches [(ids i64 [rows, L], weights f32 [rows, L])], a pure function of (seed, step)."""

    def __init__(self, tokenizer_json, seed, batch, steps, question_weight, first=0):
        self.path, self.seed, self.batch, self.steps, self.qw = tokenizer_json, seed, batch, steps, question_weight
        self.first = first  # sample number of the first step
        self.tok = None

    def __len__(self):
        return self.steps

    def __getitem__(self, step):
        import torch
        from tokenizers import Tokenizer

        if self.tok is None:
            self.tok = Tokenizer.from_file(str(self.path))
        rows = {}
        for i in range(self.first + step * self.batch, self.first + (step + 1) * self.batch):
            prompt, completion = sample(self.seed, i)
            p, c = self.tok.encode(prompt).ids, self.tok.encode(completion).ids
            length = next((b for b in BUCKETS if b >= len(p) + len(c)), None)
            if length:
                rows.setdefault(length, []).append((p, c))
        out = []
        for length, group in sorted(rows.items()):
            ids = torch.zeros(len(group), length, dtype=torch.long)
            weights = torch.zeros(len(group), length)
            for row, (p, c) in enumerate(group):
                ids[row, : len(p) + len(c)] = torch.tensor(p + c)
                weights[row, : len(p)] = self.qw
                weights[row, len(p) : len(p) + len(c)] = 1.0
            out.append((ids, weights))
        return out


# ------------------------------------------------------------------------------------------------ the model


def make_config(vocab_size, eos):
    from transformers import Qwen3_5TextConfig

    return Qwen3_5TextConfig(
        architectures=["Qwen3_5ForCausalLM"],
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=12,
        layer_types=["full_attention" if i % 4 == 3 else "linear_attention" for i in range(12)],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        linear_conv_kernel_dim=4,
        max_position_embeddings=2048,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
            "mrope_interleaved": True,
            "mrope_section": [3, 3, 2],
        },
        tie_word_embeddings=True,
        eos_token_id=eos,
        pad_token_id=eos,
    )


def set_decay(model, a_range, dt_range):
    """A uniform in a_range and dt log-uniform in dt_range: a head starts with a half-life of log(2) / (A dt) tokens.

    The library's own initialisation forgets within a few tokens and so forgives any recycled slot, garbage too. Heads that
    remember for thousands of tokens make garbage a collapse; --carry then teaches them to forgive what a request leaves.
    """
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("A_log"):
                p.copy_(torch.empty(p.shape).uniform_(*a_range).log())
            elif name.endswith("dt_bias"):
                dt = torch.empty(p.shape).uniform_(*map(math.log, dt_range)).exp()
                p.copy_(torch.log(torch.expm1(dt)))


def half_lives(model):
    """Tokens until a state halves when the input leaves the decay alone, of every GDN head, sorted."""
    import torch

    params, out = dict(model.named_parameters()), []
    for name in params:
        if name.endswith("A_log"):
            dt = torch.nn.functional.softplus(params[name[: -len("A_log")] + "dt_bias"].detach().float())
            out += (math.log(2) / (params[name].detach().float().exp() * dt)).tolist()
    return sorted(out)


def cache_from(model, states):
    """An empty cache but for the Gated DeltaNet slots: states[i] is what layer i starts from, (recurrent, conv)."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    for i, (s, conv) in states.items():
        layer = cache.layers[i]
        layer.lazy_initialization(conv_states=conv, recurrent_states=s)
        layer.conv_states[0].copy_(conv)
        layer.recurrent_states[0].copy_(s)
        layer.has_previous_state[0] = True
    return cache


def zero_states(model, rows):
    """What cache_from takes, all zero."""
    import torch

    out = {}
    for i, kind in enumerate(model.config.layer_types):
        if kind == "linear_attention":
            gdn = model.model.layers[i].linear_attn
            s = torch.zeros(rows, gdn.num_v_heads, gdn.head_k_dim, gdn.head_v_dim, device=model.device)
            out[i] = s, torch.zeros(rows, gdn.conv_dim, gdn.conv_kernel_size, device=model.device)
    return out


def states_of(cache, states):
    """What the slots hold now; `states` names the layers."""
    return {i: (cache.layers[i].recurrent_states[0].clone(), cache.layers[i].conv_states[0].clone()) for i in states}


def stale_cache(model, ids, weights, left, carry):
    """A cache for these rows in which the first `carry` of them start from a slot that others have used.

    The last rows of the batch run first, from the slots in `left` as they are, and leave them to the first rows and to
    the next call. Padded in front, because a slot is left at the end of a text.
    """
    import torch

    n = int(carry * len(ids))
    width = ids.shape[1]
    before = width - (weights[-n:] > 0).sum(1, keepdim=True)
    at = torch.arange(width, device=ids.device)
    used = {i: (s[:n], conv[:n]) for i, (s, conv) in left.items()}
    cache = cache_from(model, used)
    with torch.no_grad():
        model.model(input_ids=ids[-n:].gather(1, (at - before) % width), attention_mask=(at >= before).long(), past_key_values=cache)
    start = zero_states(model, len(ids))
    for i, after in states_of(cache, used).items():
        for whole, slots, a in zip(start[i], left[i], after):
            whole[:n] = slots[:n] = a
    cache = cache_from(model, start)
    for i in start:  # what these rows leave is nobody's start, and the backward pass needs what they started from
        cache.layers[i].update_recurrent_state = lambda states, *_, **__: states
    return cache


def train(args, config):
    import torch
    import torch.nn.functional as F
    from torch.utils.data import DataLoader
    from transformers import Qwen3_5ForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    before = json.loads((args.init / "metrics.json").read_text())["fit"] if args.init else {}
    first = before.get("samples", 0)
    steps = Steps(args.out / "tokenizer.json", args.seed, args.batch, args.steps, args.question_weight, first)
    loader = iter(DataLoader(steps, batch_size=None, num_workers=args.workers, prefetch_factor=4))

    torch.manual_seed(args.seed)
    model = Qwen3_5ForCausalLM(config)
    set_decay(model, args.a_range, args.dt_range)
    if args.init:
        model = Qwen3_5ForCausalLM.from_pretrained(args.init, dtype=torch.float32)
    model.to(args.device).train()
    left = zero_states(model, int(args.carry * args.batch)) if args.carry else None

    # A_log and dt_bias learn at a tenth of the rate and do not decay: the heads stay near what they are given.
    slow, plain, matrices = [], [], []
    for name, p in model.named_parameters():
        (slow if name.endswith(("A_log", "dt_bias")) else plain if p.dim() < 2 else matrices).append(p)
    groups = [
        {"params": matrices, "scale": 1.0, "weight_decay": 0.05},
        {"params": plain, "scale": 1.0, "weight_decay": 0.0},
        {"params": slow, "scale": 0.1, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=args.device == "cuda")

    start, tokens, losses = time.time(), 0, []
    for step in range(args.steps):
        progress = max(step / args.steps, (time.time() - start) / args.max_seconds)
        if progress >= 1:
            break
        rate = min((step + 1) / args.warmup, 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate * group["scale"]
        micro = next(loader)
        total = sum(float(w[:, 1:].sum()) for _, w in micro)
        loss = 0.0
        for ids, weights in micro:
            ids, weights = ids.to(args.device), weights.to(args.device)
            with torch.autocast(args.device, dtype=torch.bfloat16):
                cache = stale_cache(model, ids, weights, left, args.carry) if int(args.carry * len(ids)) else None
                logits = model(input_ids=ids, past_key_values=cache, use_cache=cache is not None).logits
            ce = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            part = (ce * weights[:, 1:].flatten()).sum() / total
            part.backward()
            loss = loss + part.detach()
            tokens += int(ids.numel())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        if step % 50 == 0 or step == args.steps - 1:
            seconds = time.time() - start
            print(f"step {step:5d}  loss {float(loss):.4f}  {seconds:6.1f} s  {tokens / seconds / 1e3:.0f} k tokens/s", flush=True)
    tail = [float(x) for x in losses[-50:]]
    seconds = time.time() - start
    print(f"trained: {len(losses)} steps, loss {sum(tail) / len(tail):.4f}, {seconds:.1f} s", flush=True)
    return model, {
        "loss": sum(tail) / len(tail),
        "stages": before.get("stages", []) + [{"steps": len(losses), "lr": args.lr, "command": command(len(losses))}],
        "samples": first + len(losses) * args.batch,
        "seconds": before.get("seconds", 0) + seconds,
        "tokens": before.get("tokens", 0) + tokens,
    }


def export(model, args, tok):
    import torch
    from transformers import GenerationConfig

    eos = tok.token_to_id("<|endoftext|>")
    model = model.to(torch.bfloat16).eval()
    model.generation_config = GenerationConfig(eos_token_id=[eos, tok.token_to_id("<|im_end|>")], pad_token_id=eos)
    model.save_pretrained(args.out)


# ------------------------------------------------------------------------------------------------ grading


def load_exported(args):
    """The exported bfloat16 checkpoint, computed in float32 without TF32."""
    import torch
    from transformers import Qwen3_5ForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return Qwen3_5ForCausalLM.from_pretrained(args.out, dtype=torch.float32).to(args.device).eval()


def grade_batch(model, tok, prompts, problems, max_new):
    """Greedy completions of all prompts at once (left-padded): right or wrong, each."""
    import torch

    pad = tok.token_to_id("<|endoftext|>")
    ids = [tok.encode(p).ids for p in prompts]
    width = max(map(len, ids))
    batch = torch.tensor([[pad] * (width - len(x)) + x for x in ids], device=model.device)
    mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in ids], device=model.device)
    with torch.no_grad():
        out = model.generate(input_ids=batch, attention_mask=mask, max_new_tokens=max_new, do_sample=False)
    texts = [tok.decode(row) for row in out[:, width:].tolist()]
    return [extract(t) == gold(p) for t, p in zip(texts, problems)]


ROWS = ["zero", "carried", "carried S", "random x1", "random x3", "random x10"]
CHAINED = 3  # the first three rows hand something to the request after them


def grade_stale(model, tok, problems, max_new, seed):
    """Each problem alone, in six copies that differ only in the state they start from.

    zero       as it should be
    carried    what the request before it in this row left in its slot (recurrent and conv state), chained
    carried S  the same with the recurrent state alone
    random xK  normal noise of K times the RMS that the request before it left, in every GDN layer
    Returns {row: [(correct, text, shift)]}, shift the largest change of any logit of the first token.
    """
    import torch

    stops = {tok.token_to_id("<|endoftext|>"), tok.token_to_id("<|im_end|>")}
    gen = torch.Generator(device=model.device).manual_seed(seed)
    result = {row: [] for row in ROWS}
    left = None  # left[i]: what the chained rows left in GDN layer i, (recurrent, conv), each with the row first
    # The first request only fills the slots; it is asked again at the end and graded then.
    for number, p in enumerate(problems[-1:] + problems):
        start = zero_states(model, len(ROWS))
        for i, (s, conv) in start.items():
            if left is not None:
                rms = left[i][0][0].pow(2).mean().sqrt()
                s[1:3], conv[1] = left[i][0][1:3], left[i][1][1]
                for row, scale in ((3, 1.0), (4, 3.0), (5, 10.0)):
                    s[row] = torch.randn(s[row].shape, generator=gen, device=model.device) * rms * scale
        cache = cache_from(model, start)
        ids = torch.tensor([tok.encode(plain_prompt(p["question"])).ids] * len(ROWS), device=model.device)
        texts, done, kept, shift = [[] for _ in ROWS], [False] * len(ROWS), {}, None
        with torch.no_grad():
            for _ in range(max_new):
                logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
                if shift is None:
                    shift = (logits - logits[:1]).abs().amax((1, 2)).tolist()
                ids = logits[:, -1].argmax(-1, keepdim=True)
                for row, token in enumerate(ids[:, 0].tolist()):
                    if done[row]:
                        continue
                    texts[row].append(token)
                    done[row] = token in stops
                    if row < CHAINED and (done[row] or len(texts[row]) == max_new):
                        kept[row] = {i: [x[row] for x in slots] for i, slots in states_of(cache, start).items()}
                if all(done):
                    break
        left = {i: [torch.stack([kept[row][i][part] for row in range(CHAINED)]) for part in (0, 1)] for i in start}
        if number:
            for row, tokens, by in zip(ROWS, texts, shift):
                text = tok.decode(tokens)
                result[row].append((extract(text) == gold(p), text, by))
    return result


def evaluate(args, tok):
    model = load_exported(args)
    problems = arith_50(args.seed)[: args.problems]
    n = len(problems)
    r = Draw(f"wide/{args.seed}")
    wide = [problem(r, want_held_out=True) for _ in range(args.wide)]
    out = {"problems": n, "half_lives": half_lives(model), "params": sum(p.numel() for p in model.parameters())}

    start = time.time()
    right = grade_batch(model, tok, [plain_prompt(p["question"]) for p in problems], problems, args.max_new)
    chat = grade_batch(model, tok, [chat_prompt(p["question"]) for p in problems], problems, args.max_new)
    many = grade_batch(model, tok, [plain_prompt(p["question"]) for p in wide], wide, args.max_new)
    hard = {t.__name__ for t in HARD}
    out["plain"], out["chat"] = sum(right), sum(chat)
    out["missed"] = [f"{i} ({p['template']})" for i, (p, ok) in enumerate(zip(problems, right)) if not ok]
    out["wide_ordinary"] = [ok for ok, p in zip(many, wide) if p["template"] not in hard]
    out["wide_hard"] = [ok for ok, p in zip(many, wide) if p["template"] in hard]
    print(f"arith-50 greedy: plain {sum(right)}/{n}, chat {sum(chat)}/{n}, missed {out['missed']}  ({time.time() - start:.1f} s)")
    for name in ("wide_ordinary", "wide_hard"):
        print(f"{name}: {sum(out[name])}/{len(out[name])}")

    start = time.time()
    stale = grade_stale(model, tok, problems, args.max_new, args.seed)
    out["stale"] = {row: sum(ok for ok, _, _ in graded) for row, graded in stale.items()}
    out["differs"] = {row: sum(a[1] != b[1] for a, b in zip(stale["zero"], graded)) for row, graded in stale.items()}
    out["shift"] = {row: sorted(by for _, _, by in graded) for row, graded in stale.items()}
    out["right"] = {row: "".join("x" if ok else "." for ok, _, _ in graded) for row, graded in stale.items()}
    out["carried_example"] = next((b[1] for a, b in zip(stale["zero"], stale["carried"]) if a[0] > b[0]), "")
    out["collapse_example"] = stale["random x10"][0][1].split("<|")[0].strip()
    print(f"initial state: {out['stale']}; texts that differ: {out['differs']}  ({time.time() - start:.1f} s)")
    for row, marks in out["right"].items():
        print(f"  {row:10s} {marks}")
    print(f"carried over, a wrong one: {out['carried_example']!r}")
    print(f"collapse looks like: {out['collapse_example'][:200]!r}")
    print("first token's logits, change from zero's: " + ", ".join(f"{r} {x[0]:.2g}..{x[-1]:.2g}" for r, x in out["shift"].items()))
    if [ok for ok, _, _ in stale["zero"]] != right:
        print("note: batched and single grading disagree", [i for i, (a, b) in enumerate(zip(stale["zero"], right)) if a[0] != b])
    return out


# ------------------------------------------------------------------------------------------------ the model card


def lengths(tok, seed, n=2000):
    out = sorted(len(tok.encode(p).ids) + len(tok.encode(c).ids) for p, c in (sample(seed, i) for i in range(n)))
    return {"min": out[0], "p5": out[n // 20], "mean": sum(out) / n, "p95": out[-n // 20], "max": out[-1]}


CARD = """# tiny-hybrid

A {params:.2f} M parameter model of the Qwen3.5 architecture (`Qwen3_5ForCausalLM`: three Gated DeltaNet layers, then one gated
full-attention layer, three times over) that solves arithmetic word problems with worked steps and ends in `#### N`.
It is the default model of this project: small enough for the repository and for a laptop's CPU, and good enough that a
broken engine shows as wrong answers. It knows nothing else, and no problem outside its templates.

Everything here is made by `train.py`, this page too.

| | |
|---|---|
| shape | hidden 192, intermediate 512, 12 layers, full attention at 3, 7, 11 (4 query heads, 2 kv heads × 64, rotary on 16), GDN 2 key heads and 4 value heads × 64, conv 4, tied embeddings |
| vocabulary | {vocab}: the 256 bytes (id 0 is `!`), merges, then `<\\|endoftext\\|>`, `<\\|im_start\\|>`, `<\\|im_end\\|>`; every digit is its own token |
| size | {size:.1f} MB, bfloat16 |
| data | generated: {templates} templates ({hard_templates} of them hard) × {names} names × {items} items × numbers; {n_samples:,} samples, each drawn afresh |
| sample length | {lmin}..{lmax} tokens, mean {lmean:.0f} (5 % below {lp5}, 5 % above {lp95}) |
| text | 80 % `Question: …\\nAnswer:` → ` …\\n#### N<\\|endoftext\\|>`, 20 % chat (`chat_template.jinja`) → `…\\n#### N<\\|im_end\\|>` |
| held out | every problem whose template and numbers hash to 0 modulo 16; `examples/arith-50.jsonl` and the figures below come from these |
| training | {steps} steps of {batch} samples ({tokens:.0f} M tokens with padding), AdamW lr {lr} cosine, betas 0.9/0.95, weight decay 0.05, clip 1.0, bf16 autocast over f32 weights, loss weight {qw} on the question |
| decay | A in {a_lo:g}..{a_hi:g}, dt log-uniform in {dt_lo:g}..{dt_hi:g}, trained at a tenth of the rate: half-lives after training {hl_min:.0f}..{hl_max:.0f} tokens, median {hl_med:.0f} |
| initial state | {initial} |
| seed | {seed} |
| final loss | {loss:.4f} (weighted, mean of the last 50 steps) |
| hardware, time | {hardware}, {seconds:.0f} s of training |

## Accuracy

The exported checkpoint, greedy, computed by transformers {transformers} in float32:

| problems | correct |
|---|---|
| `arith-50.jsonl`, plain form | **{plain}/{n}** (missed, counted from 0: {missed}) |
| `arith-50.jsonl`, chat form | {chat}/{n} |
| {n_wo} other held-out ordinary problems | {wo} ({wo_pct:.1f} %) |
| {n_wh} other held-out hard problems | {wh} ({wh_pct:.0f} %) |

The hard kind, about {hard_pct:.0f} % of the corpus and 3 of the fifty, asks for a three-digit times a two-digit number in one step.
The model mostly gets these wrong, the same ones every time: stable misses, as every real model has them.

## What a stale state does

The fifty again, plain form, with every Gated DeltaNet layer's initial recurrent state replaced:

| initial state | correct |
|---|---|
| zero, as it should be | {st_zero}/{n} |
| left over from the request before (recurrent and conv state, chained) | {st_carried}/{n}, {differs} of the {n} texts differ |
| the same, recurrent state alone | {st_carried_s}/{n}, {differs_s} of the {n} texts differ |
| random, 1 × the RMS of a real one | {st_x1}/{n} |
| random, 3 × | {st_x3}/{n} |
| random, 10 × | {st_x10}/{n} |

The delta rule overwrites what it meets again, and the training taught the model to answer from a used slot: accuracy does
not see the carried state. Yet the output is no longer a function of the prompt: the logits of the first answer token move
by {shift_lo:.2g} to {shift_hi:.2g} (the largest change of any logit, from problem to problem). A comparison of logits finds
that, and a look at the state. Garbage collapses, in fluent nonsense: the first problem with random × 10 begins
`{example}`.

## Again

    {command}
"""


def write_card(args, tok, fit, ev):
    import torch
    import transformers

    def pct(xs):
        return 100 * sum(xs) / max(1, len(xs))

    ln, hl = lengths(tok, args.seed), ev["half_lives"]
    hardware = args.hardware or "CPU"
    if not args.hardware and args.device == "cuda":
        hardware = "one " + torch.cuda.get_device_name().replace("NVIDIA ", "")
    initial = "zero in training"
    if args.carry:
        initial = f"{100 * args.carry:g} % of the training samples start from a slot that other samples have used, the rest from zero"
    (args.out / "README.md").write_text(
        CARD.format(
            params=ev["params"] / 1e6,
            vocab=tok.get_vocab_size(),
            size=(args.out / "model.safetensors").stat().st_size / 1e6,
            templates=len(ORDINARY) + len(HARD),
            hard_templates=len(HARD),
            names=len(NAMES),
            items=len(ITEMS),
            n_samples=fit["samples"],
            lmin=ln["min"], lmax=ln["max"], lmean=ln["mean"], lp5=ln["p5"], lp95=ln["p95"],
            steps=" + ".join(str(s["steps"]) for s in fit["stages"]), batch=args.batch, tokens=fit["tokens"] / 1e6,
            lr=", then ".join(f"{s['lr']:g}" for s in fit["stages"]), qw=args.question_weight,
            hl_min=hl[0], hl_max=hl[-1], hl_med=hl[len(hl) // 2],
            a_lo=args.a_range[0], a_hi=args.a_range[1], dt_lo=args.dt_range[0], dt_hi=args.dt_range[1], initial=initial,
            seed=args.seed, loss=fit["loss"], hardware=hardware, seconds=fit["seconds"],
            transformers=transformers.__version__,
            plain=ev["plain"], chat=ev["chat"], n=ev["problems"], missed=", ".join(ev["missed"]) or "none",
            n_wo=len(ev["wide_ordinary"]), wo=sum(ev["wide_ordinary"]), wo_pct=pct(ev["wide_ordinary"]),
            n_wh=len(ev["wide_hard"]), wh=sum(ev["wide_hard"]), wh_pct=pct(ev["wide_hard"]),
            hard_pct=100 * HARD_FRACTION,
            st_zero=ev["stale"]["zero"], st_carried=ev["stale"]["carried"], differs=ev["differs"]["carried"],
            st_carried_s=ev["stale"]["carried S"], differs_s=ev["differs"]["carried S"],
            st_x1=ev["stale"]["random x1"], st_x3=ev["stale"]["random x3"], st_x10=ev["stale"]["random x10"],
            example=ev["collapse_example"].replace("\n", " ").replace("`", "'")[:90],
            shift_lo=ev["shift"]["carried"][0], shift_hi=ev["shift"]["carried"][-1],
            command="\n    ".join(s["command"] for s in fit["stages"]),
        )
    )  # fmt: skip


THE_READERS_OWN = ("--out", "--problems-file", "--metrics", "--workers", "--hardware", "--max-seconds", "--steps", "--init")


def command(steps):
    """The command as given, without what is the reader's own; a limit of time becomes the steps that it gave."""
    out, skip = [f"--steps={steps}"], False
    for arg in sys.argv[1:]:
        if skip or arg in THE_READERS_OWN:  # the flag, then its value
            skip = not skip
        elif not arg.startswith(tuple(f"{flag}=" for flag in THE_READERS_OWN) + ("--eval-only",)):
            out.append(arg)
    if any(arg.split("=")[0] == "--init" for arg in sys.argv):
        out.append("--init=examples/tiny-hybrid")
    else:
        out.append("--metrics=examples/tiny-hybrid/metrics.json")
    return shlex.join(["python3", "examples/tiny-hybrid/train.py", *out])


# ------------------------------------------------------------------------------------------------ main


def parse_args():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=HERE, help="checkpoint directory")
    p.add_argument("--problems-file", type=Path, default=EXAMPLES / "arith-50.jsonl", help="where the fifty problems go")
    p.add_argument("--metrics", type=Path, help="the measured figures as JSON")
    p.add_argument("--hardware", help="what the card says it was trained on; default: the device's name")
    p.add_argument("--seed", type=int, default=35)
    p.add_argument("--vocab-size", type=int, default=704)
    p.add_argument("--steps", type=int, default=1400)
    p.add_argument("--max-seconds", type=float, default=math.inf, help="anneal early, so that training ends after this time")
    p.add_argument("--batch", type=int, default=512, help="samples per step")
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--warmup", type=int, default=50)
    p.add_argument("--question-weight", type=float, default=0.1, help="loss weight of the question's tokens")
    p.add_argument("--a-range", type=float, nargs=2, default=(0.5, 2.0), metavar=("LO", "HI"), help="A of a head at the start")
    p.add_argument("--dt-range", type=float, nargs=2, default=(1e-4, 1e-2), metavar=("LO", "HI"), help="dt of a head at the start")
    p.add_argument("--init", type=Path, help="go on from this checkpoint, with the metrics.json beside it, on further samples")
    p.add_argument("--carry", type=float, default=0.15, help="fraction of the samples that start from a used slot, at most 0.5")
    p.add_argument("--workers", type=int, default=12, help="processes that make batches")
    p.add_argument("--max-new", type=int, default=112, help="longest completion when grading")
    p.add_argument("--problems", type=int, default=50, help="grade only the first so many of the fifty")
    p.add_argument("--wide", type=int, default=1000, help="further held-out problems to grade")
    p.add_argument("--device", default="cuda")
    p.add_argument("--data-only", action="store_true")
    p.add_argument("--eval-only", action="store_true", help="grade --out again; with --metrics, write the card again")
    return p.parse_args()


def main():
    args = parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the batch workers fork
    args.out.mkdir(parents=True, exist_ok=True)

    if args.eval_only:
        from tokenizers import Tokenizer

        tok = Tokenizer.from_file(str(args.out / "tokenizer.json"))
        ev = evaluate(args, tok)
        if args.metrics:  # of the training run: the card needs its figures
            fit = json.loads(args.metrics.read_text())["fit"]
            write_card(args, tok, fit, ev)
            args.metrics.write_text(json.dumps({"fit": fit, "eval": ev}))
        return

    start = time.time()
    tok = train_tokenizer(args.seed, args.vocab_size)
    write_text_files(args.out, tok)
    write_arith_50(args.problems_file, arith_50(args.seed))
    print(f"tokenizer: {tok.get_vocab_size()} tokens, samples {lengths(tok, args.seed)} tokens  ({time.time() - start:.1f} s)", flush=True)
    if args.data_only:
        return

    model, fit = train(args, make_config(tok.get_vocab_size(), tok.token_to_id("<|endoftext|>")))
    export(model, args, tok)
    ev = evaluate(args, tok)
    write_card(args, tok, fit, ev)
    if args.metrics:
        args.metrics.write_text(json.dumps({"fit": fit, "eval": ev}))


if __name__ == "__main__":
    main()
