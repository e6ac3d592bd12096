# The images of nodestats: one static program each, on nothing.
#
#     docker build --target nodestats -t nodestats .
#     docker build --target nodestats-agent -t nodestats-agent .
#
# `cargo xtask image` needs no registry: it brings programs that it built itself as the build context
# `programs`, which takes the place of the stage of that name.

FROM docker.io/library/rust:1.95-bookworm AS programs
WORKDIR /source
COPY . .
# The architecture is that of the builder: `--platform linux/arm64` builds for arm64.
RUN target=$(rustc -vV | sed -n 's/^host: //p') \
    && export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/source=/nodestats --remap-path-prefix=/usr/local/cargo=/cargo" \
    && cargo build --locked --profile dist --target "$target" --package nodestats \
    && cargo build --locked --profile dist-agent --target "$target" --package nodestats-agent \
    && cp "target/$target/dist/nodestats" "target/$target/dist-agent/nodestats-agent" /

FROM scratch AS nodestats
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nodestats" \
      org.opencontainers.image.description="API and controller of nodestats" \
      org.opencontainers.image.source="https://github.com/nodestats/nodestats" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=programs /nodestats /nodestats
USER 65532:65532
ENTRYPOINT ["/nodestats"]

# An ordinary user without any capability sees all that an agent reports by default.
FROM scratch AS nodestats-agent
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="nodestats-agent" \
      org.opencontainers.image.description="Agent of nodestats, one on each node" \
      org.opencontainers.image.source="https://github.com/nodestats/nodestats" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=programs /nodestats-agent /nodestats-agent
USER 65534:65534
ENTRYPOINT ["/nodestats-agent"]
