//! `/v1/models`.

use amem::http::{Identity, KeyHeader};
use amem::server::Options;
use serde_json::Value;

use super::front::Front;
use super::{client, common};

fn get(url: &str) -> (u16, Value) {
    let response = client().get(url).send().unwrap();
    (response.status().as_u16(), response.json().unwrap())
}

#[test]
fn the_model_is_listed_and_found_by_its_name() {
    let front = Front::of(common::in_ram());
    let (status, models) = get(&front.url("/v1/models"));
    assert_eq!((status, &models["object"]), (200, &"list".into()));
    let models = models["data"].as_array().unwrap();
    assert_eq!((models.len(), &models[0]["object"]), (1, &"model".into()));
    assert!(models[0]["created"].as_i64().unwrap() > 1_700_000_000);
    let id = models[0]["id"].as_str().unwrap();
    assert_eq!(get(&front.url(&format!("/v1/models/{id}"))), (200, models[0].clone()));
    for other in ["gpt-x", "owner/gpt-x"] {
        let (status, body) = get(&front.url(&format!("/v1/models/{other}")));
        assert_eq!((status, &body["error"]["code"]), (404, &"model_not_found".into()), "{other}");
        assert!(body["error"]["message"].as_str().unwrap().contains(other));
    }
}

#[test]
fn nobody_sees_models_without_the_key() {
    let identity = Identity::new(KeyHeader::Authorization).admin(Some("secret".into()));
    let front = Front::with(common::in_ram(), identity, Options::default());
    for path in ["/v1/models", "/v1/models/x", "/v1/models/x/y"] {
        assert_eq!(get(&front.url(path)).0, 401, "{path}");
    }
}
