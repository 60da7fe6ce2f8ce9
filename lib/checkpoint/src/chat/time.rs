//! `strftime_now`: the date in a system prompt. UTC, because the standard library knows no time zones.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// Formats a moment with the directives chat templates use; an unknown one is an error.
pub(super) fn strftime(now: SystemTime, format: &str) -> Result<String, minijinja::Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[((days + 4) % 7) as usize]);
    let half = if hour % 12 == 0 { 12 } else { hour % 12 };
    let year_start = days - days_of_year(year, month, day);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let padded = directive != Some('-');
        if !padded {
            directive = chars.next();
        }
        let two = |n: u64| if padded { format!("{n:02}") } else { n.to_string() };
        out += &match directive {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('e') => format!("{day:2}"),
            Some('H') => two(hour),
            Some('I') => two(half),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('j') if padded => format!("{:03}", days - year_start + 1),
            Some('j') => (days - year_start + 1).to_string(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let name = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: directive %{name} of {format:?} is not known");
                return Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(out)
}

/// Year, month and day of a day since 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64) {
    let mut year = 1970;
    while days >= year_days(year) {
        days -= year_days(year);
        year += 1;
    }
    let mut month = 1;
    while days >= month_days(year, month) {
        days -= month_days(year, month);
        month += 1;
    }
    (year, month, days + 1)
}

/// Days of the year before this one, 0 on January 1.
fn days_of_year(year: u64, month: u64, day: u64) -> u64 {
    (1..month).map(|m| month_days(year, m)).sum::<u64>() + day - 1
}

fn leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_days(year: u64) -> u64 {
    if leap(year) { 366 } else { 365 }
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |s: u64, f: &str| strftime(UNIX_EPOCH + Duration::from_secs(s), f).unwrap();
        assert_eq!(at(0, "%A %Y-%m-%d %H:%M:%S"), "Thursday 1970-01-01 00:00:00");
        // date -u -d @951782400: Tue Feb 29 2000; @1767225599: Wed Dec 31 2025 23:59:59.
        assert_eq!(at(951_782_400, "%a %d %b %Y %j"), "Tue 29 Feb 2000 060");
        assert_eq!(at(1_767_225_599, "%-d %B %Y, %I:%M %p %y%%"), "31 December 2025, 11:59 PM 25%");
        assert!(strftime(UNIX_EPOCH, "%Q").unwrap_err().to_string().contains("%Q"));
    }
}
