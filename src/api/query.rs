//! Query parameters, parsed into what the node understands.

use serde::{Deserialize, Deserializer};

use super::Problem;
use crate::store::ledger::{MAX_PAGE_RECORDS, RecordKey, RecordQuery};
use crate::types::{ClientId, Height, Timestamp};

/// Entries in an answer when the request names no limit.
const DEFAULT_LIMIT: usize = 100;

/// `GET /v1/blocks?from&limit`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BlocksQuery {
    /// First height; the last `limit` blocks if absent.
    pub(super) from: Option<Height>,
    /// How many.
    pub(super) limit: Option<usize>,
}

/// `GET /v1/clients?after&limit`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientsQuery {
    /// Only clients above this one.
    pub(super) after: Option<ClientId>,
    /// How many.
    pub(super) limit: Option<usize>,
}

/// `GET /v1/records?client&device&service&num&from&to&limit&cursor`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordsQuery {
    client: Option<ClientId>,
    device: Option<String>,
    service: Option<String>,
    num: Option<u32>,
    #[serde(default, deserialize_with = "time")]
    from: Option<Timestamp>,
    #[serde(default, deserialize_with = "time")]
    to: Option<Timestamp>,
    limit: Option<usize>,
    cursor: Option<String>,
}

impl RecordsQuery {
    /// The query for the ledger store.
    pub(super) fn parse(self, max_page: u32) -> Result<RecordQuery, Problem> {
        Ok(RecordQuery {
            client: self.client,
            device: self.device,
            service: self.service,
            num: self.num,
            from: self.from,
            to: self.to,
            limit: limit(self.limit, max_page)?.min(MAX_PAGE_RECORDS),
            cursor: self.cursor.map(|digits| cursor(&digits)).transpose()?,
        })
    }
}

/// The page size that was asked for, if it is within the node's limit.
pub(super) fn limit(asked: Option<usize>, max_page: u32) -> Result<usize, Problem> {
    let max = usize::try_from(max_page).unwrap_or(usize::MAX);
    match asked {
        None => Ok(DEFAULT_LIMIT.min(max)),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(limit) => Err(Problem::bad_request(format!("limit is {limit}, but must be 1 to {max}"))),
    }
}

fn cursor(text: &str) -> Result<RecordKey, Problem> {
    text.parse().map_err(|_| Problem::bad_request("cursor is not one that an earlier answer gave as `next`"))
}

/// Milliseconds since 1970, or an RFC 3339 time.
fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_time(&text).map(Some).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "{text:?} is not a time: give milliseconds since 1970 or RFC 3339, such as \
             2026-01-01T00:00:00Z (and `+` as %2B)"
        ))
    })
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let millis = match text.parse::<u64>() {
        Ok(millis) => millis,
        Err(_) => u64::try_from(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()).ok()?,
    };
    Some(Timestamp(millis)).filter(|time| *time <= Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds_or_rfc_3339() {
        let expected = Some(Timestamp(1_767_225_600_000));
        for good in ["1767225600000", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00"] {
            assert_eq!(parse_time(good), expected, "{good}");
        }
        for bad in ["", "-1", "yesterday", "2026-01-01", "1969-12-31T23:59:59Z", "253402300800000"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_page_is_within_the_limit_of_the_node() {
        assert_eq!(limit(None, 1000), Ok(100));
        assert_eq!(limit(None, 10), Ok(10));
        assert_eq!(limit(Some(1000), 1000), Ok(1000));
        assert!(limit(Some(0), 1000).is_err() && limit(Some(1001), 1000).is_err());
    }
}
