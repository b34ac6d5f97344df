//! Moments as people and other programs write them.

use amem_core::Timestamp;
use serde::{Deserialize, Serialize};

/// A moment in a line: RFC 3339, or seconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Moment {
    Seconds(i64),
    Fraction(f64),
    Text(String),
}

impl Moment {
    /// In milliseconds; in whole seconds where it lies outside the years that RFC 3339 can name.
    pub(super) fn of(at: Timestamp) -> Self {
        match jiff::Timestamp::from_millisecond(at.0) {
            Ok(at) if (0..=9999).contains(&jiff::tz::Offset::UTC.to_datetime(at).year()) => {
                Self::Text(format!("{at:.3}"))
            }
            _ => Self::Seconds(at.0 / 1000),
        }
    }

    /// The moment, if it is one that a ledger can hold.
    pub(super) fn read(&self) -> Result<Timestamp, String> {
        let milliseconds = match self {
            Self::Seconds(seconds) => seconds.checked_mul(1000),
            // Beyond 2⁵³ milliseconds a float no longer tells one from the next.
            Self::Fraction(seconds) => {
                let milliseconds = (seconds * 1000.0).round();
                (milliseconds.abs() <= (1i64 << 53) as f64).then_some(milliseconds as i64)
            }
            Self::Text(text) => {
                let read =
                    text.parse::<jiff::Timestamp>().map_err(|error| format!("{text:?} is no moment: {error}"))?;
                Some(read.as_millisecond())
            }
        };
        milliseconds.map(Timestamp).ok_or_else(|| format!("{self:?} is no moment that can be kept"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(json: &str) -> Result<Timestamp, String> {
        serde_json::from_str::<Moment>(json).map_err(|error| error.to_string())?.read()
    }

    #[test]
    fn moments_are_read_as_rfc_3339_or_seconds() {
        // 1,000,000,000 seconds were over on 2001-09-09 at 01:46:40 UTC.
        for json in [
            r#""2001-09-09T01:46:40.250Z""#,
            r#""2001-09-09 03:46:40.25+02:00""#,
            r#""2001-09-08T18:46:40.2509-07:00""#,
            "1000000000.25",
            "1.00000000025e9",
        ] {
            assert_eq!(read(json), Ok(Timestamp(1_000_000_000_250)), "{json}");
        }
        assert_eq!(read("1000000000"), Ok(Timestamp(1_000_000_000_000)));
        assert_eq!(read("-1"), Ok(Timestamp(-1000)));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for json in [
            r#""yesterday""#,
            r#""2001-02-30T00:00:00Z""#,
            r#""2001-09-09T01:46:40""#,
            r#""""#,
            "1e300",
            "-1e300",
            "1e999",
            "9223372036854775807",
            "99999999999999999999999999",
            "true",
            "{}",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn a_moment_comes_back_as_it_was_written(at in prop_oneof![-62_000_000_000_000..253_000_000_000_000i64, any::<i64>()]) {
            let moment = Moment::of(Timestamp(at));
            let json = serde_json::to_string(&moment).unwrap();
            let back = read(&json).unwrap();
            match moment {
                Moment::Text(_) => prop_assert_eq!(back, Timestamp(at)),
                _ => prop_assert_eq!(back.0, at - at % 1000),
            }
        }
    }

    #[test]
    fn a_moment_is_written_with_milliseconds() {
        assert_eq!(Moment::of(Timestamp(1_000_000_000_000)), Moment::Text("2001-09-09T01:46:40.000Z".into()));
        assert_eq!(Moment::of(Timestamp(1_000_000_000_007)), Moment::Text("2001-09-09T01:46:40.007Z".into()));
    }
}
