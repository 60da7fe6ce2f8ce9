//! Region buffers: the incident's golden values, what is refused, and what no buffer may do.

use cute_evidence::region::{Buffer, Layout, analyse, parse, read};
use cute_records::Record;
use proptest::prelude::*;
use std::path::PathBuf;

/// The incident's files, beside the repository; `None` where they are not at hand.
fn evidence(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/evidence")).join(file);
    if !path.exists() {
        println!("skipped: {} is not at hand", path.display());
        return None;
    }
    Some(path)
}

fn npy(descr: &str, shape: &str, ticks: &[i64]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(ticks.iter().flat_map(|t| t.to_le_bytes()));
    out
}

#[test]
fn the_incidents_buffer_spans_26_64_ms_where_the_gate_said_5_538() {
    let Some(path) = evidence("stage0a/region_timings_2L_wo8.npy") else { return };
    let report = analyse(&read(&path).unwrap(), &Layout::default());
    assert_eq!(report.shape, (64, 13));
    assert_eq!(report.span_ns, Some(26_637_568));
    assert_eq!((report.sum_of_medians_ns / 1e3).round(), 5_538.0);
    assert_eq!((report.wo_split, report.sequences), (8, 1));
    // R12 runs in one block: block 18's row is fresh (146 us), block 19's is 1241 ms old
    assert_eq!(
        report.stale.iter().map(|s| (s.cta, s.region, s.age_ns / 1_000_000)).collect::<Vec<_>>(),
        [(19, 12, 1241)]
    );
    assert_eq!(report.regions[12].durations, [146_432]);
    let (lo, hi) = report.coverage.unwrap();
    assert!(lo < 0.2 && hi < 0.2, "{lo} {hi}");
    let checks: Vec<&str> = report.findings().iter().map(|f| f.check.as_str()).collect();
    for check in ["region_stale_row", "region_sum_is_no_span", "region_last_slice_only", "region_coverage"] {
        assert!(checks.contains(&check), "{checks:?}");
    }
    assert!(!checks.contains(&"region_active_blocks"), "{:?}", report.findings());
    let records = report.records();
    let Record::Timing(span) = &records[0] else { panic!("the span comes first") };
    assert_eq!((span.ms, span.count), (26.637568, 1));
}

/// One launch of 64 blocks whose regions follow one another without a gap.
fn launch(start: i64, step: i64) -> Vec<i64> {
    let mut ticks = vec![0; 64 * 11 * 2];
    for cta in 0..64usize {
        for (i, region) in (4..11usize).enumerate() {
            let at = (cta * 11 + region) * 2;
            ticks[at] = start + i as i64 * step;
            ticks[at + 1] = start + (i as i64 + 1) * step;
        }
    }
    ticks
}

#[test]
fn a_launch_without_gaps_is_covered_whole() {
    let buffer = Buffer::new("x", 64, 11, launch(1_000_000, 1000)).unwrap();
    let report = analyse(&buffer, &Layout::default());
    assert_eq!(report.span_ns, Some(6000), "R5 to R10: the wait before them is no phase");
    assert!(report.coverage.unwrap().0 >= 0.95);
    assert!(report.stale.is_empty());
}

#[test]
fn rows_of_an_earlier_launch_are_stale_wherever_they_stand() {
    let mut ticks = launch(5_000_000_000, 1000);
    // a whole sequence of an earlier launch behind the fresh one
    ticks.extend(launch(1_000_000_000, 1000));
    let report = analyse(&Buffer::new("x", 128, 11, ticks).unwrap(), &Layout::default());
    assert_eq!(report.stale.len(), 64 * 7);
    assert_eq!((report.span_ns, report.sequences), (Some(6000), 1));
    assert!(report.stale.iter().all(|s| s.cta >= 64));
}

#[test]
fn torn_rows_and_missing_blocks_are_told() {
    let mut ticks = launch(1_000_000, 1000);
    ticks[(3 * 11 + 5) * 2] = 0; // an exit without an entry
    ticks[(4 * 11 + 5) * 2 + 1] = 5; // an exit before its entry
    let report = analyse(&Buffer::new("x", 64, 11, ticks).unwrap(), &Layout::default());
    let of = |check: &str| report.findings().iter().filter(|f| f.check == check).count();
    assert_eq!((of("region_row_torn"), of("region_active_blocks")), (2, 1));
    let empty = analyse(&Buffer::new("x", 64, 11, vec![0; 64 * 22]).unwrap(), &Layout::default());
    assert_eq!(empty.span_ns, None);
    assert!(empty.findings().iter().any(|f| f.check == "region_empty"));
}

#[test]
fn files_that_are_no_region_buffer_are_refused_by_name_and_value() {
    let good = npy("<i8", "(1, 2, 2)", &[1, 2, 3, 4]);
    assert_eq!(parse("f.npy", &good).unwrap().row(0, 1), (3, 4));
    let check = |bytes: &[u8], expect: &str| {
        let error = parse("f.npy", bytes).unwrap_err().to_string();
        assert!(error.starts_with("f.npy: ") && error.contains(expect), "{error}");
    };
    check(b"", "magic bytes");
    check(b"\x93NUMPY", "version");
    check(b"\x93NUMPY\x01\x00\xff\xff{", "cut off");
    check(&npy("<f8", "(1, 2, 2)", &[1, 2, 3, 4]), "'<i8'");
    check(&npy(">i8", "(1, 2, 2)", &[1, 2, 3, 4]), "'<i8'");
    check(&npy("<i8", "(4,)", &[1, 2, 3, 4]), "expected [ctas, regions, 2]");
    check(&npy("<i8", "(2, 2, 2)", &[1, 2, 3, 4]), "8 bytes a tick");
    check(&npy("<i8", "(4294967296, 4294967296, 2)", &[1]), "8 bytes a tick");
    check(&good[..good.len() - 3], "8 bytes a tick");
    let mut fortran = good.clone();
    let at = fortran.windows(5).position(|w| w == b"False").unwrap();
    fortran[at..at + 5].copy_from_slice(b"True ");
    check(&fortran, "expected False");
}

proptest! {
    #[test]
    fn no_ticks_make_the_analysis_panic(
        ticks in proptest::collection::vec(prop_oneof![Just(0i64), any::<i64>(), 0..100i64, Just(i64::MAX), Just(i64::MIN)], 64 * 3 * 2),
        ctas in prop_oneof![Just(64usize), Just(192), Just(1), Just(3)],
    ) {
        let regions = 64 * 3 / ctas;
        prop_assume!(ctas * regions == 192);
        let report = analyse(&Buffer::new("x", ctas, regions, ticks).unwrap(), &Layout::default());
        report.records();
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0..200usize, byte in any::<u8>()) {
        let _ = parse("x", &bytes);
        let mut good = npy("<i8", "(1, 2, 2)", &[1, 2, 3, 4]);
        let at = at % good.len();
        good[at] = byte;
        let _ = parse("x", &good);
        good.truncate(at);
        let _ = parse("x", &good);
    }
}
