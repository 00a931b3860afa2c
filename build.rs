// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
//! Generates the C header, and tells build scripts of hosts where the headers are.

use anyhow::{Context, Result, ensure};
use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// A section of the header: its title, what it is about, and the sources whose items it has.
struct Section(&'static str, &'static str, &'static [&'static str]);

const VERSIONS: &str = "Versions";
/// In C what is used stands before what uses it: so handles, which everything uses, are a section.
const HANDLES: &str = "Handles";

const SECTIONS: &[Section] = &[
    Section(
        VERSIONS,
        "which jitmem was compiled against, and which runs",
        &["version"],
    ),
    Section(HANDLES, "what the library hands out", &["callback"]),
    Section("Errors", "what a call came to, and why", &["status"]),
    Section(
        "Mappers",
        "where memory comes from: this process, another one, another machine",
        &["mapper"],
    ),
    Section(
        "Groups",
        "one set of linked code in several executors",
        &["group"],
    ),
    Section("Events", "what a manager tells its host of", &["events"]),
    Section(
        "Manager",
        "allocate, finalize, deallocate: memory for link graphs",
        &[
            "options",
            "request",
            "manager",
            "allocate",
            "finalize",
            "deallocate",
            "allocation_request",
            "sections",
            "rtdyld",
            "write_scope",
            "epochs",
            "lookup",
            "unwind",
        ],
    ),
    Section(
        "Images",
        "linked code in a file, for later processes",
        &["image_recorder", "image"],
    ),
    Section(
        "Statistics",
        "figures of a manager, and what lies where",
        &["stats", "usage"],
    ),
    Section(
        "Transports",
        "ways to call functions in an executor",
        &["limits", "transport", "call"],
    ),
    Section(
        "Executor",
        "the other side: to be the process that runs linked code",
        &["service", "executor", "containment"],
    ),
    Section(
        "Custom mappers",
        "memory that the host itself provides",
        &["custom"],
    ),
];

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=src/capi");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-changed=build.rs");
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR").context("cargo names the crate")?);
    println!("cargo:include={}", root.join("include").display()); // their DEP_JITMEM_INCLUDE
    let out = PathBuf::from(env::var("OUT_DIR").context("cargo gives a place to write")?);
    // Into OUT_DIR: a build never changes the source tree. A test compares it with the committed one.
    std::fs::write(out.join("jitmem.h"), header(&root)?).context("write jitmem.h")
}

fn header(root: &Path) -> Result<String> {
    let capi = root.join("src/capi");
    let read = |name: &str| {
        std::fs::read_to_string(capi.join(name)).with_context(|| format!("read src/capi/{name}"))
    };
    let mut items = items(root)?;
    let mut contents = String::new();
    let mut declarations = String::new();
    for (index, Section(title, about, sources)) in SECTIONS.iter().enumerate() {
        let number = index + 1;
        let place = format!("{number}.");
        writeln!(contents, " *   {place:<4}{title:<15} {about}")?;
        write!(
            declarations,
            "/* ==== {number}. {title}: {about} ==== */\n\n"
        )?;
        let mut wanted = Vec::new();
        match *title {
            VERSIONS => declarations += &version_macros()?,
            HANDLES => wanted.extend(items.iter().filter_map(Item::handle)),
            _ => (),
        }
        for source in *sources {
            wanted.extend(names(&read(&format!("{source}.rs"))?));
        }
        for name in wanted {
            // A handle was taken before.
            if let Some(place) = items.iter().position(|item| item.name == name) {
                write!(declarations, "{}\n\n", items.remove(place).text)?;
            }
        }
    }
    ensure!(
        items.is_empty(),
        "no section of jitmem.h has {:?}",
        items[0].name
    );
    Ok(read("jitmem.h.in")?
        .replace("@CONTENTS@\n", &contents)
        .replace("@DECLARATIONS@\n", &declarations))
}

/// The version that a program is compiled against.
fn version_macros() -> Result<String> {
    let version = env::var("CARGO_PKG_VERSION")?;
    let mut macros = String::new();
    for part in ["MAJOR", "MINOR", "PATCH"] {
        let number = env::var(format!("CARGO_PKG_VERSION_{part}"))?;
        writeln!(macros, "#define JITMEM_VERSION_{part} {number}")?;
    }
    Ok(format!(
        "/// The version that a program is compiled against; jitmem_version() is the one it runs with.\n\
         {macros}\
         #define JITMEM_VERSION_STRING \"{version}\"\n\
         #define JITMEM_VERSION \\\n  \
         (JITMEM_VERSION_MAJOR << 16 | JITMEM_VERSION_MINOR << 8 | JITMEM_VERSION_PATCH)\n\n"
    ))
}

/// A declaration with its comment.
struct Item {
    name: String,
    text: String,
}

impl Item {
    /// Its name if it is an opaque type.
    fn handle(&self) -> Option<String> {
        let name = &self.name;
        let opaque = format!("typedef struct {name} {name};");
        self.text.contains(&opaque).then(|| name.clone())
    }
}

/// What cbindgen makes of the sources: each item begins with its comment.
fn items(root: &Path) -> Result<Vec<Item>> {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml"))
        .map_err(anyhow::Error::msg)
        .context("read cbindgen.toml")?;
    let builder = cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/capi/mod.rs"));
    let mut declarations = Vec::new();
    builder
        .generate()
        .context("generate jitmem.h")?
        .write(&mut declarations);
    // Rust's heading for what a caller must see to, in C's words.
    let declarations = String::from_utf8(declarations)?.replace("# Safety", "Requires:");
    format!("\n\n{}", declarations.trim_start())
        .split("\n\n///")
        .filter(|text| !text.trim().is_empty())
        .map(|text| item(&format!("///{}", text.trim_end())))
        .collect()
}

fn item(text: &str) -> Result<Item> {
    let comment: String = text
        .split_inclusive('\n')
        .take_while(|line| line.starts_with("///"))
        .collect();
    let declaration = &text[comment.len()..];
    let name = declared(declaration).with_context(|| format!("nothing is declared in: {text}"))?;
    // cbindgen says again for each enumeration what JITMEM_ENUM says once.
    let text = match declaration.split_once('{') {
        Some((start, body)) if start.starts_with("enum ") => {
            let (body, _) = body.split_once("};").context("an enumeration ends")?;
            format!("{comment}JITMEM_ENUM({name}) {{{body}}};")
        }
        _ => text.to_owned(),
    };
    let name = name.to_owned();
    Ok(Item { name, text })
}

/// The name that the first line of a declaration declares.
fn declared(declaration: &str) -> Option<&str> {
    let line = declaration.lines().next()?;
    let end = |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    // A function, a pointer to one, or the last word: `enum name`, `typedef struct name {`.
    let before = match line.find("(*") {
        Some(start) => return line.get(start + 2..)?.split(')').next(),
        None => line.split('(').next()?,
    };
    let name = before.trim_end_matches([' ', '{', ';']);
    let start = name.rfind([' ', '*']).map_or(0, |at| at + 1);
    let name = &name[start..];
    end(name).is_none().then_some(name)
}

/// The names that a source exports, in their order there.
fn names(source: &str) -> Vec<String> {
    let kinds = [
        "pub struct ",
        "pub enum ",
        "pub type ",
        "pub extern \"C\" fn ",
        "pub unsafe extern \"C\" fn ",
    ];
    source
        .lines()
        .filter_map(|line| kinds.iter().find_map(|kind| line.strip_prefix(kind)))
        .filter_map(|rest| {
            rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .next()
        })
        .map(str::to_owned)
        .collect()
}
