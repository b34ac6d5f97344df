//! Arithmetic on all lanes at once. Lanes that do not take part are computed too, and then not written.

use super::float::flush as flush_lane;
use super::warp::{LANES, Lanes};
use crate::program::{Binary, Compare, Ternary, Test, Type, Unary};

#[inline(always)]
fn map(a: &Lanes, f: impl Fn(u64) -> u64) -> Lanes {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
fn zip(a: &Lanes, b: &Lanes, f: impl Fn(u64, u64) -> u64) -> Lanes {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
fn zip3(a: &Lanes, b: &Lanes, c: &Lanes, f: impl Fn(u64, u64, u64) -> u64) -> Lanes {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

#[inline(always)]
fn zip32(a: &Lanes, b: &Lanes, f: impl Fn(u32, u32) -> u32) -> Lanes {
    zip(a, b, |a, b| u64::from(f(a as u32, b as u32)))
}

#[inline(always)]
fn map_f32(a: &Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    map(a, |a| u64::from(f(f32::from_bits(a as u32)).to_bits()))
}

#[inline(always)]
fn zip_f32(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    zip(a, b, |a, b| u64::from(f(f32::from_bits(a as u32), f32::from_bits(b as u32)).to_bits()))
}

pub(super) fn flush(a: &Lanes) -> Lanes {
    map(a, flush_lane)
}

/// A value of a signed type.
#[inline(always)]
fn signed(value: u64, ty: Type) -> i64 {
    match ty.size() {
        2 => i64::from(value as i16),
        4 => i64::from(value as i32),
        _ => value as i64,
    }
}

pub(super) fn unary(operation: Unary, ty: Type, a: &Lanes) -> Lanes {
    let mask = ty.mask();
    match operation {
        Unary::Neg if ty == Type::F32 => map(a, |a| a ^ 0x8000_0000),
        Unary::Neg => map(a, |a| a.wrapping_neg() & mask),
        Unary::Abs if ty == Type::F32 => map(a, |a| a & 0x7fff_ffff),
        Unary::Abs => map(a, |a| signed(a, ty).unsigned_abs() & mask),
        Unary::Not => map(a, |a| !a & mask),
        Unary::Popc => map(a, |a| u64::from((a & mask).count_ones())),
        Unary::Clz => map(a, |a| u64::from((a & mask).leading_zeros() + ty.bits() - 64)),
        Unary::Brev => map(a, |a| a.reverse_bits() >> (64 - ty.bits())),
        Unary::Ex2 => map_f32(a, f32::exp2),
        Unary::Lg2 => map_f32(a, f32::log2),
        Unary::Rcp => map_f32(a, |a| 1.0 / a),
        Unary::Rsqrt => map_f32(a, |a| (1.0 / f64::from(a).sqrt()) as f32),
        Unary::Sqrt => map_f32(a, f32::sqrt),
    }
}

/// The smaller one. NaN loses, and -0 is smaller than +0.
fn min(a: f32, b: f32) -> f32 {
    if a.is_nan() || (a == b && b.is_sign_negative()) || b < a { b } else { a }
}

/// The larger one. NaN loses, and -0 is smaller than +0.
fn max(a: f32, b: f32) -> f32 {
    if a.is_nan() || (a == b && b.is_sign_positive()) || b > a { b } else { a }
}

fn binary_f32(operation: Binary, a: &Lanes, b: &Lanes) -> Lanes {
    match operation {
        Binary::Add => zip_f32(a, b, |a, b| a + b),
        Binary::Sub => zip_f32(a, b, |a, b| a - b),
        Binary::Div => zip_f32(a, b, |a, b| a / b),
        Binary::Min => zip_f32(a, b, min),
        Binary::Max => zip_f32(a, b, max),
        // The parser lets no other operation through.
        _ => zip_f32(a, b, |a, b| a * b),
    }
}

pub(super) fn binary(operation: Binary, ty: Type, a: &Lanes, b: &Lanes) -> Lanes {
    if ty == Type::F32 {
        return binary_f32(operation, a, b);
    }
    // The common ones, in loops that vectorise.
    match (operation, ty.size()) {
        (Binary::And, _) => return zip(a, b, |a, b| a & b),
        (Binary::Or, _) => return zip(a, b, |a, b| a | b),
        (Binary::Xor, _) => return zip(a, b, |a, b| a ^ b),
        (Binary::Add, 4) => return zip32(a, b, u32::wrapping_add),
        (Binary::Sub, 4) => return zip32(a, b, u32::wrapping_sub),
        (Binary::Mul, 4) => return zip32(a, b, u32::wrapping_mul),
        (Binary::Add, 8) => return zip(a, b, u64::wrapping_add),
        (Binary::Sub, 8) => return zip(a, b, u64::wrapping_sub),
        _ => {}
    }
    let mask = ty.mask();
    let bits = ty.bits();
    match operation {
        Binary::Add => zip(a, b, |a, b| a.wrapping_add(b) & mask),
        Binary::Sub => zip(a, b, |a, b| a.wrapping_sub(b) & mask),
        Binary::Mul => zip(a, b, |a, b| a.wrapping_mul(b) & mask),
        Binary::MulHi => zip(a, b, |a, b| high_product(a, b, ty)),
        Binary::MulWide => {
            // The wider type holds every product.
            let wide = u64::MAX >> (64 - 2 * bits);
            if ty.is_signed() {
                zip(a, b, |a, b| signed(a, ty).wrapping_mul(signed(b, ty)) as u64 & wide)
            } else {
                zip(a, b, |a, b| (a & mask).wrapping_mul(b & mask))
            }
        }
        // A divisor of zero in a lane that takes part was found before.
        Binary::Div if ty.is_signed() => {
            zip(a, b, |a, b| signed(a, ty).checked_div(signed(b, ty)).unwrap_or(signed(a, ty)) as u64 & mask)
        }
        Binary::Rem if ty.is_signed() => {
            zip(a, b, |a, b| signed(a, ty).checked_rem(signed(b, ty)).unwrap_or(0) as u64 & mask)
        }
        Binary::Div => zip(a, b, |a, b| (a & mask).checked_div(b & mask).unwrap_or(0)),
        Binary::Rem => zip(a, b, |a, b| (a & mask).checked_rem(b & mask).unwrap_or(0)),
        Binary::Min if ty.is_signed() => zip(a, b, |a, b| signed(a, ty).min(signed(b, ty)) as u64 & mask),
        Binary::Max if ty.is_signed() => zip(a, b, |a, b| signed(a, ty).max(signed(b, ty)) as u64 & mask),
        Binary::Min => zip(a, b, |a, b| (a & mask).min(b & mask)),
        Binary::Max => zip(a, b, |a, b| (a & mask).max(b & mask)),
        Binary::Shl => zip(a, b, |a, b| {
            let count = b as u32;
            if count >= bits { 0 } else { a << count & mask }
        }),
        Binary::Shr if ty.is_signed() => zip(a, b, |a, b| (signed(a, ty) >> (b as u32).min(63)) as u64 & mask),
        Binary::Shr => zip(a, b, |a, b| {
            let count = b as u32;
            if count >= bits { 0 } else { (a & mask) >> count }
        }),
        Binary::And | Binary::Or | Binary::Xor => zip(a, b, |a, b| a & b),
    }
}

fn high_product(a: u64, b: u64, ty: Type) -> u64 {
    let (mask, bits) = (ty.mask(), ty.bits());
    let product = if ty.is_signed() {
        i128::from(signed(a, ty)).wrapping_mul(i128::from(signed(b, ty))) >> bits
    } else {
        (u128::from(a & mask).wrapping_mul(u128::from(b & mask)) >> bits) as i128
    };
    product as u64 & mask
}

pub(super) fn ternary(operation: Ternary, ty: Type, a: &Lanes, b: &Lanes, c: &Lanes) -> Lanes {
    let mask = ty.mask();
    match operation {
        Ternary::Fma => zip3(a, b, c, |a, b, c| {
            let [a, b, c] = [a, b, c].map(|value| f32::from_bits(value as u32));
            u64::from(a.mul_add(b, c).to_bits())
        }),
        Ternary::MadLo => zip3(a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & mask),
        Ternary::MadHi => zip3(a, b, c, |a, b, c| high_product(a, b, ty).wrapping_add(c) & mask),
        Ternary::MadWide => {
            let product = binary(Binary::MulWide, ty, a, b);
            let wide = u64::MAX >> (64 - 2 * ty.bits());
            zip(&product, c, |product, c| product.wrapping_add(c) & wide)
        }
        Ternary::Bfe => zip3(a, b, c, |a, position, length| extract_bits(a, position, length, ty)),
        Ternary::Prmt => zip3(a, b, c, permute),
        Ternary::ShfLeftWrap => zip3(a, b, c, |a, b, c| (b << 32 | a) << (c & 31) >> 32 & mask),
        Ternary::ShfLeftClamp => zip3(a, b, c, |a, b, c| (b << 32 | a) << (c as u32).min(32) >> 32 & mask),
        Ternary::ShfRightWrap => zip3(a, b, c, |a, b, c| (b << 32 | a) >> (c & 31) & mask),
        Ternary::ShfRightClamp => zip3(a, b, c, |a, b, c| (b << 32 | a) >> (c as u32).min(32) & mask),
        Ternary::Lop3(table) => zip3(a, b, c, |a, b, c| {
            let mut out = 0;
            for index in 0..8 {
                if table >> index & 1 == 1 {
                    let a = if index & 4 == 0 { !a } else { a };
                    let b = if index & 2 == 0 { !b } else { b };
                    let c = if index & 1 == 0 { !c } else { c };
                    out |= a & b & c;
                }
            }
            out & mask
        }),
    }
}

/// `bfe`: the field's bits, above them its sign or zeros.
fn extract_bits(a: u64, position: u64, length: u64, ty: Type) -> u64 {
    let bits = ty.bits();
    let (position, length) = ((position & 255) as u32, (length & 255) as u32);
    let highest = position.saturating_add(length).saturating_sub(1).min(bits - 1);
    let sign = ty.is_signed() && length > 0 && a >> highest & 1 == 1;
    let field = if position >= bits { 0 } else { (a & ty.mask()) >> position };
    let kept = length.min(bits.saturating_sub(position));
    let ones = if kept == 0 { 0 } else { u64::MAX >> (64 - kept) };
    (if sign { field & ones | !ones } else { field & ones }) & ty.mask()
}

/// `bfi`: `into` with a field replaced by the low bits of `from`.
pub(super) fn insert_bits(ty: Type, from: &Lanes, into: &Lanes, position: &Lanes, length: &Lanes) -> Lanes {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        let (position, length) = (position[lane] & 255, length[lane] & 255);
        let field = if length == 0 || position >= 64 {
            0
        } else {
            (u64::MAX >> 64u64.saturating_sub(length).min(63)) << position
        };
        let moved = if position >= 64 { 0 } else { from[lane] << position };
        out[lane] = (into[lane] & !field | moved & field) & ty.mask();
    }
    out
}

/// `prmt`: four bytes, each chosen from the eight of two registers.
fn permute(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = (b << 32 | a & 0xffff_ffff).to_le_bytes();
    let mut out = 0;
    for index in 0..4 {
        let choice = selector >> (4 * index);
        let byte = bytes[(choice & 7) as usize];
        let byte = match (choice & 8 != 0, byte & 0x80 != 0) {
            (false, _) => byte,
            (true, true) => 0xff,
            (true, false) => 0,
        };
        out |= u64::from(byte) << (8 * index);
    }
    out
}

#[inline(always)]
fn compare_lanes<T: Copy>(a: &Lanes, b: &Lanes, from: impl Fn(u64) -> T, test: impl Fn(T, T) -> bool) -> u32 {
    let mut out = 0;
    for lane in 0..LANES {
        out |= u32::from(test(from(a[lane]), from(b[lane]))) << lane;
    }
    out
}

fn ordered<T: PartialOrd + Copy>(compare: Compare, a: &Lanes, b: &Lanes, from: impl Fn(u64) -> T) -> u32 {
    match compare {
        Compare::Eq => compare_lanes(a, b, from, |a, b| a == b),
        Compare::Ne => compare_lanes(a, b, from, |a, b| a != b),
        Compare::Lt => compare_lanes(a, b, from, |a, b| a < b),
        Compare::Le => compare_lanes(a, b, from, |a, b| a <= b),
        Compare::Gt => compare_lanes(a, b, from, |a, b| a > b),
        Compare::Ge => compare_lanes(a, b, from, |a, b| a >= b),
    }
}

/// The lanes for which a comparison holds.
pub(super) fn compare(test: Test, ty: Type, a: &Lanes, b: &Lanes) -> u32 {
    let f32_of = |bits: u64| f32::from_bits(bits as u32);
    let nan = || compare_lanes(a, b, f32_of, |a, b| a.is_nan() || b.is_nan());
    match test {
        Test::Nan => nan(),
        Test::Numbers => !nan(),
        Test::Unordered(compare) => ordered(compare, a, b, f32_of) | nan(),
        // With a NaN, Rust's `!=` holds and PTX's `ne` does not.
        Test::Ordered(compare) if ty == Type::F32 => ordered(compare, a, b, f32_of) & !nan(),
        Test::Ordered(compare) => match ty {
            Type::S16 => ordered(compare, a, b, |bits| bits as i16),
            Type::S32 => ordered(compare, a, b, |bits| bits as i32),
            Type::S64 => ordered(compare, a, b, |bits| bits as i64),
            Type::U16 | Type::B16 => ordered(compare, a, b, |bits| bits as u16),
            Type::U32 | Type::B32 => ordered(compare, a, b, |bits| bits as u32),
            _ => ordered(compare, a, b, |bits| bits),
        },
    }
}
