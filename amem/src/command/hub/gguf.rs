//! Which of a repository's GGUF files are the model that is wanted: by the names of its files, as llama.cpp chooses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use amem_core::transformer::WeightType;
use amem_store::ModelDir;
use indicatif::HumanBytes;

/// What is taken if nothing else is wanted, the first of these that there is.
const DEFAULTS: [&str; 2] = ["Q4_K_M", "Q8_0"];
/// What files beside a model have in their names: parts for images, statistics for quantisation, models that draft.
const NO_MODELS: [&str; 6] = ["mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-"];
/// What llama.cpp puts behind the types with blocks of 256 numbers for mixtures of them that are read too.
const MIXTURES: [&str; 3] = ["_S", "_M", "_L"];
/// Files of one model at most.
const MAX_PARTS: usize = 1000;
/// Files that an error names at most.
const MAX_NAMED: usize = 20;

/// What is wanted of a repository's GGUF files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A quantisation, as the end of a file's name has it: `Q4_K_M`.
    Quantisation(String),
    /// A file, by its path.
    File(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Quantisation(text) | Self::File(text)) = self;
        f.write_str(text)
    }
}

impl Wanted {
    /// A path that ends in `.gguf`, or the name of a quantisation.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if is_gguf(text) {
            return Some(Self::File(text.to_owned()));
        }
        (text.len() <= 96 && text.chars().all(is_plain) && !text.is_empty())
            .then(|| Self::Quantisation(text.to_owned()))
    }
}

fn is_plain(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || "-_.+".contains(letter)
}

/// Whether a path is that of a GGUF file, and leads nowhere but into the repository.
pub(super) fn is_gguf(path: &str) -> bool {
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('.') && name.chars().all(is_plain);
    path.ends_with(".gguf") && path.len() <= 512 && path.split('/').all(is_name)
}

/// A model in GGUF.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    /// The paths of its files, in their order.
    pub(super) files: Vec<String>,
    /// Bytes of all of them.
    pub(super) bytes: u64,
}

/// Why none of a repository's GGUF files is taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChoiceError {
    /// There are none.
    #[error("it has no GGUF file with a model")]
    None,
    /// There is none such.
    #[error("it has no GGUF file {wanted}; {there}")]
    NoSuch { wanted: String, there: Readable },
    /// What is wanted has a quantisation that is not read.
    #[error("{wanted} cannot be read; {there}")]
    NotRead { wanted: String, there: Readable },
    /// Which one is meant is not clear.
    #[error("several of its GGUF files may be meant: name one of them, as OWNER/NAME/FILE: {}", .0.join(", "))]
    Several(Vec<String>),
    /// A file of a model in several is not there.
    #[error("of the {count} files of a model, {missing} is not there")]
    Incomplete { missing: String, count: usize },
}

/// What may be asked for instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Readable(Vec<String>);

impl fmt::Display for Readable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() {
            return write!(f, "take one of {}", self.0.join(", "));
        }
        let types = WeightType::ALL.map(|kind| kind.to_string()).join(", ");
        write!(f, "it has none that can be: {types} can, so take a repository with Q4_K_M or Q8_0, say")
    }
}

/// Whether a model can be read, as far as its file's name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    Yes,
    /// It depends on what is in the file.
    Perhaps,
    No,
}

/// A model, in one file or in several.
struct Model {
    /// The path of the first file.
    first: String,
    /// The name without what says the part and the format, in capitals.
    stem: String,
    /// The quantisation at the end of the name.
    label: Option<String>,
    reading: Reading,
    files: Vec<String>,
    bytes: u64,
    /// The first file that is not there.
    missing: Option<String>,
}

impl Model {
    /// The model whose first file has this path.
    fn of(first: &str, sizes: &BTreeMap<String, u64>) -> Option<Self> {
        let parts = ModelDir::parts(first);
        let count = parts.len();
        if count > MAX_PARTS {
            return None;
        }
        let files: Vec<String> = parts.collect();
        let name = first.rsplit('/').next()?.strip_suffix(".gguf")?;
        let stem = if count > 1 { name.strip_suffix(&format!("-00001-of-{count:05}"))? } else { name };
        let stem = stem.to_ascii_uppercase();
        let label = label(&stem);
        let reading = label.as_deref().map_or(Reading::Perhaps, reading);
        let missing = files.iter().find(|file| !sizes.contains_key(*file)).cloned();
        let bytes = files.iter().filter_map(|file| sizes.get(file)).fold(0, |sum: u64, size| sum.saturating_add(*size));
        Some(Self { first: first.to_owned(), stem, label, reading, files, bytes, missing })
    }

    /// Whether its name ends in this quantisation.
    fn is(&self, quantisation: &str) -> bool {
        let ends = || ends(&self.stem).any(|end| end == quantisation);
        self.label.as_deref() == Some(quantisation) || ends()
    }

    fn is_model(&self) -> bool {
        let name = self.first.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        !NO_MODELS.iter().any(|other| name.contains(other))
    }
}

/// The model that is wanted, of the files of a repository with their sizes.
pub(super) fn choose(sizes: &BTreeMap<String, u64>, wanted: Option<&Wanted>) -> Result<Chosen, ChoiceError> {
    let firsts: BTreeSet<String> = sizes.keys().filter_map(|file| ModelDir::parts(file).next()).collect();
    let all: Vec<Model> = firsts.iter().filter_map(|first| Model::of(first, sizes)).collect();
    let models: Vec<&Model> = all.iter().filter(|model| model.is_model()).collect();
    let of =
        |quantisation: &str| -> Vec<&Model> { models.iter().filter(|model| model.is(quantisation)).copied().collect() };
    let found = match wanted {
        // Files beside models too, for somebody has named this one.
        Some(Wanted::File(path)) => all.iter().filter(|model| model.files.contains(path)).collect(),
        Some(Wanted::Quantisation(name)) => {
            let name = plain_label(name.to_ascii_uppercase());
            let found = of(&name);
            // llama.cpp's own short name of a mixture.
            if found.is_empty() { of(&format!("{name}_M")) } else { found }
        }
        _ if models.is_empty() => return Err(ChoiceError::None),
        None => default(&models, of),
    };
    let readable = || readable(&models);
    match (found.as_slice(), wanted) {
        ([model], _) if model.reading == Reading::No => {
            let wanted = wanted.map_or_else(|| model.label.clone().unwrap_or_default(), Wanted::to_string);
            Err(ChoiceError::NotRead { wanted, there: readable() })
        }
        ([model], _) => match &model.missing {
            Some(missing) => Err(ChoiceError::Incomplete { missing: missing.clone(), count: model.files.len() }),
            None => Ok(Chosen { files: model.files.clone(), bytes: model.bytes }),
        },
        ([], Some(wanted)) => Err(ChoiceError::NoSuch { wanted: wanted.to_string(), there: readable() }),
        ([], None) => {
            let labels: BTreeSet<&str> = models.iter().filter_map(|model| model.label.as_deref()).collect();
            let wanted = labels.into_iter().take(MAX_NAMED).collect::<Vec<_>>().join(", ");
            Err(ChoiceError::NotRead { wanted, there: readable() })
        }
        (several, _) => {
            let names = several.iter().take(MAX_NAMED).map(|model| model.first.clone());
            Err(ChoiceError::Several(names.collect()))
        }
    }
}

/// What is taken of these if nothing else is wanted: the usual, or the smallest of those that can be read, and else what may
/// be readable.
fn default<'m>(models: &[&'m Model], of: impl Fn(&str) -> Vec<&'m Model>) -> Vec<&'m Model> {
    let usual = DEFAULTS.iter().map(|label| of(label)).find(|found| !found.is_empty());
    let sure = models.iter().filter(|model| model.reading == Reading::Yes);
    let smallest = || sure.min_by_key(|model| model.bytes).and_then(|model| model.label.as_deref()).map(&of);
    let perhaps = || models.iter().filter(|model| model.reading == Reading::Perhaps).copied().collect();
    usual.or_else(smallest).unwrap_or_else(perhaps)
}

/// The quantisations that may be asked for, with their sizes.
fn readable(models: &[&Model]) -> Readable {
    let named = models.iter().filter(|model| model.reading != Reading::No && model.missing.is_none()).map(|model| {
        let twice = || models.iter().filter(|other| other.label == model.label).count() > 1;
        let name = model.label.as_deref().filter(|_| !twice()).unwrap_or(&model.first);
        format!("{name} ({})", HumanBytes(model.bytes))
    });
    Readable(named.take(MAX_NAMED).collect())
}

/// The ends of a name that begin behind a mark, or with the name, the longest first.
fn ends(stem: &str) -> impl Iterator<Item = &str> {
    let marks = stem.char_indices().filter(|(_, letter)| "-_.".contains(*letter)).map(|(at, _)| at + 1);
    std::iter::once(0).chain(marks).filter_map(|at| stem.get(at..))
}

/// The quantisation at the end of a name in capitals.
fn label(stem: &str) -> Option<String> {
    let is_label = |word: &str| {
        let word = word.strip_prefix(['I', 'T']).unwrap_or(word);
        let sized = |prefix: &str| {
            let rest = word.strip_prefix(prefix)?;
            let plain = rest.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
            Some(plain && rest.starts_with(|first: char| first.is_ascii_digit()))
        };
        ["Q", "F", "FP", "BF", "MXFP", "NVFP"].into_iter().filter_map(sized).any(|is| is)
    };
    ends(stem).find(|end| is_label(end)).map(|label| plain_label(label.to_owned()))
}

/// The name that types have here, for those that some call otherwise.
fn plain_label(label: String) -> String {
    match label.as_str() {
        "FP16" => "F16".to_owned(),
        "FP32" => "F32".to_owned(),
        _ => label,
    }
}

/// Whether a model of this quantisation can be read.
fn reading(label: &str) -> Reading {
    let is = |kind: WeightType| {
        let name = kind.to_string();
        let rest = label.strip_prefix(name.as_str());
        rest.is_some_and(|rest| rest.is_empty() || name.ends_with("_K") && MIXTURES.contains(&rest))
    };
    let never = ["IQ", "TQ", "MXFP", "NVFP", "Q1_", "Q2_", "Q3_", "Q4_0_", "Q8_1"];
    match label {
        _ if WeightType::ALL.into_iter().any(is) => Reading::Yes,
        _ if never.iter().any(|never| label.starts_with(never)) => Reading::No,
        _ => Reading::Perhaps,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of these sizes.
    fn files(files: &[(&str, u64)]) -> BTreeMap<String, u64> {
        files.iter().map(|(name, size)| ((*name).to_owned(), *size)).collect()
    }

    fn chosen(there: &[(&str, u64)], wanted: &str) -> Result<Vec<String>, String> {
        let wanted = (!wanted.is_empty()).then(|| Wanted::parse(wanted).unwrap());
        choose(&files(there), wanted.as_ref()).map(|chosen| chosen.files).map_err(|error| error.to_string())
    }

    fn is(there: &[(&str, u64)], wanted: &str, expected: &str) {
        assert_eq!(chosen(there, wanted), Ok(vec![expected.to_owned()]), "{wanted}");
    }

    fn fails(there: &[(&str, u64)], wanted: &str, parts: &[&str]) {
        let error = chosen(there, wanted).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?} not in {error}");
    }

    /// A repository as many are.
    const MANY: [(&str, u64); 8] = [
        ("m-IQ2_XS.gguf", 1 << 20),
        ("m-Q2_K.gguf", 2 << 20),
        ("m-Q4_0.gguf", 4 << 20),
        ("m-Q4_K_M.gguf", 5 << 20),
        ("m-Q8_0.gguf", 8 << 20),
        ("m-UD-Q4_K_XL.gguf", 5 << 20),
        ("m-f16.gguf", 16 << 20),
        ("mmproj-m-F16.gguf", 1),
    ];

    #[test]
    fn a_quantisation_is_the_end_of_a_files_name_in_any_case() {
        for (wanted, expected) in [
            ("Q8_0", "m-Q8_0.gguf"),
            ("q8_0", "m-Q8_0.gguf"),
            ("Q4_K_M", "m-Q4_K_M.gguf"),
            ("Q4_K", "m-Q4_K_M.gguf"),
            ("F16", "m-f16.gguf"),
            ("fp16", "m-f16.gguf"),
            ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
            ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
            ("m-Q4_0.gguf", "m-Q4_0.gguf"),
        ] {
            is(&MANY, wanted, expected);
        }
        is(&[("tiny-v1.0.Q5_K_S.gguf", 1), ("tiny-v1.0.Q6_K.gguf", 1)], "Q5_K_S", "tiny-v1.0.Q5_K_S.gguf");
        is(&[("tiny_q8_0.gguf", 1), ("tiny_q4_0.gguf", 1)], "q8_0", "tiny_q8_0.gguf");
        fails(&MANY, "8_0.gguf", &["no GGUF file 8_0.gguf"]);
        fails(&MANY, "K_M.gguf", &["no GGUF file"]);
    }

    #[test]
    fn without_a_word_it_is_q4_k_m_or_q8_0_or_the_smallest_that_can_be_read() {
        is(&MANY, "", "m-Q4_K_M.gguf");
        let (q4, q5, q8) = (("m-Q4_1.gguf", 4), ("m-Q5_K_M.gguf", 5), ("m-Q8_0.gguf", 8));
        is(&[q4, q5, q8], "", "m-Q8_0.gguf");
        is(&[q5, q4, ("m-IQ1_S.gguf", 1), ("m-BF16.gguf", 16)], "", "m-Q4_1.gguf");
        is(&[("model.gguf", 1), ("m-IQ1_S.gguf", 1)], "", "model.gguf");
        is(&[("m-q4.gguf", 1)], "", "m-q4.gguf");
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_what_can() {
        let all = ["Q4_0 (4.00 MiB)", "Q4_K_M", "Q8_0 (8.00 MiB)", "F16 (16.00 MiB)"];
        for wanted in ["IQ2_XS", "q2_k", "m-Q2_K.gguf"] {
            fails(&MANY, wanted, &all);
            fails(&MANY, wanted, &[wanted, "cannot be read"]);
        }
        fails(&MANY, "Q6_K", &all);
        fails(&MANY, "Q6_K", &["no GGUF file Q6_K"]);
        fails(&MANY, "other.gguf", &["no GGUF file other.gguf", "Q8_0"]);
        let unread = [("m-IQ2_XS.gguf", 1), ("m-Q3_K_L.gguf", 1), ("m-MXFP4_MOE.gguf", 1), ("m-TQ1_0.gguf", 1)];
        fails(&unread, "", &["IQ2_XS", "Q3_K_L", "MXFP4_MOE", "TQ1_0", "it has none that can", "F32", "Q6_K can"]);
        fails(&[("mmproj-m-F16.gguf", 1), ("m.imatrix.gguf", 1)], "", &["no GGUF file with a model"]);
    }

    #[test]
    fn models_that_are_not_told_apart_are_named() {
        let two = [("a/x-Q8_0.gguf", 1), ("b/y-Q8_0.gguf", 1)];
        for wanted in ["", "Q8_0"] {
            fails(&two, wanted, &["several", "OWNER/NAME/FILE", "a/x-Q8_0.gguf, b/y-Q8_0.gguf"]);
        }
        is(&two, "b/y-Q8_0.gguf", "b/y-Q8_0.gguf");
        fails(&two, "Q4_0", &["a/x-Q8_0.gguf (1 B), b/y-Q8_0.gguf (1 B)"]);
        fails(&[("a.gguf", 1), ("b.gguf", 1)], "", &["a.gguf, b.gguf"]);
        fails(&[("a-Q6_K.gguf", 1), ("b-Q6_K.gguf", 2)], "", &["several"]);
    }

    #[test]
    fn a_model_in_several_files_is_all_of_them_in_their_order() {
        let part = |number: u8| format!("Q8_0/m-Q8_0-{number:05}-of-00002.gguf");
        let (one, two) = (part(1), part(2));
        let there = [(two.as_str(), 7), (one.as_str(), 5), ("m-Q6_K.gguf", 1)];
        for wanted in ["", "q8_0", &one, &two] {
            let wanted = (!wanted.is_empty()).then(|| Wanted::parse(wanted).unwrap());
            let chosen = choose(&files(&there), wanted.as_ref()).unwrap();
            assert_eq!(chosen, Chosen { files: vec![one.clone(), two.clone()], bytes: 12 });
        }
        fails(&there[1..], "Q8_0", &["2 files", &two]);
        fails(&there[..1], "Q8_0", &["2 files", &one]);
        // Nobody splits a model so; to list all of its files would take long.
        fails(&[("m-Q8_0-00001-of-99999.gguf", 1)], "", &["no GGUF file"]);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_none() {
        for path in
            ["../m.gguf", "a/../m.gguf", "/m.gguf", "a//m.gguf", ".m.gguf", "*.gguf", "a\\m.gguf", "m.bin", "m[1].gguf"]
        {
            assert!(!is_gguf(path), "{path}");
        }
        assert!(is_gguf("Q8_0/m-1.5_x+y.Q8_0.gguf"));
        assert_eq!(Wanted::parse(""), None);
        assert_eq!(Wanted::parse("a b"), None);
    }
}
