#!/usr/bin/env bash
cat <<'HELP'
clip_search: CLIP image and text embeddings inside PostgreSQL

  make              build the extension
  make install      build it, and install it with ONNX Runtime and the default model
  make demo         see it work: real photos, found by words, grouped by likeness; writes target/demo/gallery.html
  make test         unit tests, SQL tests, parity and concurrency
  make lint         rustfmt, clippy, ruff, shellcheck, and how modules depend on each other (CHECKS='fmt ruff')
  make webapp       search photos of yours in the browser, on 127.0.0.1 (PORT=8080), until Ctrl-C
  make clean        remove target/ and the throw-away cluster

A server to play with, which goes away with make clean:
  make cluster      start it, with the default model preloaded and clip_search created in database clip_search
  eval "$(make -s env)" && psql
  make stop         stop it

Less often:
  make deps         install what is missing to build and run (the others call it)
  make model        rebuild the default model from its parts and compare
  make image-corpus  500 image files of every sort against the reference decoders
  make fuzz         mutated images, texts, configurations and models (ten minutes)
  make bench        the benchmarks of clusters, for half an hour (BENCH=assign for one of them)
  make eval         how well a model finds, on 310 labelled photographs (MODEL=name or directory)
  make browser-test what people look at, in a real browser: screenshots, axe-core (installs Chromium if there is none)
  make docs         write anew what is generated in docs/: the reference, the output of examples
  make feasibility  the study in examples/feasibility: CLIP in SQL beside Python, in one run
  make soak-kill    the server and its worker killed two hundred times while rows are written (KILLS=n for n)
  make soak-hostile two owners' tables beside a role that means harm, with kills, for an hour (HOSTILE=seconds)
  make matrix       the tests on PostgreSQL 15 to 18, as far as they are here or can be built, then pg_upgrade
  make valgrind     the tests on a server under valgrind's memcheck, which it builds (TESTS= and K= choose others)
  make citus        the statements of docs/citus.md on Citus (CITUS_SRC=, PGVECTOR_SRC=), with a table of speed and recall
  make check-arm64  whether it compiles for arm64 (rustup target add aarch64-unknown-linux-gnu; gcc-aarch64-linux-gnu)
  make deb          Debian packages, in target/deb; make deb-test installs and uses them on a clean root
  make soak         sessions that group against each other, for twenty seeds (SOAK=n for n)

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
HELP
