# syntax=docker/dockerfile:1

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
# Healthy means: the settings and job files are sound, and Redis answers.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 CMD ["samovar", "jobs", "--json"]
ENTRYPOINT ["samovar"]
CMD ["worker"]
