//! Floats of 16 bits, and conversions.

use crate::program::{Half, Rounding, Type};

#[inline]
pub(super) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[inline]
pub(super) fn f16_to_f32(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let rest = u32::from(bits & 0x7fff) << 13;
    let magnitude = if rest >= 0x0f80_0000 {
        // Infinity and NaN: the largest exponent stays the largest.
        rest | 0x7f80_0000
    } else {
        // The exponent's bias is 127 instead of 15. A product by a power of two moves it, and makes subnormals normal.
        (f32::from_bits(rest) * f32::from_bits((127 + 112) << 23)).to_bits()
    };
    f32::from_bits(sign | magnitude)
}

#[inline]
pub(super) fn half_to_f32(half: Half, bits: u16) -> f32 {
    match half {
        Half::F16 => f16_to_f32(bits),
        Half::Bf16 => bf16_to_f32(bits),
    }
}

/// To the nearest, ties to even. What PTX makes of a NaN.
pub(super) fn f32_to_bf16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// To the nearest, ties to even. What PTX makes of a NaN.
pub(super) fn f32_to_f16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7fff;
    }
    let sign = (value.to_bits() >> 16) as u16 & 0x8000;
    let magnitude = value.abs();
    let bits = magnitude.to_bits();
    let rounded = if magnitude >= 65_520.0 {
        // Half a step above the largest finite value.
        0x7c00
    } else if magnitude < f32::from_bits((127 - 14) << 23) {
        // Subnormal: a number of steps of 2^-24, which f32 holds exactly, rounded by adding 2^23 to it.
        let steps = magnitude * f32::from_bits((127 + 24) << 23);
        let large = f32::from_bits((127 + 23) << 23);
        (steps + large).to_bits() as u16
    } else {
        let rounded = bits + 0x0fff + (bits >> 13 & 1);
        ((rounded >> 13) - (112 << 10)) as u16
    };
    sign | rounded
}

pub(super) fn f32_to_half(half: Half, value: f32) -> u16 {
    match half {
        Half::F16 => f32_to_f16(value),
        Half::Bf16 => f32_to_bf16(value),
    }
}

/// Subnormals become zero of their sign.
pub(super) fn flush(bits: u64) -> u64 {
    if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits }
}

/// A number of type `from` as a number of type `to`, in the low `to_bits` of the result.
pub(super) fn convert(value: u64, from: Type, to: Type, rounding: Rounding, saturate: bool, to_bits: u32) -> u64 {
    let result = match (from.is_float(), to.is_float()) {
        (false, false) => {
            let number = integer(value, from);
            if saturate { clamp(number, to) } else { number as u64 }
        }
        (false, true) => {
            let number = integer(value, from);
            match to {
                Type::F32 => u64::from(round_to_f32(number, rounding).to_bits()),
                // Integers of up to 53 bits are exact as f64, and so is the way from there; larger ones overflow f16,
                // or are far beyond what bf16 tells apart.
                _ => narrow(number as f64, to, rounding),
            }
        }
        (true, false) => {
            let number = round_to_integer(float(value, from), rounding);
            // `as` saturates, and makes NaN zero, as PTX does.
            match to {
                Type::U8 => u64::from(number as u8),
                Type::S8 => number as i8 as u64,
                Type::U16 => u64::from(number as u16),
                Type::S16 => number as i16 as u64,
                Type::U32 => u64::from(number as u32),
                Type::S32 => number as i32 as u64,
                Type::U64 => number as u64,
                _ => number as i64 as u64,
            }
        }
        (true, true) => {
            let number = round_to_integer(float(value, from), rounding);
            let number = match saturate {
                true if number.is_nan() => 0.0,
                true => number.clamp(0.0, 1.0),
                false => number,
            };
            match to {
                Type::F32 => u64::from((number as f32).to_bits()),
                _ if from == to => value,
                _ => narrow(number, to, rounding),
            }
        }
    };
    // A signed integer fills a wider register with its sign.
    let bits = if to.is_signed() { to_bits } else { to.bits() };
    let result = if to.is_signed() { sign_extend(result, to) } else { result };
    result & (u64::MAX >> (64 - bits))
}

fn sign_extend(value: u64, ty: Type) -> u64 {
    let shift = 64 - ty.bits();
    (((value << shift) as i64) >> shift) as u64
}

fn integer(value: u64, ty: Type) -> i128 {
    let value = value & ty.mask();
    if ty.is_signed() { i128::from(sign_extend(value, ty) as i64) } else { i128::from(value) }
}

fn clamp(number: i128, to: Type) -> u64 {
    let (low, high) = if to.is_signed() {
        let high = i128::from(to.mask() >> 1);
        (-high - 1, high)
    } else {
        (0, i128::from(to.mask()))
    };
    number.clamp(low, high) as u64
}

fn float(value: u64, ty: Type) -> f64 {
    f64::from(match ty {
        Type::F16 => f16_to_f32(value as u16),
        Type::Bf16 => bf16_to_f32(value as u16),
        _ => f32::from_bits(value as u32),
    })
}

fn round_to_integer(number: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::IntegerNearest => number.round_ties_even(),
        Rounding::IntegerZero => number.trunc(),
        Rounding::IntegerDown => number.floor(),
        Rounding::IntegerUp => number.ceil(),
        Rounding::Nearest | Rounding::Zero => number,
    }
}

fn round_to_f32(number: i128, rounding: Rounding) -> f32 {
    let nearest = number as f32;
    // A float of an integer type's range is far inside of i128's.
    if rounding == Rounding::Zero && (nearest as i128).unsigned_abs() > number.unsigned_abs() {
        return f32::from_bits(nearest.to_bits() - 1);
    }
    nearest
}

/// Rounds to 16 bits. The number is an f32, or an integer.
fn narrow(number: f64, to: Type, rounding: Rounding) -> u64 {
    let half = if to == Type::F16 { Half::F16 } else { Half::Bf16 };
    // Rounding twice is harmless when the first rounding leaves a trace of what it cut off.
    let rounded = f32_to_half(half, round_to_odd(number));
    let too_far = f64::from(half_to_f32(half, rounded)).abs() > number.abs();
    let toward_zero = rounding == Rounding::Zero && too_far;
    u64::from(if toward_zero { rounded - 1 } else { rounded })
}

/// An f64 as an f32 whose last bit is set if it is not exact.
fn round_to_odd(number: f64) -> f32 {
    let nearest = number as f32;
    if f64::from(nearest) == number || nearest.is_nan() {
        return nearest;
    }
    let bits = nearest.to_bits();
    let below = if f64::from(nearest).abs() > number.abs() { bits - 1 } else { bits };
    f32::from_bits(below | 1)
}
