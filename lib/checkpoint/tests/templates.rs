//! Hostile chat templates: a small text that would loop for ever or fill the memory ends in an error, soon and
//! cheaply. A process of its own, so that its peak of memory is that of these templates.

use cute_checkpoint::ChatTemplate;
use serde_json::json;
use std::time::{Duration, Instant};

/// Longest that one template may take. A hundred times what it takes on an idle machine.
const LONGEST: Duration = Duration::from_secs(30);
/// Bytes of the largest template that is compiled at all.
const LARGEST: usize = 1 << 16;
/// Most memory all of them may take, in kB.
const MOST_KB: u64 = 500_000;

/// Peak resident memory of this process in kB; 0 where the system does not tell.
fn peak_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

#[test]
fn no_template_loops_for_ever_or_fills_the_memory() {
    let double = |start: &str, step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(99) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}"
        )
    };
    let fill = |head: &str, unit: &str, end: &str| {
        format!("{head}{}{end}", unit.repeat((LARGEST - head.len() - end.len()) / unit.len()))
    };
    let fuel = "engine ran out of fuel";
    let cases: &[(&str, String, &str)] = &[
        ("another file", "{% include '/etc/passwd' %}".into(), "tried to include non-existing template"),
        ("a long range", "{% for i in range(10**9) %}{% endfor %}".into(), "range has too many elements"),
        (
            "nested loops",
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".into(),
            fuel,
        ),
        (
            "a macro that calls itself",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
            "recursion limit",
        ),
        ("a string doubled", double("'x'", "ns.x ~ ns.x", ""), fuel),
        ("a string added to itself", double("'x'", "ns.x + ns.x", ""), fuel),
        ("a string repeated", "{{ 'x' * 10**12 }}".into(), ""),
        ("a repeated string repeated", double("'x'", "ns.x * 99", ""), fuel),
        (
            "a captured block",
            double("'x'", "ns.x", "")
                + "{% set y %}{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}",
            fuel,
        ),
        ("replace", "{% set a = 'x' * 99999 %}{{ a.replace('', a) }}".into(), fuel),
        ("the replace filter", "{% set a = 'x' * 99999 %}{{ a | replace('x', a) }}".into(), fuel),
        ("replace with a count", "{% set a = 'x' * 99999 %}{{ a.replace('x', a, 99998) }}".into(), fuel),
        ("join", "{% set a = 'x' * 99999 %}{{ a.join([1] * 99999) }}".into(), fuel),
        ("join of a string", "{% set a = 'x' * 99999 %}{{ a.join(a) }}".into(), ""),
        ("join of a lazy list", "{{ ''.join([1] * 99999999) }}".into(), fuel),
        ("the join filter", "{% set a = 'x' * 99999 %}{{ ([1] * 99999) | join(a) }}".into(), fuel),
        ("a format with a width", "{{ '{:>99999999999}'.format(1) }}".into(), ""),
        ("a format with a given width", "{{ '{:>{}}'.format(1, 99999999999) }}".into(), ""),
        ("a printf with a width", "{{ '%99999999999d' | format(1) }}".into(), ""),
        ("a padded string", "{{ 'a'.ljust(99999999999) }}".into(), fuel),
        ("zeros before a number", "{{ '1'.zfill(99999999999) }}".into(), fuel),
        ("a wide indent of JSON", "{{ [1] | tojson(indent=99999999999) }}".into(), "indent is wider than 64"),
        ("split, of a long string", double("'x '", "ns.x ~ ns.x", "{{ ns.x.split() }}"), fuel),
        ("a long indent", "{{ 'a\nb' | indent(99999999999) }}".into(), fuel),
        ("a long list as JSON", "{{ ([0] * 99999999) | tojson }}".into(), fuel),
        ("long separators", "{{ ([0] * 99999) | tojson(separators=['x' * 99999, ':']) }}".into(), fuel),
        ("a list of itself as JSON", double("[1]", "[ns.x, ns.x]", "{{ ns.x | tojson }}"), fuel),
        ("a list of itself", double("[1]", "[ns.x, ns.x]", "{{ ns.x }}"), fuel),
        ("a list of floats of itself", double("[0.5]", "[ns.x, ns.x]", "{{ ns.x | string }}"), fuel),
        ("a dict of itself", double("{}", "{'a': ns.x, 'b': ns.x}", "{{ ns.x }}"), fuel),
        ("a long list of floats", "{{ [0.5] * 99999999 }}".into(), fuel),
        ("a long batch", "{{ [1] | batch(99999999999, 0) | list }}".into(), ""),
        ("a long slice", "{{ [1] | slice(99999999999) | list }}".into(), ""),
        ("sorting", "{{ ([2, 1] * 49999999) | sort }}".into(), fuel),
        ("floats, not so many", "{{ [0.5] * 90000 }}".into(), " bytes"),
        ("deep brackets", fill("{{ ", "(", "1 }}"), "syntax error"),
        ("deep lists", fill("{{ ", "[", "1 }}"), "syntax error"),
        ("deep not", fill("{{ ", "not ", "1 }}"), " bytes"),
        ("deep minus", fill("{{ ", "-", "1 }}"), "signs"),
        ("deep if and else", fill("{{ ", "1 if 0 else ", "1 }}"), " bytes"),
        ("deep blocks, as many as allowed", "{% if 1 %}".repeat(4096), "syntax error"),
        ("deep blocks", fill("", "{% if 1 %}", ""), "signs"),
        ("a long sum", fill("{{ 1", "+1", " }}"), "signs"),
        ("a long product", fill("{{ 1", "*1", " }}"), "signs"),
        ("a long power", fill("{{ 1", "**1", " }}"), "signs"),
        ("a long and", fill("{{ 1", " and 1", " }}"), " bytes"),
        ("a long ~", fill("{{ 1", "~1", " }}"), "signs"),
        ("a long comparison", fill("{{ 1", "<2", " }}"), ""),
        ("a long chain of filters", fill("{{ 1", "|abs", " }}"), " bytes"),
        ("a long chain of tests", fill("{{ 1", " is odd", " }}"), ""),
        ("a long chain of attributes", fill("{{ messages", ".a", " }}"), ""),
        ("a long chain of items", fill("{{ messages", "[0]", " }}"), ""),
        ("a long chain of calls", fill("{{ messages", "()", " }}"), ""),
        ("a long product that cannot be folded", fill("{{ 'x' * 1025", "*1", " }}"), "signs"),
        ("a long difference that cannot be folded", fill("{{ 'x'", "-1", " }}"), ""),
        ("a long sum of strings", fill("{{ 'x'", "+'x'", " }}"), "signs"),
        ("a long elif", fill("{% if 0 %}", "{% elif 0 %}", "{% endif %}"), "signs"),
        ("tags that do not end", fill("", "{% generation ", ""), "syntax error"),
        ("minus, as often as allowed", format!("{{{{ {}1 }}}}", "-".repeat(8192)), " bytes"),
        ("~, as often as allowed", format!("{{{{ 1{} }}}}", "~1".repeat(8192)), ""),
        ("a product, as long as allowed", format!("{{{{ 'x' * 1025{} }}}}", "*1".repeat(8190)), " bytes"),
        ("a long chain of ands", fill("{{ x", " and x", " }}"), ""),
        ("a text too long", " ".repeat(LARGEST + 1), "65537 bytes: expected at most 65536"),
    ];
    for (name, source, want) in cases {
        let start = Instant::now();
        let made = ChatTemplate::new("chat_template.jinja", source.clone(), Default::default());
        let said = match made.and_then(|t| t.render(&[json!({"role": "user", "content": "x"})], true)) {
            Ok(text) => format!("{} bytes", text.len()),
            Err(e) => e.to_string(),
        };
        println!("{:7.1?} {:4} MB {name}: {said:.120}", start.elapsed(), peak_kb() / 1000);
        assert!(said.contains(want), "{name}: {said}");
        assert!(said.len() < 500, "{name}: a message of {} bytes", said.len());
        assert!(start.elapsed() < LONGEST, "{name}: {:?}", start.elapsed());
    }
    assert!(peak_kb() < MOST_KB, "{} kB", peak_kb());
}
