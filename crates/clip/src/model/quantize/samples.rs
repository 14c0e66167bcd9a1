//! The pictures or texts that an eight-bit graph is calibrated and checked with.

use ndarray::ArrayD;
use ort::session::SessionInputValue;

use crate::error::Result;

pub type Inputs = Vec<(String, SessionInputValue<'static>)>;

/// What the graph is calibrated and checked with: the first half of the samples for one, the others for the other.
pub struct Samples<'a> {
    pub count: usize,
    /// The inputs for a sample.
    pub inputs: &'a dyn Fn(usize) -> Result<Inputs>,
    /// Name of the output that is used.
    pub output: &'a str,
    /// The vector of a sample, of length 1, from that output.
    pub vector: &'a dyn Fn(usize, ArrayD<f32>) -> Result<Vec<f32>>,
}

impl Samples<'_> {
    /// How many calibrate; the rest check.
    pub fn half(&self) -> usize {
        self.count / 2
    }
}
