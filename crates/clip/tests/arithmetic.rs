//! Tests limits of the arithmetic that needs no model, each from both sides. Expected values come from NumPy, as the
//! comments show.

use std::path::{Path, PathBuf};

use clip::Kind;
use clip::clustering::centroid::Sum;
use clip::embedder::logits::Logits;
use clip::model::Model;
use clip::model::pooling::{Pooling, PoolingMode};
use clip::query::combine;
use ndarray::arr3;
use safetensors::{Dtype, tensor::TensorView};

/// A directory for one test; it is removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("clip-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Writes tensors, given as (name, shape, values), in float32.
    fn tensors(&self, name: &str, tensors: &[(&str, &[usize], &[f32])]) {
        self.tensors_of(Dtype::F32, name, tensors);
    }

    /// Writes tensors in another type, for numbers that are exact in it.
    fn tensors_of(&self, kind: Dtype, name: &str, tensors: &[(&str, &[usize], &[f32])]) {
        let bytes = |value: f32| match kind {
            Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
            Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
            Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
            _ => value.to_le_bytes().to_vec(),
        };
        let bytes: Vec<Vec<u8>> =
            tensors.iter().map(|(.., values)| values.iter().flat_map(|value| bytes(*value)).collect()).collect();
        let views = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, shape, _), bytes)| (*name, TensorView::new(kind, shape.to_vec(), bytes).unwrap()));
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn near(found: &[f32], wanted: &[f32]) -> bool {
    found.len() == wanted.len() && found.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6)
}

/// A text model of sentence-transformers: positions, one pooling mode, and a dense layer from two values to three.
fn with_dense(name: &str, config: &str, tensors: &[(&str, &[usize], &[f32])]) -> (Folder, clip::Result<Pooling>) {
    let folder = Folder::new(name);
    folder.write(
        "modules.json",
        r#"[{"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}]"#,
    );
    folder.write("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": false}"#);
    folder.write("2_Dense/config.json", config);
    folder.tensors("2_Dense/model.safetensors", tensors);
    let pooling = Pooling::read(&folder.0);
    (folder, pooling)
}

const WEIGHT: (&str, &[usize], &[f32]) = ("linear.weight", &[3, 2], &[1.0, -0.5, 0.25, 2.0, 0.0, -1.0]);
const BIAS: (&str, &[usize], &[f32]) = ("linear.bias", &[3], &[0.125, -4.0, 0.75]);

#[test]
fn a_dense_layer_is_weight_times_mean_plus_bias() {
    let positions = arr3(&[[[1.0f32, 0.5], [0.0, 0.25], [9.0, 9.0]]]).into_dyn();
    // x = np.array([.5, .375]); w @ x + b, np.tanh(w @ x + b), w @ x
    let exact = [0.4375, -3.125, 0.375];
    let squashed = [0.411_570_06, -0.996_146_5, 0.358_357_4];
    let without = [0.3125, 0.875, -0.375];
    let tanh = "torch.nn.modules.activation.Tanh";
    let identity = "torch.nn.modules.linear.Identity";
    for (number, (activation, bias, wanted)) in
        [(identity, true, exact), (tanh, true, squashed), (identity, false, without)].into_iter().enumerate()
    {
        let config = format!(
            r#"{{"in_features": 2, "out_features": 3, "bias": {bias}, "activation_function": "{activation}"}}"#
        );
        let (_folder, pooling) = with_dense(&format!("dense{number}"), &config, &[WEIGHT, BIAS]);
        let pooling = pooling.unwrap();
        assert_eq!((&*pooling.modes, pooling.width(2, true)), (&[PoolingMode::Mean][..], 3));
        let found = pooling.apply(positions.clone(), &[2]).unwrap();
        assert!(near(found.as_slice().unwrap(), &wanted), "{activation}, bias {bias}: {found}");
    }
    // sentence-transformers' own defaults are tanh and a bias.
    let (_folder, pooling) = with_dense("dense-default", "{}", &[WEIGHT, BIAS]);
    assert!(near(pooling.unwrap().apply(positions.clone(), &[2]).unwrap().as_slice().unwrap(), &squashed));
    // A graph that returns one vector per item already contains its dense layer.
    let (_folder, pooling) = with_dense("dense-inside", "{}", &[WEIGHT, BIAS]);
    let ready = ndarray::arr2(&[[1.0f32, 2.0]]);
    assert_eq!(pooling.unwrap().apply(ready.clone().into_dyn(), &[1]).unwrap(), ready);
}

#[test]
fn dense_layers_follow_each_other() {
    let folder = Folder::new("dense-two");
    folder.write(
        "modules.json",
        r#"[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Dense", "type": "sentence_transformers.models.Dense"},
            {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}]"#,
    );
    folder.write("1_Pooling/config.json", r#"{"pooling_mode_cls_token": true}"#);
    for layer in ["2_Dense", "3_Dense"] {
        let identity = r#"{"bias": false, "activation_function": "torch.nn.modules.linear.Identity"}"#;
        folder.write(&format!("{layer}/config.json"), identity);
    }
    folder.tensors("2_Dense/model.safetensors", &[WEIGHT]);
    folder.tensors("3_Dense/model.safetensors", &[("linear.weight", &[1, 3], &[2.0, 4.0, 8.0])]);
    let pooling = Pooling::read(&folder.0).unwrap();
    assert_eq!(pooling.width(2, true), 1);
    // w @ [1, 0.5] = [.75, 1.25, -.5]; 2 * .75 + 4 * 1.25 - 8 * .5
    let found = pooling.apply(arr3(&[[[1.0f32, 0.5], [9.0, 9.0]]]).into_dyn(), &[2]).unwrap();
    assert!(near(found.as_slice().unwrap(), &[2.5]), "{found}");
}

#[test]
fn a_dense_layer_that_does_not_fit_is_refused() {
    let refused = |name: &str, tensors: &[(&str, &[usize], &[f32])]| {
        let (_folder, pooling) = with_dense(name, "{}", tensors);
        pooling.err().map(|error| error.kind)
    };
    assert_eq!(refused("dense-whole", &[WEIGHT, BIAS]), None);
    assert_eq!(refused("dense-short", &[WEIGHT, ("linear.bias", &[2], &[1.0, 2.0])]), Some(Kind::BadModel));
    assert_eq!(refused("dense-no-bias", &[WEIGHT]), Some(Kind::BadModel));
    let (_folder, pooling) = with_dense("dense-narrow", "{}", &[WEIGHT, BIAS]);
    let three = arr3(&[[[1.0f32, 0.5, 2.0]]]).into_dyn();
    assert_eq!(pooling.unwrap().apply(three, &[1]).unwrap_err().kind, Kind::BadModel);
}

#[test]
fn weights_are_read_in_each_of_their_types() {
    let positions = arr3(&[[[1.0f32, 0.5], [0.0, 0.25]]]).into_dyn();
    // The expected values are those of the test above; the numbers are exact in eight bits of mantissa.
    let exact = [0.4375, -3.125, 0.375];
    let config = r#"{"activation_function": "torch.nn.modules.linear.Identity"}"#;
    for kind in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let (folder, _) = with_dense(&format!("types-{kind:?}"), config, &[WEIGHT, BIAS]);
        folder.tensors_of(kind, "2_Dense/model.safetensors", &[WEIGHT, BIAS]);
        let found = Pooling::read(&folder.0).unwrap().apply(positions.clone(), &[2]).unwrap();
        assert!(near(found.as_slice().unwrap(), &exact), "{kind:?}: {found}");
    }
    let (folder, _) = with_dense("types-F64", config, &[WEIGHT, BIAS]);
    folder.tensors_of(Dtype::F64, "2_Dense/model.safetensors", &[WEIGHT, BIAS]);
    assert_eq!(Pooling::read(&folder.0).err().unwrap().kind, Kind::BadModel);
}

#[test]
fn the_logit_scale_is_read_in_each_of_its_types() {
    for kind in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        let folder = Folder::new(&format!("logits-{kind:?}"));
        let tensors: &[(&str, &[usize], &[f32])] =
            &[("other", &[3], &[9.0, 9.0, 9.0]), ("logit_scale", &[], &[4.59375]), ("logit_bias", &[1], &[-12.9375])];
        folder.tensors_of(kind, "model.safetensors", tensors);
        let found = Logits::stated(&bare(&folder.0)).unwrap().unwrap();
        // math.exp(4.59375)
        assert!((found.scale - 98.864_477_7).abs() < 1e-6, "{kind:?}: {found:?}");
        assert_eq!(found.bias, Some(-12.9375), "{kind:?}");
    }
    let folder = Folder::new("logits-F64");
    folder.tensors_of(Dtype::F64, "model.safetensors", &[("logit_scale", &[], &[4.5])]);
    assert_eq!(Logits::stated(&bare(&folder.0)).unwrap_err().kind, Kind::BadModel);
    // The configuration takes precedence, and a logarithm beyond 20 is invalid.
    folder.write("config.json", r#"{"logit_scale": 20.0}"#);
    assert_eq!(Logits::stated(&bare(&folder.0)).unwrap().unwrap().scale, 20f64.exp());
    for wrong in ["20.1", "-20.1", "\"four\""] {
        folder.write("config.json", &format!(r#"{{"logit_scale": {wrong}}}"#));
        assert_eq!(Logits::stated(&bare(&folder.0)).unwrap_err().kind, Kind::BadModel, "{wrong}");
    }
}

/// A model that consists only of its directory.
fn bare(directory: &Path) -> Model {
    Model {
        int8_vision: false,
        int8_text: false,
        name: "bare".to_owned(),
        directory: directory.to_owned(),
        vision: None,
        text: None,
        combined: false,
        whole: None,
        text_directory: directory.to_owned(),
        tokenizer: None,
        preprocess: None,
    }
}

#[test]
fn modes_of_pooling_are_read() {
    let folder = Folder::new("modes");
    let read = |config: &str| {
        folder.write("1_Pooling/config.json", config);
        Pooling::read(&folder.0).map(|pooling| pooling.modes).map_err(|error| error.kind)
    };
    assert_eq!(read(r#"{"pooling_mode_cls_token": true}"#), Ok(vec![PoolingMode::First]));
    assert_eq!(read(r#"{"pooling_mode_mean_tokens": true}"#), Ok(vec![PoolingMode::Mean]));
    assert_eq!(read(r#"{"pooling_mode_max_tokens": true}"#), Ok(vec![PoolingMode::Max]));
    assert_eq!(read(r#"{"pooling_mode_lasttoken": true}"#), Ok(vec![PoolingMode::Last]));
    let joined = Ok(vec![PoolingMode::First, PoolingMode::Max]);
    assert_eq!(read(r#"{"pooling_mode_max_tokens": true, "pooling_mode_cls_token": true}"#), joined);
    assert_eq!(read("{}"), Err(Kind::Unsupported));
}

#[test]
fn an_item_without_a_position_takes_the_first() {
    // A mean over zero positions would be NaN.
    let positions = arr3(&[[[3.0f32, 4.0], [7.0, 8.0]], [[5.0, 6.0], [1.0, 2.0]]]).into_dyn();
    let mean = Pooling { modes: vec![PoolingMode::Mean], ..Pooling::default() };
    assert_eq!(mean.apply(positions.clone(), &[0, 9]).unwrap(), ndarray::arr2(&[[3.0, 4.0], [3.0, 4.0]]));
    let last = Pooling { modes: vec![PoolingMode::Last], ..Pooling::default() };
    assert_eq!(last.apply(positions, &[1, 2]).unwrap(), ndarray::arr2(&[[3.0, 4.0], [1.0, 2.0]]));
}

#[test]
fn vectors_of_several_modes_are_joined() {
    let positions = arr3(&[[[3.0f32, 4.0], [7.0, 2.0], [9.0, 9.0]]]).into_dyn();
    let joined = Pooling { modes: vec![PoolingMode::Max, PoolingMode::Last], ..Pooling::default() };
    assert_eq!(joined.apply(positions, &[2]).unwrap(), ndarray::arr2(&[[7.0, 4.0, 7.0, 2.0]]));
    assert_eq!((joined.width(2, true), joined.width(2, false)), (4, 2));
}

#[test]
fn a_fit_is_as_straight_as_a_quantised_graph() {
    let file = Path::new("model.onnx");
    let xs: Vec<f64> = (0..20).map(|n| 0.1 + 0.01 * f64::from(n)).collect();
    // np.std(x) is 0.0577; a line of slope 100 spans 5.77 logits, of which 0.05 is allowed.
    let with_noise = |share: f64| -> Vec<(f64, f64)> {
        let noise = share * 100.0 * 0.057_662_8;
        xs.iter().enumerate().map(|(n, x)| (*x, 100.0 * x + if n % 2 == 0 { noise } else { -noise })).collect()
    };
    let found = Logits::fitted(&with_noise(0.04), file).expect("four hundredths of the spread");
    assert!((found.scale - 100.0).abs() < 1.0 && found.bias.is_none(), "{found:?}");
    assert!(Logits::fitted(&with_noise(0.07), file).is_none(), "seven hundredths of the spread");
}

#[test]
fn terms_cancel_out_below_a_ten_thousandth_of_their_length() {
    // For two terms with weights 1 and w, |1 - w| / (1 + w) of their length remains.
    let left = |weight: f64| combine(&[(1.0, &[0.6, 0.8]), (-weight, &[0.6, 0.8])]).map_err(|error| error.message);
    assert!(left(1.0 - 2.2e-4).is_ok());
    assert_eq!(left(1.0 - 1.8e-4).unwrap_err(), "the terms of the query cancel out");
    // Only the proportions of weights count: a thousand times as many terms change nothing.
    let (mut many, part): (Vec<(f64, &[f32])>, &[f32]) = (Vec::new(), &[0.6, 0.8]);
    for _ in 0..1000 {
        many.extend([(1.0, part), (-(1.0 - 1.8e-4), part)]);
    }
    assert_eq!(combine(&many).unwrap_err().message, "the terms of the query cancel out");
}

#[test]
fn a_cluster_holds_only_what_its_others_leave_room_for() {
    let unit = |degrees: f64| [degrees.to_radians().cos() as f32, degrees.to_radians().sin() as f32];
    let sum = |angles: &[f64]| {
        let mut sum = Sum::new(2);
        angles.iter().for_each(|angle| sum.add(&unit(*angle), None, 1));
        sum
    };
    // A sum of one member can hold only this member, within rounding (1e-4 of the length).
    let one = sum(&[0.0]);
    assert!(one.may_hold(&unit(0.0)) && one.may_hold(&unit(0.005)));
    assert!(!one.may_hold(&unit(0.01)) && !one.may_hold(&unit(180.0)));
    // Two members at right angles: without one of them a vector of length 1 remains; without any other vector, a longer
    // one.
    let two = sum(&[0.0, 90.0]);
    assert!(two.may_hold(&unit(0.0)) && two.may_hold(&unit(90.0)) && two.may_hold(&unit(45.0)));
    assert!(!two.may_hold(&unit(-5.0)) && !two.may_hold(&unit(180.0)));
    let empty = Sum::new(2);
    assert!(!empty.may_hold(&unit(0.0)));
}

#[test]
fn members_that_nearly_cancel_out_have_no_direction() {
    let mut sum = Sum::new(2);
    sum.add(&[1.0, 0.0], None, 1);
    sum.add(&[-1.0, 3e-6], None, 1);
    // 1.5e-6 per member remain, which is above a millionth.
    assert_eq!(sum.direction(), Some(vec![0.0, 1.0]));
    let mut less = Sum::new(2);
    less.add(&[1.0, 0.0], None, 1);
    less.add(&[-1.0, 1e-6], None, 1);
    assert_eq!(less.direction(), None);
}
