//! Models from the Hugging Face Hub: which files of a repository a model needs, and where they lie once they are here.

mod gguf;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufReader, IsTerminal, Read, stderr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::{HFRepository, RepoTreeEntry};
use hf_hub::{HFClient, HFError};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;

use self::gguf::{ChoiceError, Chosen, Wanted, choose, is_gguf};

/// The index of weights that are split into several files.
const INDEX: &str = "model.safetensors.index.json";
/// The weights of a model that are one file.
const SINGLE: &str = "model.safetensors";
/// What is read of a language model beside its weights.
const TEXTS: [&str; 7] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];
/// What is read of an encoder beside its weights.
const TEXTS_OF_ENCODER: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    INDEX,
];
/// Bytes of the index that are read at most.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Files of weights at most.
const MAX_SHARDS: usize = 1000;
/// Files and directories of a repository that are looked through at most.
const MAX_ENTRIES: usize = 10_000;
/// Directories within each other that are looked through at most.
const MAX_DEPTH: usize = 4;

/// A model on the Hub: `OWNER/NAME`, or `OWNER/NAME@REVISION` with the name of a branch or a tag, or a commit's hash. Behind
/// it may stand which of its GGUF files is meant, `:QUANTISATION` or `:FILE`, or `/FILE` where there is no revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HubModel {
    owner: String,
    name: String,
    revision: Option<String>,
    wanted: Option<Wanted>,
}

impl HubModel {
    /// Its name without its owner's.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))?;
        self.wanted.as_ref().map_or(Ok(()), |wanted| write!(f, ":{wanted}"))
    }
}

impl FromStr for HubModel {
    type Err = NotAModel;

    fn from_str(text: &str) -> Result<Self, NotAModel> {
        let not_a_model = || NotAModel(text.to_owned());
        let (place, wanted) = text.split_once(':').map_or((text, None), |(place, wanted)| (place, Some(wanted)));
        let (id, revision) = place.split_once('@').map_or((place, None), |(id, revision)| (id, Some(revision)));
        let (owner, path) = id.split_once('/').ok_or_else(not_a_model)?;
        let (name, file) = path.split_once('/').map_or((path, None), |(name, file)| (name, Some(file)));
        let is_word = |word: &str| {
            let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !word.is_empty() && word.len() <= 96 && !word.starts_with('.') && word.chars().all(letters)
        };
        let is_revision = |revision: &str| !revision.contains("..") && revision.split('/').all(is_word);
        let wanted = match (wanted, file) {
            (None, None) => None,
            (Some(wanted), None) => Some(Wanted::parse(wanted).ok_or_else(not_a_model)?),
            (None, Some(file)) if is_gguf(file) => Some(Wanted::File(file.to_owned())),
            _ => return Err(not_a_model()),
        };
        if !is_word(owner) || !is_word(name) || !revision.is_none_or(is_revision) {
            return Err(not_a_model());
        }
        let (owner, name) = (owner.to_owned(), name.to_owned());
        Ok(Self { owner, name, revision: revision.map(str::to_owned), wanted })
    }
}

/// What is wanted of a model: which files, and which option names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A language model.
    Language,
    /// An encoder.
    Encoder,
}

impl Kind {
    fn texts(self) -> &'static [&'static str] {
        match self {
            Self::Language => &TEXTS,
            Self::Encoder => &TEXTS_OF_ENCODER,
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Language => "--model",
            Self::Encoder => "--embedder",
        }
    }
}

/// Neither a directory nor a model on the Hub.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no directory or file {0:?}, and it is no model on the Hugging Face Hub either, whose names are OWNER/NAME or \
         OWNER/NAME@REVISION, with :QUANTISATION behind them for one of their GGUF files, or OWNER/NAME/FILE.gguf"
)]
pub(crate) struct NotAModel(String);

/// Why a model is not here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    /// The Hub is not to be asked, and the model is not here.
    #[error(
        "{model} is not in the cache ({cache}), and HF_HUB_OFFLINE is set: unset it, or give the directory of a copy \
             of the model as {option}"
    )]
    NotCached { model: String, cache: PathBuf, option: &'static str },
    /// The Hub cannot be asked, and the model is not here.
    #[error(
        "{endpoint} cannot be reached ({source}), and {model} is not in the cache ({cache}): try again when there is \
             a network, or give the directory of a copy of the model as {option}"
    )]
    Unreachable { model: String, endpoint: String, cache: PathBuf, option: &'static str, source: Box<HFError> },
    /// There is none of this name, or it is somebody's own.
    #[error(
        "the Hub has no model {model}, or it is not open to everybody: look at its name; for one that is not open, \
             set HF_TOKEN to a token that may read it"
    )]
    Unknown { model: String },
    /// Its owner lets in whom he knows.
    #[error("{model} is not open to everybody: ask for access on its page, and set HF_TOKEN to a token of yours")]
    Closed { model: String },
    /// It has no such revision.
    #[error("{model}: the model has no such branch, tag or commit")]
    UnknownRevision { model: String },
    /// It is not a model of a kind that is read here.
    #[error("{model} cannot be used: {reason}")]
    Unusable { model: String, reason: String },
    /// Which of its GGUF files is meant is not clear, or none can be read.
    #[error("{model} cannot be used: {source}")]
    NotChosen { model: String, source: ChoiceError },
    /// The Hub failed.
    #[error("{model} could not be downloaded: {source}; what has come so far is kept, so try again")]
    Failed { model: String, source: Box<HFError> },
}

/// The directory that holds a model of the Hub, or its GGUF file, downloaded if it is not here yet. Weights in GGUF are
/// taken where they are asked for, or the model has no other. The places and the token are those of
/// all programs that use the Hub: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT; with HF_HUB_OFFLINE the Hub is not asked.
pub(crate) async fn model(model: &HubModel, kind: Kind) -> Result<PathBuf, HubError> {
    let failed = |source| HubError::Failed { model: model.to_string(), source: Box::new(source) };
    let client = HFClient::builder().retry_max_attempts(2).build().map_err(failed)?;
    let hub = Hub { model, kind, repository: client.model(&*model.owner, &*model.name), client: &client };
    if is_offline() {
        let (cached, option) = (hub.cached().await, kind.option());
        return cached.ok_or_else(|| HubError::NotCached { model: model.to_string(), cache: hub.cache(), option });
    }
    match hub.download().await {
        Err(HubError::Unreachable { model, endpoint, cache, option, source }) => match hub.cached().await {
            Some(dir) => {
                tracing::warn!(%endpoint, "the Hub cannot be reached: the model is used as it is in the cache");
                Ok(dir)
            }
            None => Err(HubError::Unreachable { model, endpoint, cache, option, source }),
        },
        downloaded => downloaded,
    }
}

fn is_offline() -> bool {
    let set = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "on", "yes", "true"].contains(&set.to_ascii_lowercase().as_str())
}

struct Hub<'m> {
    model: &'m HubModel,
    kind: Kind,
    repository: HFRepository<hf_hub::repository::RepoTypeModel>,
    client: &'m HFClient,
}

impl Hub<'_> {
    fn cache(&self) -> PathBuf {
        self.client.cache_dir().to_owned()
    }

    /// The directory or GGUF file in the cache, if all that the model needs is there.
    async fn cached(&self) -> Option<PathBuf> {
        let files = self.repository.snapshot_download().maybe_revision(self.model.revision.clone());
        let dir = files.local_files_only(true).send().await.ok()?;
        let is_file = |file: &String| dir.join(file).is_file();
        let weights = self.weights(&dir).is_ok_and(|weights| weights.iter().all(is_file));
        if self.model.wanted.is_none() && weights && dir.join("config.json").is_file() {
            return Some(dir);
        }
        let mut sizes = BTreeMap::new();
        gguf_files(&dir, "", MAX_DEPTH, &mut sizes);
        let chosen = choose(&sizes, self.model.wanted.as_ref()).ok()?;
        chosen.files.first().map(|file| dir.join(file))
    }

    /// What the model needs, first what is small, and then the weights that it names, all of one commit.
    async fn download(&self) -> Result<PathBuf, HubError> {
        let texts = if self.model.wanted.is_none() { self.kind.texts() } else { &[] };
        let texts = texts.iter().map(|file| (*file).to_owned()).collect();
        let dir = self.fetch(self.model.revision.clone(), texts, None).await?;
        let commit = dir.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let lacks = if self.model.wanted.is_none() && dir.join("config.json").is_file() {
            let weights = self.weights(&dir)?;
            let wanted = weights.iter().cloned().collect();
            let dir = self.fetch(commit.clone(), wanted, Some(Bar::new(self.model))).await?;
            match weights.into_iter().find(|file| !dir.join(file).is_file()) {
                None => return Ok(dir),
                Some(missing) => missing,
            }
        } else {
            "config.json".to_owned()
        };
        let chosen = match choose(&self.gguf_files(commit.clone()).await?, self.model.wanted.as_ref()) {
            Ok(chosen) => chosen,
            Err(ChoiceError::None) if self.model.wanted.is_none() => {
                return Err(self.unusable(format!("it has no {lacks} and no GGUF file; nothing else is read")));
            }
            Err(source) => return Err(HubError::NotChosen { model: self.model.to_string(), source }),
        };
        self.download_gguf(commit, chosen).await
    }

    async fn download_gguf(&self, commit: Option<String>, chosen: Chosen) -> Result<PathBuf, HubError> {
        tracing::info!(model = %self.model, files = ?chosen.files, bytes = chosen.bytes, "these GGUF files are taken");
        let dir = self.fetch(commit, chosen.files.clone(), Some(Bar::new(self.model))).await?;
        match (chosen.files.iter().find(|file| !dir.join(file).is_file()), chosen.files.first()) {
            (None, Some(first)) => Ok(dir.join(first)),
            (missing, _) => Err(self.unusable(format!("{} did not come", missing.map_or("a file", |file| file)))),
        }
    }

    /// The GGUF files of a commit, with their sizes.
    async fn gguf_files(&self, commit: Option<String>) -> Result<BTreeMap<String, u64>, HubError> {
        let tree = self.repository.list_tree().maybe_revision(commit).recursive(true).limit(MAX_ENTRIES + 1).send();
        let mut tree = pin!(tree.map_err(|error| self.error(error))?);
        let (mut files, mut entries) = (BTreeMap::new(), 0);
        while let Some(entry) = tree.next().await {
            entries += 1;
            match entry.map_err(|error| self.error(error))? {
                _ if entries > MAX_ENTRIES => {
                    return Err(self.unusable(format!("it has more than {MAX_ENTRIES} files")));
                }
                RepoTreeEntry::File { path, size, .. } if is_gguf(&path) => {
                    files.insert(path, size);
                }
                _ => {}
            }
        }
        Ok(files)
    }

    async fn fetch(
        &self,
        revision: Option<String>,
        files: Vec<String>,
        bar: Option<Arc<Bar>>,
    ) -> Result<PathBuf, HubError> {
        let download = self.repository.snapshot_download().maybe_revision(revision).allow_patterns(files);
        let fetched = match bar {
            Some(bar) => {
                let fetched = download.progress(Arc::clone(&bar)).send().await;
                bar.bar.finish_and_clear();
                fetched
            }
            None => download.send().await,
        };
        fetched.map_err(|error| self.error(error))
    }

    /// The files of weights.
    fn weights(&self, dir: &Path) -> Result<BTreeSet<String>, HubError> {
        #[derive(Deserialize)]
        struct Index {
            weight_map: HashMap<String, String>,
        }
        let Ok(file) = File::open(dir.join(INDEX)) else { return Ok(BTreeSet::from([SINGLE.to_owned()])) };
        let index: Result<Index, _> = serde_json::from_reader(BufReader::new(file.take(MAX_INDEX_BYTES)));
        let index = index.map_err(|error| self.unusable(format!("{INDEX}: {error}")))?;
        let shards: BTreeSet<String> = index.weight_map.into_values().collect();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_shard = |file: &String| file.ends_with(".safetensors") && file.chars().all(plain);
        match shards.iter().find(|file| !is_shard(file)) {
            Some(other) => Err(self.unusable(format!("{INDEX} names the file {other:?}"))),
            None if shards.len() > MAX_SHARDS => Err(self.unusable(format!("{INDEX} names {} files", shards.len()))),
            None => Ok(shards),
        }
    }

    fn unusable(&self, reason: impl Into<String>) -> HubError {
        HubError::Unusable { model: self.model.to_string(), reason: reason.into() }
    }

    fn error(&self, source: HFError) -> HubError {
        let model = self.model.to_string();
        if matches!(source, HFError::Request { .. }) {
            let (endpoint, cache) = (self.client.endpoint().to_owned(), self.cache());
            return HubError::Unreachable {
                model,
                endpoint,
                cache,
                option: self.kind.option(),
                source: Box::new(source),
            };
        }
        // The Hub's own code says more than the status: it hides what is not open behind the status of what needs a token.
        match (code(&source), &source) {
            (Some("RepoNotFound"), _) | (_, HFError::RepoNotFound { .. }) => HubError::Unknown { model },
            (Some("GatedRepo"), _) | (_, HFError::AuthRequired { .. } | HFError::Forbidden { .. }) => {
                HubError::Closed { model }
            }
            (_, HFError::RevisionNotFound { .. }) => HubError::UnknownRevision { model },
            _ => HubError::Failed { model, source: Box::new(source) },
        }
    }
}

/// The GGUF files in a directory and those in it, by their paths from the first.
fn gguf_files(dir: &Path, within: &str, depth: usize, files: &mut BTreeMap<String, u64>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().take(MAX_ENTRIES) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        // The cache is made of links.
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        let path = format!("{within}{name}");
        if metadata.is_dir() && depth > 0 {
            gguf_files(&entry.path(), &format!("{path}/"), depth - 1, files);
        } else if metadata.is_file() && is_gguf(&path) {
            files.insert(path, metadata.len());
        }
    }
}

/// What the Hub calls an error.
fn code(error: &HFError) -> Option<&str> {
    let context = match error {
        HFError::Http { context } | HFError::AuthRequired { context } | HFError::Forbidden { context } => Some(context),
        HFError::RepoNotFound { context, .. } | HFError::RevisionNotFound { context, .. } => context.as_ref(),
        _ => None,
    };
    context?.error_code.as_deref()
}

/// A progress bar on standard error, if somebody looks at it.
struct Bar {
    bar: ProgressBar,
    done: Mutex<HashMap<String, u64>>,
}

impl Bar {
    fn new(model: &HubModel) -> Arc<Self> {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes} of {total_bytes}, {eta} left");
        let bar = match (stderr().is_terminal(), style) {
            (true, Ok(style)) => ProgressBar::new(0).with_style(style).with_message(model.to_string()),
            _ => ProgressBar::hidden(),
        };
        Arc::new(Self { bar, done: Mutex::default() })
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        match event {
            DownloadEvent::Start { total_bytes, .. } => self.bar.set_length(*total_bytes),
            DownloadEvent::Progress { files } => {
                let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
                done.extend(files.iter().map(|file| (file.filename.clone(), file.bytes_completed)));
                self.bar.set_position(done.values().sum());
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => self.bar.set_position(*bytes_completed),
            DownloadEvent::Complete => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_on_the_hub_is_an_owner_a_name_and_perhaps_a_revision() {
        let model: HubModel = "Qwen/Qwen2.5-0.5B-Instruct".parse().unwrap();
        assert_eq!((model.name(), &model.revision), ("Qwen2.5-0.5B-Instruct", &None));
        let tagged: HubModel = "org/model@refs/pr/1".parse().unwrap();
        assert_eq!(
            (tagged.revision.as_deref(), tagged.to_string().as_str()),
            (Some("refs/pr/1"), "org/model@refs/pr/1")
        );
        for other in ["model", "a/b/c", "../b", "/etc/passwd", "a/", "a/b@", "a/b@../c", "a b/c", "a/.."] {
            assert!(other.parse::<HubModel>().is_err(), "{other}");
        }
    }

    #[test]
    fn which_gguf_file_is_meant_stands_behind_a_colon_or_is_a_path_in_the_repository() {
        let parsed = |text: &str| text.parse::<HubModel>().unwrap();
        let quantisation = |name: &str| Some(Wanted::Quantisation(name.to_owned()));
        let file = |path: &str| Some(Wanted::File(path.to_owned()));
        assert_eq!(parsed("a/b:Q8_0").wanted, quantisation("Q8_0"));
        assert_eq!(parsed("a/b@refs/pr/1:q4_k_m").wanted, quantisation("q4_k_m"));
        assert_eq!(parsed("a/b@refs/pr/1:q4_k_m").revision.as_deref(), Some("refs/pr/1"));
        assert_eq!(parsed("a/b/c.gguf").wanted, file("c.gguf"));
        for text in ["a/b/Q8_0/c.gguf", "a/b:Q8_0/c.gguf", "a/b@v1:Q8_0/c.gguf"] {
            assert_eq!((parsed(text).name(), parsed(text).wanted), ("b", file("Q8_0/c.gguf")), "{text}");
        }
        assert_eq!(parsed("a/b@v1:Q8_0").to_string(), "a/b@v1:Q8_0");
        for other in
            ["a/b:", "a/b:Q8 0", "a/b:../c.gguf", "a/b/../c.gguf", "a/b/c.gguf:Q8_0", "C:/a/b.gguf", "a/b:Q8_0@v1"]
        {
            assert!(other.parse::<HubModel>().is_err(), "{other}");
        }
    }
}
