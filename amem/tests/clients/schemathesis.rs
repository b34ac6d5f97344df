//! The OpenAPI document against what the servers do.

use super::front::Process;
use super::python;

#[test]
fn what_the_openapi_document_says_holds_for_requests_that_schemathesis_makes_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = Process::start(&["kv-serve", "--metrics-auth", "open"], dir.path());
    python("schemathesis.py", &[&server.url]);
}
