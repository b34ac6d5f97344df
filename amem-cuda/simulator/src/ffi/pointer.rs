//! Pointers that a caller of the simulated libraries passes in. They become values here, so that nothing else handles
//! raw pointers.
//!
//! The types below are the parameters of the exported functions, which only C callers can produce: a caller promises
//! what CUDA's documentation demands of each argument, and the conversions rely on that.

use crate::status::{Result, Status, refuse};
use std::ffi::{CStr, c_char, c_void};

/// Where a call stores a result.
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Stores a result.
    pub(crate) fn put(self, value: T) -> Result<()> {
        if !self.put_if_present(value) {
            return refuse(Status::INVALID_VALUE, "a pointer to store the result is null");
        }
        Ok(())
    }

    /// Stores a result that the caller need not ask for.
    pub(crate) fn put_if_present(self, value: T) -> bool {
        if self.0.is_null() {
            return false;
        }
        // SAFETY: the pointer is not null, and a caller passes a pointer that may be written as a `T`. `write` does not
        // drop what was there before, which may be uninitialised.
        unsafe { self.0.write(value) };
        true
    }
}

impl Out<u8> {
    /// Stores as much of a text as fits, and a zero byte.
    pub(crate) fn put_text(self, text: &str, room: usize) -> bool {
        if self.0.is_null() || room == 0 {
            return false;
        }
        let bytes = &text.as_bytes()[..text.len().min(room - 1)];
        // SAFETY: the caller passes a buffer of `room` bytes, and at most `room - 1` bytes and a zero are written. The
        // text is this function's own, so the two do not overlap.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0, bytes.len());
            self.0.add(bytes.len()).write(0);
        }
        true
    }
}

/// The array that a call stores several results in.
#[repr(transparent)]
pub(crate) struct OutArray<T>(*mut T);

impl<T: Copy> OutArray<T> {
    /// Stores results, of which there are at most as many as the array has room for.
    pub(crate) fn put(self, values: &[T], room: usize) -> bool {
        if self.0.is_null() || values.len() > room {
            return false;
        }
        // SAFETY: the caller passes an array with room for `room` elements, which is at least what is written, and it
        // does not overlap `values`, which the simulator owns.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.0, values.len()) };
        true
    }
}

/// What a call reads.
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// The value.
    pub(crate) fn get(&self) -> Result<T> {
        match self.get_if_present() {
            Some(value) => Ok(value),
            None => refuse(Status::INVALID_VALUE, "a pointer to an argument is null"),
        }
    }

    /// The value, unless the pointer is null.
    pub(crate) fn get_if_present(&self) -> Option<T> {
        // SAFETY: the pointer is not null, and a caller passes a pointer to a `T`. It need not be aligned: attributes
        // are passed through untyped pointers.
        (!self.0.is_null()).then(|| unsafe { self.0.read_unaligned() })
    }

    /// The elements of an array.
    pub(crate) fn array(&self, count: usize) -> Result<Vec<T>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return refuse(Status::INVALID_VALUE, "a pointer to an array is null");
        }
        // SAFETY: the pointer is not null, and a caller passes an array of as many elements as it says.
        Ok((0..count).map(|index| unsafe { self.0.add(index).read_unaligned() }).collect())
    }
}

/// A pointer to bytes whose number or end another argument or the bytes themselves give.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Bytes(*const c_void);

impl Bytes {
    /// So many bytes.
    pub(crate) fn take(self, count: usize) -> Result<Vec<u8>> {
        In(self.0.cast::<u8>()).array(count)
    }

    /// A text that ends with a zero byte.
    pub(crate) fn text(self) -> Result<String> {
        let text = Text(self.0.cast());
        text.get()
    }
}

/// A text that ends with a zero byte.
#[repr(transparent)]
pub(crate) struct Text(*const c_char);

impl Text {
    pub(crate) fn get(&self) -> Result<String> {
        if self.0.is_null() {
            return refuse(Status::INVALID_VALUE, "a text is null");
        }
        // SAFETY: the pointer is not null, and a caller passes a text that ends with a zero byte.
        let text = unsafe { CStr::from_ptr(self.0) };
        match text.to_str() {
            Ok(text) => Ok(text.to_string()),
            Err(error) => refuse(Status::INVALID_VALUE, format!("a text is not UTF-8: {error}")),
        }
    }
}

/// The values of a kernel's parameters, each behind its own pointer.
#[repr(transparent)]
pub(crate) struct Parameters(*const *const c_void);

impl Parameters {
    /// Whether there are any.
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The values, where `layout` has each parameter's offset and size in the `bytes` that a launch passes.
    pub(crate) fn gather(&self, layout: &[(usize, usize)], bytes: usize) -> Result<Vec<u8>> {
        let pointers = In(self.0).array(layout.len())?;
        let mut values = vec![0; bytes];
        for (&pointer, &(offset, size)) in pointers.iter().zip(layout) {
            let value = Bytes(pointer).take(size)?;
            match values.get_mut(offset..offset + size) {
                Some(target) => target.copy_from_slice(&value),
                None => return refuse(Status::UNKNOWN, "a kernel's parameters overlap its parameter memory's end"),
            }
        }
        Ok(values)
    }
}

/// An option's value, which is a number or a pointer to a buffer.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct OptionValue(*mut c_void);

impl OptionValue {
    pub(crate) fn number(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn buffer(self) -> Out<u8> {
        Out(self.0.cast())
    }
}
