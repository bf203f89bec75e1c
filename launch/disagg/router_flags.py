"""What every router of a deployment is told besides its servers."""

WATCHFUL = (
    "--health-check-interval-secs", "5",
    "--health-failure-threshold", "2",
    "--health-success-threshold", "1",
    "--cb-timeout-duration-secs", "5",
    "--cb-success-threshold", "1",
)  # fmt: skip
"""The Rust router's own defaults look at servers once a minute: it sends requests to one that is dead for up to three
minutes, and none to one that is back for two."""
