//! `/v1/embeddings`: vectors of texts, by the encoder if there is one, or else from the KV that the model computes for them.

use std::sync::Arc;

use amem_core::Token;
use amem_core::recall::KvEmbedder;
use amem_core::transformer::Purpose;
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt::{Prompt, prompts};
use super::{invalid, unsupported};
use crate::http::{Body, Caller, Result};
use crate::server::{EmbeddingModel, Server};

/// Texts, and tokens in all of them, of one request at most: as in OpenAI's API.
const MAX_INPUTS: usize = 2048;
const MAX_TOKENS: usize = 300_000;

/// Texts to embed.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct EmbeddingRequest {
    /// The text or texts.
    input: Prompt,
    /// Any name: the one model here computes it, and the answer says which it is.
    #[expect(dead_code, reason = "clients must send it")]
    model: Option<String>,
    /// `float`, which it is unless said otherwise, or `base64`: the bytes of little-endian 32-bit numbers.
    encoding_format: Option<String>,
    /// Numbers in a vector: as many as the model has, for fewer of them mean nothing by themselves.
    dimensions: Option<i64>,
    /// What the texts are, for an encoder that puts something before them: `query` for questions, `passage` or `document` for
    /// texts that are to be found. Nothing is put before them if this is left out.
    input_type: Option<String>,
    /// Who asks.
    user: Option<String>,
}

/// Vectors, the tokens that they were computed from, and what computed them.
struct Computed {
    vectors: Vec<Vec<f32>>,
    tokens: usize,
    model: String,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Float,
    Base64,
}

impl EmbeddingRequest {
    fn encoding(&self) -> Result<Encoding> {
        match self.encoding_format.as_deref() {
            None | Some("float") => Ok(Encoding::Float),
            Some("base64") => Ok(Encoding::Base64),
            Some(other) => Err(invalid("encoding_format", format!("there is no {other:?}: it is float or base64"))),
        }
    }

    fn purpose(&self) -> Result<Purpose> {
        match self.input_type.as_deref() {
            None => Ok(Purpose::Plain),
            Some("query") => Ok(Purpose::Query),
            Some("passage" | "document") => Ok(Purpose::Passage),
            Some(other) => {
                Err(invalid("input_type", format!("there is no {other:?}: it is query, passage or document")))
            }
        }
    }

    fn check_dimensions(&self, has: usize) -> Result<()> {
        match self.dimensions {
            Some(wanted) if usize::try_from(wanted) != Ok(has) => {
                let message = format!("vectors of this model have {has} numbers, and none of them can be left out");
                Err(unsupported("dimensions", message))
            }
            _ => Ok(()),
        }
    }
}

/// Embeds texts: with an encoder, if the server was started with one (`--embedder`), which cuts texts that are longer than
/// it holds. Otherwise by what the model that answers holds of them, and that is no model of embeddings: texts that share
/// words are close, texts that only mean the same are not.
#[utoipa::path(post, path = "/v1/embeddings", tag = "openai", request_body = EmbeddingRequest, responses(
    (status = 200, body = EmbeddingList),
    (status = 400, description = "It makes no sense, or asks for what is not supported: `error.param` says where"),
    (status = 401, description = "The API key is missing or wrong"),
    (status = 403, description = "It is about another user"),
    (status = 413, description = "The body is too large"),
    (status = 422, description = "The body is not of this schema"),
    (status = 429, description = "Too many requests wait: try again later"),
    (status = 500, description = "Something failed"),
    (status = 503, description = "There is no room at present: try again later"),
))]
pub(super) async fn create(
    State(server): State<Server>,
    caller: Caller,
    Body(request): Body<EmbeddingRequest>,
) -> Result<Json<EmbeddingList>> {
    let namespace = caller.namespace(request.user.as_deref())?;
    let encoding = request.encoding()?;
    let computed = match &server.options().embedding_model {
        Some(model) => {
            let _waiting = server.waiting_permit()?;
            by_encoder(model, request).await?
        }
        None => {
            let embedder = KvEmbedder::new(server.memory().engine().clone(), namespace);
            by_kv(&server, &embedder, request).await?
        }
    };
    let embedding = |(index, vector): (usize, Vec<f32>)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: match encoding {
            Encoding::Float => Vector::Float(vector),
            Encoding::Base64 => {
                Vector::Base64(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
            }
        },
    };
    let Computed { vectors, tokens, model } = computed;
    let data = vectors.into_iter().enumerate().map(embedding).collect();
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(Json(EmbeddingList { object: "list", data, model, usage }))
}

/// By what the model that answers holds of the texts.
async fn by_kv(server: &Server, embedder: &KvEmbedder, request: EmbeddingRequest) -> Result<Computed> {
    let model = server.memory().model();
    request.purpose()?;
    request.check_dimensions(embedder.dimensions())?;
    let texts = prompts("input", request.input, &**model, MAX_INPUTS)?;
    let tokens = texts.iter().map(|text| text.tokens.len()).sum();
    if tokens > MAX_TOKENS {
        return Err(invalid(
            "input",
            format!("{tokens} tokens are more than {MAX_TOKENS}, which one request may have"),
        ));
    }
    let texts: Vec<Arc<[Token]>> = texts.into_iter().map(|text| text.tokens.into()).collect();
    Ok(Computed { vectors: embedder.embed_tokens(&texts).await?, tokens, model: model.info().name.clone() })
}

/// By an encoder, as unit vectors.
async fn by_encoder(model: &EmbeddingModel, request: EmbeddingRequest) -> Result<Computed> {
    let EmbeddingModel { name, encoder } = model;
    let purpose = request.purpose()?;
    request.check_dimensions(encoder.dimensions())?;
    let texts = match request.input {
        Prompt::Text(text) => vec![text],
        Prompt::Texts(texts) => texts,
        Prompt::Tokens(_) | Prompt::TokenLists(_) => {
            return Err(unsupported("input", "the encoder takes texts, which it cuts into tokens of its own"));
        }
    };
    if !(1..=MAX_INPUTS).contains(&texts.len()) {
        return Err(invalid(
            "input",
            format!("there must be from 1 to {MAX_INPUTS} texts, and there are {}", texts.len()),
        ));
    }
    if texts.iter().any(String::is_empty) {
        return Err(invalid("input", "a text is empty"));
    }
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let encoded = encoder.encode(&texts, purpose).await?;
    let tokens = encoded.iter().map(|encoded| encoded.tokens).sum();
    let vectors = encoded.into_iter().map(|encoded| unit(encoded.vector)).collect();
    Ok(Computed { vectors, tokens, model: name.clone() })
}

/// A vector with the norm 1, unless it is zero.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
    vector
}

/// Vectors.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingList {
    /// `list`.
    object: &'static str,
    /// One for each text, in order.
    data: Vec<EmbeddingObject>,
    /// The model that computed them.
    model: String,
    /// Tokens.
    usage: EmbeddingUsage,
}

/// The vector of a text.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingObject {
    /// `embedding`.
    object: &'static str,
    /// Which text, from 0.
    index: usize,
    /// The vector: its norm is 1.
    embedding: Vector,
}

/// A vector as it was asked for.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    /// Its numbers.
    Float(Vec<f32>),
    /// Their bytes, little-endian, in Base64.
    Base64(String),
}

/// Tokens.
#[derive(Debug, Serialize, ToSchema)]
struct EmbeddingUsage {
    /// Those of the texts.
    prompt_tokens: usize,
    /// The same.
    total_tokens: usize,
}
