#!/usr/bin/env python3
"""Measures how long a HEIC of 12 megapixels takes to become a vector, next to pillow-heif's decoding and Pillow's
resizing.

  python benches/peers/heic.py EMBED_BENCH LIBONNXRUNTIME MODEL_DIRECTORY [ROUNDS]

EMBED_BENCH is the example of crates/clip of that name, built with --release. Both sides have one thread and take turns
in one run, so a busy machine slows both. pillow-heif decodes and resizes only; this side also runs the image tower.
Needs Pillow 13.0.0, numpy 2.4.6 and pillow-heif 1.8.1.
"""

from __future__ import annotations

import io
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import pillow_heif
from PIL import Image

PHOTO = pathlib.Path(__file__).resolve().parents[2] / "examples" / "gallery" / "photos" / "dahlia.jpg"
SIZE = (4032, 3024)


def heic() -> bytes:
    photo = Image.open(PHOTO).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(1).normal(0, 6, (SIZE[1], SIZE[0], 1))
    out = io.BytesIO()
    noisy = Image.fromarray((np.asarray(photo) + noise).clip(0, 255).astype(np.uint8))
    pillow_heif.from_pillow(noisy).save(out, format="HEIF", quality=60)
    return out.getvalue()


def main() -> None:
    program, library, model = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 7
    pillow_heif.options.DECODE_THREADS = 1
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "photo.heic"
        path.write_bytes(heic())
        print(f"{SIZE[0]}×{SIZE[1]}, {path.stat().st_size >> 10} kB")
        bench = subprocess.Popen([program, library, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert bench.stdin and bench.stdout
        ours, theirs, stages = [], [], []
        for turn in range(rounds + 1):
            for op, times in (("images", ours), ("stages", stages)):
                bench.stdin.write(json.dumps({"op": op, "files": [str(path)], "exact": True}) + "\n")
                bench.stdin.flush()
                answer = json.loads(bench.stdout.readline())
                assert "error" not in answer, answer
                # The first round also loads everything that is loaded once.
                if turn > 0:
                    times.append(answer["ms"] if op == "images" else answer["decode"])
            start = time.perf_counter()
            data = path.read_bytes()
            image = pillow_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=True).to_pillow().convert("RGB")
            image.resize((298, 224), Image.Resampling.BICUBIC)
            if turn > 0:
                theirs.append((time.perf_counter() - start) * 1e3)
        bench.stdin.close()
        bench.wait()
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(f"to the vector {statistics.median(ours):.0f} ms, of which decoding {statistics.median(stages):.0f} ms")
    print(f"pillow-heif and Pillow {statistics.median(theirs):.0f} ms")
    print(f"ratio {ratio:.2f}, the median of {rounds} rounds")


if __name__ == "__main__":
    main()
