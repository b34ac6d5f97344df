//! The checked-in PTX is what its templates expand to.
//!
//! PTX is full of `{`, `}` and `%`, so the templates mark blocks with `<% %>`, expressions with `<< >>` and comments with
//! `<# #>`. To write the modules anew: `AMEM_UPDATE_PTX=1 cargo test -p amem-cuda --test kernels expand`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, UndefinedBehavior, context};

/// A template and the modules that it expands to: one for each number type and head size, as far as it depends on them.
struct Family {
    template: &'static str,
    types: &'static [&'static str],
    head_dims: &'static [u32],
}

const FAMILIES: &[Family] = &[
    Family { template: "attention.ptx.j2", types: &["f16", "bf16"], head_dims: &[64, 80, 96, 128, 256] },
    Family { template: "attention_f32.ptx.j2", types: &[], head_dims: &[] },
    Family { template: "distance.ptx.j2", types: &["f16", "bf16", "f32"], head_dims: &[] },
    Family { template: "elementwise.ptx.j2", types: &["f16", "bf16", "f32"], head_dims: &[] },
    Family { template: "experts.ptx.j2", types: &["f16", "bf16"], head_dims: &[] },
    Family { template: "kv.ptx.j2", types: &["f16", "bf16", "f32"], head_dims: &[] },
    Family { template: "matvec.ptx.j2", types: &["f16", "bf16", "f32"], head_dims: &[] },
    Family { template: "rows.ptx.j2", types: &[], head_dims: &[] },
    Family { template: "select.ptx.j2", types: &[], head_dims: &[] },
];

/// A module, and the template and variables that it comes from.
struct Expansion {
    module: String,
    template: &'static str,
    dtype: &'static str,
    head_dim: u32,
}

impl Family {
    fn expansions(&self) -> Vec<Expansion> {
        let types = if self.types.is_empty() { &[""] } else { self.types };
        let head_dims = if self.head_dims.is_empty() { &[0] } else { self.head_dims };
        let stem = self.template.trim_end_matches(".ptx.j2");
        let mut all = Vec::new();
        for &dtype in types {
            for &head_dim in head_dims {
                let mut module = stem.to_owned();
                if !dtype.is_empty() {
                    module += &format!("_{dtype}");
                }
                if head_dim > 0 {
                    module += &format!("_d{head_dim}");
                }
                all.push(Expansion { module, template: self.template, dtype, head_dim });
            }
        }
        all
    }
}

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

/// All templates of the folder, so that one can import another's macros.
fn templates() -> Vec<(String, String)> {
    let mut all: Vec<_> = fs::read_dir(kernels())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name.ends_with(".j2"))
        .map(|(name, path)| (name, fs::read_to_string(path).unwrap()))
        .collect();
    all.sort();
    all
}

fn environment(templates: &[(String, String)]) -> Environment<'_> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .block_delimiters("<%", "%>")
            .variable_delimiters("<<", ">>")
            .comment_delimiters("<#", "#>")
            .build()
            .unwrap(),
    );
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(true);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // The number of an f32 as PTX writes it, `0f3F800000`.
    environment.add_filter("f32", |value: f64| format!("0f{:08X}", (value as f32).to_bits()));
    for (name, text) in templates {
        environment.add_template(name, text).unwrap();
    }
    environment
}

/// Without trailing blanks, and with at most one empty line at a time: what expanding macros leaves behind.
fn tidy(text: &str) -> String {
    let mut result = String::new();
    let mut empty = true;
    for line in text.lines().map(str::trim_end) {
        if !(line.is_empty() && empty) {
            result += line;
            result.push('\n');
        }
        empty = line.is_empty();
    }
    result.truncate(result.trim_end().len());
    result.push('\n');
    result
}

fn expand(environment: &Environment<'_>, expansion: &Expansion) -> String {
    let variables = context! { dtype => expansion.dtype, head_dim => expansion.head_dim };
    let text = environment.get_template(expansion.template).unwrap().render(variables);
    tidy(&text.unwrap_or_else(|error| panic!("{}: {error:#}", expansion.module)))
}

#[test]
fn the_modules_are_what_their_templates_expand_to() {
    let update = std::env::var_os("AMEM_UPDATE_PTX").is_some();
    let templates = templates();
    let environment = environment(&templates);
    let folder = kernels().join("ptx");
    let mut stale = Vec::new();
    for expansion in FAMILIES.iter().flat_map(Family::expansions) {
        let path = folder.join(&expansion.module).with_extension("ptx");
        let text = expand(&environment, &expansion);
        if update {
            fs::write(path, text).unwrap();
        } else if fs::read_to_string(path).unwrap_or_default() != text {
            stale.push(expansion.module);
        }
    }
    assert!(stale.is_empty(), "AMEM_UPDATE_PTX=1 writes them: {stale:?}");
}

#[test]
fn every_module_has_a_template() {
    let expected: BTreeSet<String> =
        FAMILIES.iter().flat_map(Family::expansions).map(|expansion| expansion.module + ".ptx").collect();
    let found: BTreeSet<String> = fs::read_dir(kernels().join("ptx"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".ptx"))
        .collect();
    assert_eq!(found, expected);
}
