//! Redis URLs.

use opendal::services::Redis;
use url::Url;

use super::error::RemoteError;

/// What the URL says, with its password kept out of the endpoint, which errors name.
pub(super) fn builder(url: &str) -> Result<Redis, RemoteError> {
    // The URL is not repeated: it may hold a password.
    let wrong = || RemoteError::Setting {
        what: "the Redis URL",
        value: "not one".to_owned(),
        expected: "redis://[user:password@]host[:port][/database], rediss:// for TLS, or redis+unix:///path",
    };
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    let builder = Redis::default();
    if parsed.scheme() == "redis+unix" || parsed.scheme() == "unix" {
        return Ok(builder.endpoint(&format!("redis+unix://{}", parsed.path())));
    }
    let host = parsed.host_str().filter(|host| !host.is_empty()).ok_or_else(wrong)?;
    if !matches!(parsed.scheme(), "redis" | "rediss") {
        return Err(wrong());
    }
    let database = match parsed.path().trim_start_matches('/') {
        "" => 0,
        number => number.parse::<u32>().map_err(|_| wrong())?,
    };
    let user = decode(parsed.username()).ok_or_else(wrong)?;
    let password = decode(parsed.password().unwrap_or_default()).ok_or_else(wrong)?;
    let endpoint = format!("{}://{host}:{}", parsed.scheme(), parsed.port().unwrap_or(6379));
    Ok(builder.endpoint(&endpoint).username(&user).password(&password).db(i64::from(database)))
}

/// What a percent-encoded text stands for.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, encoded)) = rest.split_once('%') {
        bytes.extend(plain.bytes());
        bytes.push(u8::from_str_radix(encoded.get(..2)?, 16).ok()?);
        rest = &encoded[2..];
    }
    bytes.extend(rest.bytes());
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_percent_encoded_is_decoded() {
        assert_eq!(decode("p%40ss%3a%25w%C3%B6rd+x").unwrap(), "p@ss:%wörd+x");
        for wrong in ["%", "%4", "%zz", "%é", "%ff"] {
            assert!(decode(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn a_url_that_is_none_is_refused_and_not_repeated() {
        for url in ["", "redis://", "http://hunter2@h", "redis://:hunter2@h/x", "redis://:hunter2@h:99999", "hunter2"] {
            let error = builder(url).err().unwrap_or_else(|| panic!("{url}")).to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        for url in ["redis://h", "rediss://u:p@h:1/3", "redis://:p@[::1]", "redis+unix:///run/redis.sock"] {
            assert!(builder(url).is_ok(), "{url}");
        }
    }
}
