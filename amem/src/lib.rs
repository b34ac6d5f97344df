//! What the `amem` command serves: memory over HTTP, to existing clients as they are.
//!
//! [`server`] answers from a local model, [`proxy`] puts memory in front of a model that runs elsewhere, [`mcp`] gives it to
//! clients of the Model Context Protocol. All of it is a library, so that another program can put the same routes in front
//! of a [`Memory`](amem_core::Memory) of its own.

pub mod http;
pub mod keys;
pub mod mcp;
mod memories;
pub mod proxy;
pub mod server;
