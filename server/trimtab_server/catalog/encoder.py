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
from trimtab.inputs import TextInput, TokenTypes
from trimtab.tokens import Tokenizer
from trimtab_server.engine.batch import Model, OutputSpec, Stored
from trimtab_server.outputs import dense
from trimtab_server.spaces.adapters import Route

# Of a graph, with the embedding of each text, and behind it the inner states, where it gives these.
TENSOR = "embeddings"


@dataclass(frozen=True, eq=False, slots=True)
class Encoder:
    """A loaded graph of a bundle: the first variant's, which is the encoder itself, or another one's.

    `manifest` is the bundle's; of another variant, that of the variant alone.
    """

    manifest: Manifest
    tokenizer: Tokenizer
    model: Model
    number: int  # of the model, in the engine
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
        """How many components of inner states the model gives beside the embedding; 0: it gives none."""
        return sum(output.width for output in self.model.outputs if output.name == dense.STATES)

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


def model_of(
    bundle: Bundle,
    variant: Variant,
    types: TokenTypes,
    *,
    fewest: int = 1,
    highest: int = 0,
    with_states: bool = False,
) -> Model:
    """The graph of a variant, or what gives its inner states, too, as devices load it.

    `types` are those that the bundle's tokenizer gives; of its tokens a text has `fewest` or more, and their
    ids go up to `highest` (0: nobody knows).
    """
    manifest, states = variants.alone(bundle.manifest, variant), variant.states if with_states else None
    graph = states.file if states else variant.files[0]
    width = manifest.dimensions
    outputs = [OutputSpec(dense.DENSE, TENSOR, width, unit=manifest.normalized)]
    if states:  # in one tensor, since ONNX Runtime computes every output, asked for or not
        outputs.append(OutputSpec(dense.STATES, TENSOR, states.width, start=width))
    return Model(
        encoder=manifest.name,
        version=manifest.version,
        variant=variant.name,
        folder=bundle.path,
        files=tuple(map(stored, (graph, *variant.files[1:]))),
        input=TextInput(variant.inputs, manifest.pad_id, types, fewest, highest),
        outputs=tuple(outputs),
        most_units=manifest.max_tokens,
        unpadded=variant.unpadded,
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
