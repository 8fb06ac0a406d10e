"""The server's configuration: one TOML file, frozen and typed. Unknown keys are refused.

Each part of the server gets only its own section.
"""

from pathlib import Path
from typing import Literal

import msgspec

from trimtab.errors import ConfigError

# Public-key algorithms only: the server holds no secret to sign with.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]

# The smallest weight of a tenant; the default is 1.
LEAST_WEIGHT = 0.01
MOST_FRONTENDS = 64


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files. With `client_ca`, only clients with a certificate it signed are accepted (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Jwt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which JSON Web Tokens to accept. `keys`: a JWK set, or one public key in PEM; only public keys."""

    keys: Path
    issuer: str
    audience: str
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")


class Auth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How callers are authenticated; with neither, everyone may do everything. Holds no secrets."""

    keys: Path | None = None
    jwt: Jwt | None = None


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens (port 0: any free one), and how long it drains before it cuts off calls."""

    grpc_address: str = "127.0.0.1:8001"
    metrics_address: str = "127.0.0.1:8002"
    frontends: int = 0  # processes that take calls, for one engine; 1: all in one process; 0: by the devices
    health_address: str = ""  # for probes: only grpc.health.v1, in plain text; empty: off
    drain_seconds: float = 30.0
    max_connection_age_seconds: float = 0.0  # after this, clients must reconnect; 0: never
    max_idle_seconds: float = 600.0  # closes a connection without calls after this; 0: never
    keepalive_seconds: float = 60.0  # pings a client that has been silent for this long
    admin_address: str = ""  # the only address for loading and unloading; empty: grpc_address
    tenant_header: str = ""  # metadata key with a call's tenant; empty: all calls share one
    tls: Tls | None = None


class LimitSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one request, and of all requests together."""

    max_texts: int = 1024
    max_text_bytes: int = 1 << 18
    max_message_bytes: int = 4 << 20  # gRPC's own default; a message of 16 MiB would delay others by 20 ms
    max_connections: int = 128  # per port; further ones are closed
    max_calls: int = 4096  # open at a time, on all ports
    max_calls_per_connection: int = 128
    max_received_bytes: int = 256 << 20  # of incoming messages, and as many of those being answered
    max_stream_texts: int = 2048  # unanswered texts of a stream before the server stops reading it
    max_tokens_in_flight: int = 1 << 20
    max_unread_bytes: int = 256 << 20  # of answers not yet read by clients; a quarter of it per connection
    max_unread_seconds: float = 120.0  # closes a connection that takes longer to read an answer

    def __post_init__(self) -> None:
        if self.max_stream_texts < self.max_texts:
            raise ValueError("max_stream_texts must be at least max_texts, or the largest request never fits")
        if self.max_received_bytes < self.max_message_bytes:
            raise ValueError(
                "max_received_bytes must be at least max_message_bytes, or the largest message never fits"
            )


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may use. 0 means no limit; `burst_tokens` 0: ten seconds' worth. `weight`: its share of
    the devices relative to other tenants."""

    tokens_per_second: float = 0.0
    burst_tokens: int = 0
    max_tokens_in_flight: int = 0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("tokens_per_second", "burst_tokens", "max_tokens_in_flight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} of a quota must not be negative; 0 is no limit")
        if self.burst_tokens and not self.tokens_per_second:
            raise ValueError("burst_tokens of a quota has no effect without tokens_per_second: set both")
        if not LEAST_WEIGHT <= self.weight <= 1 / LEAST_WEIGHT:
            raise ValueError(f"weight of a quota must be from {LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}")


class TokenizationSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many threads turn texts into ids."""

    threads: int = 1


class BatchingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Upper bounds of a batch; within them, the measured cost of the graph decides its size."""

    max_batch_tokens: int = 16384
    max_batch_texts: int = 256


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How graphs are run.

    hang_seconds: a run hangs if it takes longer than this and than 20 times its predicted time.
    load_seconds: the most that one step of a load may take, such as reading the files, opening a graph or one
        run.
    costs: the folder that keeps measured costs for the next start; empty: none.
    isolation: run graphs on threads of the server, or in one process per device.
    max_resident_bytes: a device process that holds more is replaced; 0: no limit.
    """

    hang_seconds: float = 10.0
    load_seconds: float = 60.0
    costs: str = "~/.cache/trimtab/costs"
    isolation: Literal["thread", "process"] = "thread"
    max_resident_bytes: int = 0

    def __post_init__(self) -> None:
        for name in ("hang_seconds", "load_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"engine.{name} must be more than 0")
        if self.max_resident_bytes < 0:
            raise ValueError("max_resident_bytes must not be negative; 0 is no limit")
        if self.max_resident_bytes and self.isolation != "process":
            raise ValueError(
                "max_resident_bytes limits a device's own process: set isolation = 'process', too"
            )


class SharingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whether identical texts in flight are computed once, and the size of the vector cache."""

    single_flight: bool = True
    across_tenants: bool = False
    cache_bytes: int = 0


class RescoringSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The size of the cache of Rescore's candidates, by id; 0: no cache."""

    cache_bytes: int = 64 << 20


class VersionsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many of an encoder's newest versions are served (0: all), and how often the repository is checked
    for changes, in seconds (0: only when a client asks)."""

    newest: int = 0
    poll_seconds: float = 0.0


class TrialSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version on trial, and its share of the requests (a canary) or of the texts (a shadow)."""

    version: int | Literal["newest"] = "newest"
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be a fraction of 1, such as 0.05")


class Signatures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Serve only bundles and adapters signed by these Ed25519 public keys in PEM; None: any."""

    keys: Path | None = None


class BrownoutSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a cheaper variant answers instead of its encoder, and how much retrieval quality it must keep.

    Starts when the predicted queue exceeds `above_seconds`; ends once the queue has stayed below half of that
    for `calm_seconds`. Each tenant has its own state.
    """

    variant: str
    min_quality: float
    above_seconds: float = 0.25
    calm_seconds: float = 5.0


class GuardSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do about passages that would be found by far too many queries. Text files, one text per line:
    sentinel `queries`, and ordinary `passages`. `false_alarms`: the share of those that may be flagged."""

    queries: Path
    passages: Path
    false_alarms: float = 0.01
    action: Literal["flag", "refuse"] = "flag"

    def __post_init__(self) -> None:
        if not 0 < self.false_alarms < 1:
            raise ValueError(f"false_alarms is {self.false_alarms}; it must be a fraction of 1, such as 0.01")


class EncoderSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which variants of an encoder are loaded besides the first of its bundle (a brownout's always is), and
    whether its passages are checked."""

    variants: tuple[str, ...] = ()
    brownout: BrownoutSettings | None = None
    guard: GuardSettings | None = None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The variants to load."""
        return self.variants if self.brownout is None else (*self.variants, self.brownout.variant)


class LoggingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is written to standard error. `calls`: one line per call, at any level."""

    level: Literal["debug", "info", "warning", "error"] = "warning"
    format: Literal["text", "json"] = "text"
    calls: bool = False


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where spans go (OTLP over gRPC; empty: nowhere), and the share traced of calls without traceparent."""

    endpoint: str = ""
    share: float = 0.01


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file. `devices`: a list of "auto", or of "cpu", "cpu:0-3", "cuda:0", "tensorrt:0"."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    quota: Quota = Quota()  # for each tenant without its own in `tenants`
    tenants: dict[str, Quota] = {}
    tokenization: TokenizationSettings = TokenizationSettings()
    batching: BatchingSettings = BatchingSettings()
    engine: EngineSettings = EngineSettings()
    sharing: SharingSettings = SharingSettings()
    versions: VersionsSettings = VersionsSettings()
    canary: dict[str, TrialSettings] = {}  # by encoder
    shadow: dict[str, TrialSettings] = {}
    rescoring: RescoringSettings = RescoringSettings()
    auth: Auth = Auth()
    signatures: Signatures = Signatures()
    logging: LoggingSettings = LoggingSettings()
    tracing: TracingSettings = TracingSettings()
    devices: tuple[str, ...] = ("auto",)
    encoders: dict[str, EncoderSettings] = {}

    def __post_init__(self) -> None:
        if (self.canary or self.shadow) and self.versions.newest == 1:
            raise ValueError(
                "a version on trial (canary, shadow) needs a second version, but versions.newest is 1: "
                "set it to 2 or more, or to 0 for all"
            )


def read(path: Path) -> Config:
    """Read a TOML file; ConfigError names the key that is unknown or of the wrong type."""
    try:
        config = msgspec.toml.decode(path.read_bytes(), type=Config, dec_hook=_decode)
    except FileNotFoundError:
        raise ConfigError(f"the configuration file {path} does not exist") from None
    except (OSError, ValueError) as error:  # msgspec's errors and a TOML file that does not parse
        raise ConfigError(f"{path}: {error}") from None
    check(config, str(path))
    return config


def encode(config: Config) -> bytes:
    """A configuration, for another process of the server."""
    return msgspec.json.encode(config, enc_hook=str)  # of paths


def decode(data: bytes) -> Config:
    """What `encode` made of it."""
    return msgspec.json.decode(data, type=Config, dec_hook=_decode)


def _decode(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise ValueError(f"{value!r} is not a path")
    return Path(value)


def check(config: Config, source: str) -> None:
    """Refuse numbers with which the server could serve nobody."""
    for name in ("limits", "tokenization", "batching"):
        section = getattr(config, name)
        for field in section.__struct_fields__:
            if getattr(section, field) < 1:
                raise ConfigError(f"{source}: {name}.{field} must be at least 1")
    _check_server(config.server, source)
    if config.versions.newest < 0 or config.versions.poll_seconds < 0:
        raise ConfigError(
            f"{source}: versions.newest and versions.poll_seconds must not be negative; "
            "0 serves all versions, and checks for new ones only on request"
        )
    for name in ("sharing", "rescoring"):
        if getattr(config, name).cache_bytes < 0:
            raise ConfigError(f"{source}: {name}.cache_bytes must not be negative; 0 means no cache")
    if not 0 <= config.tracing.share <= 1:
        raise ConfigError(
            f"{source}: tracing.share is {config.tracing.share}; it must be a fraction of 1, such as 0.01"
        )
    if not config.tracing.endpoint.startswith(("http://", "https://")) and config.tracing.endpoint:
        raise ConfigError(f"{source}: tracing.endpoint must begin with http:// (plain text) or https://")
    _check_encoders(config.encoders, source)
    if not config.devices:
        raise ConfigError(f"{source}: devices is empty; leave it out for 'auto'")


def _check_server(server: ServerSettings, source: str) -> None:
    for name in ("drain_seconds", "max_connection_age_seconds", "max_idle_seconds"):
        if getattr(server, name) < 0:
            no_limit = "" if name == "drain_seconds" else "; 0 is no limit"
            raise ConfigError(f"{source}: server.{name} must not be negative{no_limit}")
    if not 0 <= server.frontends <= MOST_FRONTENDS:
        raise ConfigError(
            f"{source}: server.frontends is {server.frontends}; it must be from 0 to {MOST_FRONTENDS}; "
            "0 leaves the choice to the server"
        )
    if not server.keepalive_seconds > 0:
        raise ConfigError(f"{source}: server.keepalive_seconds must be more than 0")


def _check_encoders(encoders: dict[str, EncoderSettings], source: str) -> None:
    for name, encoder in encoders.items():
        brownout, where = encoder.brownout, f"{source}: encoders.{name}.brownout"
        if brownout is None:
            continue
        if not 0 < brownout.min_quality <= 1:
            raise ConfigError(
                f"{where}.min_quality is {brownout.min_quality:g}; it must be a share of the encoder's own "
                "retrieval quality, such as 0.97"
            )
        if not brownout.above_seconds > 0 or not brownout.calm_seconds >= 0:
            raise ConfigError(f"{where}: above_seconds must be more than 0, calm_seconds not negative")


def split_address(address: str) -> tuple[str, int]:
    """'host:port' or '[::1]:port' as (host, port)."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"address {address!r} is not of the form HOST:PORT, such as 127.0.0.1:8001")
    return host.strip("[]"), int(port)
