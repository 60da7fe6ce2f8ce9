//! One table, shown as text at a given width or as markdown.

/// Columns a terminal table may fill.
pub const WIDTH: usize = 100;

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// words
    Left,
    /// numbers
    Right,
}

/// A titled table of text cells.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// what it shows
    pub title: String,
    /// headings and their alignment
    pub columns: Vec<(String, Align)>,
    /// cells, as many as columns
    pub rows: Vec<Vec<String>>,
    /// lines below it
    pub notes: Vec<String>,
}

impl Table {
    /// An empty table. A heading that starts with `>` stands to the right.
    pub fn new(title: impl Into<String>, headings: &[&str]) -> Self {
        let column = |h: &&str| match h.strip_prefix('>') {
            Some(h) => (h.to_owned(), Align::Right),
            None => ((*h).to_owned(), Align::Left),
        };
        Table {
            title: title.into(),
            columns: headings.iter().map(column).collect(),
            rows: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a row.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let mut cells: Vec<String> = cells.into_iter().map(Into::into).collect();
        cells.resize(self.columns.len(), String::new());
        self.rows.push(cells);
    }

    /// Adds a line below.
    pub fn note(&mut self, line: impl Into<String>) {
        self.notes.push(line.into());
    }

    /// As aligned text no wider than `width`; the last column wraps.
    pub fn text(&self, width: usize) -> String {
        let clean = |s: &str| {
            s.replace(['\n', '\r', '\t'], " ").chars().filter(|c| !c.is_control()).collect::<String>()
        };
        let mut widths: Vec<usize> = self.columns.iter().map(|(h, _)| wide(h)).collect();
        let rows: Vec<Vec<String>> = self.rows.iter().map(|r| r.iter().map(|c| clean(c)).collect()).collect();
        for row in &rows {
            for (w, cell) in widths.iter_mut().zip(row) {
                *w = (*w).max(wide(cell));
            }
        }
        let last = widths.len().saturating_sub(1);
        // The widest columns give way until the last one has room to wrap in.
        let gaps = 2 * last;
        let room = width.saturating_sub(gaps + widths.get(last).copied().unwrap_or(0).min(24));
        while widths[..last].iter().sum::<usize>() > room {
            match widths[..last].iter_mut().max_by_key(|w| **w) {
                Some(w) if *w > 4 => *w -= 1,
                _ => break,
            }
        }
        let fixed: usize = widths[..last].iter().sum();
        if let Some(w) = widths.last_mut() {
            *w = (*w).min(width.saturating_sub(fixed + gaps).max(8));
        }
        let mut out = String::new();
        if !self.title.is_empty() {
            out.push_str(&self.title);
            out.push('\n');
        }
        let heads: Vec<String> = self.columns.iter().map(|(h, _)| h.clone()).collect();
        if heads.iter().any(|h| !h.is_empty()) {
            self.line(&mut out, &heads, &widths);
            let rule: Vec<String> = widths.iter().map(|w| "─".repeat(*w)).collect();
            self.line(&mut out, &rule, &widths);
        }
        for row in &rows {
            self.line(&mut out, row, &widths);
        }
        for note in &self.notes {
            for line in wrap(note, width.saturating_sub(2)) {
                out.push_str("  ");
                out.push_str(&line);
                out.push('\n');
            }
        }
        out
    }

    fn line(&self, out: &mut String, cells: &[String], widths: &[usize]) {
        let last = widths.len() - 1;
        let parts: Vec<Vec<String>> = cells
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(i, (c, w))| if i == last { wrap(c, *w) } else { vec![cut(c, *w)] })
            .collect();
        let height = parts.iter().map(Vec::len).max().unwrap_or(1);
        for row in 0..height {
            let mut line = String::new();
            for (i, part) in parts.iter().enumerate() {
                let cell = part.get(row).map_or("", String::as_str);
                let pad = " ".repeat(widths[i].saturating_sub(wide(cell)));
                if i > 0 {
                    line.push_str("  ");
                }
                match self.columns[i].1 {
                    Align::Left => line = line + cell + &pad,
                    Align::Right => line = line + &pad + cell,
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
    }

    /// As a markdown table.
    pub fn markdown(&self) -> String {
        let escape = |c: &String| c.replace('|', "\\|").replace(['\n', '\r'], " ");
        let mut out = format!("### {}\n\n", self.title);
        let heads: Vec<String> = self.columns.iter().map(|(h, _)| h.clone()).collect();
        out.push_str(&format!("| {} |\n", heads.join(" | ")));
        let rules: Vec<&str> =
            self.columns.iter().map(|(_, a)| if *a == Align::Right { "---:" } else { "---" }).collect();
        out.push_str(&format!("|{}|\n", rules.join("|")));
        for row in &self.rows {
            out.push_str(&format!("| {} |\n", row.iter().map(escape).collect::<Vec<_>>().join(" | ")));
        }
        for note in &self.notes {
            out.push_str(&format!("\n{note}\n"));
        }
        out.push('\n');
        out
    }
}

/// Columns a text fills; wide characters fill two.
pub fn wide(s: &str) -> usize {
    let one = |c: char| match c as u32 {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f
        | 0x2e80..=0xa4cf
        | 0xac00..=0xd7a3
        | 0xf900..=0xfaff
        | 0xfe30..=0xfe6f
        | 0xff00..=0xff60
        | 0xffe0..=0xffe6
        | 0x1f300..=0x1f64f
        | 0x1f900..=0x1f9ff
        | 0x20000..=0x3fffd => 2,
        _ => 1,
    };
    s.chars().map(one).sum()
}

/// A text cut to a width, with an ellipsis where it was cut.
pub fn cut(s: &str, width: usize) -> String {
    if wide(s) <= width {
        return s.to_owned();
    }
    let mut out = String::new();
    for c in s.chars() {
        if wide(&out) + wide(&c.to_string()) + 1 > width {
            break;
        }
        out.push(c);
    }
    out + "…"
}

/// A text in lines of a width, broken at blanks where possible.
pub fn wrap(s: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in s.split(' ') {
        let mut word = word.to_owned();
        loop {
            let line = lines.last_mut().map_or(0, |l| wide(l));
            let gap = usize::from(line > 0);
            if line + gap + wide(&word) <= width || word.is_empty() {
                if let Some(l) = lines.last_mut() {
                    if gap > 0 {
                        l.push(' ');
                    }
                    l.push_str(&word);
                }
                break;
            }
            if line > 0 {
                lines.push(String::new());
                continue;
            }
            // A word longer than the line: broken where the line ends.
            let mut head = String::new();
            while let Some(c) = word.chars().next() {
                if wide(&head) + wide(&c.to_string()) > width.max(2) {
                    break;
                }
                head.push(c);
                word.remove(0);
            }
            if let Some(l) = lines.last_mut() {
                l.push_str(&head);
            }
            if word.is_empty() {
                break;
            }
            lines.push(String::new());
        }
    }
    lines
}
