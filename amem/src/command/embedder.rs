//! What finds memories by meaning: an encoder, if one is named.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use amem::server::EmbeddingModel;
use amem_core::Recaller;
use amem_core::recall::{Dense, Hybrid, Lexical};
use amem_core::transformer::{Encoder, EncoderOptions};
use amem_cpu::Cpu;
use amem_store::ModelDir;
use clap::Args;

use super::hub::{self, Kind};
use super::open::{ModelName, dir_name, model_name};

/// What finds memories by meaning.
#[derive(Args, Default)]
pub(crate) struct Embedder {
    /// Finds memories by meaning too, not by their words alone, with this encoder: its directory, as sentence-transformers
    /// writes it; a GGUF file; or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face Hub
    /// (sentence-transformers/all-MiniLM-L6-v2, say), with :Q8_0 behind it for a GGUF file as in --model. The CPU computes it.
    #[arg(long, value_name = "DIR|FILE|ID", env = "AMEM_EMBEDDER", value_parser = model_name)]
    embedder: Option<ModelName>,
    /// What the encoder wants before a question, if its files do not say so: "query: " for e5.
    #[arg(long, value_name = "TEXT", requires = "embedder")]
    embedder_query_prompt: Option<String>,
    /// What the encoder wants before a text that is to be found, if its files do not say so: "passage: " for e5.
    #[arg(long, value_name = "TEXT", requires = "embedder")]
    embedder_passage_prompt: Option<String>,
}

impl Embedder {
    /// Loads the encoder, if one is named, for this CPU.
    pub(crate) async fn open(
        &self,
        cpu: impl FnOnce() -> amem_core::Result<Cpu>,
    ) -> Result<Option<EmbeddingModel>, Box<dyn Error>> {
        let load = |dir: &Path, name: String| {
            let mut options = EncoderOptions::default();
            options.query_prompt.clone_from(&self.embedder_query_prompt);
            options.passage_prompt.clone_from(&self.embedder_passage_prompt);
            let encoder = Encoder::load(&ModelDir::open(dir)?, cpu()?, options);
            let encoder = encoder.map_err(|error| format!("the encoder {name} (--embedder): {error}"))?;
            Ok(Some(EmbeddingModel { name, encoder }))
        };
        match &self.embedder {
            None => Ok(None),
            Some(ModelName::Dir(dir)) => load(dir, dir_name(dir)),
            Some(ModelName::Hub(model)) => load(&hub::model(model, Kind::Encoder).await?, model.name().to_owned()),
        }
    }
}

/// What finds records by their words, and by their meaning if there is an encoder.
pub(crate) fn recaller(model: Option<&EmbeddingModel>) -> Arc<dyn Recaller> {
    let lexical = Lexical::default();
    match model {
        None => Arc::new(lexical),
        Some(EmbeddingModel { encoder, .. }) => {
            let dense = Dense::new(encoder.clone(), encoder.dimensions());
            Arc::new(Hybrid::new(vec![Arc::new(lexical), Arc::new(dense)]))
        }
    }
}
