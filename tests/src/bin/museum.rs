//! `make museum`: every fault past every detector, and a hundred sound engines past them all.
//!
//! reads   nothing     writes  a table, fault × detector, and with --markdown as the documents have it
//! exits   0 all caught, no alarm · 1 one missed, or an alarm · 2 the tools are not beside this program

use cute_tests::museum::{DETECTORS, EXHIBITS, Exhibit, Museum, Row, side_by_side};
use std::path::Path;
use std::process::ExitCode;

/// Sound engines that must not be called broken.
const CLEAN: u64 = 100;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tools = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.to_owned()));
    let Some(tools) = tools
        .filter(|t| ["generate", "audit", "verdict"].iter().all(|n| t.join(format!("cute-{n}")).exists()))
    else {
        eprintln!(
            "museum: cute-generate, cute-audit and cute-verdict are not beside this program: run `make museum`"
        );
        return ExitCode::from(2);
    };
    let museum = Museum { tools, scratch: root.join("out/museum"), root };
    let rows = side_by_side(EXHIBITS, |exhibit| museum.visit(exhibit, true));
    let columns: Vec<&str> = DETECTORS.iter().map(|d| d.column).collect();
    println!("{:18} {}", "fault", columns.join("  "));
    for (exhibit, row) in EXHIBITS.iter().zip(&rows) {
        println!("{:18} {}", exhibit.fault, cells(exhibit, row));
        row.trouble.iter().for_each(|trouble| println!("{:18} {trouble}", ""));
    }
    let missed = rows.iter().filter(|r| !r.trouble.is_empty()).count();
    println!(
        "\nA number is the first request that a detector names, x its word without one, * the detectors that stand for the"
    );
    println!(
        "fault: the first from inside, the second from outside. {} faults, {missed} missed.",
        EXHIBITS.len()
    );

    if std::env::args().any(|arg| arg == "--markdown") {
        println!("\n| fault | from inside | from outside | also seen by |\n|---|---|---|---|");
        EXHIBITS.iter().zip(&rows).for_each(|(exhibit, row)| println!("{}", line(exhibit, row)));
        println!();
    }

    let seeds: Vec<u64> = (0..CLEAN).collect();
    let (mut requests, mut recycles, mut alarms) = (0, 0, 0);
    for (seed, heard) in seeds.iter().zip(side_by_side(&seeds, |seed| museum.alarms(*seed))) {
        match heard {
            Ok(h) => {
                (requests, recycles) = (requests + h.requests, recycles + h.recycles);
                if !h.heard.is_empty() || !h.others.is_empty() {
                    alarms += 1;
                    println!("alarm on a sound engine, seed {seed}: {:?} {:?}", h.heard, h.others);
                }
            }
            Err(e) => {
                alarms += 1;
                println!("trouble with a sound engine, seed {seed}: {e:#}");
            }
        }
    }
    println!("{CLEAN} sound engines, {requests} requests, {recycles} slots recycled: {alarms} alarms.");
    ExitCode::from(u8::from(missed > 0 || alarms > 0))
}

/// A row of the table below its headings.
fn cells(exhibit: &Exhibit, row: &Row) -> String {
    let cell = |column: &str| {
        let named = [exhibit.white.1, exhibit.black.1].contains(&column);
        let star = if named { "*" } else { "" };
        match row.heard.get(column) {
            Some(heard) => format!("{}{star}", heard.ordinal.map_or("x".to_owned(), |o| o.to_string())),
            None if named => "!*".to_owned(),
            None => "·".to_owned(),
        }
    };
    let cells = DETECTORS.iter().map(|d| format!("{:>width$}", cell(d.column), width = d.column.len()));
    cells.collect::<Vec<_>>().join("  ")
}

/// A row of the table in docs/RELIABILITY.md.
fn line(exhibit: &Exhibit, row: &Row) -> String {
    let cell = |column: &str| {
        let ordinal = row.heard.get(column).and_then(|heard| heard.ordinal);
        format!("`{column}`{}", ordinal.map_or(String::new(), |o| format!(" {o}")))
    };
    let (white, black) = (exhibit.white.1, exhibit.black.1);
    let others = DETECTORS.iter().map(|d| d.column).filter(|c| ![white, black].contains(c));
    let others: Vec<String> = others.filter(|c| row.heard.contains_key(c)).map(cell).collect();
    format!("| `{}` | {} | {} | {} |", exhibit.fault, cell(white), cell(black), others.join(", "))
}
