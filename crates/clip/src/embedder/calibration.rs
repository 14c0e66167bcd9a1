//! Eight-bit towers: found in the cache, or made with built-in pictures and texts.

use std::path::Path;

use ndarray::{Array4, Axis};

use crate::embedder::ports::unit_rows;
use crate::embedder::text::Text;
use crate::embedder::vision::Vision;
use crate::error::{Error, Kind, Result, Setting};
use crate::image::{self, synthetic};
use crate::model::Model;
use crate::model::eight_bit::Samples;
use crate::model::session::{Runtime, Tower};
use crate::text::Tokens;

/// Pictures for the image tower: half to calibrate, half to check.
const PICTURES: usize = 24;
/// Texts for the text tower, alternately to calibrate and to check.
const TEXTS: [&str; 24] = [
    "a photo of a cat",
    "a dog",
    "two children playing football on a green field in front of a school",
    "sunset over the sea",
    "a red car parked on a street at night",
    "an old man reading a newspaper",
    "a plate of spaghetti with tomatoes and basil on a wooden table, seen from above",
    "birthday cake with candles",
    "snow-covered mountains under a blue sky",
    "a black and white portrait of a woman with curly hair",
    "tax return form",
    "map",
    "a screenshot of a conversation on a phone",
    "the Eiffel Tower",
    "a bicycle leaning against a brick wall",
    "people dancing at a wedding party",
    "close-up of a yellow flower with water drops",
    "a flock of birds flying over a lake in autumn",
    "an empty room",
    "a crowded market in a narrow street with fruit, vegetables and spices",
    "drawing of a horse",
    "IMG_2041.JPG",
    "a train arriving at the station, motion blur, low light, film grain, 35 mm",
    "my hand",
];

/// The eight-bit form of a tower, if it was made before.
///
/// # Errors
/// [`Kind::Unsupported`] without a cache, or for a graph that serves both towers.
pub(super) fn eight_bit(
    model: &Model,
    library: &Path,
    file: &Path,
    threads: usize,
    cache: Option<&Path>,
) -> Result<Option<Tower>> {
    if model.combined {
        return Err(Error::new(
            Kind::Unsupported,
            format!("no eight-bit form can be made of model \"{}\"", model.name),
        )
        .detail("Its two towers are one graph.")
        .hint("Take an export with separate towers, or use the model without the variant."));
    }
    let Some(cache) = cache else {
        return Err(Error::new(
            Kind::Unsupported,
            format!("no eight-bit form of model \"{}\" can be made without a cache", model.name),
        )
        .hint_setting(Setting::Cache, "Set {setting} to a directory, or use the model without the variant."));
    };
    Ok(Tower::eight_bit(Runtime::load(library)?, file, threads, cache))
}

fn runtime() -> &'static Runtime {
    Runtime::loaded().expect("the float32 tower is loaded")
}

impl Vision {
    /// Makes the tower's eight-bit form, with pictures that are built in.
    pub(super) fn make_eight_bit(
        &self,
        model: &Model,
        threads: usize,
        cache: Option<&Path>,
        check_interrupts: &mut dyn FnMut(),
    ) -> Result<Tower> {
        let (height, width) = self.size;
        let inputs = |sample: usize| {
            let picture = synthetic::picture(width as u32, height as u32, sample as u64 + 1);
            let mut pixels = Array4::zeros((1, 3, height, width));
            image::to_tensor(&picture, &self.preprocess, pixels.index_axis_mut(Axis(0), 0));
            self.inputs(pixels)
        };
        let vector = |_, output| Ok(unit_rows(&self.pool(output, 1)?, model)?.remove(0));
        let samples = Samples { count: PICTURES, inputs: &inputs, output: &self.output.name, vector: &vector };
        let file = self.tower.borrow().file.clone();
        let cache = cache.expect("checked before the tower was loaded");
        Tower::make_eight_bit(runtime(), &file, threads, cache, &samples, check_interrupts)
    }
}

impl Text {
    /// Makes the tower's eight-bit form, with texts that are built in.
    pub(super) fn make_eight_bit(
        &self,
        model: &Model,
        threads: usize,
        cache: Option<&Path>,
        check_interrupts: &mut dyn FnMut(),
    ) -> Result<Tower> {
        let half = TEXTS.len() / 2;
        let tokens: Vec<Tokens> = (0..TEXTS.len())
            .map(|sample| {
                let mut tokens = self.encoder.encode(TEXTS[sample % half * 2 + sample / half])?;
                self.pad(&mut tokens);
                Ok(tokens)
            })
            .collect::<Result<_>>()?;
        let inputs = |sample: usize| self.inputs(&[&tokens[sample]]);
        let vector = |sample: usize, output| {
            Ok(unit_rows(&self.pooling.apply(output, &[tokens[sample].length])?, model)?.remove(0))
        };
        let samples = Samples { count: TEXTS.len(), inputs: &inputs, output: &self.output.name, vector: &vector };
        let file = self.tower.borrow().file.clone();
        let cache = cache.expect("checked before the tower was loaded");
        Tower::make_eight_bit(runtime(), &file, threads, cache, &samples, check_interrupts)
    }
}
