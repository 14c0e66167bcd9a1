//! The pictures and texts that calibrate and check quantized graphs.

/// The number of pictures for the image tower: half of them calibrate, half check.
pub(super) const PICTURES: usize = 24;
/// The texts for the text tower: every second one calibrates, the others check.
pub(super) const TEXTS: [&str; 24] = [
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
