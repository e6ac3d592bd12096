//! Tables in the manner of kubectl, and figures as people read them.

use std::fmt::Write as _;

/// Rows of texts under headings; columns are as wide as their widest text.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![
                headings
                    .iter()
                    .map(|heading| (*heading).to_owned())
                    .collect(),
            ],
        }
    }

    pub(crate) fn row(&mut self, row: Vec<String>) {
        self.rows.push(row.iter().map(|text| plain(text)).collect());
    }

    pub(crate) fn render(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let _ = write!(line, "{cell:<width$}   ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and command lines come from hosts: what would steer a terminal is shown as `?`.
pub(crate) fn plain(text: &str) -> String {
    // Control characters, and the marks that turn the direction of writing around.
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| if steers(c) { '?' } else { c })
        .collect()
}

/// The same of a text of whole lines.
pub(crate) fn plain_lines(text: &str) -> String {
    text.lines().map(|line| plain(line) + "\n").collect()
}

/// What is not known is a dash.
pub(crate) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// One decimal.
pub(crate) fn percent(value: Option<f64>) -> String {
    or_dash(value.map(|value| format!("{value:.1}")))
}

/// In the largest unit that leaves a digit before the point.
pub(crate) fn bytes(value: Option<f64>) -> String {
    let Some(mut value) = value else {
        return "-".to_owned();
    };
    let mut unit = 0;
    while value >= 1024.0 && unit < 5 {
        value /= 1024.0;
        unit += 1;
    }
    let name = ["B", "Ki", "Mi", "Gi", "Ti", "Pi"][unit];
    if unit == 0 {
        format!("{value:.0}{name}")
    } else {
        format!("{value:.1}{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_steers_the_terminal() {
        let mut table = Table::new(&["PID", "NAME"]);
        table.row(vec!["1".into(), "\u{1b}[31mred\n".into()]);
        table.row(vec!["12345".into(), "\u{202e}evil".into()]);
        assert_eq!(
            table.render(),
            "PID     NAME\n1       ?[31mred?\n12345   ?evil\n"
        );
    }

    #[test]
    fn figures_are_short_and_what_is_unknown_is_a_dash() {
        assert_eq!(bytes(Some(512.0)), "512B");
        assert_eq!(bytes(Some(1536.0)), "1.5Ki");
        assert_eq!(bytes(Some(8.0 * 1024.0 * 1024.0 * 1024.0)), "8.0Gi");
        assert_eq!(
            (bytes(None), percent(None)),
            ("-".to_owned(), "-".to_owned())
        );
        assert_eq!(percent(Some(12.34)), "12.3");
    }
}
