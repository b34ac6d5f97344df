//! Streams that end with their first error.

use std::future::ready;

use futures_util::{Stream, StreamExt};

/// What a stream yields up to its first error, which comes last.
pub(super) fn until_error<T, E>(items: impl Stream<Item = Result<T, E>>) -> impl Stream<Item = Result<T, E>> {
    items.scan(false, |failed, item| {
        let goes_on = !std::mem::replace(failed, item.is_err());
        ready(goes_on.then_some(item))
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream::iter;

    use super::*;

    #[test]
    fn nothing_comes_after_an_error() {
        let told = |items: Vec<Result<u8, u8>>| {
            futures_lite::future::block_on(until_error(iter(items)).collect::<Vec<Result<u8, u8>>>())
        };
        assert_eq!(told(vec![Ok(1), Ok(2)]), [Ok(1), Ok(2)]);
        assert_eq!(told(vec![Ok(1), Err(2), Ok(3), Err(4), Ok(5)]), [Ok(1), Err(2)]);
    }
}
