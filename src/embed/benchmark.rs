//! The time of each step on this machine: `clip_benchmark()`.

use std::time::Instant;

use clip::embedder::Embedder;
use clip::image::{Limits, synthetic};
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use crate::guc;
use crate::model::loaded;
use crate::pg::error::report;
use crate::pg::interrupt;
use crate::pg::text::Text;

#[pg_extern(volatile, parallel_restricted, cost = 1000000)]
#[allow(clippy::type_complexity)]
fn clip_benchmark(
    model: default!(Option<Text<'_>>, "NULL"),
) -> Result<TableIterator<'static, (name!(step, String), name!(items, i32), name!(ms_each, f64))>, ErrorReport> {
    let model = model.map(Text::str);
    let model = guc::model_or_default(model);
    let embedder = loaded::fresh(&model)?;
    interrupt::watch_runs();
    let rows = benchmark(embedder);
    interrupt::raise();
    rows.map(TableIterator::new).map_err(report)
}

/// Latency of each step, on generated photos and texts: (step, items, milliseconds per item).
fn benchmark(mut clip: Embedder) -> clip::Result<Vec<(String, i32, f64)>> {
    let limits = interrupt::watched(Limits { exact_jpeg: guc::limits().exact_jpeg, ..Limits::default() });
    let mut rows = Vec::new();
    let mut time = |what: &str, items: usize, work: &mut dyn FnMut() -> clip::Result<()>| {
        let start = Instant::now();
        work()?;
        rows.push((what.to_owned(), items as i32, start.elapsed().as_secs_f64() * 1e3 / items as f64));
        clip::Result::Ok(())
    };
    let has = (clip.model.vision.is_some(), clip.model.text.is_some());
    if has.0 {
        let photos =
            (0..16).map(|seed| synthetic::photo_within(640, 480, seed, &limits)).collect::<clip::Result<Vec<_>>>()?;
        let photos: Vec<&[u8]> = photos.iter().map(Vec::as_slice).collect();
        let large = synthetic::photo_within(4000, 3000, 99, &limits)?;
        let mut embed = |files: &[&[u8]]| clip.embed_images(files, &limits, &mut loaded::check_interrupts).map(drop);
        time("first photo of 0.3 megapixels, with the load of the image tower", 1, &mut || embed(&photos[..1]))?;
        time("photo of 0.3 megapixels, one by one", 16, &mut || photos.iter().try_for_each(|photo| embed(&[photo])))?;
        time("photo of 0.3 megapixels, in one array", 16, &mut || embed(&photos))?;
        time("photo of 12 megapixels", 2, &mut || [&large, &large].iter().try_for_each(|photo| embed(&[photo])))?;
    }
    if has.1 {
        let mut embed = |texts: &[&str]| clip.embed_texts(texts, true, &mut loaded::check_interrupts).map(drop);
        let few: Vec<String> = (0..20).map(|n| format!("photo number {n} on a wall")).collect();
        let many = "a rather long caption of a photograph that has much to tell ".repeat(5);
        let together: Vec<&str> = few.iter().map(String::as_str).collect();
        time("first text, with the load of the text tower", 1, &mut || embed(&["a cat on a mat"]))?;
        time("text of a few words, one by one", 20, &mut || few.iter().try_for_each(|text| embed(&[text])))?;
        time("text of a few words, in one array", 20, &mut || embed(&together))?;
        time("text of 60 words", 5, &mut || (0..5).try_for_each(|_| embed(&[&many])))?;
    }
    Ok(rows)
}
