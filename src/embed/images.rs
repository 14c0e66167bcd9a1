//! Other functions for image files: thumbnail and header.

use clip::image::Taken;
use clip::image::info::info;
use clip::image::thumbnail::{Format, bad_edge, thumbnail};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;
use crate::pg::error::{SqlResult, report};
use crate::pg::interrupt;
use crate::pg::text::Text;

#[pg_extern(stable, strict, parallel_safe, cost = 50000)]
fn clip_thumbnail(
    image: &[u8],
    edge: default!(i32, "256"),
    format: default!(Text<'_>, "'jpeg'"),
) -> SqlResult<Vec<u8>> {
    let Text(format) = format;
    let format = Format::named(format).map_err(report)?;
    let edge = u32::try_from(edge).map_err(|_| report(bad_edge(edge)))?;
    let small = thumbnail(image, edge, format, &interrupt::watched(guc::limits()));
    interrupt::raise();
    small.map_err(report)
}

#[pg_extern(immutable, strict, parallel_safe, cost = 100)]
#[allow(clippy::type_complexity)]
fn clip_image_info(
    image: &[u8],
) -> Result<
    TableIterator<
        'static,
        (
            name!(format, String),
            name!(width, i64),
            name!(height, i64),
            name!(orientation, i32),
            name!(channels, i32),
            name!(frames, i64),
            name!(bytes, i64),
            name!(bits, i32),
            name!(taken, Option<Timestamp>),
            name!(taken_offset, Option<Interval>),
        ),
    >,
    ErrorReport,
> {
    let info = info(image, &interrupt::watched(guc::limits()));
    interrupt::raise();
    let info = info.map_err(report)?;
    Ok(TableIterator::once((
        info.format.to_owned(),
        i64::from(info.width),
        i64::from(info.height),
        i32::from(info.orientation),
        i32::from(info.channels),
        i64::from(info.frames),
        info.bytes as i64,
        i32::from(info.bits),
        info.taken.and_then(timestamp),
        info.taken.and_then(|taken| Interval::new(0, 0, i64::from(taken.offset?) * 60_000_000).ok()),
    )))
}

fn timestamp(taken: Taken) -> Option<Timestamp> {
    let Taken { year, month, day, hour, minute, second, microsecond, .. } = taken;
    let seconds = f64::from(second) + f64::from(microsecond) / 1e6;
    Timestamp::new(i32::from(year), month, day, hour, minute, seconds).ok()
}
