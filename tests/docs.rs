//! The commands of GUIDE.md and README.md, executed, and their output compared with what the pages say.
//!
//! A ```` ```console ```` block holds commands and what a terminal shows after them. A line `$ command` is run with
//! `bash -c` in the workspace's root, pipefail on, the built tools first in PATH, stdin empty; it goes on in the
//! next line while a line ends with `\`, and in lines that begin with `> `. What follows up to the next command is its
//! stdout and stderr together. `…` stands for anything: within a line for any characters, alone on a line for any lines.
//! A command must succeed unless the next one is `echo $?`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

/// Pages may write the same files.
static ONE_PAGE_AT_A_TIME: Mutex<()> = Mutex::new(());

const TOOLS: &[&str] = &["cute-load", "cute-generate", "cute-audit", "cute-dispatch-extract", "cute-verdict"];

/// First words of commands that a reader runs once and a test does not.
const NOT_HERE: &[&str] = &["cargo", "make", "git", "./configure", "pip", "apt-get"];

#[derive(Debug, PartialEq)]
struct Example {
    line: usize,
    command: String,
    expected: Vec<String>,
}

#[test]
fn the_commands_of_the_guide_do_what_it_says() {
    let run = check("docs/GUIDE.md");
    assert!(run >= 20, "docs/GUIDE.md: only {run} commands found in ```console blocks");
}

#[test]
fn the_commands_of_the_readme_do_what_it_says() {
    if root().join("README.md").exists() {
        check("README.md");
    }
}

/// Runs a page's commands in order. Returns how many there are.
fn check(page: &str) -> usize {
    let _alone = ONE_PAGE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    for tool in TOOLS {
        let at = tools().join(tool);
        assert!(at.exists(), "{} is not there: `cargo test --workspace` builds it", at.display());
    }
    let text = std::fs::read_to_string(root().join(page)).unwrap();
    let examples = extract(&text);
    let jq = Command::new("jq").arg("--version").output().is_ok_and(|o| o.status.success());
    let mut status = 0;
    let mut failures = Vec::new();
    for (i, example) in examples.iter().enumerate() {
        let place = format!("{page}:{}: $ {}", example.line, example.command);
        if let Some(why) = unable(&example.command, jq) {
            println!("skipped, {why}: {place}");
            status = 0;
            continue;
        }
        let (output, code) = run(&example.command, status);
        status = code;
        if !matches(&example.expected, &output.lines().collect::<Vec<_>>()) {
            failures.push(format!(
                "{place}\nthe page says:\n{}\n\nit printed:\n{output}",
                example.expected.join("\n")
            ));
        }
        let asked = examples.get(i + 1).is_some_and(|next| next.command == "echo $?");
        if code != 0 && !asked {
            failures
                .push(format!("{place}\nexit code {code}, and no `echo $?` follows; it printed:\n{output}"));
        }
    }
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n\n"));
    examples.len()
}

fn unable(command: &str, jq: bool) -> Option<String> {
    let words = || command.split(|c: char| !(c.is_ascii_alphanumeric() || "-_./".contains(c)));
    if !jq && words().any(|w| w == "jq") {
        return Some("jq is not installed".to_owned());
    }
    let first = words().find(|w| !w.is_empty()).unwrap_or_default();
    NOT_HERE.contains(&first).then(|| format!("{first} is for the reader"))
}

/// What a terminal would show, and the exit code. `before` is what `$?` is at the start.
fn run(command: &str, before: i32) -> (String, i32) {
    let mut path = vec![tools()];
    path.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    let (mut shown, both) = std::io::pipe().unwrap();
    let mut bash = Command::new("bash");
    bash.arg("-c")
        .arg(format!("set -o pipefail\n(exit {before})\n{command}"))
        .current_dir(root())
        .env("PATH", std::env::join_paths(path).unwrap())
        .stdin(Stdio::null())
        .stdout(both.try_clone().unwrap())
        .stderr(both);
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("CUTE_")) {
        bash.env_remove(name);
    }
    let mut child = bash.spawn().expect("bash is needed to run the pages' commands");
    drop(bash); // its ends of the pipe
    let mut bytes = Vec::new();
    shown.read_to_end(&mut bytes).unwrap();
    let status = child.wait().unwrap();
    let output = String::from_utf8_lossy(&bytes).into_owned();
    (output, status.code().unwrap_or(-1))
}

/// Where this test's own executable says the tools are: `target/<profile>/deps/docs-…`, two up.
fn tools() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    me.parent().and_then(Path::parent).unwrap().to_owned()
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The examples of a page.
fn extract(text: &str) -> Vec<Example> {
    let mut out: Vec<Example> = Vec::new();
    let (mut inside, mut goes_on) = (false, false);
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            inside = !inside && line.trim() == "```console";
            goes_on = false;
        } else if !inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            out.push(Example { line: number + 1, command: command.to_owned(), expected: Vec::new() });
            goes_on = command.ends_with('\\');
        } else if let Some(example) = out.last_mut() {
            let more = line.strip_prefix("> ").filter(|_| example.expected.is_empty());
            if goes_on || more.is_some() {
                let more = more.unwrap_or(line);
                example.command += &format!("\n{more}");
                goes_on = more.ends_with('\\');
            } else {
                example.expected.push(line.trim_end().to_owned());
            }
        }
    }
    for example in &mut out {
        while example.expected.last().is_some_and(String::is_empty) {
            example.expected.pop();
        }
    }
    out
}

/// Whether lines are what was expected; `…` alone is any number of lines.
fn matches<S: AsRef<str>>(expected: &[S], lines: &[&str]) -> bool {
    let lines = match lines {
        [head @ .., last] if last.trim().is_empty() => return matches(expected, head),
        _ => lines,
    };
    match expected.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first.as_ref().trim() == "…" => {
            (0..=lines.len()).any(|skip| matches(rest, &lines[skip..]))
        }
        Some((first, rest)) => {
            lines.first().is_some_and(|l| line_matches(first.as_ref(), l.trim_end()))
                && matches(rest, &lines[1..])
        }
    }
}

/// Whether a line is what was expected; `…` within it is any characters.
fn line_matches(expected: &str, line: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[test]
fn pages_are_read_as_their_readers_read_them() {
    let page = "text\n```console\n$ a | \\\n  b\nout\n$ echo 'x\n> y'\nx\ny\n\n```\n```sh\n$ not this\n```\n";
    let example = |line, command: &str, expected: &[&str]| Example {
        line,
        command: command.into(),
        expected: expected.iter().map(|s| (*s).to_owned()).collect(),
    };
    assert_eq!(extract(page), [example(3, "a | \\\n  b", &["out"]), example(6, "echo 'x\ny'", &["x", "y"])]);
}

#[test]
fn an_ellipsis_stands_for_anything_and_nothing_else_does() {
    for (expected, line) in
        [("a…", "abc"), ("a…", "a"), ("a…c", "abc"), ("…", ""), ("a…b…c", "a1b2c"), ("x", "x")]
    {
        assert!(line_matches(expected, line), "{expected} {line}");
    }
    for (expected, line) in [("a", "ab"), ("a…c", "ab"), ("ab…bc", "abc"), ("", "x"), ("a…b…c", "acb")]
    {
        assert!(!line_matches(expected, line), "{expected} {line}");
    }
    assert!(matches(&["a", "…", "d"], &["a", "b", "c", "d", ""]));
    assert!(matches(&["…"], &[]));
    assert!(!matches(&["a", "…", "d"], &["a", "b"]));
    assert!(!matches::<&str>(&[], &["a"]));
}

#[test]
fn the_exit_code_of_one_command_is_there_for_the_next() {
    assert_eq!(run("echo $?", 3), ("3\n".to_owned(), 0));
    assert_eq!(run("false | true", 0).1, 1);
    assert_eq!(run("echo out; echo err >&2", 0).0, "out\nerr\n");
}
