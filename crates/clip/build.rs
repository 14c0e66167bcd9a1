//! Compiles the C part of the JPEG decoder against the headers of the libjpeg-turbo that turbojpeg-sys has built.

fn main() {
    println!("cargo:rerun-if-changed=src/image/jpeg/jpeg.c");
    let include = std::env::var("DEP_TURBOJPEG_INCLUDE").expect("turbojpeg-sys says where its headers are");
    cc::Build::new().includes(include.split(',')).file("src/image/jpeg/jpeg.c").warnings(true).compile("clip_jpeg");
}
