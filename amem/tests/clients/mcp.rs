//! MCP clients against `amem mcp`.

use super::front::Process;
use super::{node, python};

const AMEM: &str = env!("CARGO_BIN_EXE_amem");

#[test]
fn the_python_client_of_mcp_finds_all_that_it_may_rely_on_on_standard_input_and_output() {
    let dir = tempfile::tempdir().unwrap();
    python("mcp_stdio.py", &[AMEM, dir.path().to_str().unwrap()]);
}

#[test]
fn the_python_client_of_mcp_finds_all_that_it_may_rely_on_over_http() {
    for mode in ["legacy", "auto"] {
        let dir = tempfile::tempdir().unwrap();
        let server = Process::start(&["mcp", "--http"], dir.path());
        python("mcp_http.py", &[&server.url, mode]);
    }
}

#[test]
fn the_conformance_suite_of_mcp_passes_where_it_wants_no_server_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(&["mcp", "--http"], dir.path());
    node("mcp_conformance.mjs", &[&server.url]);
}
