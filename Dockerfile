# The images of nodestats: one static program each, on nothing. `cargo xtask image` builds the
# programs, and these from them.

FROM scratch AS nodestats
COPY nodestats /nodestats
USER 65532:65532
ENTRYPOINT ["/nodestats"]

# An ordinary user without any capability sees all that an agent reports by default.
FROM scratch AS nodestats-agent
COPY nodestats-agent /nodestats-agent
USER 65534:65534
ENTRYPOINT ["/nodestats-agent"]
