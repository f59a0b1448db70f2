# syntax=docker/dockerfile:1
# Tags move: to build from the same images each time, write `FROM rust:1.95-slim-trixie@sha256:…`;
# `docker buildx imagetools inspect rust:1.95-slim-trixie` prints the digest.

FROM rust:1.95-slim-trixie AS build
WORKDIR /build
# The allocator is built with it.
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    cargo build --release --locked --bin samovar && cp target/release/samovar /samovar

FROM debian:trixie-slim
# Authorities for https:// upstreams and rediss://.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin samovar
COPY --from=build /samovar /usr/local/bin/samovar
WORKDIR /app
COPY jobs jobs
USER 10001
# One request to the worker's /health. Where it listens is read from SAMOVAR_LISTEN, so set that rather than --listen.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["samovar", "health"]
ENTRYPOINT ["samovar"]
CMD ["worker"]
