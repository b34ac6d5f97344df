//! The variable segments of a path.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::ApiError;

/// The variable segments of a path, percent-decoded, so that a name may hold a slash: 404 for what is not UTF-8, because
/// nothing is called that.
#[derive(Clone, Debug, Default)]
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        match path {
            Ok(Path(segments)) => Ok(Self(segments)),
            Err(rejection) if rejection.status().is_client_error() => Err(ApiError::not_found(rejection.body_text())),
            Err(rejection) => Err(ApiError::internal(&rejection)),
        }
    }
}
