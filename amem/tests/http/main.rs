//! The servers as HTTP clients see them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/front.rs"]
mod front;
#[path = "../common/scripted.rs"]
mod scripted;

#[cfg(unix)]
mod at_rest;
mod both_servers;
mod chat;
mod command;
mod completions;
mod device;
mod embedder;
mod embeddings;
mod flags;
mod hub;
mod load;
mod logs;
mod mcp;
mod memories;
mod messages;
mod models;
mod operations;
mod proxy;
mod reference_defects;
mod refused;
mod responses;
mod sessions;
mod structured;
mod usage;

use std::time::Duration;

use reqwest::blocking::Client;
use serde_json::Value;

/// A client that waits for no server for ever.
fn client() -> Client {
    Client::builder().timeout(Duration::from_secs(60)).build().unwrap()
}

/// What a server says to a JSON body.
fn post(url: String, body: &Value) -> (u16, Value) {
    let response = client().post(url).json(body).send().unwrap();
    (response.status().as_u16(), response.json().unwrap())
}

/// What a server says to who asks with this key, if any.
fn get(url: &str, key: Option<&str>) -> (u16, String) {
    let request = client().get(url);
    let response = key.into_iter().fold(request, |request, key| request.bearer_auth(key)).send().unwrap();
    (response.status().as_u16(), response.text().unwrap())
}
