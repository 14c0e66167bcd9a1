//! Reads how a model's own configuration prepares images: size, filter, crop, normalisation.
//!
//! Five dialects are in use (Hugging Face with integer sizes, Hugging Face with dictionaries, SigLIP's squash, Jina's,
//! open_clip's `preprocess_cfg.json`). [`Preprocess::parse`] reads them all.

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::image::resample::Filter;

/// How the image is resized to the model's input size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side gets this many pixels, and the longer side follows by the aspect ratio.
    ShortestEdge(u32),
    /// Both sides get these lengths, (width, height); the aspect ratio is not kept ("squash").
    Exact(u32, u32),
    /// The picture keeps its aspect ratio and just covers this box, (width, height); the crop removes the rest.
    Cover(u32, u32),
    /// The picture keeps its aspect ratio and just fits into this box, (width, height); the rest of the box is filled.
    Fit(u32, u32),
    /// The image keeps its size.
    None,
}

/// How the start of the crop is rounded if the number of spare pixels is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CropRounding {
    /// Hugging Face: `(length - crop) // 2`.
    Floor,
    /// torchvision and open_clip: `int(round((length - crop) / 2))`, halves to even.
    HalfEven,
}

/// All steps from an upright RGB image to `pixel_values`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    pub resize: Resize,
    pub filter: Filter,
    /// Centre crop, (width, height) in pixels.
    pub crop: Option<(u32, u32)>,
    pub crop_rounding: CropRounding,
    /// The value of all three channels, 0–255, where the picture does not cover the output.
    pub fill: u8,
    /// Multiplied with each 0–255 value.
    pub rescale: f32,
    /// Subtracted after rescaling, per channel R, G, B.
    pub mean: [f32; 3],
    /// Each value is divided by this last, per channel R, G, B.
    pub std: [f32; 3],
}

/// The mean and standard deviation of OpenAI CLIP's own preprocessing (github.com/openai/CLIP, `clip.py`).
/// [`Preprocess::clip`] has the rest of it, for directories without a configuration.
pub const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
pub const CLIP_STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

/// Image processors that this arithmetic reproduces. Other processors may pad, tile or resample differently, so they
/// are refused by name instead of approximated.
const PROCESSORS: [&str; 9] = [
    "CLIPImageProcessor",
    "CLIPFeatureExtractor",
    // DINOv2's processor: the same steps and defaults.
    "BitImageProcessor",
    "ChineseCLIPImageProcessor",
    "ChineseCLIPFeatureExtractor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
    "ViTFeatureExtractor",
    "JinaCLIPImageProcessor",
];

/// Whether a processor is in the list above, with any resizing library: transformers appends `Fast` (torchvision) or
/// `Pil`.
fn is_supported(processor: &str) -> bool {
    let plain = ["Fast", "Pil"].iter().find_map(|backend| processor.strip_suffix(backend)).unwrap_or(processor);
    PROCESSORS.contains(&plain)
}

/// The family whose defaults apply to values that a Hugging Face configuration omits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProcessorClass {
    Clip,
    Siglip,
    Vit,
    /// Neither key in the configuration names a processor.
    Unnamed,
}

impl ProcessorClass {
    fn of(json: &Value) -> Self {
        match json["image_processor_type"].as_str().or_else(|| json["feature_extractor_type"].as_str()) {
            Some(name) if name.starts_with("Siglip") => Self::Siglip,
            Some(name) if name.starts_with("ViT") => Self::Vit,
            Some(_) => Self::Clip,
            None => Self::Unnamed,
        }
    }

    /// Whether the processor resizes both sides without a crop and normalises with 0.5.
    fn squashes(self) -> bool {
        matches!(self, Self::Siglip | Self::Vit)
    }
}

impl Preprocess {
    /// CLIP's default for a given input size in pixels.
    pub fn clip(size: u32) -> Self {
        Self {
            resize: Resize::ShortestEdge(size),
            filter: Filter::Bicubic,
            crop: Some((size, size)),
            crop_rounding: CropRounding::Floor,
            fill: 0,
            rescale: 1.0 / 255.0,
            mean: CLIP_MEAN,
            std: CLIP_STD,
        }
    }

    /// The (width, height) of the tensor, if the configuration fixes it.
    pub fn output_size(&self) -> Option<(u32, u32)> {
        self.crop.or(match self.resize {
            Resize::Exact(width, height) => Some((width, height)),
            Resize::Fit(width, height) => Some((width, height)),
            Resize::ShortestEdge(_) | Resize::Cover(..) | Resize::None => None,
        })
    }

    /// Parses the text of `preprocessor_config.json` or `preprocess_cfg.json`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for an image processor of another family, by name; [`Kind::BadModel`] for an invalid
    /// field.
    pub fn parse(text: &str) -> Result<Self> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| bad("is not JSON").detail(format!("The parser says: {e}.")))?;
        if !json.is_object() {
            return Err(bad("is not a JSON object"));
        }
        for key in ["image_processor_type", "feature_extractor_type"] {
            if let Some(name) = json[key].as_str().filter(|name| !is_supported(name)) {
                return Err(Error::new(Kind::Unsupported, format!("image processor \"{name}\" is not supported"))
                    .detail(format!("Supported: {}.", PROCESSORS.join(", ")))
                    .hint("Choose an export of the CLIP or SigLIP family."));
            }
        }
        let open_clip = json["image_processor_type"] == "JinaCLIPImageProcessor"
            || ["resize_mode", "interpolation", "fill_color", "mean", "std"].iter().any(|key| json.get(key).is_some());
        let parsed = if open_clip { Self::open_clip(&json) } else { Self::hugging_face(&json) }?;
        parsed.validated()
    }

    fn hugging_face(json: &Value) -> Result<Self> {
        // A null means "off", not the default: the processors pass it on, and Python treats it as false.
        let flag = |key: &str, default: bool| match json.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| bad_field(key, value)),
        };
        let class = ProcessorClass::of(json);
        if flag("do_pad", false)? {
            return Err(Error::new(Kind::Unsupported, "image processors that pad (\"do_pad\") are not supported")
                .hint("Choose an export of the CLIP or SigLIP family."));
        }
        let resize = match &json["size"] {
            _ if !flag("do_resize", true)? => Resize::None,
            Value::Null if class.squashes() => Resize::Exact(224, 224),
            Value::Null => Resize::ShortestEdge(224),
            size if size.get("shortest_edge").is_some() && size.get("longest_edge").is_none_or(Value::is_null) => {
                Resize::ShortestEdge(pixels(&size["shortest_edge"], "size.shortest_edge")?)
            }
            // CLIP's processor takes a number as the shortest edge; the families that squash take it as a square.
            size if size.is_number() && !class.squashes() => Resize::ShortestEdge(pixels(size, "size")?),
            size => {
                let (width, height) = sides(size, "size")?;
                Resize::Exact(width, height)
            }
        };
        let crops = match (class, resize) {
            // If no key names the processor, a size of two sides without a crop size means squashing without a crop.
            (ProcessorClass::Unnamed, Resize::Exact(..)) => !json["crop_size"].is_null(),
            (class, _) => !class.squashes(),
        };
        let crop = match &json["crop_size"] {
            _ if !flag("do_center_crop", crops)? => None,
            Value::Null => match (class, resize) {
                (ProcessorClass::Unnamed, Resize::ShortestEdge(size)) => Some((size, size)),
                // CLIP's processor has this default regardless of the resize.
                (class, _) if !class.squashes() => Some((224, 224)),
                _ => return Err(bad("has \"do_center_crop\" without \"crop_size\"")),
            },
            size => Some(sides(size, "crop_size")?),
        };
        let rescale = match &json["rescale_factor"] {
            _ if !flag("do_rescale", true)? => 1.0,
            Value::Null => 1.0 / 255.0,
            value => value.as_f64().ok_or_else(|| bad_field("rescale_factor", value))? as f32,
        };
        let (mean, std) = if flag("do_normalize", true)? {
            let (mean, std) = if class.squashes() { ([0.5; 3], [0.5; 3]) } else { (CLIP_MEAN, CLIP_STD) };
            (channels(json, "image_mean", mean)?, channels(json, "image_std", std)?)
        } else {
            ([0.0; 3], [1.0; 3])
        };
        let filter = match &json["resample"] {
            Value::Null if class == ProcessorClass::Vit => Filter::Bilinear,
            Value::Null => Filter::Bicubic,
            value => pillow_filter(value)?,
        };
        Ok(Self { resize, filter, crop, crop_rounding: CropRounding::Floor, fill: 0, rescale, mean, std })
    }

    /// Reads open_clip's `preprocess_cfg.json`, or Jina's configuration, whose processor is open_clip's with other
    /// defaults. A missing or null key has open_clip's default (`PreprocessCfg` in its transform.py).
    fn open_clip(json: &Value) -> Result<Self> {
        let text = |key: &str, default: &'static str| match &json[key] {
            Value::Null => Ok(default.to_owned()),
            value => value.as_str().map(str::to_owned).ok_or_else(|| bad_field(key, value)),
        };
        let (width, height) = match &json["size"] {
            Value::Null => (224, 224),
            Value::Array(sides) if sides.len() == 1 => (pixels(&sides[0], "size")?, pixels(&sides[0], "size")?),
            size => sides(size, "size")?,
        };
        let mode = text("resize_mode", "shortest")?;
        let (resize, crop) = match mode.as_str() {
            "shortest" if width == height => (Resize::ShortestEdge(width), Some((width, height))),
            "shortest" => (Resize::Cover(width, height), Some((width, height))),
            "longest" => (Resize::Fit(width, height), None),
            "squash" => (Resize::Exact(width, height), None),
            _ => {
                return Err(Error::new(Kind::Unsupported, format!("resize mode \"{mode}\" is not supported"))
                    .detail("Supported: shortest, longest, squash."));
            }
        };
        let filter = match text("interpolation", "bicubic")?.as_str() {
            // open_clip chooses a filter at random only in training, and uses bicubic for inference.
            "bicubic" | "random" => Filter::Bicubic,
            "bilinear" => Filter::Bilinear,
            "nearest" => Filter::Nearest,
            "lanczos" => Filter::Lanczos,
            "box" => Filter::Box,
            "hamming" => Filter::Hamming,
            other => {
                return Err(Error::new(Kind::Unsupported, format!("interpolation \"{other}\" is not supported"))
                    .detail("Supported: nearest, box, bilinear, hamming, bicubic, lanczos."));
            }
        };
        let fill = match &json["fill_color"] {
            Value::Null => 0,
            value => value.as_u64().and_then(|v| u8::try_from(v).ok()).ok_or_else(|| bad_field("fill_color", value))?,
        };
        let key = |short: &'static str, long: &'static str| if json[short].is_null() { long } else { short };
        Ok(Self {
            resize,
            filter,
            crop,
            crop_rounding: CropRounding::HalfEven,
            fill,
            rescale: 1.0 / 255.0,
            mean: channels(json, key("mean", "image_mean"), CLIP_MEAN)?,
            std: channels(json, key("std", "image_std"), CLIP_STD)?,
        })
    }

    fn validated(self) -> Result<Self> {
        if let Some(odd) = self.mean.iter().chain([&self.rescale]).find(|v| !v.is_finite()) {
            return Err(bad("has an unusable mean or rescale factor").detail(format!("One of them is {odd}.")));
        }
        if let Some(zero) = self.std.iter().find(|v| **v == 0.0 || !v.is_finite()) {
            return Err(bad("has an unusable standard deviation").detail(format!("A channel is divided by {zero}.")));
        }
        Ok(self)
    }
}

impl std::fmt::Display for Preprocess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.resize {
            Resize::ShortestEdge(size) => write!(f, "shortest edge {size}")?,
            Resize::Exact(width, height) => write!(f, "squashed to {width}×{height}")?,
            Resize::Cover(width, height) => write!(f, "covering {width}×{height}")?,
            Resize::Fit(width, height) => write!(f, "fitted into {width}×{height}, filled with {}", self.fill)?,
            Resize::None => write!(f, "not resized")?,
        }
        write!(f, ", {}", format!("{:?}", self.filter).to_lowercase())?;
        if let Some((width, height)) = self.crop {
            write!(f, ", centre crop {width}×{height}")?;
        }
        write!(f, ", mean {:?}, std {:?}", self.mean, self.std)
    }
}

/// Converts Pillow's `Image.Resampling` numbers, which Hugging Face stores.
fn pillow_filter(value: &Value) -> Result<Filter> {
    Ok(match value.as_u64() {
        Some(0) => Filter::Nearest,
        Some(1) => Filter::Lanczos,
        Some(2) => Filter::Bilinear,
        Some(3) => Filter::Bicubic,
        Some(4) => Filter::Box,
        Some(5) => Filter::Hamming,
        _ => return Err(bad_field("resample", value)),
    })
}

/// A side in pixels. The maximum, 4096, is far above the largest published CLIP input (512).
fn pixels(value: &Value, field: &str) -> Result<u32> {
    value.as_u64().filter(|v| (1..=4096).contains(v)).map(|v| v as u32).ok_or_else(|| bad_field(field, value))
}

/// Reads (width, height) from a number, from `[height, width]`, or from `{"height": …, "width": …}`.
fn sides(value: &Value, field: &str) -> Result<(u32, u32)> {
    match value {
        Value::Array(sides) if sides.len() == 2 => Ok((pixels(&sides[1], field)?, pixels(&sides[0], field)?)),
        Value::Object(keys) => {
            // "max_height", "longest_edge" and similar keys need different arithmetic.
            if let Some(key) =
                keys.keys().find(|key| !value[*key].is_null() && !matches!(key.as_str(), "height" | "width"))
            {
                return Err(Error::new(Kind::Unsupported, format!("\"{key}\" in \"{field}\" is not supported"))
                    .detail("Supported: height and width, or shortest_edge alone."));
            }
            let side = |key: &str| pixels(&value[key], &format!("{field}.{key}"));
            Ok((side("width")?, side("height")?))
        }
        value => Ok((pixels(value, field)?, pixels(value, field)?)),
    }
}

/// Reads one value per channel, or one value for all channels.
fn channels(json: &Value, field: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    match &json[field] {
        Value::Null => Ok(default),
        Value::Number(number) => Ok([number.as_f64().unwrap_or(f64::NAN) as f32; 3]),
        value => {
            let numbers: Option<Vec<f32>> =
                value.as_array().and_then(|a| a.iter().map(|v| v.as_f64().map(|v| v as f32)).collect());
            numbers.and_then(|n| n.try_into().ok()).ok_or_else(|| bad_field(field, value))
        }
    }
}

fn bad(what: &str) -> Error {
    Error::new(Kind::BadModel, format!("the model's preprocessing configuration {what}"))
}

fn bad_field(field: &str, value: &Value) -> Error {
    bad(&format!("has an unusable \"{field}\"")).detail(format!("Its value is {value}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_five_dialects() {
        let old = Preprocess::parse(
            r#"{"crop_size":224,"do_center_crop":true,"do_normalize":true,"do_resize":true,
            "feature_extractor_type":"CLIPFeatureExtractor","image_mean":[0.48145466,0.4578275,0.40821073],
            "image_std":[0.26862954,0.26130258,0.27577711],"resample":3,"size":224}"#,
        )
        .unwrap();
        assert_eq!(old, Preprocess::clip(224));

        let new = Preprocess::parse(
            r#"{"crop_size":{"height":224,"width":224},"image_processor_type":"CLIPImageProcessor",
            "resample":3,"rescale_factor":0.00392156862745098,"size":{"shortest_edge":224}}"#,
        )
        .unwrap();
        assert_eq!(new, Preprocess::clip(224));

        let siglip = Preprocess::parse(
            r#"{"image_processor_type":"SiglipImageProcessor","image_mean":[0.5,0.5,0.5],
            "image_std":[0.5,0.5,0.5],"resample":3,"size":{"height":224,"width":224}}"#,
        )
        .unwrap();
        assert_eq!((siglip.resize, siglip.crop, siglip.mean), (Resize::Exact(224, 224), None, [0.5; 3]));

        let jina = Preprocess::parse(
            r#"{"size":512,"mean":[0.5,0.5,0.5],"std":[0.25,0.25,0.25],"resize_mode":"shortest",
            "interpolation":"bicubic","fill_color":0,"image_processor_type":"JinaCLIPImageProcessor"}"#,
        )
        .unwrap();
        assert_eq!(
            (jina.resize, jina.std, jina.crop_rounding),
            (Resize::ShortestEdge(512), [0.25; 3], CropRounding::HalfEven)
        );

        let open_clip = Preprocess::parse(
            r#"{"size":[256,256],"mode":"RGB","mean":[0,0,0],"std":[1,1,1],
            "interpolation":"bilinear","resize_mode":"squash","fill_color":0}"#,
        )
        .unwrap();
        assert_eq!((open_clip.resize, open_clip.filter), (Resize::Exact(256, 256), Filter::Bilinear));
    }

    #[test]
    fn missing_keys_have_the_processors_own_defaults() {
        let read = |text: &str| Preprocess::parse(text).unwrap();
        let clip = read(r#"{"image_processor_type":"CLIPImageProcessor","size":{"shortest_edge":336}}"#);
        assert_eq!(clip.crop, Some((224, 224)), "CLIP's processor crops to 224 whatever the size");
        let unnamed = read(r#"{"size":336}"#);
        assert_eq!(unnamed.crop, Some((336, 336)), "without a processor's name the size is the better guess");
        let siglip = read(r#"{"image_processor_type":"SiglipImageProcessor"}"#);
        assert_eq!((siglip.resize, siglip.crop, siglip.mean), (Resize::Exact(224, 224), None, [0.5; 3]));
        let vit = read(r#"{"image_processor_type":"ViTImageProcessor","size":384}"#);
        assert_eq!((vit.resize, vit.filter, vit.std), (Resize::Exact(384, 384), Filter::Bilinear, [0.5; 3]));
        let open_clip = read(r#"{"mean":0.5,"std":null,"resize_mode":null}"#);
        assert_eq!((open_clip.resize, open_clip.mean, open_clip.std), (Resize::ShortestEdge(224), [0.5; 3], CLIP_STD));
        // Null means off; a missing key means on.
        let off = read(r#"{"size":30,"crop_size":20,"do_center_crop":null,"do_normalize":null}"#);
        assert_eq!((off.crop, off.mean, off.std), (None, [0.0; 3], [1.0; 3]));
    }

    #[test]
    fn two_sides_are_height_and_width() {
        let read = |text: &str| Preprocess::parse(text).unwrap();
        let open_clip = |mode: &str| read(&format!(r#"{{"size":[25,44],"resize_mode":"{mode}","fill_color":9}}"#));
        assert_eq!(open_clip("shortest").resize, Resize::Cover(44, 25));
        assert_eq!(open_clip("longest").resize, Resize::Fit(44, 25));
        assert_eq!(open_clip("squash").resize, Resize::Exact(44, 25));
        for mode in ["shortest", "longest", "squash"] {
            assert_eq!(open_clip(mode).output_size(), Some((44, 25)), "{mode}");
        }
        let hugging_face = read(r#"{"size":[33,46],"crop_size":{"height":25,"width":44}}"#);
        assert_eq!((hugging_face.resize, hugging_face.crop), (Resize::Exact(46, 33), Some((44, 25))));
    }

    #[test]
    fn another_arithmetic_is_refused_by_name() {
        for (text, word) in [
            (r#"{"size":{"shortest_edge":224,"longest_edge":448}}"#, "longest_edge"),
            (r#"{"size":{"max_height":224,"max_width":224}}"#, "max_"),
            (r#"{"do_pad":true,"size":224}"#, "do_pad"),
            (r#"{"size":224,"resize_mode":"stretch"}"#, "stretch"),
            (r#"{"size":224,"interpolation":"area"}"#, "area"),
        ] {
            let error = Preprocess::parse(text).unwrap_err();
            assert_eq!(error.kind, Kind::Unsupported, "{text}");
            assert!(error.message.contains(word), "{error}");
        }
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let error = Preprocess::parse(r#"{"image_processor_type":"BlipImageProcessor","size":224}"#).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.message.contains("BlipImageProcessor"), "{error}");
        for broken in [
            "{",
            "[]",
            r#"{"size":"big"}"#,
            r#"{"size":0}"#,
            r#"{"size":{"height":224}}"#,
            r#"{"image_mean":[1,2]}"#,
            r#"{"image_std":[0,1,1]}"#,
            r#"{"resample":9}"#,
            r#"{"do_resize":"yes"}"#,
            r#"{"size":[1,2,3]}"#,
            r#"{"size":224,"fill_color":256}"#,
            r#"{"size":224,"mean":[0.5]}"#,
            r#"{"image_mean":1e999}"#,
            r#"{"image_processor_type":"SiglipImageProcessor","do_center_crop":true}"#,
        ] {
            assert_eq!(Preprocess::parse(broken).unwrap_err().kind, Kind::BadModel, "{broken}");
        }
    }
}
