//! Tidiness: heads, sizes, leftovers, help texts, links, and documents that must not drift from the code.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const TOOLS: &[&str] = &["cute-load", "cute-generate", "cute-audit", "cute-dispatch-extract", "cute-verdict"];

/// Lines past which a file has become two.
const LONGEST: usize = 600;

/// Lines past which one asks.
const LONG: usize = 400;

#[test]
fn every_rust_file_opens_with_what_it_is_for() {
    let bare: Vec<_> =
        rust_files().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(f, _)| f).collect();
    assert!(bare.is_empty(), "no `//!` in the first line of {bare:?}");
}

#[test]
fn no_rust_file_is_two_files() {
    let mut too_long = Vec::new();
    for (file, text) in rust_files() {
        let lines = text.lines().count();
        if lines > LONG {
            println!("{file}: {lines} lines: what second thing did it become?");
        }
        if lines > LONGEST {
            too_long.push(format!("{file}: {lines}"));
        }
    }
    assert!(too_long.is_empty(), "more than {LONGEST} lines: {too_long:?}");
}

#[test]
fn nothing_is_left_over_in_the_code() {
    // Put together here, so that this file does not find itself.
    let leftovers = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let found: Vec<String> = rust_files()
        .iter()
        .flat_map(|(file, text)| text.lines().enumerate().map(move |(i, line)| (file, i + 1, line)))
        .filter(|(.., line)| leftovers.iter().any(|l| line.contains(l)))
        .map(|(file, i, line)| format!("{file}:{i}: {}", line.trim()))
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_tool_shows_examples_and_exit_codes_in_its_help() {
    let me = std::env::current_exe().unwrap();
    let built = me.parent().and_then(Path::parent).unwrap();
    for tool in TOOLS {
        let Ok(help) = Command::new(built.join(tool)).arg("--help").output() else {
            panic!("no {tool} in {}: `cargo build` puts it there", built.display());
        };
        let help = String::from_utf8(help.stdout).unwrap();
        for wanted in ["Examples:", "Exit codes:"] {
            assert!(help.contains(wanted), "{tool} --help has no {wanted:?}");
        }
    }
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut broken = Vec::new();
    for (page, text) in files(&["md"]) {
        for (line, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let file = match path {
                "" => root().join(&page),
                path => root().join(&page).parent().unwrap().join(path),
            };
            let lost = if !file.exists() {
                true
            } else if anchor.is_empty() || file.extension().is_none_or(|e| e != "md") {
                false
            } else {
                !anchors(&std::fs::read_to_string(&file).unwrap()).contains(anchor)
            };
            if lost {
                broken.push(format!("{page}:{line}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

#[test]
fn every_dependency_earns_its_place_with_a_sentence() {
    let text = read("Cargo.toml");
    let table = text.split("[workspace.dependencies]").nth(1).and_then(|t| t.split("\n[").next()).unwrap();
    let silent: Vec<&str> = table
        .lines()
        .filter(|l| l.contains('=') && !l.contains("path = \"lib/") && !l.contains(" # "))
        .collect();
    assert!(silent.is_empty(), "no comment on {silent:?}");
}

#[test]
fn the_changelog_has_a_place_for_what_comes_next() {
    assert!(read("CHANGELOG.md").lines().any(|l| l.starts_with("## ") && l.contains("Unreleased")));
}

#[test]
fn no_tracked_file_names_a_path_of_somebodys_machine() {
    let Ok(listing) = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output() else {
        return;
    };
    if !listing.status.success() {
        println!("skipped: this is no git checkout");
        return;
    }
    // Put together here, so that this file does not find itself.
    let homes = ["work", "root", "home"].map(|dir| format!("/{dir}/"));
    let mut found = Vec::new();
    for name in String::from_utf8(listing.stdout).unwrap().split_terminator('\0') {
        let Ok(bytes) = std::fs::read(root().join(name)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        for (i, line) in text.lines().enumerate() {
            if homes.iter().any(|home| line.match_indices(home.as_str()).any(|(at, _)| absolute(line, at))) {
                found.push(format!("{name}:{}: {}", i + 1, line.chars().take(120).collect::<String>()));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// Whether a path that starts at `at` starts at the root, and is no piece of a longer one.
fn absolute(line: &str, at: usize) -> bool {
    !line[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || "._~*}>)".contains(c))
}

#[test]
fn records_md_has_every_field_of_every_record_type_and_no_other() {
    let page = read("docs/RECORDS.md");
    let mut wrong = Vec::new();
    for kind in cute_records::TYPES {
        let head = format!("\n## `{kind}`");
        let Some(section) = page.split(&head).nth(1).map(|s| s.split("\n## ").next().unwrap_or(s)) else {
            wrong.push(format!("no section \"## `{kind}`\""));
            continue;
        };
        let rows: BTreeSet<String> = section
            .lines()
            .filter_map(|l| l.strip_prefix("| `"))
            .filter_map(|l| {
                Some(l.split(" | ").take(2).collect::<Vec<_>>().join(" | ")).filter(|l| !l.is_empty())
            })
            .map(|row| format!("| `{row} |"))
            .collect();
        let schema = cute_records::schema::schema_of(kind).unwrap();
        let mut fields = BTreeSet::new();
        rows_of(&schema, "", &mut fields);
        wrong.extend(fields.difference(&rows).map(|row| format!("{kind}: missing {row}")));
        wrong.extend(rows.difference(&fields).map(|row| format!("{kind}: no such field {row}")));
    }
    assert!(wrong.is_empty(), "docs/RECORDS.md is not what the types are:\n{}", wrong.join("\n"));
}

/// One row for each field, those of objects below it included: its name, its type, `?` when it may be absent or null.
fn rows_of(schema: &Value, prefix: &str, out: &mut BTreeSet<String>) {
    let Some(properties) = schema["properties"].as_object() else { return };
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, field) in properties {
        if prefix.is_empty() && matches!(name.as_str(), "type" | "v") {
            continue;
        }
        let (word, optional) = type_of(field);
        let mark = if optional || !required.contains(&name.as_str()) { "?" } else { "" };
        out.insert(format!("| `{prefix}{name}` | {word}{mark} |"));
        let (mut below, mut path) = (field, format!("{prefix}{name}"));
        loop {
            if below["items"].is_object() {
                (below, path) = (&below["items"], path + "[]");
            } else if below["additionalProperties"]["properties"].is_object() {
                (below, path) = (&below["additionalProperties"], path + ".*");
            } else {
                break;
            }
        }
        rows_of(below, &format!("{path}."), out);
    }
}

/// A field's type in one word, and whether it may be null.
fn type_of(field: &Value) -> (String, bool) {
    if let Some(any) = field["anyOf"].as_array() {
        let null = any.iter().any(|t| t["type"] == "null");
        let words: BTreeSet<String> =
            any.iter().filter(|t| t["type"] != "null").map(|t| type_of(t).0).collect();
        let number = any.iter().any(|t| t["type"] == "number");
        return (
            if number {
                "number or word".to_owned()
            } else {
                words.into_iter().collect::<Vec<_>>().join(" or ")
            },
            null,
        );
    }
    if field["oneOf"].is_array() || field["enum"].is_array() || field["const"].is_string() {
        return ("word".to_owned(), false);
    }
    let types: Vec<&str> = match &field["type"] {
        Value::String(t) => vec![t],
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        _ => return ("any".to_owned(), false),
    };
    let null = types.contains(&"null");
    let word = types.iter().find(|t| **t != "null").copied().unwrap_or("null");
    let word = match word {
        "array" if field["prefixItems"].is_array() => "pair".to_owned(),
        "array" if field["items"].is_object() => format!("list of {}", type_of(&field["items"]).0),
        "object" if field["additionalProperties"].is_object() || field["additionalProperties"] == true => {
            match type_of(&field["additionalProperties"]).0.as_str() {
                "any" => "map".to_owned(),
                inner => format!("map of {inner}"),
            }
        }
        other => other.to_owned(),
    };
    (word, null)
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn rust_files() -> Vec<(String, String)> {
    let files = files(&["rs"]);
    assert!(files.len() > 100, "only {} Rust files found", files.len());
    files
}

/// Files with one of these extensions and their text, by name, build output and hidden folders left out.
fn files(extensions: &[&str]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = folder.join(&name);
            if entry.file_type().unwrap().is_dir() {
                if !name.starts_with('.') && name != "target" && name != "shared" {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| extensions.iter().any(|x| e == *x)) {
                // Somebody may be writing here: what is gone again is none of our business.
                let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
                out.push((path.display().to_string(), text));
            }
        }
    }
    out.sort();
    out
}

/// Targets of `[text](target)` outside of code, with their lines.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut out = Vec::new();
    let mut code = false;
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code || line.starts_with("    ") {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for part in prose.split("](").skip(1) {
            if let Some((target, _)) = part.split_once(')') {
                out.push((i + 1, target.split(' ').next().unwrap_or(target).to_owned()));
            }
        }
    }
    out
}

/// What a page's headings are called in links.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut code = false;
    text.lines()
        .filter(|line| {
            code ^= line.trim_start().starts_with("```");
            !code && line.starts_with('#')
        })
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn links_are_found_and_code_is_not() {
    let text = "[a](b.md#c) and `[x](y)` [d](e)\n```\n[f](g)\n```\n# One `two`: three\n";
    assert_eq!(links(text), [(1, "b.md#c".to_owned()), (1, "e".to_owned())]);
    assert_eq!(anchors(text), BTreeSet::from(["one-two-three".to_owned()]));
}

#[test]
fn a_home_folder_is_a_path_and_a_piece_of_one_is_not() {
    let home = format!("/{}/", "home");
    let line = |text: &str| {
        let text = text.replace('@', &home);
        text.find(&home).is_some_and(|at| absolute(&text, at))
    };
    assert!(line("see \"@me\"") && line("@me") && line("P=@me"));
    assert!(!line("a@me") && !line("$HOME@x") && !line("..@x") && !line("$(pwd)@x"));
}
