// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! A layer uses only the layers above it in ARCHITECTURE.md's table, the one place of their order.
//!
//! Tests are exempt: they may drive a layer from above.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// The layers in their order, each by the paths below `src` that belong to it.
struct Layers(Vec<Vec<String>>);

impl Layers {
    /// Reads the rows of the first table under the heading `## Layers`.
    fn of(architecture: &str) -> Layers {
        let section = architecture
            .split_once("\n## Layers")
            .expect("there is a heading")
            .1;
        let rows = section
            .lines()
            .skip_while(|line| !line.starts_with('|'))
            .take_while(|line| line.starts_with('|'));
        let paths = rows.map(|row| {
            let first = row.split('|').nth(1).unwrap_or_default();
            let names = first.split('`').skip(1).step_by(2);
            let below_src = names.filter_map(|name| name.strip_prefix("src/"));
            below_src
                .map(|name| name.trim_end_matches('/').to_owned())
                .collect::<Vec<String>>()
        });
        Layers(paths.filter(|paths| !paths.is_empty()).collect())
    }

    /// The layer of a module, given by its path from the crate's root.
    fn find(&self, module: &[String]) -> Option<usize> {
        let name = module.first()?;
        let belongs = |path: &String| path.trim_end_matches(".rs") == name;
        self.0.iter().position(|paths| paths.iter().any(belongs))
    }
}

/// An import against the order.
#[derive(Debug, PartialEq)]
struct Violation {
    file: PathBuf,
    imports: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { file, imports } = self;
        write!(
            f,
            "{} uses crate::{imports}, a layer below its own",
            file.display()
        )
    }
}

/// Collects the modules of the crate that a file names, and the files that only tests have.
#[derive(Default)]
struct Names {
    /// The module that is looked at: the file's own, or one inside it.
    module: Vec<String>,
    used: Vec<Vec<String>>,
    tests: Vec<String>,
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    let condition = |attribute: &syn::Attribute| attribute.parse_args::<syn::Ident>();
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg") && condition(attribute).is_ok_and(|name| name == "test")
    })
}

impl Names {
    fn add_tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                let longer = [prefix, &[path.ident.to_string()]].concat();
                self.add_tree(&longer, &path.tree);
            }
            syn::UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|tree| self.add_tree(prefix, tree)),
            syn::UseTree::Name(name) => {
                self.add(&[prefix, &[name.ident.to_string()]].concat());
            }
            syn::UseTree::Rename(name) => {
                self.add(&[prefix, &[name.ident.to_string()]].concat());
            }
            syn::UseTree::Glob(_) => self.add(prefix),
        }
    }

    fn add(&mut self, path: &[String]) {
        let mut from = self.module.clone();
        let mut rest = path;
        while let [first, after @ ..] = rest {
            match first.as_str() {
                "crate" => from.clear(),
                "super" => drop(from.pop()),
                "self" => {}
                _ => break,
            }
            rest = after;
        }
        // Other paths begin at something that the file has imported or at another crate.
        if rest.len() < path.len() {
            self.used.push([&from, rest].concat());
        }
    }
}

impl<'a> Visit<'a> for Names {
    fn visit_item(&mut self, item: &'a syn::Item) {
        let attributes = match item {
            syn::Item::Mod(item) => {
                if is_for_tests(&item.attrs) {
                    self.tests.push(item.ident.to_string());
                }
                &item.attrs
            }
            syn::Item::Use(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.add_tree(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let names = path.segments.iter().map(|part| part.ident.to_string());
        self.add(&names.collect::<Vec<String>>());
        visit::visit_path(self, path);
    }

    /// A macro's arguments are no syntax yet; `crate::name` in them is found all the same.
    fn visit_macro(&mut self, call: &'a syn::Macro) {
        let text = call.tokens.to_string();
        for after in text.split("crate :: ").skip(1) {
            let word = |letter: char| letter.is_alphanumeric() || letter == '_';
            let name: String = after.chars().take_while(|letter| word(*letter)).collect();
            self.used.push(vec![name]);
        }
    }
}

/// The module that a file is, from the crate's root.
fn module_of(file: &Path) -> Vec<String> {
    let path = file.with_extension("");
    let names = path.iter().map(|name| name.to_string_lossy().into_owned());
    names
        .filter(|name| name != "mod" && name != "lib")
        .collect()
}

fn names_in(file: &Path, source: &str) -> Names {
    let mut names = Names {
        module: module_of(file),
        ..Names::default()
    };
    names.visit_file(&syn::parse_file(source).expect("the crate compiles"));
    names
}

/// What one file imports against the order.
fn violations(layers: &Layers, file: &Path, names: &Names) -> Vec<Violation> {
    let own = layers.find(&module_of(file));
    let against = |used: &&Vec<String>| {
        let (own, other) = (own, layers.find(used));
        matches!((own, other), (Some(own), Some(other)) if other > own)
    };
    let violation = |used: &Vec<String>| Violation {
        file: file.to_owned(),
        imports: used.join("::"),
    };
    names.used.iter().filter(against).map(violation).collect()
}

/// All sources of a folder that are not only for tests, as paths from `root`.
fn sources(root: &Path, folder: &Path, found: &mut Vec<(PathBuf, Names)>) {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut tests: Vec<PathBuf> = Vec::new();
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) =
        paths.into_iter().partition(|path| path.is_dir());
    for file in files
        .iter()
        .filter(|file| file.extension().is_some_and(|end| end == "rs"))
    {
        let path = file.strip_prefix(root).expect("it lies below").to_owned();
        let names = names_in(&path, &fs::read_to_string(file).expect("sources are text"));
        // `#[cfg(test)] mod name;` in mod.rs or lib.rs names a neighbour, elsewhere a file below.
        let stem = file.file_stem().expect("a file has a name");
        let home = match stem.to_str() {
            Some("mod" | "lib") => folder.to_owned(),
            _ => folder.join(stem),
        };
        tests.extend(names.tests.iter().map(|name| home.join(name)));
        found.push((path, names));
    }
    let is_test = |path: &Path| tests.iter().any(|test| path.with_extension("") == *test);
    found.retain(|(path, _)| !is_test(&root.join(path)));
    for folder in folders.iter().filter(|folder| !is_test(folder)) {
        sources(root, folder, found);
    }
}

fn crate_sources() -> Vec<(PathBuf, Names)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &root, &mut found);
    found
}

fn layers() -> Layers {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md");
    Layers::of(&fs::read_to_string(path).expect("ARCHITECTURE.md is there"))
}

#[test]
fn a_layer_uses_only_what_stands_above_it() {
    let layers = layers();
    let found: Vec<String> = crate_sources()
        .iter()
        .flat_map(|(file, names)| violations(&layers, file, names))
        .map(|violation| violation.to_string())
        .collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_source_file_belongs_to_a_layer() {
    let layers = layers();
    let root = Path::new("lib.rs");
    for (file, _) in crate_sources().iter().filter(|(file, _)| file != root) {
        assert!(
            layers.find(&module_of(file)).is_some(),
            "{} stands in no row of ARCHITECTURE.md's table of layers",
            file.display()
        );
    }
}

#[test]
fn the_crate_declares_its_layers_in_their_order() {
    let layers = layers();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs");
    let root = syn::parse_file(&fs::read_to_string(path).unwrap()).unwrap();
    let order = root.items.iter().filter_map(|item| match item {
        syn::Item::Mod(module) => layers.find(&[module.ident.to_string()]),
        _ => None,
    });
    assert!(
        order.is_sorted(),
        "src/lib.rs declares a layer before one above it"
    );
}

#[test]
fn an_import_against_the_order_is_found_wherever_it_stands() {
    let table = "\n## Layers\n\n| folder |\n|---|\n| `src/page.rs` |\n| `src/wire/` |\n";
    let layers = Layers::of(table);
    let file = Path::new("page.rs");
    let check = |source: &str| violations(&layers, file, &names_in(file, source)).len();
    for source in [
        "use crate::wire::sps;",
        "use crate::{page::Page, wire::{self, sps}};",
        "fn f() { crate::wire::sps::write() }",
        "fn f(value: crate::wire::sps::Value) {}",
        "fn f() { assert!(crate::wire::is_empty()); }",
        "mod inner { use crate::wire as other; }",
        "use super::wire::sps;",
        "mod inner { use super::super::wire::sps; }",
        "use self::super::{page::Page, wire::sps};",
    ] {
        assert!(check(source) > 0, "{source}");
    }
    for source in [
        "use crate::page::Page;",
        "use std::wire::sps;",
        "use super::page::Page;",
        "mod inner { use super::wire::sps; }",
        "#[cfg(test)] mod tests { use crate::wire::sps; }",
        "#[cfg(test)] use crate::wire::sps;",
        "// use crate::wire::sps;\nfn f() {}",
    ] {
        assert_eq!(check(source), 0, "{source}");
    }
    let deep = Path::new("page/inner.rs");
    let check = |source: &str| violations(&layers, deep, &names_in(deep, source)).len();
    assert_eq!(check("use super::wire::sps;"), 0, "that is page::wire");
    assert_eq!(check("use super::super::wire::sps;"), 1);
    let below = Path::new("wire/sps.rs");
    let below = violations(&layers, below, &names_in(below, "use crate::page::Page;"));
    assert_eq!(below, []);
}

/// What asks for LLVM's version is in one header of the C++ adapter.
#[test]
fn one_header_knows_what_differs_between_llvm_versions() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/include/jitmem");
    let mut asking = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if fs::read_to_string(&path).unwrap().contains("LLVM_VERSION") {
            asking.push(path.file_name().unwrap().to_owned());
        }
    }
    assert_eq!(asking, ["orc_compat.hpp"]);
}
