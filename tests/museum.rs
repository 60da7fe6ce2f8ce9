//! The museum of faults, on its named detectors: a table that cannot rot. `make museum` runs the whole of it.

use cute_tests::museum::{EXHIBITS, Exhibit, Museum, Sitting, side_by_side};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Sound engines in every test run, one for each sitting; `make museum` has a hundred.
const CLEAN: u64 = 8;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where this test's own executable says the tools are.
fn tools() -> PathBuf {
    let me = std::env::current_exe().unwrap();
    let tools = me.parent().and_then(Path::parent).unwrap().to_owned();
    for tool in ["cute-generate", "cute-audit", "cute-verdict"] {
        assert!(
            tools.join(tool).exists(),
            "{tool} is not built beside this test: run cargo test --workspace"
        );
    }
    tools
}

fn museum(scratch: &Path) -> Museum {
    Museum { tools: tools(), root: root(), scratch: scratch.to_owned() }
}

#[test]
fn each_fault_is_named_by_its_detectors_within_one_recycle_and_five_hundred_requests() {
    let scratch = tempfile::tempdir().unwrap();
    let museum = museum(scratch.path());
    let rows = side_by_side(EXHIBITS, |exhibit| museum.visit(exhibit, false));
    let missed: Vec<String> = EXHIBITS
        .iter()
        .zip(&rows)
        .filter(|(_, row)| !row.trouble.is_empty())
        .map(|(e, row)| format!("{}: {}", e.fault, row.trouble.join("; ")))
        .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn a_fault_under_the_wrong_name_is_missed() {
    let scratch = tempfile::tempdir().unwrap();
    let wrong = Exhibit {
        fault: "stale-state",
        options: &[],
        white: (Sitting::Guards, "counter"),
        black: (Sitting::Probes, "paths"),
    };
    let row = museum(scratch.path()).visit(&wrong, false);
    assert_eq!(row.trouble, ["counter said nothing", "paths said nothing"]);
    assert!(row.heard["zero"].recycles == 1 && row.heard["aba"].ordinal == Some(10), "{:?}", row.heard);
    let nowhere = Exhibit { fault: "gremlins", ..wrong };
    let row = museum(scratch.path()).visit(&nowhere, false);
    assert!(row.heard.is_empty() && row.trouble.len() == 4, "{row:?}");
}

#[test]
fn sound_engines_raise_no_alarm() {
    let scratch = tempfile::tempdir().unwrap();
    let museum = museum(scratch.path());
    // seeds that make museum does not have
    let seeds: Vec<u64> = (1000..1000 + CLEAN).collect();
    for (seed, hearing) in seeds.iter().zip(side_by_side(&seeds, |seed| museum.alarms(*seed))) {
        let hearing = hearing.unwrap();
        assert!(hearing.heard.is_empty() && hearing.others.is_empty(), "seed {seed}: {hearing:?}");
        assert!(hearing.requests >= 12, "seed {seed}: {hearing:?}");
    }
}

#[test]
fn the_list_of_faults_the_page_and_the_museum_name_the_same_faults() {
    let out = Command::new(tools().join("cute-generate")).arg("--list-faults").output().unwrap();
    let list = String::from_utf8(out.stdout).unwrap();
    let listed: Vec<&str> = list.lines().filter_map(|l| l.split_whitespace().next()).collect();
    let shown: Vec<&str> = EXHIBITS.iter().map(|e| e.fault).collect();
    assert_eq!(listed, shown, "--list-faults and tests/src/museum/exhibits.rs");
    let page = std::fs::read_to_string(root().join("docs/MUSEUM.md")).unwrap();
    let told: Vec<&str> =
        page.lines().filter_map(|l| l.strip_prefix("### `")).filter_map(|l| l.strip_suffix('`')).collect();
    assert_eq!(listed, told, "--list-faults and docs/MUSEUM.md");
    for (line, exhibit) in list.lines().zip(EXHIBITS) {
        let story = page.split(&format!("### `{}`\n", exhibit.fault)).nth(1).unwrap();
        let story = story.split("\n#").next().unwrap();
        let source = line.rsplit_once('[').unwrap().1.trim_end_matches(']');
        let (repository, number) = source.split_once('#').unwrap();
        let link = format!("https://github.com/{repository}/");
        assert!(
            story.contains(source) && story.contains(&link) && story.contains(&format!("/{number})")),
            "docs/MUSEUM.md: the story of {} does not link to {source}",
            exhibit.fault
        );
        for (sitting, column) in [exhibit.white, exhibit.black] {
            assert!(
                story.contains(&format!("`{column}`")),
                "docs/MUSEUM.md: the story of {} does not name {column}, heard in {sitting:?}",
                exhibit.fault
            );
        }
    }
}
