"""Makes chat_cases.json: templates rendered by Jinja2 in the environment transformers gives chat templates.

    python3 lib/checkpoint/tests/checkpoint/make_chat_cases.py        # needs jinja2 (made with 3.1.6)

The environment is that of transformers.utils.chat_template_utils: sandboxed, blocks trimmed, loop controls,
`{% generation %}`, and its own tojson, raise_exception and variables.
"""
import json
import sys
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}…{% endgeneration %}`: the body, as transformers' AssistantTracker renders it."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


ENV = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
ENV.filters["tojson"] = tojson
ENV.globals["raise_exception"] = raise_exception

USER = {"role": "user", "content": "a <b> & \"c\" 'd' é🦀\n\nend  "}
CALL = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nCalling.", "tool_calls": [
    {"type": "function", "function": {"name": "f", "arguments": {
        "n": 1, "x": 0.5, "big": 1e20, "ok": True, "none": None, "s": "1 < 2 && \"q\"", "list": [1, "a", None, False],
        "map": {"é": {"k": [1.0, -2e-7]}}}}},
    {"name": "g", "arguments": {}},
]}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "adds <b> & \"c\"", "parameters": {
    "type": "object", "properties": {"n": {"type": "integer", "minimum": 0}}, "required": ["n"]}}}]

# The features of this family's templates, in a template of our own.
AGENT = """\
{%- set count = namespace(images=0) %}
{%- macro body(content, in_system=false) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for part in content %}
            {%- if 'image' in part or part.type == 'image' %}
                {%- if in_system %}
                    {{- raise_exception('No images in the system message.') }}
                {%- endif %}
                {%- set count.images = count.images + 1 %}
                {{- 'Image ' ~ count.images ~ ':<|image|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- else %}
                {{- raise_exception('Unknown part.') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is not none and content is defined %}
        {{- raise_exception('Unknown content.') }}
    {%- endif %}
{%- endmacro %}
{%- if not messages %}
    {{- raise_exception('No messages.') }}
{%- endif %}
{%- if tools and tools is iterable and tools is not mapping %}
    {{- '<|im_start|>system\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>' }}
    {%- if messages[0].role == 'system' %}
        {{- '\\n\\n' + body(messages[0].content, true) | trim }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + body(messages[0].content, true) | trim + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.searching and message.role == 'user' and not (message.content is string and message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = body(message.content) | trim %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- raise_exception('System message must come first.') }}
        {%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set thought = message.thought if message.thought is string else '' %}
        {%- if not thought and '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last %}
            {{- '<think>\\n' + thought | trim + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function is defined %}
                {%- set call = call.function %}
            {%- endif %}
            {{- ('\\n\\n' if loop.first and content | trim else '\\n') + '<call ' + call.name + '>\\n' }}
            {%- for name, value in call.arguments | items %}
                {%- set value = value | tojson | safe if value is mapping or (value is sequence and value is not string) else value | string %}
                {{- '<' + name + '>' }}
                {{- value }}
                {{- '\\n' }}
            {%- endfor %}
            {{- '</call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<r>\\n' }}
        {{- content }}
        {{- '\\n</r>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('Unknown role.') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""

CONVERSATIONS = [
    [USER],
    [{"role": "system", "content": "  Be brief.\n"}, USER],
    [USER, {"role": "assistant", "content": "<think>\nold\n</think>\n\nyes"}, {"role": "user", "content": "and?"}],
    [USER, CALL, {"role": "tool", "content": "3"}, {"role": "tool", "content": "<4>"},
     {"role": "assistant", "content": "seven", "thought": "3 + 4"}],
    [USER, CALL, {"role": "tool", "content": "3"}],
    [{"role": "user", "content": [{"type": "text", "text": "see "}, {"type": "image"}, {"image": "x"}]}],
    [{"role": "user", "content": "1"}, {"role": "user", "content": "<r>2</r>"}, {"role": "assistant", "content": None}],
    [],
    [USER, {"role": "system", "content": "late"}],
    [{"role": "system", "content": [{"image": "x"}]}, USER],
    [{"role": "user", "content": [{"audio": "x"}]}],
    [{"role": "narrator", "content": "x"}],
    [{"role": "user", "content": {"text": "x"}}],
]

X = {"b": [1, 2.0, True, None, "é🦀\x07\n\x7f"], "a": {}, "c": [], "q": "it's \"so\"", "f": [1e20, 1e16, 123456789012345.0, 1e-5, 0.1, -0.0]}
VALUES = ["none", "missing", "x.missing", "1", "0", "1.5", "true", "false", "'a'", "''", "[]", "[1]", "(1,)", "{}", "x", "x.b", "messages[0].content",
          "namespace(a=1)", "raise_exception", "tools", "x.b | list", "x | tojson", "range(3) | list"]
TESTS = ["iterable", "sequence", "mapping", "string", "number", "integer", "float", "boolean", "none", "undefined", "defined", "true", "false",
         "sameas(none)", "eq(1)", "ne(1)", "in([1, 'a', none])"]
EXPRESSIONS = [
    "{{ x }}", "{{ x | string }}", "{{ x | tojson }}", "{{ x | tojson(indent=2) }}", "{{ x | tojson(true) }}",
    "{{ x | tojson(ensure_ascii=true, sort_keys=true) }}", "{{ x | tojson(separators=(',', ':')) }}",
    "{{ x.f | tojson }}", "{{ x.f }}", "{{ x.b }} {{ x.q }} {{ [x.q] }}", "{{ x.c }}|{{ x.a }}|{{ (1,) }}|{{ (1, 'a') }}",
    "{{ true }} {{ false }} {{ none }} {{ 1 }} {{ 1.0 }} {{ 1e20 }} {{ 3 / 2 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 2 ** 3 }} {{ 7 % 3 }}",
    "{{ true | string }}{{ none | string }}{{ 1.5 | string }}{{ 1e20 | string }}", "{{ 'a' ~ 1 ~ 'b' ~ 2 }}", "{{ 'n' ~ true ~ none ~ 1.0 }}",
    "{{ x | length }} {{ x.b | length }} {{ 'é🦀' | length }}", "{{ missing }}|{{ x.missing }}|{{ missing is defined }}",
    "{{ x.missing is defined }} {{ x.a is mapping }} {{ x.b is sequence }} {{ 'a' is string }} {{ 1 is number }} {{ none is none }}",
    "{% for k, v in x.items() %}{{ k }}={{ v is string }};{% endfor %}", "{% for k in x %}{{ k }}{{ loop.index }}{% if not loop.last %},{% endif %}{% endfor %}",
    "{{ x.get('zz', 'none') }} {{ x.get('q') }}", "{{ x['q'] }} {{ x.b[-1] }} {{ x.b[1:3] }} {{ x.b[::-1] | length }}",
    "{{ 'abc'[::-1] }} {{ 'abc'[1:] }} {{ 'a b'.title() }} {{ 'AbC'.lower() }}{{ 'AbC'.upper() }}", "{{ ' a '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'a-b-c'.split('-') }}|{{ 'a b  c'.split() }}",
    "{{ 'a-b-c'.split('-', 1)[1] }} {{ 'abcabc'.replace('b', 'B', 1) }} {{ 'abc'.find('c') }} {{ 'a' in 'abc' }} {{ 'a' not in ['a'] }}",
    "{{ 'a\nb\n'.splitlines() | length }} {{ '5'.isdigit() }} {{ ','.join(['a', 'b']) }} {{ ['a', 'b'] | join('-') }}",
    "{{ 'abc' | upper }} {{ 'a b' | title }} {{ ' a ' | trim }}| {{ 'a' | default('d') }} {{ missing | default('d') }} {{ '' | default('d', true) }}",
    "{{ [3, 1, 2] | sort | join(',') }} {{ [1, 2] | first }} {{ [1, 2] | last }} {{ x.b | list | length }} {{ [1, 2, 3] | sum }} {{ 2.5 | int }} {{ '3' | int }} {{ 3 | float }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | map(attribute='role') | join(',') }} {{ messages | rejectattr('role', 'equalto', 'user') | list | length }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }} {% set c %}block {{ a }}{% endset %}{{ c }}", "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for i in [] %}x{% else %}empty{% endfor %}", "{% if x.b and not x.c or false %}y{% else %}n{% endif %} {{ 'y' if x.a else 'n' }}",
    "{% macro f(a, b='B', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }} {{ f('a', c=2) }}", "{# comment #}a{#- b -#}  c",
    "  {% if true %}\n  a\n  {% endif %}\n\n", "a\n\n", "{%- generation -%}  kept  {%- endgeneration -%} x\n  {% generation %}\n  y\n  {% endgeneration %}\n z",
    "{{ bos_token }}{{ eos_token }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}", "{{ '%s=%d' | format('a', 3) }} {{ 'a{}'.format(1) }}",
    "{{ 'a' == 'a' }} {{ 1 == 1.0 }} {{ 1 < 2 <= 2 }} {{ not true }} {{ 'b' > 'a' }}", "{{ x.q | replace('so', 'no') }} {{ '<b>' | e }} {{ '<b>' | safe }}",
    "{{ dict(a=1, b='c') | tojson }} {{ {'k': [1]}['k'][0] }} {{ x.b | map('string') | join('|') }}", "{% filter upper %}abc{% endfilter %} {% with y = 3 %}{{ y }}{% endwith %} {% raw %}{{ x }}{% endraw %}",
    "{% for g in messages | groupby('role') %}{{ g.grouper }}{{ g.list | length }}{% endfor %}", "{{ [1, 2, 3][-2:] | tojson }} {{ [1] + [2] }} {{ 'ab' * 2 }}", "{{ missing.x }}", "{{ raise_exception('stop here') }}",
    "{{ x | tojson | length }} {{ x.items() | list | length }} {{ x.keys() | list | tojson }} {{ x | dictsort | first | first }}", "{{ 10000000000000000000000 }} {{ 18446744073709551615 | tojson }} {{ 0.1 + 0.2 }} {{ 1_000 }}",
    "{{ x.b | tojson(indent=none) }} {{ 'é' | tojson(ensure_ascii=False) }} {{ \"it's\" | tojson }} {{ 'tab\\t' | tojson }}", "{{ ['a', \"b'c\", 'd\"e', 'f\\'\"g', 'h\\n\\\\\\t\\x07', 'é', none, 1.0, {'k': true}] }}",
    "{{ loop is defined }} {{ namespace(a=1).a }} {{ range(3) | list }} {{ ['x'] | length > 0 }} {{ ('a' ~ 'b') | length }}", "{{ messages[0]['content'][:5] }} {{ messages[0].content.split('<')[0] }} {{ messages[-1].role }}",
    "{{ x.b | unique | list | length }} {{ [1, [2]] | tojson }} {{ 'a,b' .split(',') | tojson }} {{ 5 | abs }} {{ 2.567 | round(1) }} {{ [2, 1] | max }} {{ 'abc' | first }}", "{{ 'x' if false }}|", "{{ 'a\nb' | indent(2) }}",
    # positions count characters, maxima have names, every separator of Unicode ends a line
    "{{ 'é-b-é'.find('é') }} {{ 'é-b-é'.rfind('é') }} {{ 'é-b'.index('b') }} {{ 'abc'.find('z') }} {{ 'abcabc'.find('c', 3) }} {{ 'abcabc'.rfind('a', -6, -2) }} {{ 'abc'.find('') }} {{ 'abc'.rfind('') }} {{ 'abc'.find('', 4) }}", "{{ 'abc'.index('z') }}",
    "{{ 'a-b-c'.rsplit('-', 1) }} {{ 'a-b-c'.rsplit('-') }} {{ ' a  b c '.rsplit(none, 1) }} {{ ' a  b c '.split(none, 1) }} {{ ' a  b c '.split(maxsplit=1) }} {{ 'a.b.c'.split('.', maxsplit=1) }} {{ 'a'.split('b', 0) }} {{ '  '.split() }} {{ ''.split('x') }} {{ 'a b'.split(sep=' ') }}", "{{ 'a'.split('') }}",
    "{{ 'aXbXc'.partition('X') }} {{ 'aXbXc'.rpartition('X') }} {{ 'abc'.partition('X') }} {{ 'abc'.rpartition('X') }}", "{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('c') }} {{ 'abc'.removeprefix('x') }} {{ 'aXb'.swapcase() }} {{ '-5'.zfill(4) }} {{ '5'.zfill(3) }} {{ 'abc'.zfill(2) }}",
    "{{ 'abc'.ljust(5) }}| {{ 'é'.rjust(5, '-') }} {{ 'abc'.center(6, '*') }} {{ 'abcd'.center(7, '*') }} {{ 'abc'.center(2) }}", "{{ \"o'neil's 3rd\".title() }} {{ 'ÉCOLE élan'.title() }}", "{{ 'a\\nb\\r\\nc\\u2028d\\x85e\\x0cf\\n'.splitlines() }} {{ 'a\\r\\nb'.splitlines(true) }} {{ 'a\\nb'.splitlines(keepends=true) }} {{ ''.splitlines() }}",
    "{{ [1, 'b'].index('b') }} {{ [1, 2].count(1) }} {{ x.b.copy() | length }} {{ x.copy() == x }}", "{{ '  12 ' | int }} {{ '0x1f' | int(base=16) }} {{ '1e3' | float }} {{ '1_0' | int }} {{ true | int }} {{ none | int }} {{ 1e3 | int }} {{ -2.7 | int }} {{ 'x' | int(5) }} {{ 'x' | int(default=6) }} {{ '' | int }} {{ '3.9' | int }} {{ 'inf' | float }} {{ 'x' | float(1.5) }} {{ '-0b11' | int(base=2) }} {{ 'ff' | int(0, 16) if false }}",
    "{{ ['\\u2028', '\\u200b', '\\xad', '\\ue000', 'e\\u0301', '🦀', '\\x1f\\x7f', 'é'] }} {{ {'\\u200b': ('\\ufeff',)} }}", "{{ x | tojson(indent='  ') }} {{ [1, {'a': 2}] | tojson(indent='\\t') }} {{ [1, []] | tojson(indent=0) }}",
    "{% set j = joiner(', ') %}{% for i in [1, 2, 3] %}{{ j() }}{{ i }}{% endfor %} {% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}",
    "x\r\ny {% if true %}\r\n z\r{% endif %}\r\n", "{% set y = 1 %}{% generation %}{% set y = 2 %}{{ y }}{% endgeneration %}{{ y }}", "{{ '{% generation %}' }}{# {% generation %} #}{% raw %}{% generation %}{{ '{% endraw %}", "{% for i in [1, 2] %}{%- generation -%} {{ loop.index }}{{ i }} {%- endgeneration %} {% endfor %}", "{%generation%}x{%endgeneration-%}  y",
    # what a value is: Python asks what it can do
] + ["".join("{{ (" + v + ") is " + test + " }} " for v in VALUES) for test in TESTS] + [
    "{{ missing | length }} {{ missing | list }} {{ missing | count }} {{ missing | first }}|{{ missing | join }}|{{ missing | string }}|", "{{ none | length }}", "{{ 1 | length }}",
    "{{ missing | int }}", "{{ missing | float }}", "{{ '<\"\\'&>' | e }} {{ x.q | escape }} {{ '<' | e | e }} {{ [x.q, 1.5e20] | e }} {{ '<' | safe | e }}",
    "{% if tools is iterable and tools | length > 0 %}tools{% endif %}|{% if not tools is defined %}{% set tools = [] %}{% endif %}{{ tools }}",
]


# Messages that transformers changes before a template sees them.
CHANGED = [
    [{"role": "assistant", "content": None, "tool_calls": None, "name": "a", "extra": {"k": None}}],
    [{"role": "assistant", "content": "x", "reasoning": "r"}],
    [{"role": "assistant", "content": "x", "thinking": "t"}],
    [{"role": "assistant", "content": "x", "thinking": "t", "reasoning": "r", "reasoning_content": None}],
    [{"role": "assistant", "reasoning_content": "c", "content": "x", "thinking": "t", "reasoning": "r"}],
    [{"role": "assistant", "content": "x", "reasoning": ""}],
    [{"role": "user", "content": [{"type": "text", "text": None}], "reasoning": ["r"]}],
]


def changed(messages):
    """What transformers 5.23 makes of messages: `apply_chat_template` and `_alias_reasoning_fields`."""
    out = []
    for given in messages:
        message = {name: value for name, value in given.items() if value is not None}
        names = [n for n in ("reasoning_content", "thinking", "reasoning") if n in message]
        if names:
            message = {"thinking": message[names[0]]} | message | {"reasoning_content": message[names[0]]}
        out.append(message)
    return out


def render(template, messages, add_generation_prompt, variables):
    messages = changed(messages)
    compiled = ENV.from_string(template)
    return compiled.render(messages=messages, tools=variables.get("tools"), documents=None,
                           add_generation_prompt=add_generation_prompt, bos_token="<s>", eos_token="</s>",
                           **{k: v for k, v in variables.items() if k != "tools"})


def case(template, messages, add_generation_prompt, variables):
    inputs = {"messages": messages, "add_generation_prompt": add_generation_prompt, "variables": variables}
    try:
        return inputs | {"text": render(template, messages, add_generation_prompt, variables)}
    except jinja2.exceptions.TemplateError as e:
        return inputs | {"error": str(e)}
    except (TypeError, ValueError) as e:
        return inputs | {"error": f"a {type(e).__name__} of Python"}


def conversations(template):
    out = []
    for messages in CONVERSATIONS:
        for variables in ({}, {"tools": TOOLS}, {"enable_thinking": False}, {"enable_thinking": True}):
            out.append(case(template, messages, not variables.get("tools"), variables))
    return {"template": template, "cases": out}


def main():
    sources = [Path(p).read_text() for p in sys.argv[2:]] or [AGENT]
    data = {"made_with": f"jinja2 {jinja2.__version__}", "templates": [conversations(s) for s in sources]}
    if len(sys.argv) == 1:
        data["templates"] += [{"template": e, "cases": [case(e, [USER], True, {"x": X})]} for e in EXPRESSIONS]
        every = "{% for m in messages %}{{ m }} {{ m.content is defined }} {{ m.reasoning_content }}{% endfor %}"
        data["templates"] += [{"template": every, "cases": [case(every, m, True, {}) for m in CHANGED]}]
    out = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("chat_cases.json")
    Path(out).write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n")


main()
