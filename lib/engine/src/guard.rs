//! Guards: invariants that cost something to watch, and are watched when asked for (`--guard`).

use std::str::FromStr;

/// A guard, by the name it has on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// every so-manieth sequence that ends is computed again, alone, and must leave the same recurrent state
    Recompute(u64),
    /// slots and pages that no sequence of a step has are digested before and after every so-manieth step
    Rows(u64),
    /// slot 0 and page 0, which are nobody's, hold a pattern that is looked at after every step
    Slot0,
    /// slots, and the pages of the step, are digested before and after a decode step is recorded or warmed up
    Capture,
}

impl FromStr for Guard {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (name, every) = s.split_once('/').map_or((s, None), |(name, n)| (name, Some(n)));
        let often = |guard: fn(u64) -> Guard| match every.map_or(Ok(1), str::parse) {
            Ok(n @ 1..) => Ok(guard(n)),
            _ => Err(format!("{s}: expected a number of at least 1 behind {name}/")),
        };
        match (name, every) {
            ("recompute", _) => often(Guard::Recompute),
            ("rows", _) => often(Guard::Rows),
            ("slot0", None) => Ok(Guard::Slot0),
            ("capture", None) => Ok(Guard::Capture),
            _ => Err(format!(
                "no guard {s:?}: expected recompute, recompute/N, rows, rows/N, slot0 or capture"
            )),
        }
    }
}

/// The guards that are on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    /// see [`Guard::Recompute`]
    pub recompute: Option<u64>,
    /// see [`Guard::Rows`]
    pub rows: Option<u64>,
    /// see [`Guard::Slot0`]
    pub slot0: bool,
    /// see [`Guard::Capture`]
    pub capture: bool,
}

impl FromIterator<Guard> for Guards {
    fn from_iter<I: IntoIterator<Item = Guard>>(guards: I) -> Self {
        guards.into_iter().fold(Guards::default(), |on, guard| match guard {
            Guard::Recompute(n) => Guards { recompute: Some(n), ..on },
            Guard::Rows(n) => Guards { rows: Some(n), ..on },
            Guard::Slot0 => Guards { slot0: true, ..on },
            Guard::Capture => Guards { capture: true, ..on },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_read_by_name_and_a_bad_one_is_named() {
        let parse = |s: &str| s.parse::<Guard>();
        assert_eq!(parse("recompute"), Ok(Guard::Recompute(1)));
        assert_eq!(parse("recompute/16"), Ok(Guard::Recompute(16)));
        assert_eq!((parse("rows"), parse("rows/8")), (Ok(Guard::Rows(1)), Ok(Guard::Rows(8))));
        assert_eq!((parse("slot0"), parse("capture")), (Ok(Guard::Slot0), Ok(Guard::Capture)));
        for (bad, words) in [
            ("recompute/0", "recompute/0: expected a number"),
            ("recompute/x", "recompute/x: expected a number"),
            ("rows/", "rows/: expected a number"),
            ("slot0/2", "no guard \"slot0/2\""),
            ("capture/2", "no guard \"capture/2\""),
            ("rowz", "no guard \"rowz\""),
            ("", "no guard \"\""),
        ] {
            assert!(parse(bad).unwrap_err().starts_with(words), "{bad}");
        }
        let on: Guards = [Guard::Slot0, Guard::Recompute(3)].into_iter().collect();
        assert_eq!(on, Guards { recompute: Some(3), slot0: true, ..Guards::default() });
    }
}
