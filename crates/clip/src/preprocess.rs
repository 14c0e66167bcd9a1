//! What a model's own configuration says about preparing an image: size, filter, crop, normalisation.
//!
//! Five dialects are in use (Hugging Face with integer sizes, Hugging Face with dictionaries, SigLIP's
//! squash, Jina's, open_clip's `preprocess_cfg.json`); [`Preprocess::parse`] reads them all.

use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::resample::Filter;

/// How the image is brought to the model's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The shorter side becomes this many pixels, the longer one keeps the aspect.
    ShortestEdge(u32),
    /// Both sides are set, the aspect is not kept ("squash"). (width, height)
    Exact(u32, u32),
    /// The longer side becomes this many pixels; the rest of the square is filled.
    LongestEdge(u32),
    /// The image keeps its size.
    None,
}

/// Where the crop starts when the spare pixels are odd in number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CropRounding {
    /// Hugging Face: `(length - crop) // 2`.
    Floor,
    /// torchvision and open_clip: `int(round((length - crop) / 2))`, halves to even.
    HalfEven,
}

/// Everything between an upright RGB image and `pixel_values`.
#[derive(Clone, Debug, PartialEq)]
pub struct Preprocess {
    pub resize: Resize,
    pub filter: Filter,
    /// Centre crop, (width, height) in pixels.
    pub crop: Option<(u32, u32)>,
    pub crop_rounding: CropRounding,
    /// The fill of what the picture does not cover, 0–255.
    pub fill: u8,
    /// Multiplied with each 0–255 value.
    pub rescale: f32,
    /// Subtracted after rescaling, per channel R, G, B.
    pub mean: [f32; 3],
    /// Divided by afterwards, per channel R, G, B.
    pub std: [f32; 3],
}

/// OpenAI CLIP's own, used where a directory has no configuration: bicubic to a shortest edge of
/// `size`, centre crop, CLIP's mean and standard deviation (github.com/openai/CLIP, `clip.py`).
pub const CLIP_MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
pub const CLIP_STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

/// Image processors whose arithmetic this is. Others may pad, tile or resample otherwise, so they are
/// refused by name rather than approximated.
const PROCESSORS: [&str; 12] = [
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
    "ChineseCLIPImageProcessor",
    "ChineseCLIPFeatureExtractor",
    "SiglipImageProcessor",
    "SiglipImageProcessorFast",
    "SiglipImageProcessorPil",
    "ViTImageProcessor",
    "ViTFeatureExtractor",
    "JinaCLIPImageProcessor",
];

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

    /// The size of the tensor, (width, height), where the configuration fixes it.
    pub fn output_size(&self) -> Option<(u32, u32)> {
        self.crop.or(match self.resize {
            Resize::Exact(width, height) => Some((width, height)),
            Resize::LongestEdge(size) => Some((size, size)),
            Resize::ShortestEdge(_) | Resize::None => None,
        })
    }

    /// Reads `preprocessor_config.json` or `preprocess_cfg.json`.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for an image processor of another family, named; [`Kind::BadModel`] for a
    /// field of the wrong form.
    pub fn parse(text: &str) -> Result<Self> {
        let json: Value =
            serde_json::from_str(text).map_err(|e| bad("is not JSON").detail(format!("The parser says: {e}.")))?;
        if !json.is_object() {
            return Err(bad("is not a JSON object"));
        }
        for key in ["image_processor_type", "feature_extractor_type"] {
            if let Some(name) = json[key].as_str().filter(|name| !PROCESSORS.contains(name)) {
                return Err(Error::new(Kind::Unsupported, format!("image processor \"{name}\" is not supported"))
                    .detail(format!("Supported: {}.", PROCESSORS.join(", ")))
                    .hint("Choose an export of the CLIP or SigLIP family."));
            }
        }
        let parsed = if json.get("resize_mode").is_some() || json.get("interpolation").is_some() {
            Self::open_clip(&json)
        } else {
            Self::hugging_face(&json)
        }?;
        parsed.validated()
    }

    fn hugging_face(json: &Value) -> Result<Self> {
        let enabled = |key: &str| json[key].as_bool().unwrap_or(true);
        let siglip = json["image_processor_type"]
            .as_str()
            .is_some_and(|name| name.starts_with("Siglip") || name.starts_with("ViT"));
        let resize = if !enabled("do_resize") {
            Resize::None
        } else {
            match &json["size"] {
                Value::Null => Resize::ShortestEdge(224),
                size if size.get("shortest_edge").is_some() => {
                    Resize::ShortestEdge(pixels(&size["shortest_edge"], "size.shortest_edge")?)
                }
                size if size.is_object() => {
                    Resize::Exact(pixels(&size["width"], "size.width")?, pixels(&size["height"], "size.height")?)
                }
                // An integer is the shortest edge for CLIP, but a square for the families that squash.
                size if siglip => Resize::Exact(pixels(size, "size")?, pixels(size, "size")?),
                size => Resize::ShortestEdge(pixels(size, "size")?),
            }
        };
        // SigLIP's and ViT's processors have no crop at all.
        let crop = if siglip || !enabled("do_center_crop") {
            None
        } else {
            match &json["crop_size"] {
                Value::Null => match resize {
                    Resize::ShortestEdge(size) => Some((size, size)),
                    _ => None,
                },
                size if size.is_object() => {
                    Some((pixels(&size["width"], "crop_size.width")?, pixels(&size["height"], "crop_size.height")?))
                }
                size => Some((pixels(size, "crop_size")?, pixels(size, "crop_size")?)),
            }
        };
        let rescale = match (&json["rescale_factor"], enabled("do_rescale")) {
            (_, false) => 1.0,
            (Value::Null, true) => 1.0 / 255.0,
            (value, true) => value.as_f64().ok_or_else(|| bad_field("rescale_factor", value))? as f32,
        };
        let (mean, std) = if enabled("do_normalize") {
            (channels(json, "image_mean", CLIP_MEAN)?, channels(json, "image_std", CLIP_STD)?)
        } else {
            ([0.0; 3], [1.0; 3])
        };
        let filter = match &json["resample"] {
            Value::Null => Filter::Bicubic,
            value => pillow_filter(value)?,
        };
        Ok(Self { resize, filter, crop, crop_rounding: CropRounding::Floor, fill: 0, rescale, mean, std })
    }

    fn open_clip(json: &Value) -> Result<Self> {
        let (width, height) = match &json["size"] {
            Value::Array(sides) if sides.len() == 2 => (pixels(&sides[1], "size")?, pixels(&sides[0], "size")?),
            Value::Array(sides) if sides.len() == 1 => (pixels(&sides[0], "size")?, pixels(&sides[0], "size")?),
            size => (pixels(size, "size")?, pixels(size, "size")?),
        };
        let mode = json["resize_mode"].as_str().unwrap_or("shortest");
        let (resize, crop) = match mode {
            // With two different sides open_clip cannot use the shortest edge alone; its models are square.
            "shortest" if width == height => (Resize::ShortestEdge(width), Some((width, height))),
            "longest" if width == height => (Resize::LongestEdge(width), None),
            "squash" => (Resize::Exact(width, height), None),
            _ => {
                return Err(Error::new(
                    Kind::Unsupported,
                    format!("resize mode \"{mode}\" of {width}×{height} is not supported"),
                )
                .detail("Supported: shortest and longest of a square, squash."));
            }
        };
        let filter = match json["interpolation"].as_str().unwrap_or("bicubic") {
            "bicubic" => Filter::Bicubic,
            "bilinear" => Filter::Bilinear,
            "nearest" => Filter::Nearest,
            "lanczos" => Filter::Lanczos,
            other => {
                return Err(Error::new(Kind::Unsupported, format!("interpolation \"{other}\" is not supported"))
                    .detail("Supported: nearest, bilinear, bicubic, lanczos."));
            }
        };
        let fill = match &json["fill_color"] {
            Value::Null => 0,
            value => value.as_u64().and_then(|v| u8::try_from(v).ok()).ok_or_else(|| bad_field("fill_color", value))?,
        };
        let mean_key = if json.get("mean").is_some() { "mean" } else { "image_mean" };
        let std_key = if json.get("std").is_some() { "std" } else { "image_std" };
        Ok(Self {
            resize,
            filter,
            crop,
            crop_rounding: CropRounding::HalfEven,
            fill,
            rescale: 1.0 / 255.0,
            mean: channels(json, mean_key, CLIP_MEAN)?,
            std: channels(json, std_key, CLIP_STD)?,
        })
    }

    fn validated(self) -> Result<Self> {
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
            Resize::LongestEdge(size) => write!(f, "longest edge {size}, filled with {}", self.fill)?,
            Resize::None => write!(f, "not resized")?,
        }
        write!(f, ", {}", format!("{:?}", self.filter).to_lowercase())?;
        if let Some((width, height)) = self.crop {
            write!(f, ", centre crop {width}×{height}")?;
        }
        write!(f, ", mean {:?}, std {:?}", self.mean, self.std)
    }
}

/// Pillow's `Image.Resampling` numbers, as Hugging Face stores them.
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

/// A side in pixels. 4096 is far above any CLIP's (the largest published is 512).
fn pixels(value: &Value, field: &str) -> Result<u32> {
    value.as_u64().filter(|v| (1..=4096).contains(v)).map(|v| v as u32).ok_or_else(|| bad_field(field, value))
}

fn channels(json: &Value, field: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    match &json[field] {
        Value::Null => Ok(default),
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
    fn refuses_what_it_does_not_know() {
        let error = Preprocess::parse(r#"{"image_processor_type":"BitImageProcessor","size":224}"#).unwrap_err();
        assert_eq!(error.kind, Kind::Unsupported);
        assert!(error.message.contains("BitImageProcessor"), "{error}");
        for broken in [
            "{",
            "[]",
            r#"{"size":"big"}"#,
            r#"{"size":0}"#,
            r#"{"size":{"height":224}}"#,
            r#"{"image_mean":[1,2]}"#,
            r#"{"image_std":[0,1,1]}"#,
            r#"{"resample":9}"#,
        ] {
            assert_eq!(Preprocess::parse(broken).unwrap_err().kind, Kind::BadModel, "{broken}");
        }
    }
}
