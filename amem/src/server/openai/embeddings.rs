//! `/v1/embeddings`: vectors of texts, from the KV that the model computes for them.

use std::sync::Arc;

use amem_core::Token;
use amem_core::recall::KvEmbedder;
use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::prompt::{Prompt, prompts};
use super::{invalid, unsupported};
use crate::http::{Body, Caller, Result};
use crate::server::Server;

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
    /// Who asks.
    user: Option<String>,
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

/// Embeds texts by what the model that answers holds of them. It is no model of embeddings: texts that share words are
/// close, texts that only mean the same are not.
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
    let model = server.memory().model();
    let embedder = KvEmbedder::new(server.memory().engine().clone(), namespace);
    let encoding = request.encoding()?;
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
    let vectors = embedder.embed_tokens(&texts).await?;
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
    let data = vectors.into_iter().enumerate().map(embedding).collect();
    let usage = EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    Ok(Json(EmbeddingList { object: "list", data, model: model.info().name.clone(), usage }))
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
