# syntax=docker/dockerfile:1

# Both stages are the same Debian: the binary links to its glibc.
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches keep crates and object files between builds; the binary is copied out because a cache mount is not in the image.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin tierd \
    && install -D -m 0755 target/release/tierd /out/usr/bin/tierd

FROM debian:bookworm-slim
# The certificate authorities of HTTPS origins.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o 1000 -g 1000 -m 0750 /var/lib/tierd /run/tierd
COPY --from=build /out/ /
# Not root. Run ComfyUI with the same group, or set TIERD_STORE__FILE_MODE and TIERD_STORE__DIR_MODE.
USER 1000:1000
# Where the daemon keeps models and opens its socket, and metrics for scrapers outside the container.
ENV STATE_DIRECTORY=/var/lib/tierd \
    RUNTIME_DIRECTORY=/run/tierd \
    TIERD_LISTEN__HTTP=0.0.0.0:9469
VOLUME ["/var/lib/tierd"]
EXPOSE 9469
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 CMD ["/usr/bin/tierd", "health"]
ENTRYPOINT ["/usr/bin/tierd"]
CMD ["serve"]
