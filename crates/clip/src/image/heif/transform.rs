//! The visible part of a coded picture, and its rotation: applies the properties clap, irot and imir in the file's
//! order.

use heifer_isobmff::boxes::Property;
use image::metadata::Orientation;

use crate::image::orientation::{mirrored, swaps_sides, turned};

/// A part of a stored picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub left: u32,
    pub top: u32,
    pub size: (u32, u32),
}

/// The part in which libheif interpolates subsampled chroma: `both` for 4:2:0, `columns` for 4:2:2. libheif crops and
/// turns a picture before it converts its colours. If a crop or turn would separate pairs of columns or rows that share
/// a chroma sample, it first scales chroma to full size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InterpolatedChroma {
    pub both: Option<Part>,
    pub columns: Option<Part>,
}

/// The visible part of a picture, and its rotation.
#[derive(Clone, Copy, Debug)]
pub(super) struct VisibleArea {
    pub part: Part,
    pub orientation: Orientation,
    // AV1's chroma is always interpolated, so AVIF doesn't use this.
    #[cfg_attr(not(feature = "heic"), allow(dead_code))]
    pub smooth: InterpolatedChroma,
}

/// The visible part of a picture of this size and its orientation, by the item's properties. None if a crop is empty or
/// outside the picture.
pub(super) fn visible_area<'a>(
    size: (u32, u32),
    properties: impl Iterator<Item = &'a Property>,
) -> Option<VisibleArea> {
    let mut part = Part { left: 0, top: 0, size };
    let mut orientation = Orientation::NoTransforms;
    let mut smooth = InterpolatedChroma::default();
    for property in properties {
        let (width, height) = turned(part.size, orientation);
        let (odd_width, odd_height) = (width % 2 == 1, height % 2 == 1);
        let (both, columns) = match property {
            Property::Rotation(1) => (odd_width, true),
            Property::Rotation(2) => (odd_width || odd_height, odd_height),
            Property::Rotation(3) => (odd_height, true),
            Property::Mirror(vertical) => (odd_width || odd_height, !vertical && odd_width),
            Property::CleanAperture { width: across, height: down, horiz_offset, vert_offset } => {
                let left = stretch(width, *across, *horiz_offset)?.0 % 2 == 1;
                (left || stretch(height, *down, *vert_offset)?.0 % 2 == 1, left)
            }
            _ => (false, false),
        };
        smooth.both = smooth.both.or(both.then_some(part));
        smooth.columns = smooth.columns.or(columns.then_some(part));
        orientation = match property {
            // Counted anticlockwise.
            Property::Rotation(1) => then(orientation, Orientation::Rotate270),
            Property::Rotation(2) => then(orientation, Orientation::Rotate180),
            Property::Rotation(3) => then(orientation, Orientation::Rotate90),
            Property::Mirror(true) => then(orientation, Orientation::FlipVertical),
            Property::Mirror(false) => then(orientation, Orientation::FlipHorizontal),
            Property::CleanAperture { width, height, horiz_offset, vert_offset } => {
                let upright = turned(part.size, orientation);
                let across = stretch(upright.0, *width, *horiz_offset)?;
                let down = stretch(upright.1, *height, *vert_offset)?;
                part = within(part, orientation, across, down);
                orientation
            }
            _ => orientation,
        };
    }
    Some(VisibleArea { part, orientation, smooth })
}

/// The start and length of a clean aperture along one side: `length` pixels around the middle, moved by `offset`; both
/// are fractions (ISO/IEC 14496-12, 12.1.4). The result is rounded as in libheif and clipped to the picture.
fn stretch(side: u32, length: (u32, u32), offset: (i32, u32)) -> Option<(u32, u32)> {
    let (numerator, denominator) = (i128::from(length.0), i128::from(length.1));
    let (offset, parts) = (i128::from(offset.0), i128::from(offset.1));
    if numerator == 0 || denominator == 0 || parts == 0 {
        return None;
    }
    // The position of the first pixel, offset + (side − length) / 2, as a multiple of 1 / `divisor`.
    let divisor = 2 * parts * denominator;
    let first = 2 * offset * denominator + (i128::from(side) * denominator - numerator) * parts;
    // The position of the last pixel, in the same unit, rounded to the nearest pixel.
    let last = first + (numerator - denominator) * 2 * parts;
    let (from, to) = (first.div_euclid(divisor), (2 * last + divisor).div_euclid(2 * divisor));
    let (from, to) = (from.max(0), to.min(i128::from(side) - 1));
    (from <= to).then_some((from as u32, (to - from + 1) as u32))
}

/// The crop in stored coordinates: `across` and `down` are start and length in the upright picture.
fn within(part: Part, orientation: Orientation, across: (u32, u32), down: (u32, u32)) -> Part {
    let upright = turned(part.size, orientation);
    let (from_right, from_bottom) = mirrored(orientation);
    let start = |(from, length): (u32, u32), side: u32, reversed: bool| {
        if reversed { side - from - length } else { from }
    };
    let (x, y) = (start(across, upright.0, from_right), start(down, upright.1, from_bottom));
    let ((x, width), (y, height)) = ((x, across.1), (y, down.1));
    let (x, y, size) = if swaps_sides(orientation) { (y, x, (height, width)) } else { (x, y, (width, height)) };
    Part { left: part.left + x, top: part.top + y, size }
}

/// Combines two successive orientations.
fn then(first: Orientation, second: Orientation) -> Orientation {
    // Each orientation maps a point (x, y) of a square around 0 to (±x, ±y) or (±y, ±x).
    let map = |orientation, (x, y): (i8, i8)| match orientation {
        Orientation::NoTransforms => (x, y),
        Orientation::FlipHorizontal => (-x, y),
        Orientation::Rotate180 => (-x, -y),
        Orientation::FlipVertical => (x, -y),
        Orientation::Rotate90FlipH => (y, x),
        Orientation::Rotate90 => (-y, x),
        Orientation::Rotate270FlipH => (-y, -x),
        Orientation::Rotate270 => (y, -x),
    };
    let both = |point| map(second, map(first, point));
    let all = (1..=8).filter_map(Orientation::from_exif);
    all.into_iter().find(|one| [(1, 2), (2, 1)].iter().all(|p| map(*one, *p) == both(*p))).unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::RgbImage;

    use crate::image::Limits;
    use crate::image::orientation::upright;

    #[test]
    fn turns_after_turns_are_turns() {
        use Orientation as O;
        for (first, second, both) in [
            (O::Rotate90, O::Rotate90, O::Rotate180),
            (O::Rotate90, O::FlipHorizontal, O::Rotate90FlipH),
            (O::Rotate270, O::FlipHorizontal, O::Rotate270FlipH),
            (O::Rotate180, O::FlipVertical, O::FlipHorizontal),
            (O::Rotate90FlipH, O::Rotate90FlipH, O::NoTransforms),
        ] {
            assert_eq!(then(first, second), both, "{first:?} {second:?}");
        }
    }

    fn clap(width: (u32, u32), height: (u32, u32), across: (i32, u32), down: (i32, u32)) -> Property {
        Property::CleanAperture { width, height, horiz_offset: across, vert_offset: down }
    }

    #[test]
    fn a_part_is_where_the_file_says() {
        let of = |property: Property| visible_area((64, 48), [property].iter()).map(|visible_area| visible_area.part);
        // libheif writes this for a picture of 61 × 33 at the top left.
        let part = Part { left: 0, top: 0, size: (61, 33) };
        assert_eq!(of(clap((61, 1), (33, 1), (-3, 2), (-15, 2))), Some(part));
        // A crop around the middle, moved by a quarter pixel: the start, 10.25, is rounded down; the end, 10.25 + 43,
        // to the nearest.
        assert_eq!(of(clap((44, 1), (20, 1), (0, 1), (0, 1))), Some(Part { left: 10, top: 14, size: (44, 20) }));
        assert_eq!(of(clap((44, 1), (20, 1), (1, 4), (0, 1))), Some(Part { left: 10, top: 14, size: (44, 20) }));
        // A crop is clipped at the picture's edges.
        assert_eq!(of(clap((100, 1), (48, 1), (0, 1), (0, 1))), Some(Part { left: 0, top: 0, size: (64, 48) }));
        for none in [
            clap((0, 1), (20, 1), (0, 1), (0, 1)),
            clap((44, 0), (20, 1), (0, 1), (0, 1)),
            clap((44, 1), (20, 1), (0, 0), (0, 1)),
            clap((44, 1), (20, 1), (i32::MAX, 1), (0, 1)),
            clap((44, 1), (20, 1), (i32::MIN, u32::MAX), (i32::MIN, 1)),
        ] {
            assert_eq!(of(none.clone()), None, "{none:?}");
        }
    }

    #[test]
    fn pairs_that_are_torn_apart() {
        let of = |size, property: Property| {
            let smooth = visible_area(size, [property].iter()).unwrap().smooth;
            (smooth.both.is_some(), smooth.columns.is_some())
        };
        assert_eq!(of((64, 48), Property::Rotation(1)), (false, true));
        assert_eq!(of((64, 48), Property::Rotation(2)), (false, false));
        assert_eq!(of((63, 48), Property::Rotation(1)), (true, true));
        assert_eq!(of((63, 48), Property::Rotation(3)), (false, true));
        assert_eq!(of((63, 48), Property::Mirror(false)), (true, true));
        assert_eq!(of((64, 48), clap((44, 1), (20, 1), (1, 1), (0, 1))), (true, true));
        assert_eq!(of((64, 48), clap((44, 1), (20, 1), (0, 1), (0, 1))), (false, false));
    }

    /// A crop that follows a turn applies to the turned picture.
    #[test]
    fn the_order_of_properties_counts() {
        let picture = RgbImage::from_fn(9, 6, |x, y| image::Rgb([x as u8, y as u8, 0]));
        let crop = |picture: &RgbImage, part: Part| {
            image::imageops::crop_imm(picture, part.left, part.top, part.size.0, part.size.1).to_image()
        };
        for turns in [0, 1, 2, 3] {
            for mirror in [None, Some(true), Some(false)] {
                let mut before: Vec<Property> = vec![Property::Rotation(turns)];
                before.extend(mirror.map(Property::Mirror));
                let orientation = visible_area((9, 6), before.iter()).unwrap().orientation;
                let whole = upright(picture.clone(), orientation, &Limits::default()).unwrap();
                let then_cut = clap((4, 1), (3, 1), (-1, 2), (1, 2));
                let wanted = visible_area(whole.dimensions(), [then_cut.clone()].iter()).unwrap().part;
                before.push(then_cut);
                let VisibleArea { part, orientation, .. } = visible_area((9, 6), before.iter()).unwrap();
                let found = upright(crop(&picture, part), orientation, &Limits::default()).unwrap();
                assert!(found == crop(&whole, wanted), "{before:?}");
            }
        }
    }
}
