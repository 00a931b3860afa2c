// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! docs/switching.md names a test in each line of its tables; they are there.

use std::fs;
use std::path::Path;

/// The words in backquotes of a table's cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn each_line_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/switching.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let rows = rows.filter(|line| !line.starts_with("|---") && !line.starts_with("| property |"));
    let mut count = 0;
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').collect();
        assert_eq!(cells.len(), 4, "{row}");
        let (file, tests) = match quoted(cells[3]).split_first() {
            Some((file, tests)) if !tests.is_empty() => (*file, tests.to_vec()),
            _ => panic!("no file and test: {row}"),
        };
        let text =
            fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        for test in tests {
            assert!(text.contains(test), "{file} has no {test}: {row}");
        }
        count += 1;
    }
    assert!(count > 20, "{count} lines");
}
