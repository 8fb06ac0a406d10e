"""A loaded version of an encoder and the variants loaded beside it; which of them a request means."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trimtab.artifacts import variants
from trimtab.artifacts.artifact import File
from trimtab.artifacts.bundle import (
    Bundle,
    Manifest,
    Variant,
)
from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound
from trimtab.inputs import TokenTypes
from trimtab.tokens import Tokenizer
from trimtab_server.engine.batch import Model, Stored
from trimtab_server.spaces.adapters import Route


@dataclass(frozen=True, eq=False, slots=True)
class Encoder:
    """A loaded graph of a bundle: the first variant's, which is the encoder itself, or another one's.

    `manifest` is the bundle's; of another variant, that of the variant alone.
    """

    manifest: Manifest
    tokenizer: Tokenizer
    model: Model
    own: Route  # into its own space
    variants: Mapping[str, "Encoder"] = field(default_factory=dict)  # loaded beside the first, by name

    @property
    def name(self) -> str:
        """The encoder's name."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """Its version."""
        return self.manifest.version

    @property
    def variant(self) -> Variant:
        """The variant whose graph this is."""
        return self.manifest.variants[0]

    @property
    def states_width(self) -> int:
        """How many components of inner states stand behind the embedding in each row of the model."""
        return self.model.dimensions - self.manifest.dimensions

    def graphs(self) -> tuple["Encoder", ...]:
        """This one, and those that are loaded beside it."""
        return (self, *self.variants.values())

    def choose(self, name: str, layers: int, dimensions: int) -> "Encoder":
        """The variant that a request means: by its name, by the layers that it computes, or this itself.

        Of several of that depth, it is the one with the fewest dimensions that are enough for `dimensions`
        (0: the most), and of equals the first in the bundle. Raises NotFound, naming what there is, where
        the bundle has no such variant; FailedPrecondition where it is not loaded; InvalidArgument where name
        and layers contradict each other.
        """
        if name in ("", self.variant.name) and not layers:
            return self
        manifest = self.manifest
        if name:
            known = [each for each in manifest.variants if each.name == name]
            if known and layers and variants.depth(manifest, known[0]) != layers:
                raise InvalidArgument(
                    f"layers is {layers}, and variant {self._listed(known)} has others: name one of them"
                )
        else:
            known = [each for each in manifest.variants if variants.depth(manifest, each) == layers]
        if not known:
            wanted = f"variant {name!r}" if name else f"variant of {layers} layers"
            raise NotFound(
                f"encoder {self.name} version {self.version} has no {wanted}; "
                f"it has {self._listed(manifest.variants)}"
            )
        loaded = [each for each in self.graphs() if each.variant in known]
        if not loaded:
            raise FailedPrecondition(
                f"variant {self._listed(known)} of encoder {self.name} version {self.version} is not loaded: "
                f"name it in `variants` of [encoders.{_key(self.name)}] in the server's configuration"
            )
        wide = [each for each in loaded if dimensions and each.manifest.dimensions >= dimensions]
        best = min if wide else max
        return best(wide or loaded, key=lambda each: each.manifest.dimensions)

    def _listed(self, listed: tuple[Variant, ...] | list[Variant]) -> str:
        depths = [(each.name, variants.depth(self.manifest, each)) for each in listed]
        return ", ".join(f"{name} ({depth} layers)" if depth else name for name, depth in depths)


def model_of(bundle: Bundle, variant: Variant, types: TokenTypes, *, with_states: bool = False) -> Model:
    """The graph of a variant, or what gives its inner states, too, as devices load it.

    `types` are those that the bundle's tokenizer gives.
    """
    manifest, states = variants.alone(bundle.manifest, variant), variant.states if with_states else None
    graph = states.file if states else variant.files[0]
    return Model(
        encoder=manifest.name,
        version=manifest.version,
        variant=variant.name,
        folder=bundle.path,
        files=tuple(map(stored, (graph, *variant.files[1:]))),
        inputs=variant.inputs,
        unpadded=variant.unpadded,
        dimensions=manifest.dimensions + (states.width if states else 0),
        max_tokens=manifest.max_tokens,
        pad_id=manifest.pad_id,
        types=types,
        precision=variant.precision,
        engines=tuple(map(stored, variant.engines)),
    )


def stored(file: File) -> Stored:
    """A file of a manifest, as devices read it."""
    return Stored(file.path, file.size, file.sha256)


def others(manifest: Manifest, wanted: tuple[str, ...]) -> list[Variant]:
    """The variants of these names, without the first one, which is always loaded.

    Raises ConfigError where the bundle has none of a name.
    """
    missing = [name for name in wanted if variants.named(manifest, name) is None]
    if missing:
        raise ConfigError(
            f"[encoders.{_key(manifest.name)}] names the variant {missing[0]!r}, and {manifest.name} version "
            f"{manifest.version} has {variants.names(manifest.variants)}: name one of these, export the "
            "encoder with it, or serve only newer versions (versions.newest)"
        )
    return [each for each in manifest.variants[1:] if each.name in wanted]


def _key(name: str) -> str:
    return f'"{name}"' if "." in name else name  # as TOML wants it
