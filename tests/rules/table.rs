//! Tables of the book: read, and where they are generated, written.

use crate::source;

/// The cells of every table row of a page, without the head and its line.
pub(crate) fn rows(page: &str) -> Vec<Vec<String>> {
    page.lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'))
        .map(|line| line.split('|').map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// The rows whose first cell is a name in backticks: the name, and the other cells.
pub(crate) fn named(page: &str) -> Vec<(String, Vec<String>)> {
    rows(page)
        .into_iter()
        .filter_map(|mut cells| {
            let name = cells[0].strip_prefix('`')?.strip_suffix('`')?.to_owned();
            Some((name, cells.split_off(1)))
        })
        .collect()
}

/// The texts in backticks of a line.
pub(crate) fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// The generated table `name` of a page must be `wanted`; `UPDATE_DOCS=1` makes it so.
pub(crate) fn generated(page: &str, name: &str, wanted: &str) {
    let text = source::read(page);
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has no place for {name}"));
    let (is, after) = rest.split_once("<!-- end -->").unwrap();
    if is == wanted {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        let new = format!("{before}{begin}{wanted}<!-- end -->{after}");
        std::fs::write(source::root().join(page), new).unwrap();
        return;
    }
    let differs = wanted.lines().find(|line| !is.contains(line)).unwrap_or("a line too many");
    panic!("{page} is not what the code says: {differs}\nUPDATE_DOCS=1 writes the table `{name}` anew");
}

#[test]
fn tables_are_read() {
    let page = "| a | b |\n|---|---|\n| `x_y` | 1 `k` |\n";
    assert_eq!(named(page), [("x_y".to_owned(), vec!["1 `k`".to_owned()])]);
    assert_eq!(code("1 `k` and `l`"), ["k", "l"]);
}
