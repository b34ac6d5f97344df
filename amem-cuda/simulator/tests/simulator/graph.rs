//! Captures and graphs.
