"""The options of a request: the keywords of every `embed` call, checked, and put into a message. No IO."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from trimtab.core.answers import Encoder
from trimtab.errors import InvalidArgument, NotFound
from trimtab.kinds import PRIORITIES, ROLES, TRUNCATIONS, Dtype, Priority, Role, Truncate, check_dtype
from trimtab.v1 import encoder_pb2 as pb
from trimtab.values.dense import TO_PROTO

_ROLES = {None: pb.ROLE_UNSPECIFIED, "query": pb.ROLE_QUERY, "passage": pb.ROLE_PASSAGE}
_TRUNCATIONS = {"end": pb.TRUNCATE_END, "start": pb.TRUNCATE_START, "none": pb.TRUNCATE_NONE}
_PRIORITIES = {"interactive": pb.PRIORITY_INTERACTIVE, "bulk": pb.PRIORITY_BULK}
_UINT32 = 2**32


class EmbedOptions(TypedDict, total=False):
    """How texts are embedded: the keywords of every `embed` call.

    encoder: the encoder's name; may be left out where the server serves only one.
    version: the encoder's version; left out, the newest.
    role: "query" or "passage"; needed by encoders with prompts, left out for those without.
    dimensions: leading components to keep; left out, all.
    dtype: what a component is: "float32" (the default), "float16", "int8" (multiply by `Embeddings.scale`
        for the value) or "ubinary" (one sign bit a component, eight to a byte, the first in the highest bit).
    truncate: where a text of more tokens than the encoder reads is cut: at its "end" (the default), at its
        "start", or "none": then such a text is refused with InvalidArgument.
    priority: "interactive" (the default), or "bulk" for work that nobody waits for: it goes on beside
        interactive work, but after it.
    space: the space that the vectors are wanted in; left out, the encoder's own. Another one is reached
        through adapters: NotFound where none leads there, FailedPrecondition where the ones that do were
        found wanting.
    group: the texts' language, tenant or the like, for adapters that know groups.
    variant: a variant of the encoder, by its name: a space of its own. NotFound where there is none of the
        name, FailedPrecondition where the server has not loaded it. See `Encoder.variants`.
    layers: the variant that computes so many layers, where `variant` names none; of several the one with the
        fewest dimensions that are enough for `dimensions`.
    allow_brownout: whether a server that is overloaded, and configured to, may answer from a cheaper variant
        (the default); only interactive requests with the role "query" are answered so, and say it in
        `Embeddings.browned_out`.
    """

    encoder: str
    version: str
    role: Role | None
    dimensions: int | None
    dtype: Dtype
    truncate: Truncate
    priority: Priority
    space: str
    group: str
    variant: str
    layers: int | None
    allow_brownout: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The checked options of an `embed` call: see EmbedOptions."""

    encoder: str = ""
    version: str = ""
    role: Role | None = None
    dimensions: int | None = None
    dtype: Dtype = "float32"
    truncate: Truncate = "end"
    priority: Priority = "interactive"
    space: str = ""
    group: str = ""
    variant: str = ""
    layers: int | None = None
    allow_brownout: bool = True

    def __post_init__(self) -> None:
        if self.role is not None and self.role not in ROLES:
            raise InvalidArgument(
                f"role {self.role!r} is not known; choose one of {', '.join(ROLES)}, or None"
            )
        if self.truncate not in TRUNCATIONS:
            raise InvalidArgument(
                f"truncate {self.truncate!r} is not known; choose one of {', '.join(TRUNCATIONS)}"
            )
        if self.priority not in PRIORITIES:
            raise InvalidArgument(
                f"priority {self.priority!r} is not known; choose one of {', '.join(PRIORITIES)}"
            )
        if self.dimensions is not None and not 0 < self.dimensions < _UINT32:
            raise InvalidArgument(f"dimensions is {self.dimensions}; give at least 1, or None for all")
        if self.layers is not None and not 0 < self.layers < _UINT32:
            raise InvalidArgument(f"layers is {self.layers}; give at least 1, or None for the encoder itself")
        check_dtype(self.dtype)

    @property
    def itself(self) -> bool:
        """Whether this asks for the encoder itself, in whose space the vectors then are if none is named."""
        return not self.variant and self.layers is None

    @property
    def spaces(self) -> tuple[str, ...]:
        """The spaces to name in a request."""
        return (self.space,) if self.space else ()

    def request(self, texts: Iterable[str] = (), spaces: Sequence[str] | None = None) -> pb.EmbedRequest:
        """The message that asks for these texts, in these spaces instead of `space` where they are given."""
        return pb.EmbedRequest(
            encoder=self.encoder,
            version=self.version,
            role=_ROLES[self.role],
            truncate=_TRUNCATIONS[self.truncate],
            dimensions=self.dimensions or 0,
            dtype=TO_PROTO[self.dtype],
            texts=texts,
            priority=_PRIORITIES[self.priority],
            spaces=self.spaces if spaces is None else spaces,
            group=self.group,
            variant=self.variant,
            layers=self.layers or 0,
            refuse_brownout=not self.allow_brownout,
        )

    def pinned(self, encoder: Encoder) -> "Options":
        """The same options for exactly this version of an encoder; NotFound where it has no such variant."""
        known = encoder.variants
        there = [
            each for each in known if self.variant in ("", each.name) and self.layers in (None, each.layers)
        ]
        if known and not there:
            depth = f" of {self.layers} layers" if self.layers else ""
            raise NotFound(
                f"encoder {encoder.name} version {encoder.version} has no variant {self.variant!r}{depth}; "
                f"it has {', '.join(f'{each.name} ({each.layers} layers)' for each in known)}"
            )
        return replace(self, encoder=encoder.name, version=encoder.version)

    def keywords(self) -> EmbedOptions:
        """The options as the keywords of an `embed` call."""
        return {
            "encoder": self.encoder,
            "version": self.version,
            "role": self.role,
            "dimensions": self.dimensions,
            "dtype": self.dtype,
            "truncate": self.truncate,
            "priority": self.priority,
            "space": self.space,
            "group": self.group,
            "variant": self.variant,
            "layers": self.layers,
            "allow_brownout": self.allow_brownout,
        }
