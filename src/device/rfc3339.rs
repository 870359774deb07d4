//! Times as text: RFC 3339's `date-time`, cut to milliseconds.
//!
//! `2026-01-01T00:00:00.1239+01:00`: a full date, `T` or `t`, hours to seconds, any number of
//! fractional digits, and `Z`, `z` or an offset. Digits below the millisecond are cut, not rounded.
//! A leap second (`:60`) has no place in milliseconds since 1970 and is refused, as is every time
//! outside 1970 to 9999 in UTC.

use crate::types::Timestamp;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

/// The time that `text` names; `None` if it is no such text, or names a time out of range.
pub fn parse(text: &str) -> Option<Timestamp> {
    let mut rest = text.as_bytes();
    let year = digits(&mut rest, 4)?;
    one_of(&mut rest, b"-")?;
    let month = digits(&mut rest, 2)?;
    one_of(&mut rest, b"-")?;
    let day = digits(&mut rest, 2)?;
    one_of(&mut rest, b"Tt")?;
    let hour = digits(&mut rest, 2)?;
    one_of(&mut rest, b":")?;
    let minute = digits(&mut rest, 2)?;
    one_of(&mut rest, b":")?;
    let second = digits(&mut rest, 2)?;
    let milliseconds = fraction(&mut rest)?;
    let offset = offset_minutes(&mut rest)?;
    let in_range = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour <= 23
        && minute <= 59
        && second <= 59;
    if !in_range || !rest.is_empty() {
        return None;
    }
    let local = days_since_1970(year, month, day) * DAY_MS
        + ((hour * 60 + minute) * 60 + second) * 1000
        + milliseconds;
    let utc = u64::try_from(local - offset * MINUTE_MS).ok()?;
    Some(Timestamp(utc)).filter(|time| *time <= Timestamp::MAX)
}

/// The fraction's first three digits as milliseconds; 0 if there is no fraction.
fn fraction(rest: &mut &[u8]) -> Option<i64> {
    let Some(after_point) = rest.strip_prefix(b".") else { return Some(0) };
    let count = after_point.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let (fraction, after) = after_point.split_at(count);
    *rest = after;
    let first_three = fraction.iter().chain(b"00").take(3);
    Some(first_three.fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
}

fn offset_minutes(rest: &mut &[u8]) -> Option<i64> {
    match one_of(rest, b"Zz+-")? {
        sign @ (b'+' | b'-') => {
            let hours = digits(rest, 2)?;
            one_of(rest, b":")?;
            let minutes = digits(rest, 2)?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 60 + minutes;
            Some(if sign == b'-' { -offset } else { offset })
        }
        _ => Some(0),
    }
}

fn digits(rest: &mut &[u8], count: usize) -> Option<i64> {
    let (taken, after) = rest.split_at_checked(count)?;
    *rest = after;
    taken.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

fn one_of(rest: &mut &[u8], allowed: &[u8]) -> Option<u8> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    allowed.contains(first).then_some(*first)
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar, counted in years that begin in March,
/// so that the leap day is a year's last.
const fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    365 * year + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(text: &str) -> Option<u64> {
        parse(text).map(|time| time.0)
    }

    #[test]
    fn times_are_cut_to_milliseconds() {
        assert_eq!(ms("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(ms("2026-01-01T00:00:00Z"), Some(1_767_225_600_000));
        assert_eq!(ms("2026-01-01T00:00:00.1239+01:00"), Some(1_767_222_000_123));
        assert_eq!(ms("2026-01-01t00:00:00.9999999999999999999z"), Some(1_767_225_600_999));
        assert_eq!(ms("2026-01-01T00:00:00.5-00:00"), Some(1_767_225_600_500));
        assert_eq!(ms("2024-02-29T23:59:59.04-23:59"), Some(1_709_337_539_040));
        assert_eq!(ms("9999-12-31T23:59:59.999Z"), Some(Timestamp::MAX.0));
    }

    #[test]
    fn anything_else_is_refused() {
        for bad in [
            "",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01 00:00:00Z",
            "2026-01-01T00:00Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00,5Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-32T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T00:00:00+0100",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00+00:60",
            "2026-01-01T00:00:00Z ",
            " 2026-01-01T00:00:00Z",
            "+2026-01-01T00:00:00Z",
            "1969-12-31T23:59:59.999Z",
            "1970-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59.999-00:01",
            "2026-1-1T0:0:0Z",
            "20２6-01-01T00:00:00Z",
        ] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_time_is_what_jiff_says(ms in 0_i64..253_402_300_799_999) {
            let time = jiff::Timestamp::from_millisecond(ms).unwrap();
            prop_assert_eq!(parse(&time.to_string()), Some(Timestamp(u64::try_from(ms).unwrap())));
        }

        #[test]
        fn arbitrary_text_never_panics(text in "\\PC{0,40}", close in "[0-9TtZz:.+-]{0,35}") {
            let _ = (parse(&text), parse(&close));
        }
    }
}
