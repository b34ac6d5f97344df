//! What is left of a request's body when it is answered early.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header;
use http_body::{Frame, SizeHint};
use tokio::runtime::Handle;

/// How long the rest of a body is awaited.
const PATIENCE: Duration = Duration::from_secs(5);

/// Takes the body of a request from the network although nobody wants it any more, up to this many bytes. A server that
/// closes a connection on which something still arrives resets it, and then a client that is still sending, or that
/// first looks at the answer when it has sent all, may never see the answer. This way it sees that its key was wrong
/// rather than that the connection was lost, and the connection can be used again.
pub(super) async fn read_on(State(limit): State<usize>, request: Request) -> Request {
    // This client waits to be told whether to send its body at all.
    if request.headers().contains_key(header::EXPECT) {
        return request;
    }
    request.map(|body| Body::new(ReadOn { body, limit }))
}

/// A body whose rest is read when this is dropped.
struct ReadOn {
    body: Body,
    limit: usize,
}

impl HttpBody for ReadOn {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ReadOn {
    fn drop(&mut self) {
        if self.body.is_end_stream() {
            return;
        }
        // The answer does not wait for this. While the body is being read, its connection stays open.
        if let Ok(runtime) = Handle::try_current() {
            let (body, limit) = (std::mem::take(&mut self.body), self.limit);
            runtime.spawn(tokio::time::timeout(PATIENCE, discard(body, limit)));
        }
    }
}

/// Reads a body to its end, or until it is longer than this.
async fn discard(mut body: Body, mut limit: usize) {
    while let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let read = frame.data_ref().map_or(0, Bytes::len);
        match limit.checked_sub(read) {
            Some(left) => limit = left,
            None => return,
        }
    }
}
