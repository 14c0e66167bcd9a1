//! A report for users: what a model's files contain, which settings were chosen, and whether the model works.

use std::path::Path;
use std::time::Instant;

use ndarray::Array4;

use crate::embedder::Embedder;
use crate::embedder::ports::{chosen, unit_rows};
use crate::embedder::text::Text;
use crate::embedder::vision::Vision;
use crate::error::{Error, Kind, Result, Setting};
use crate::image;
use crate::model::quantize;
use crate::model::session::Tower;

impl Embedder {
    /// Tests whether the model matches red, green and blue squares with their names, as every correctly exported and
    /// preprocessed CLIP model does. This detects swapped channels, a broken quantisation and a transposed axis.
    /// Returns the cosines, with texts as rows and images as columns, in that order of colours.
    ///
    /// # Errors
    /// The errors of embedding.
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

    /// Checks the model and returns a report as (item, value). The last item is the verdict, with remedies. Each fault
    /// is part of it. `name` returns the caller's names of settings.
    pub fn check(&mut self, name: impl Fn(Setting) -> &'static str) -> Vec<(String, String)> {
        let with_hint = |error: &Error| match error.hint_for(&name) {
            Some(hint) => format!("{error} {hint}"),
            None => error.to_string(),
        };
        let mut rows = vec![("directory".to_owned(), self.model.directory.display().to_string())];
        let mut wrong = Vec::new();
        let image = self.load_and_run_vision();
        match (&image, self.vision.get()) {
            (Ok(()), Some(vision)) => self.describe_vision(vision, &mut rows),
            (Err(error), _) => rows.push(("image tower".to_owned(), with_hint(error))),
            (Ok(()), None) => {}
        }
        let text = self.load_text().and_then(|()| self.text.get().map_or(Ok(()), |text| text.try_run()));
        match (&text, self.text.get()) {
            (Ok(()), Some(text)) => self.describe_text(text, &mut rows),
            (Err(error), _) => rows.push(("text tower".to_owned(), with_hint(error))),
            (Ok(()), None) => {}
        }
        match (image, text) {
            (Ok(()), Ok(())) => {
                let mut errors = Vec::new();
                self.check_both(&mut rows, &mut wrong, &mut errors);
                wrong.extend(errors.iter().map(&with_hint));
            }
            // A directory may have only one tower, which is used alone or as one of a pair.
            (Ok(()), Err(error)) if error.kind == Kind::MissingFile && self.single_tower() => {
                wrong.push(format!("it embeds images alone: {}", with_hint(&error)));
            }
            (Err(error), Ok(())) if error.kind == Kind::MissingFile && self.single_tower() => {
                wrong.push(format!("it embeds texts alone: {}", with_hint(&error)));
            }
            (image, text) => {
                let failed = [("image", image.err()), ("text", text.err())].into_iter();
                wrong.extend(failed.filter_map(|(what, error)| Some(format!("{what} tower: {}", with_hint(&error?)))));
            }
        }
        if let Some(dimensions) = self.dimensions() {
            rows.push(("dimensions".to_owned(), dimensions.to_string()));
        }
        wrong.extend(self.take_warnings().iter().map(&with_hint));
        let verdict = if wrong.is_empty() { "good".to_owned() } else { wrong.join("; ") };
        rows.push(("verdict".to_owned(), verdict));
        rows
    }

    fn describe_vision(&self, vision: &Vision, rows: &mut Vec<(String, String)>) {
        let tower = vision.tower.borrow();
        let source = match &vision.prepared_by {
            Some(file) => format!("by {}", below(file, &self.model.directory)),
            None => "a guess".to_owned(),
        };
        rows.push(("image graph".to_owned(), tower.file.display().to_string()));
        rows.push(("image graph's ports".to_owned(), tower.describe()));
        rows.push(("image output".to_owned(), chosen(&vision.output, &vision.pooling)));
        rows.push(("preprocessing".to_owned(), format!("{}, {source}", vision.preprocess)));
        rows.extend(quantize::recipe(&tower).map(|recipe| ("image precision".to_owned(), recipe)));
        if vision.alone {
            let why = "singly: the graph is quantized with ranges that would span a batch";
            rows.push(("images run".to_owned(), why.to_owned()));
        }
        rows.extend(self.one_thread(&tower).map(|why| ("image threads".to_owned(), why)));
    }

    fn describe_text(&self, text: &Text, rows: &mut Vec<(String, String)>) {
        let tower = text.tower.borrow();
        rows.push(("text graph".to_owned(), tower.file.display().to_string()));
        rows.push(("text graph's ports".to_owned(), tower.describe()));
        rows.push(("text output".to_owned(), chosen(&text.output, &text.pooling)));
        let encoder = &text.encoder;
        let side = if encoder.pad_left { "at the left " } else { "" };
        let padding = match text.pad_to {
            Some(length) => format!("filled {side}to {length} with id {}", encoder.pad_id),
            None => "not filled up".to_owned(),
        };
        let most = format!("at most {} {}, {padding}", encoder.context_length, encoder.context_source);
        rows.push(("tokens".to_owned(), most));
        let prompt =
            encoder.prompt.as_ref().map(|prompt| format!(", after the prompt \"{prompt}\"")).unwrap_or_default();
        rows.push(("texts".to_owned(), format!("{}{prompt}", encoder.cleaning)));
        rows.extend(quantize::recipe(&tower).map(|recipe| ("text precision".to_owned(), recipe)));
        rows.extend(self.one_thread(&tower).map(|why| ("text threads".to_owned(), why)));
    }

    /// The reason why a tower has fewer threads than the setting, if it has.
    fn one_thread(&self, tower: &Tower) -> Option<String> {
        let set = self.loader.threads;
        (tower.threads < set)
            .then(|| format!("one in place of {set}: ONNX Runtime's ConvInteger returns wrong numbers on several"))
    }

    /// Adds the items that need both towers: probabilities, colours, and speed on this machine.
    fn check_both(&mut self, rows: &mut Vec<(String, String)>, wrong: &mut Vec<String>, errors: &mut Vec<Error>) {
        match self.logits() {
            Ok(logits) => rows.push(("probabilities".to_owned(), logits.to_string())),
            Err(error) => errors.push(error),
        }
        match self.tell_colours() {
            Ok(cosines) => {
                let shown: Vec<String> = cosines.iter().map(|row| row.map(|c| format!("{c:.3}")).join(" ")).collect();
                rows.push(("red, green, blue: texts by images".to_owned(), shown.join("; ")));
                let told = |text: usize, image: usize| image == text || cosines[text][text] > cosines[text][image];
                if !(0..3).all(|text| (0..3).all(|image| told(text, image))) {
                    wrong.push(
                        "it does not tell red, green and blue squares apart; a correctly exported CLIP does: \
                         compare the preprocessing above with the library's, or export it again"
                            .to_owned(),
                    );
                }
            }
            Err(error) => errors.push(error),
        }
        let fastest = |run: &dyn Fn() -> Result<()>| {
            let times = (0..3).map(|_| {
                let start = Instant::now();
                run().map(|()| start.elapsed().as_secs_f64() * 1e3)
            });
            times.collect::<Result<Vec<f64>>>().map(|times| times.into_iter().fold(f64::INFINITY, f64::min))
        };
        if let (Some(vision), Some(text_tower)) = (self.vision.get(), self.text.get())
            && let (Ok(image), Ok(text)) = (fastest(&|| vision.run_black()), fastest(&|| text_tower.try_run()))
        {
            let threads = |tower: &Tower| match tower.threads {
                1 => "on one thread".to_owned(),
                more => format!("on {more} threads"),
            };
            let (image_threads, text_threads) = (threads(&vision.tower.borrow()), threads(&text_tower.tower.borrow()));
            let speed = if image_threads == text_threads {
                format!("image {image:.1} ms, text {text:.1} ms, {text_threads}")
            } else {
                format!("image {image:.1} ms {image_threads}, text {text:.1} ms {text_threads}")
            };
            rows.push(("speed here".to_owned(), speed));
        }
    }
}

/// The path of a file relative to the model's directory.
fn below(file: &Path, directory: &Path) -> String {
    file.strip_prefix(directory).unwrap_or(file).display().to_string()
}
