// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! docs/switching.md, docs/containment.md, docs/second-process-tests.md and SECURITY.md name tests in each line of their
//! tables; they are there.

use std::fs;
use std::path::Path;

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The words in backquotes of a table's cell.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Whether the text has the name, as a whole word where it is one.
fn names(text: &str, name: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    // What ends otherwise is the beginning of several names.
    let ends = name.ends_with(is_part);
    text.match_indices(name).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let behind = text[at + name.len()..].chars().next();
        !(before.is_some_and(is_part) || ends && behind.is_some_and(is_part))
    })
}

/// Checks the lines of all tables whose last column has this title, and counts them. The cell is a file and its
/// tests; other files follow behind semicolons.
fn check(page: &str, title: &str) -> usize {
    let text = read(page);
    let mut count = 0;
    let mut inside = false;
    for line in text.lines() {
        let Some(row) = line.strip_prefix('|') else {
            inside = false;
            continue;
        };
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap_or("");
        if cell.trim() == title {
            inside = true;
            continue;
        }
        if !inside || row.starts_with("---") {
            continue;
        }
        for part in cell.split(';') {
            let (file, tests) = match quoted(part).split_first() {
                Some((file, tests)) if !tests.is_empty() => (*file, tests.to_vec()),
                _ => panic!("no file and test: {line}"),
            };
            let text = read(file);
            for test in tests {
                assert!(names(&text, test), "{file} has no {test}: {line}");
            }
        }
        count += 1;
    }
    count
}

#[test]
fn each_line_names_tests_that_exist() {
    let count = check("docs/switching.md", "test");
    assert!(count > 20, "{count} lines");
}

#[test]
fn each_line_about_trust_names_tests_that_exist() {
    let count = check("SECURITY.md", "tested by");
    assert!(count > 30, "{count} lines");
}

#[test]
fn each_line_about_containment_names_tests_that_exist() {
    let count = check("docs/containment.md", "tested by");
    assert!(count > 15, "{count} lines");
}

#[test]
fn each_demand_on_a_second_process_names_tests_that_exist() {
    let count = check("docs/second-process-tests.md", "tested by");
    assert!(count > 40, "{count} lines");
}

#[test]
fn each_line_about_groups_names_tests_that_exist() {
    let count = check("docs/many.md", "tested by");
    assert!(count > 7, "{count} lines");
}

#[test]
fn names_are_whole_words() {
    assert!(names("fn a_b() {", "a_b"));
    assert!(!names("fn a_b_c() {", "a_b"));
    assert!(!names("fn c_a_b() {", "a_b"));
    assert!(names("orc-sanitized-address", "orc-sanitized-"));
}
