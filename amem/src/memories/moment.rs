//! Moments as clients write and read them.

use std::ops::RangeInclusive;

use amem_core::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::http::{ApiError, Result};

/// A moment that a client names: RFC 3339, a date, or seconds since 1970. Without an offset it is in UTC.
#[derive(Clone, Debug, PartialEq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a moment: RFC 3339, a date, or seconds since 1970")]
pub(crate) enum Moment {
    /// Seconds since 1970.
    Seconds(f64),
    /// RFC 3339, a date, or seconds since 1970.
    Text(String),
}

impl Moment {
    /// The moment. `name` is what the request calls it.
    ///
    /// # Errors
    /// 400 for what is no moment, or lies outside the years 0 to 9999.
    pub(crate) fn read(&self, name: &str) -> Result<Timestamp> {
        let read = match self {
            Self::Seconds(seconds) => of_seconds(*seconds),
            Self::Text(text) => of_text(text.trim()),
        };
        read.ok_or_else(|| {
            let expected = "RFC 3339 (2026-11-25T16:38:38Z), a date (2026-11-25), or seconds since 1970";
            ApiError::bad_request(format!("{name} is no moment: it must be {expected}")).param(name)
        })
    }
}

/// The moments that clients name.
///
/// # Errors
/// As [`Moment::read`].
pub(crate) fn read(moment: Option<&Moment>, name: &str) -> Result<Option<Timestamp>> {
    moment.map(|moment| moment.read(name)).transpose()
}

fn of_seconds(seconds: f64) -> Option<Timestamp> {
    let milliseconds = (seconds * 1000.0).round();
    // One that is too large becomes the largest integer.
    within(Timestamp(milliseconds as i64)).filter(|_| seconds.is_finite())
}

fn of_text(text: &str) -> Option<Timestamp> {
    if let Ok(seconds) = text.parse() {
        return of_seconds(seconds);
    }
    let with_offset = text.parse::<jiff::Timestamp>().ok();
    let without = || {
        let local = text.parse::<jiff::civil::DateTime>().ok()?;
        jiff::tz::Offset::UTC.to_timestamp(local).ok()
    };
    within(Timestamp(with_offset.or_else(without)?.as_millisecond()))
}

/// The moments that RFC 3339 can write: from the year 0 to some hours before the end of the year 9999, so that it does not
/// end in any other time zone either.
const WRITABLE: RangeInclusive<i64> = -62_167_219_200_000..=253_402_207_200_000;

fn within(at: Timestamp) -> Option<Timestamp> {
    WRITABLE.contains(&at.0).then_some(at)
}

/// A moment as clients read it: RFC 3339 in UTC, with milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(example = "2026-11-25T16:38:38.000Z", format = DateTime)]
#[serde(transparent)]
pub(crate) struct Said(String);

impl From<Timestamp> for Said {
    /// What lies outside the years that can be written is written as the last or first moment of them.
    fn from(at: Timestamp) -> Self {
        let within = at.0.clamp(*WRITABLE.start(), *WRITABLE.end());
        Self(format!("{:.3}", jiff::Timestamp::from_millisecond(within).unwrap_or_default()))
    }
}

/// Seconds since 1970, as a number.
pub(crate) fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(json: &str) -> Option<i64> {
        serde_json::from_str::<Moment>(json).ok()?.read("since").ok().map(|at| at.0)
    }

    #[test]
    fn moments_are_read_as_rfc_3339_dates_or_seconds() {
        // 1,000,000,000 seconds were over on 2001-09-09 at 01:46:40 UTC, a day that had begun 6,400 seconds before.
        for json in [
            "1000000000.25",
            r#""1000000000.25""#,
            r#""2001-09-09T01:46:40.250Z""#,
            r#""2001-09-09T03:46:40.25+02:00""#,
            r#""2001-09-09 01:46:40.250""#,
        ] {
            assert_eq!(moment(json), Some(1_000_000_000_250), "{json}");
        }
        assert_eq!(moment(r#""2001-09-09""#), Some(999_993_600_000));
        assert_eq!(moment("-1"), Some(-1000));
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for json in ["1e300", "-1e300", r#""yesterday""#, r#""""#, r#""NaN""#, r#""inf""#, r#""2001-02-30""#, "true"] {
            assert_eq!(moment(json), None, "{json}");
        }
        let refused = Moment::Text("soon".into()).read("until").unwrap_err();
        assert_eq!(refused.status().as_u16(), 400);
        assert!(refused.message().starts_with("until is no moment"));
    }

    #[test]
    fn a_moment_is_said_in_utc_with_milliseconds() {
        assert_eq!(Said::from(Timestamp(1_000_000_000_007)).0, "2001-09-09T01:46:40.007Z");
        assert!(Said::from(Timestamp(i64::MAX)).0.starts_with("9999-12-30T"));
        assert!(Said::from(Timestamp(i64::MIN)).0.starts_with("0000-01-01T00:00:00"));
    }
}
