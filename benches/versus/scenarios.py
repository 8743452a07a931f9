"""What is compared: the loads, the origins they come from, who takes part, and what tierd must reach.

Only tables. Starts nothing and measures nothing.
"""

from dataclasses import dataclass, replace

# Connections of every contestant that can be told; aria2c takes no more for one server. tierd finds its own number.
CONNECTIONS = 16
# What tierd may use by its defaults, for the contestants that can have as many.
CONNECTIONS_MANY = 64
# `--quick` divides every size by this: good enough to see that all parts work, too small to judge by.
QUICK_DIVISOR = 4

# The set of a workflow: a diffusion model, text encoders and control nets, loras.
SET = (1024,) + (150,) * 4 + (15,) * 20


@dataclass(frozen=True)
class Link:
    """A link between the origin and the contestants, each in a network namespace of its own."""

    delay_ms: float  # one way
    rate_mbit: int


@dataclass(frozen=True)
class Scenario:
    """One load from one origin, and the goals for it."""

    name: str
    about: str
    origin: str  # "http" (nginx) or "s3" (SeaweedFS)
    sizes: tuple  # of the files, in MiB
    contestants: tuple  # apart from tierd's own
    times_peer_min: float  # fastest peer's time over tierd's
    rate_limit: str = ""  # of each connection, as nginx writes it
    link: Link | None = None
    times_floor_min: float = 0.75  # floor's time over tierd's
    cpu_max: float = 0.8  # seconds for each GiB, client and daemon together
    rss_max: int = 200  # MiB

    @property
    def mib(self):
        """Size of the load."""
        return sum(self.sizes)

    def quick(self):
        """The same with a smaller load."""
        return replace(self, sizes=tuple(max(1, size // QUICK_DIVISOR) for size in self.sizes))


_HTTP = ("aria2c", "curl", "rclone", "hf_transfer", "floor", "disk")

SCENARIOS = [
    Scenario("http-1g", "one file of 1 GiB over HTTP", "http", (1024,), _HTTP, 2.0),
    Scenario("http-4g", "one file of 4 GiB over HTTP", "http", (4096,), _HTTP, 2.0),
    Scenario("http-set", "25 files over HTTP: 1 GiB, 4 of 150 MiB, 20 of 15 MiB", "http", SET, _HTTP, 2.0),
    Scenario(
        "http-limited",
        "one file of 1 GiB over HTTP, 40 MiB/s for each connection",
        "http",
        (1024,),
        # curl has one connection: 26 s, and nothing to learn.
        ("aria2c", "rclone", "rclone-64", "hf_transfer", "floor", "floor-64"),
        2.0,
        rate_limit="40m",
    ),
    Scenario("s3-2g", "one object of 2 GiB from S3", "s3", (2048,), ("s5cmd", "rclone", "floor", "disk"), 1.7),
    Scenario("s3-set", "25 objects from S3, sizes as http-set", "s3", SET, ("s5cmd", "rclone", "floor", "disk"), 1.7),
    Scenario(
        "link",
        "one file of 2 GiB over HTTP, 15 ms round trip, 8 Gbit/s",
        "http",
        (2048,),
        # One stream of curl takes 11 s here.
        ("aria2c", "rclone", "hf_transfer", "floor"),
        1.8,
        link=Link(delay_ms=7.5, rate_mbit=8000),
    ),
]
