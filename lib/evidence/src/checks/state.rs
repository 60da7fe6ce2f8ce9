//! The lives of state slots and KV pages: zero on acquire, one owner at a time, epochs that rise with every
//! acquire; and what the counters of `end` records say of their pools.

use super::{FindingExt, finding};
use cute_records::{Finding, Ledger, Severity, State};
use std::collections::BTreeMap;

/// The first of its kind, and how many there were.
#[derive(Clone, Debug)]
struct First {
    state: State,
    count: u64,
    other: String,
}

/// Follows `state` records without keeping them.
#[derive(Clone, Debug, Default)]
pub struct States {
    /// acquires seen, by kind
    acquired: BTreeMap<String, u64>,
    /// acquires whose zeroing was checked, by kind
    checked: BTreeMap<String, u64>,
    owners: BTreeMap<(String, u32), String>,
    epochs: BTreeMap<(String, u32), u64>,
    first: BTreeMap<(&'static str, String), First>,
}

impl States {
    /// The next producer begins: its entries are others.
    pub fn begin(&mut self) {
        self.owners.clear();
        self.epochs.clear();
    }

    /// Takes note of the next event.
    pub fn note(&mut self, s: &State) {
        let key = (s.kind.clone(), s.slot);
        match s.op.as_str() {
            "acquire" => {
                *self.acquired.entry(s.kind.clone()).or_default() += 1;
                if let Some(zero) = s.zero {
                    *self.checked.entry(s.kind.clone()).or_default() += 1;
                    if !zero {
                        self.count("state_not_zero_on_acquire", s, String::new());
                    }
                }
                // epoch 0 is one that was not told
                let before = self.epochs.insert(key.clone(), s.epoch).filter(|before| *before > 0);
                if s.epoch > 0 && before.is_some_and(|before| s.epoch <= before) {
                    let before = before.map_or(String::new(), |before| before.to_string());
                    self.count("state_epoch", s, before);
                }
                if let Some(owner) = self.owners.insert(key, s.owner.clone()) {
                    self.count("state_owned_twice", s, owner);
                }
            }
            "release" => {
                if let Some(held) =
                    self.epochs.get(&key).copied().filter(|held| *held > 0 && s.epoch > 0 && *held != s.epoch)
                {
                    self.count("state_epoch", s, held.to_string());
                }
                match self.owners.remove(&key) {
                    Some(owner) if owner == s.owner => {}
                    Some(owner) => self.count("state_released_by_another", s, owner),
                    None => self.count("state_released_twice", s, String::new()),
                }
            }
            _ => {}
        }
    }

    fn count(&mut self, check: &'static str, s: &State, other: String) {
        let first = self.first.entry((check, s.kind.clone())).or_insert_with(|| First {
            state: s.clone(),
            count: 0,
            other,
        });
        first.count += 1;
    }

    /// Acquires seen, by kind, and how many of them were checked for zero.
    pub fn acquired(&self) -> impl Iterator<Item = (&str, u64, u64)> {
        self.acquired
            .iter()
            .map(|(kind, n)| (kind.as_str(), *n, self.checked.get(kind).copied().unwrap_or(0)))
    }

    /// One finding for every way in which an invariant was broken, with the first case and the number of cases.
    pub fn findings(&self) -> Vec<Finding> {
        let mut out = Vec::new();
        for ((check, kind), First { state: s, count, other }) in &self.first {
            let place = if kind == "kv" { "KV page" } else { "slot" };
            let what = match *check {
                "state_not_zero_on_acquire" => {
                    format!("{place} {} was not zero when request {:?} got it", s.slot, s.owner)
                }
                "state_owned_twice" => {
                    format!("{place} {} was given to request {:?} while {other:?} held it", s.slot, s.owner)
                }
                "state_epoch" => format!(
                    "{place} {}: {} by {:?} in epoch {}, acquired before in epoch {other}",
                    s.slot, s.op, s.owner, s.epoch
                ),
                "state_released_by_another" => {
                    format!("{place} {}, held by {other:?}, was released by {:?}", s.slot, s.owner)
                }
                _ => format!("{place} {} was released by {:?} and nobody held it", s.slot, s.owner),
            };
            let message =
                format!("{what} (ordinal {}, epoch {}); {count} time(s) in all", s.ordinal, s.epoch);
            out.push(
                finding(check, Severity::Error, message)
                    .ordinal(s.ordinal)
                    .with("kind", kind.as_str())
                    .with("slot", s.slot)
                    .with("owner", s.owner.as_str())
                    .with("epoch", s.epoch)
                    .with("count", *count),
            );
        }
        out
    }
}

/// Pools whose counters in an `end` record do not add up, or that still hold something when the work was done.
pub fn pools(ledger: &Ledger) -> Vec<Finding> {
    let mut out = Vec::new();
    for end in ledger.spans().iter().filter_map(|s| s.end.as_ref()) {
        for pool in ["slots", "pages"] {
            let counter = |what: &str| end.counters.get(&format!("{pool}_{what}")).copied();
            let (Some(acquired), Some(released), Some(in_use)) =
                (counter("acquired"), counter("released"), counter("in_use"))
            else {
                continue;
            };
            let broken = acquired.checked_sub(released) != Some(in_use);
            if !broken && (in_use == 0 || !end.complete) {
                continue;
            }
            let (check, what) = if broken {
                ("pool_unbalanced", "which does not add up")
            } else {
                ("pool_in_use_at_end", "though the work was done")
            };
            let message = format!(
                "{}: {acquired} {pool} acquired, {released} released, {in_use} in use at the end, {what}",
                end.tool
            );
            out.push(
                finding(check, Severity::Error, message)
                    .with("pool", pool)
                    .with("acquired", acquired)
                    .with("released", released)
                    .with("in_use", in_use),
            );
        }
    }
    out
}
