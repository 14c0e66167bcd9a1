//! What was found in a model's files and chosen, and whether the model works, for a person.

use ndarray::Array4;

use crate::embedder::Embedder;
use crate::embedder::ports::{chosen, unit_rows};
use crate::error::Result;
use crate::image;

impl Embedder {
    /// Whether the model tells red, green and blue squares apart by their names, as any CLIP does that was
    /// exported and is preprocessed rightly: swapped channels, a broken quantisation and a transposed axis
    /// all show. Returns the cosines, rows texts and columns images, in that order of colours.
    ///
    /// # Errors
    /// As for embedding.
    pub fn tell_colours(&mut self) -> Result<[[f32; 3]; 3]> {
        let colours = [("red", [255, 0, 0]), ("green", [0, 255, 0]), ("blue", [0, 0, 255])];
        let texts: Vec<String> = colours.iter().map(|(name, _)| format!("a {name} square")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let texts = self.embed_texts(&texts, true, &mut || ())?;
        self.load_vision()?;
        let vision = self.vision.get().expect("loaded above");
        let (height, width) = vision.size;
        let mut cosines = [[0.0; 3]; 3];
        for (column, (_, rgb)) in colours.iter().enumerate() {
            let square = ::image::RgbImage::from_pixel(width as u32, height as u32, ::image::Rgb(*rgb));
            let mut pixels = Array4::zeros((1, 3, height, width));
            image::to_tensor(&square, &vision.preprocess, pixels.index_axis_mut(ndarray::Axis(0), 0));
            let image = &unit_rows(&vision.run(pixels)?, &self.model)?[0];
            for (row, text) in texts.iter().enumerate() {
                cosines[row][column] = text.vector.iter().zip(image).map(|(a, b)| a * b).sum();
            }
        }
        Ok(cosines)
    }

    /// What was found and chosen, for a person: (what, value), or why a tower can't be used.
    pub fn describe(&mut self) -> Vec<(&'static str, Result<String>)> {
        let (image, text) = (self.load_and_run_vision(), self.load_text());
        let mut rows = Vec::new();
        if let Err(error) = image {
            rows.push(("image tower", Err(error)));
        } else if let Some(vision) = self.vision.get() {
            let tower = vision.tower.borrow();
            rows.push(("image graph", Ok(tower.file.display().to_string())));
            rows.push(("image graph's ports", Ok(tower.describe())));
            rows.push(("image output", Ok(chosen(&vision.output, &vision.pooling))));
            rows.push(("preprocessing", Ok(vision.preprocess.to_string())));
        }
        if let Err(error) = text {
            rows.push(("text tower", Err(error)));
        } else if let Some(text) = self.text.get() {
            let tower = text.tower.borrow();
            rows.push(("text graph", Ok(tower.file.display().to_string())));
            rows.push(("text graph's ports", Ok(tower.describe())));
            rows.push(("text output", Ok(chosen(&text.output, &text.pooling))));
            let padding = match text.pad_to {
                Some(length) => format!("filled to {length} with id {}", text.encoder.pad_id),
                None => "not filled up".to_owned(),
            };
            rows.push(("tokens", Ok(format!("at most {}, {padding}", text.encoder.context_length))));
        }
        if self.image_loaded() && self.text_loaded() {
            rows.push(("probabilities", self.logits().map(|logits| logits.to_string())));
        }
        rows
    }
}
