//! The servers as HTTP clients see them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/front.rs"]
mod front;
#[path = "../common/scripted.rs"]
mod scripted;

mod chat;
mod command;
mod load;
mod mcp;
mod messages;
mod models;
mod proxy;
mod reference_defects;

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
