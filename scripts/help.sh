#!/usr/bin/env bash
cat <<'HELP'
clip_search: CLIP image and text embeddings inside PostgreSQL

  make              build the extension
  make install      build it, and install it with ONNX Runtime and the default model
  make demo         a demonstration: search real photos by words, group look-alikes; writes target/demo/gallery.html
  make test         unit tests, SQL tests, parity and concurrency
  make lint         rustfmt, clippy, ruff, shellcheck, and the direction of module dependencies (CHECKS='fmt ruff')
  make webapp       search your own photos in the browser, on 127.0.0.1 (PORT=8080), until Ctrl-C
  make clean        remove target/ and the throw-away cluster

A server to try things on, removed by make clean:
  make cluster      start it, with the default model preloaded and clip_search created in database clip_search
  eval "$(make -s env)" && psql
  make stop         stop it

Less often:
  make deps         install whatever is missing to build and run (other targets call it)
  make model        rebuild the default model from its parts and compare the result
  make image-corpus compare 675 image files of every sort with the reference decoders (fetches them by pip)
  make image-suites read directories of images next to Pillow and tifffile (SUITES="DIRECTORY …")
  make fuzz         feed mutated images, texts, configurations and models (ten minutes)
  make bench        run the benchmarks, for half an hour (BENCH=assign for one of them)
  make eval         evaluate search quality on 310 labelled photographs (MODEL=name or directory)
  make browser-test test the pages in Chromium, with screenshots and axe-core (installs Chromium if it is missing)
  make clients-test run every example of docs/clients.md, with what its language needs (pip, npm, cargo, apt)
  make bulk-test    test what embeds outside the server: a Dask cluster, readers of Parquet (fetches 40 packages by pip)
  make docs         regenerate the generated parts of docs/: the reference, the output of examples
  make feasibility  run the study in examples/feasibility: CLIP in SQL beside Python
  make soak-kill    kill the server and its worker two hundred times during writes (KILLS=n)
  make soak-hostile run two owners' tables beside a hostile role, with kills, for an hour (HOSTILE=seconds)
  make matrix       run the tests on PostgreSQL 15 to 18 (installed or built from source), then pg_upgrade
  make valgrind     run tests on a server built for valgrind's memcheck (TESTS= and K= choose others)
  make citus        run the statements of docs/citus.md on Citus (CITUS_SRC=, PGVECTOR_SRC=); speed and recall
  make check-arm64  check that it compiles for arm64; make arm64-test also runs it in an emulated arm64 root (Debian, root)
  make rpm          build RPMs, in target/rpm
  make image        build a container image by docker, podman or buildah (MAJOR=15 to 18, SUITE=, ARCH=); image-test tries it
  make deb          build Debian packages in target/deb; make deb-test installs and uses them on a clean root
  make mutants      find mutations of crates/clip that the tests miss, with cargo-mutants: a day or more (FILES='clustering/*.rs')
  make mutants-glue try a list of mutations of src/, each with its test: an hour or two (ONLY='words of the names')
  make soak         run concurrent sessions that assign clusters, with twenty seeds (SOAK=n)

Settings:
  PG_CONFIG=/path/to/pg_config   the server to build for (default: the one on PATH)
  PG_CONFIGS='path path'         make matrix: these servers only
  PGVECTOR_SRC=/path             build pgvector from this source, for servers that have none
  CITUS_SRC=/path                make citus: the source of Citus, a directory or a git repository
  PYTHON=/path/to/python3        Python 3.10 to 3.13, for the tests
  DESTDIR=/some/directory        install below it instead (for packagers)
  UNIT=resize                    make test: only the unit tests of this name
  TESTS=embed                    make test: only this file of tests/sql (or several: a,b)
  K='pillow or tokenizer'        make test: only the pytest tests that match
  ORDER=7                        make test: shuffle the pytest tests by this seed
HELP
