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
        expected: "redis://[user:password@]host[:port][/database], rediss:// for TLS, or \
                   redis+unix:///path[?db=database&user=user&pass=password], without blanks in the path",
    };
    let parsed = Url::parse(url).map_err(|_| wrong())?;
    if matches!(parsed.scheme(), "redis+unix" | "unix") {
        return on_socket(&parsed).ok_or_else(wrong);
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
    Ok(Redis::default().endpoint(&endpoint).username(&user).password(&password).db(i64::from(database)))
}

/// What the URL of a socket says; `None` if some of it would get lost.
fn on_socket(url: &Url) -> Option<Redis> {
    let is_local = url.host_str().unwrap_or_default().is_empty();
    let has_user = !url.username().is_empty() || url.password().is_some();
    let path = decode(url.path())?;
    // OpenDAL reads the path out of a URL again, and does not decode it.
    let is_plain = path.len() > 1 && !path.contains([' ', '?', '#']);
    if !is_local || has_user || !is_plain || url.fragment().is_some() {
        return None;
    }
    // It takes no URL without a host, and looks at the path alone.
    let mut builder = Redis::default().endpoint(&format!("redis+unix://localhost{path}"));
    for (name, value) in url.query_pairs() {
        builder = match &*name {
            "db" => builder.db(i64::from(value.parse::<u32>().ok()?)),
            "user" => builder.username(&value),
            "pass" => builder.password(&value),
            _ => return None,
        };
    }
    Some(builder)
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
    fn of_a_sockets_url_nothing_gets_lost() {
        let built = builder("redis+unix:///run/my%2Bredis.sock?db=3&user=somebody&pass=hunter2").unwrap();
        let told = format!("{built:?}");
        for part in ["/run/my+redis.sock\"", "db: 3", "somebody"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        assert!(opendal::Operator::new(built).is_ok());
        for lost in [
            "redis+unix:///run/redis.sock?db=x",
            "redis+unix:///run/redis.sock?protocol=3",
            "redis+unix:///run/redis.sock#3",
            "redis+unix:///run/my%20redis.sock",
            "redis+unix:///run/my%3fredis.sock",
            "redis+unix://somebody:hunter2@host/run/redis.sock",
            "redis+unix:///",
        ] {
            let error = builder(lost).err().unwrap_or_else(|| panic!("{lost}")).to_string();
            assert!(!error.contains("hunter2"), "{error}");
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
