//! How much a value must change to be written.

use std::fmt;

use bincode::{Decode, Encode};

use crate::device::Value;

/// A difference between two values of a data item; finite and above 0.
///
/// Two integers are compared exactly. Otherwise numbers are 64-bit floats, and a difference that
/// falls short of the threshold by no more than the floats' own rounding (`2^-52` of the sum of the
/// three magnitudes) has reached it: from 20.1 to 20.3 is a change by 0.2, as the decimals say, though
/// the floats' difference is a little less. Texts and booleans change by being different, and so
/// does an item that changes its kind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold(f64);

// Never NaN.
impl Eq for Threshold {}

/// The threshold is not a finite number above 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a threshold is a finite number above 0; to write each value, use the policy `always`")]
pub struct ThresholdError;

impl Threshold {
    /// A threshold.
    ///
    /// # Errors
    /// [`ThresholdError`].
    pub fn new(amount: f64) -> Result<Self, ThresholdError> {
        if amount.is_finite() && amount > 0.0 { Ok(Self(amount)) } else { Err(ThresholdError) }
    }

    /// The amount.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whether the two values differ by the threshold or more.
    pub fn is_reached(self, old: &Value, new: &Value) -> bool {
        match (old, new) {
            (Value::Integer(old), Value::Integer(new)) => self.is_reached_by(old.abs_diff(*new)),
            (Value::Text(old), Value::Text(new)) => old != new,
            (Value::Boolean(old), Value::Boolean(new)) => old != new,
            (old, new) => match (as_float(old), as_float(new)) {
                (Some(old), Some(new)) => {
                    let rounding = (old.abs() + new.abs() + self.0) * f64::EPSILON;
                    // An infinite sum of finite numbers is a difference beyond every threshold, or
                    // a rounding that nothing can be said about: both are written.
                    (old - new).abs() + rounding >= self.0
                }
                _ => true,
            },
        }
    }

    /// Exact: a float that is not below 2^64 is above every difference of two integers.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn is_reached_by(self, difference: u64) -> bool {
        const ABOVE_ALL: f64 = 18_446_744_073_709_551_616.0;
        let least = self.0.ceil();
        least < ABOVE_ALL && difference >= least as u64
    }
}

#[allow(clippy::cast_precision_loss)]
const fn as_float(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(integer) => Some(*integer as f64),
        Value::Float(float) => Some(*float),
        Value::Text(_) | Value::Boolean(_) => None,
    }
}

/// As the bits of IEEE 754 binary64, so that there is one encoding.
impl Encode for Threshold {
    fn encode<E: bincode::enc::Encoder>(&self, encoder: &mut E) -> Result<(), bincode::error::EncodeError> {
        self.0.to_bits().encode(encoder)
    }
}

impl<Context> Decode<Context> for Threshold {
    fn decode<D: bincode::de::Decoder<Context = Context>>(
        decoder: &mut D,
    ) -> Result<Self, bincode::error::DecodeError> {
        Self::new(f64::from_bits(Decode::decode(decoder)?))
            .map_err(|_| bincode::error::DecodeError::Other("a threshold out of range"))
    }
}

bincode::impl_borrow_decode!(Threshold);

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
