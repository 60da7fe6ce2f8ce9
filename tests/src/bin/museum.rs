//! `make museum`: every fault past every detector, and a hundred sound engines past them all.
//!
//! reads   nothing     writes  a table, fault × detector     exits  0 all caught, no alarm · 1 one missed, or an alarm

use cute_tests::museum::{DETECTORS, EXHIBITS, Museum};
use std::path::Path;
use std::process::ExitCode;

/// Sound engines that must not be called broken.
const CLEAN: u64 = 0;

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let Some(tools) = std::env::current_exe().ok().and_then(|me| Some(me.parent()?.to_owned())) else {
        eprintln!("museum: no folder of tools beside this program");
        return ExitCode::from(2);
    };
    let museum = Museum { tools, scratch: root.join("out/museum"), root };
    let mut failed = false;
    let columns: Vec<&str> = DETECTORS.iter().map(|d| d.column).collect();
    println!("{:18} {}", "fault", columns.join(" "));
    for exhibit in EXHIBITS {
        let row = museum.visit(exhibit, true);
        let cells = DETECTORS.iter().map(|d| {
            let named = [exhibit.white.1, exhibit.black.1].contains(&d.column);
            let cell = match row.heard.get(d.column) {
                None => {
                    if named {
                        "MISSED".to_owned()
                    } else {
                        "·".to_owned()
                    }
                }
                Some(h) => format!(
                    "{}{}",
                    h.ordinal.map_or("x".to_owned(), |o| o.to_string()),
                    if named { "*" } else { "" }
                ),
            };
            format!("{cell:>width$}", width = d.column.len())
        });
        println!("{:18} {}", exhibit.fault, cells.collect::<Vec<_>>().join(" "));
        for trouble in &row.trouble {
            println!("{:18} {trouble}", "");
        }
        failed |= !row.trouble.is_empty();
    }
    println!(
        "\nA number is the first request that a detector names, x a word without one; * is the detector that stands for the fault."
    );
    let (mut requests, mut recycles, mut alarms) = (0, 0, 0);
    for seed in 0..CLEAN {
        match museum.alarms(seed) {
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
    println!("{CLEAN} sound engines, {requests} requests, {recycles} slots recycled: {alarms} alarms");
    ExitCode::from(u8::from(failed || alarms > 0))
}
