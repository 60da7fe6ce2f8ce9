"""Makes templates.json: the templates of this directory, rendered by transformers' apply_chat_template.

    python3 tests/golden/templates/make_templates.py        # needs transformers (made with 5.23.0) and jinja2 (3.1.6)

The templates are written for this test; they use what templates of published models use. Every conversation is rendered
with every set of arguments that has something to say to it. What transformers refuses stands there as `error`: with the
template's own words where it raised them, empty where the words are Python's.
"""
import json
from pathlib import Path

import jinja2
import transformers

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": " It's \"the\" weather <b>now</b> & later — 天気 🌦\n", "parameters": {
        "type": "object", "required": ["city"], "additionalProperties": False, "properties": {
            "city": {"type": "string", "description": "e.g. \"São Paulo\",\n<city>"},
            "unit": {"type": "string", "enum": ["°C", "°F", None, 1.5], "default": "°C"},
            "days": {"type": ["integer", "null"], "minimum": 0, "maximum": 1e2, "default": 3},
            "where": {"type": "object", "properties": {"lat": {"type": "number"}, "tags": {"type": "array", "items": {"type": "string"}}}},
        }}}}
BARE = {"name": "now", "description": "No arguments", "parameters": {"type": "object", "properties": {}}}
NONE = {"type": "function", "function": {"name": "ping"}}

USER = {"role": "user", "content": "What's <5 & \"warm\"? 東京 🦀\n\n  "}
SYSTEM = {"role": "system", "content": "\n Be brief; don't say \"no\".  "}
CALLS = {"role": "assistant", "content": "", "reasoning_content": "\n\nThe user wants <weather>.\n", "tool_calls": [
    {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {
        "city": "Zürich \"Nord\"\n</parameter>", "days": 2, "ok": True, "no": None, "x": 0.1, "big": 1e21, "tiny": 5e-324, "neg": -0.0,
        "where": {"lat": 47.0, "tags": ["a'b", "<c>", "é"]}, "list": [1, "2", [None, False]]}}},
    {"name": "now", "arguments": {}}]}
STRING_CALL = {"role": "assistant", "content": "Calling.", "tool_calls": [
    {"function": {"name": "now", "arguments": "{\"raw\":  \"é\"}"}}]}
RESULT = {"role": "tool", "content": "{\"t\": 3.5, \"s\": \"<ok>\"}"}
THOUGHT = {"role": "assistant", "content": "<think>\nold\n\nthought\n</think>\n\nIt is 3.5.\n"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "see "}, {"type": "image", "image": "x.png"}, {"type": "text", "text": " and "},
                                     {"type": "image_url", "image_url": {"url": "y"}}]}

CONVERSATIONS = {
    "question": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, THOUGHT, {"role": "user", "content": "and tomorrow?"}],
    "reply": [USER, THOUGHT],
    "called": [SYSTEM, USER, CALLS, RESULT, {"role": "tool", "content": "second\n"}],
    "answered": [USER, CALLS, RESULT, {"role": "assistant", "content": "Warm.", "reasoning_content": "3.5 < 5"}, {"role": "user", "content": "thanks"}],
    "string call": [USER, STRING_CALL, RESULT],
    "response as user": [USER, CALLS, {"role": "user", "content": "<result>\n3\n</result>"}, {"role": "assistant", "content": "</think>x"}],
    "parts": [PARTS, {"role": "assistant", "content": "two"}, PARTS],
    "late system": [USER, SYSTEM],
    "picture in system": [{"role": "system", "content": PARTS["content"]}, USER],
    "strange role": [USER, {"role": "note", "content": "n", "name": "o'neil smith"}],
    "strange part": [{"role": "user", "content": [{"type": "audio", "audio": "z"}]}],
    "number": [{"role": "user", "content": 5}],
    "null": [USER, {"role": "assistant", "content": None, "tool_calls": None}, USER],
    "two users": [USER, USER],
    "no user": [SYSTEM, {"role": "assistant", "content": "hi"}],
    "empty": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
}
DOCUMENTS = [{"title": "A <b>", "text": "line\nline", "n": 1}, {"text": "é", "score": 0.5, "ok": True}]
# sets of arguments, and the conversations that each is tried on; none is all
ARGUMENTS = [
    ({"add_generation_prompt": True}, None),
    ({"add_generation_prompt": False}, ["turns", "called", "answered"]),
    ({"add_generation_prompt": True, "enable_thinking": False}, ["question", "turns"]),
    ({"add_generation_prompt": True, "enable_thinking": True}, ["question", "called"]),
    ({"add_generation_prompt": True, "tools": [WEATHER, BARE, NONE]}, ["question", "system", "called", "answered", "picture in system"]),
    ({"add_generation_prompt": True, "tools": []}, ["system"]),
    ({"add_generation_prompt": False, "add_vision_id": True, "preserve_thinking": True}, ["parts", "turns", "answered"]),
    ({"add_generation_prompt": True, "max_turns": 1}, ["turns", "two users"]),
    ({"add_generation_prompt": True, "documents": DOCUMENTS}, ["question"]),
    ({"add_generation_prompt": True, "eos_token": "<my eos>"}, ["reply"]),
]


def render(tokenizer, source, messages, arguments):
    try:
        return {"text": tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **arguments)}
    except jinja2.exceptions.UndefinedError:
        return {"error": ""}
    except jinja2.exceptions.TemplateError as e:
        return {"error": str(e)}
    except (TypeError, AttributeError):
        return {"error": ""}


def main():
    tokenizer = transformers.AutoTokenizer.from_pretrained(ROOT / "examples/tiny-hybrid")
    tokenizer.bos_token = "<|im_start|>"
    cases = []
    for path in sorted(HERE.glob("*.jinja")):
        for arguments, names in ARGUMENTS:
            for name in names or CONVERSATIONS:
                case = {"template": path.name, "conversation": name, "arguments": arguments}
                cases.append(case | render(tokenizer, path.read_text(), CONVERSATIONS[name], arguments))
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    data = {"made_with": f"transformers {transformers.__version__}, jinja2 {jinja2.__version__}", "special_tokens": tokens,
            "conversations": CONVERSATIONS}
    head = json.dumps(data, ensure_ascii=False)[:-1]
    rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    (HERE / "templates.json").write_text(f'{head}, "cases": [\n{rows}\n]}}\n')
    refused = sum("error" in case for case in cases)
    print(f"{len(cases)} cases, {refused} of them refused")


main()
