//! `/v1/models`: the model that answers.

use amem_core::ModelInfo;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::{ApiError, Caller, Result};
use crate::server::Server;

/// A model.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelObject {
    /// What it is called.
    id: String,
    /// `model`.
    object: &'static str,
    /// When it was loaded: seconds since 1970.
    created: i64,
    /// `amem`.
    owned_by: &'static str,
    /// Tokens that it can hold, as vLLM says it.
    max_model_len: usize,
}

/// Models.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    /// `list`.
    object: &'static str,
    /// The models.
    data: Vec<ModelObject>,
}

fn model(server: &Server) -> ModelObject {
    let ModelInfo { name, context, .. } = server.memory().model().info();
    let (id, created) = (name.clone(), server.started().0 / 1000);
    ModelObject { id, object: "model", created, owned_by: "amem", max_model_len: *context }
}

/// Lists the models: there is one.
#[utoipa::path(get, path = "/v1/models", tag = "openai", responses(
    (status = 200, body = ModelList),
    (status = 401, description = "The API key is missing or wrong"),
))]
pub(super) async fn list(State(server): State<Server>, _: Caller) -> Json<ModelList> {
    Json(ModelList { object: "list", data: vec![model(&server)] })
}

/// Describes a model.
#[utoipa::path(get, path = "/v1/models/{model}", tag = "openai",
    params(("model" = String, Path, description = "What it is called")),
    responses(
        (status = 200, body = ModelObject),
        (status = 401, description = "The API key is missing or wrong"),
        (status = 404, description = "There is no such model"),
))]
pub(super) async fn get(
    State(server): State<Server>,
    _: Caller,
    Path(name): Path<String>,
) -> Result<Json<ModelObject>> {
    let model = model(&server);
    if model.id != name {
        let error = ApiError::not_found(format!("there is no model {name}: the one here is {}", model.id));
        return Err(error.param("model").code("model_not_found"));
    }
    Ok(Json(model))
}

/// As [`get`], for a name with a slash.
pub(super) async fn get_of_owner(
    server: State<Server>,
    caller: Caller,
    Path((owner, name)): Path<(String, String)>,
) -> Result<Json<ModelObject>> {
    get(server, caller, Path(format!("{owner}/{name}"))).await
}
