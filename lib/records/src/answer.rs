//! Answers in GSM8K's form: what follows `####`, as a number.

/// The number after the first `####` of a worked answer, normalised.
pub fn gold(worked: &str) -> Option<String> {
    let (_, rest) = worked.split_once("####")?;
    let number: String =
        rest.trim_start().trim_start_matches('$').chars().take_while(|c| is_numeric(*c)).collect();
    normalise(&number)
}

/// The answer of a reply: after `####` if it stands there; else, when the reply came to its own end, its last
/// number. A reply that was cut off may end inside a number, so none is taken from it.
pub fn extract(reply: &str, cut_off: bool) -> Option<String> {
    if reply.contains("####") {
        return gold(reply);
    }
    if cut_off {
        return None;
    }
    reply.split(|c| !is_numeric(c)).rev().find_map(normalise)
}

fn is_numeric(c: char) -> bool {
    c.is_ascii_digit() || matches!(c, '-' | '.' | ',')
}

/// `1,234.50` → `1234.5`, `-0` → `0`; `None` when it is no number.
pub fn normalise(text: &str) -> Option<String> {
    let text: String = text.trim_end_matches(['.', ',', '-']).chars().filter(|c| *c != ',').collect();
    let text = text.trim_start_matches('.');
    let (sign, digits) = match text.rsplit_once('-') {
        Some((_, digits)) => ("-", digits),
        None => ("", text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !(whole.chars().chain(fraction.chars()).all(|c| c.is_ascii_digit())) || whole.is_empty() {
        return None;
    }
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if whole == "0" && fraction.is_empty() { "" } else { sign };
    Some(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golds_are_what_follows_the_marks() {
        assert_eq!(gold("2 + 2 = 4\n#### 4"), Some("4".into()));
        assert_eq!(gold("#### $1,234,567.50 in all"), Some("1234567.5".into()));
        assert_eq!(gold("#### -7."), Some("-7".into()));
        assert_eq!(gold("no marks 4"), None);
        assert_eq!(gold("#### none"), None);
    }

    #[test]
    fn a_reply_without_marks_gives_its_last_number_unless_it_was_cut_off() {
        assert_eq!(extract("3 and then 12.", false), Some("12".into()));
        assert_eq!(extract("3 and then 12", true), None);
        assert_eq!(extract("so #### 5 and 6", true), Some("5".into()));
        assert_eq!(extract("1!!!!", false), Some("1".into()));
        assert_eq!(extract("none", false), None);
        assert_eq!(extract("10-4", false), Some("-4".into()));
    }

    #[test]
    fn numbers_compare_by_value() {
        for (a, b) in [("1,000", "1000"), ("12.50", "12.5"), ("007", "7"), ("-0", "0"), ("3.0", "3")] {
            assert_eq!(normalise(a), normalise(b), "{a} {b}");
        }
        for bad in ["", "-", ".", "1.2.3", ",,"] {
            assert_eq!(normalise(bad), None, "{bad:?}");
        }
    }
}
