//! The kernels' text, as the driver loads it.
//!
//! A module says at its beginning what the host has to know of each kernel: `// embed: threads 256, shared 0`. It is read
//! from there, so that it stands in one place.

use std::collections::HashMap;
use std::sync::LazyLock;

/// What the host has to know of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// Threads of a block.
    pub(crate) threads: u32,
    /// Bytes of shared memory that a launch asks for.
    pub(crate) shared: u32,
    /// Bytes that it asks for beside them for each number of a head.
    pub(crate) shared_per_head_dim: u32,
    /// Rows of a tile, where the kernel has tiles.
    pub(crate) rows: u32,
    /// Outputs of a block, where a block has some of them.
    pub(crate) outputs: u32,
}

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        /// Every module and its text.
        const MODULES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../kernels/ptx/", $name, ".ptx")))),*];
    };
}

modules![
    "attention_bf16_d128",
    "attention_bf16_d256",
    "attention_bf16_d64",
    "attention_bf16_d80",
    "attention_bf16_d96",
    "attention_f16_d128",
    "attention_f16_d256",
    "attention_f16_d64",
    "attention_f16_d80",
    "attention_f16_d96",
    "attention_f32",
    "distance_bf16",
    "distance_f16",
    "distance_f32",
    "elementwise_bf16",
    "elementwise_f16",
    "elementwise_f32",
    "experts_bf16",
    "experts_f16",
    "kv_bf16",
    "kv_f16",
    "kv_f32",
    "matvec_bf16",
    "matvec_f16",
    "matvec_f32",
    "rows",
    "select",
];

static ENTRIES: LazyLock<HashMap<&'static str, Vec<Entry>>> =
    LazyLock::new(|| MODULES.iter().map(|(name, text)| (*name, text.lines().filter_map(entry).collect())).collect());

/// A module's text.
pub(crate) fn text(module: &str) -> Option<&'static str> {
    MODULES.iter().find(|(name, _)| *name == module).map(|(_, text)| *text)
}

/// A module's kernels.
pub(crate) fn entries(module: &str) -> &'static [Entry] {
    ENTRIES.get(module).map(Vec::as_slice).unwrap_or_default()
}

/// What a line says of a kernel, if it does.
fn entry(line: &'static str) -> Option<Entry> {
    let (name, facts) = line.strip_prefix("// ")?.split_once(": ")?;
    let fact = |wanted: &str| {
        let value = facts.split(", ").find_map(|fact| fact.strip_prefix(wanted)?.strip_prefix(' '))?;
        value.parse::<u32>().ok()
    };
    Some(Entry {
        name,
        threads: fact("threads")?,
        shared: fact("shared").unwrap_or(0),
        shared_per_head_dim: fact("shared_per_head_dim").unwrap_or(0),
        rows: fact("rows").unwrap_or(0),
        outputs: fact("outputs").unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_module_says_of_its_kernels_is_read() {
        let line = "// load_kv_int8: threads 128, rows 16, shared 512, shared_per_head_dim 96";
        let (name, shared_per_head_dim) = ("load_kv_int8", 96);
        let expected = Entry { name, threads: 128, shared: 512, shared_per_head_dim, rows: 16, outputs: 0 };
        assert_eq!(entry(line), Some(expected));
        assert_eq!(entry("// matvec: threads 256, shared 0, rows 8, outputs 16").map(|entry| entry.outputs), Some(16));
        assert_eq!(entry("// combine: threads 256").map(|entry| (entry.shared, entry.rows)), Some((0, 0)));
        assert_eq!(entry("// a sentence: with threads in it"), None);
    }

    #[test]
    fn every_kernel_of_a_module_is_described_and_nothing_else_is() {
        for (module, text) in MODULES {
            let mut described: Vec<&str> = entries(module).iter().map(|entry| entry.name).collect();
            let mut visible: Vec<&str> = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix(".visible .entry "))
                .map(|rest| rest.split(['(', ' ']).next().unwrap_or_default())
                .collect();
            described.sort_unstable();
            visible.sort_unstable();
            assert_eq!(described, visible, "{module}");
            assert!(!visible.is_empty(), "{module}");
        }
    }
}
