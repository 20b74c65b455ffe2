//! A vector of numbers that begins at a cache line, so that no register is loaded from two lines.
//!
//! What never enters: arithmetic.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;

/// Numbers that begin at a multiple of [`LINE_BYTES`], without `unsafe`: a little more is allocated, and the front skipped.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    values: Vec<f32>,
    begin: usize,
    length: usize,
}

impl Aligned {
    /// `length` zeros.
    pub(crate) fn zeros(length: usize) -> Self {
        let values = vec![0.0; length + LINE_BYTES / size_of::<f32>()];
        // The address of a vector's values does not change when the vector is moved.
        let begin = values.as_ptr().align_offset(LINE_BYTES).min(LINE_BYTES / size_of::<f32>());
        Self { values, begin, length }
    }

    /// At least `length` numbers of any value; keeps what it has if that is enough.
    pub(crate) fn grow(&mut self, length: usize) {
        if self.length < length {
            *self = Self::zeros(length);
        }
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeros(self.length);
        copy.copy_from_slice(self);
        copy
    }
}

impl Deref for Aligned {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values[self.begin..self.begin + self.length]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.begin..self.begin + self.length]
    }
}
