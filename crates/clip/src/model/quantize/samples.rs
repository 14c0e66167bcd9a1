//! The pictures or texts that calibrate and check a quantized graph.

use ndarray::ArrayD;
use ort::session::SessionInputValue;

use crate::error::Result;

/// The inputs of a graph: (name, value).
pub type Inputs = Vec<(String, SessionInputValue<'static>)>;

/// The samples: the first half calibrates the graph, the second half checks it.
pub struct Samples<'a> {
    pub count: usize,
    /// Returns the graph's inputs for a sample.
    pub inputs: &'a dyn Fn(usize) -> Result<Inputs>,
    /// The name of the output to use.
    pub output: &'a str,
    /// Computes the vector of a sample, of length 1, from this output.
    pub vector: &'a dyn Fn(usize, ArrayD<f32>) -> Result<Vec<f32>>,
}

impl Samples<'_> {
    /// The number of calibration samples. The others are for the check.
    pub fn half(&self) -> usize {
        self.count / 2
    }
}
