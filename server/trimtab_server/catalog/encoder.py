"""A loaded encoder version and its loaded variants, and which of them a request asks for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from trimtab.artifacts import variants
from trimtab.artifacts.artifact import File
from trimtab.artifacts.bundle import Bundle
from trimtab.artifacts.manifest import BundleVariant, Manifest, Prompts
from trimtab.errors import ConfigError, FailedPrecondition, InvalidArgument, NotFound
from trimtab.inputs.graph import GraphInput
from trimtab.outputs.known import OUTPUTS
from trimtab.outputs.scores import labels_of
from trimtab_server.engine.batch import HashedFile, Model, OutputSpec, Wanted
from trimtab_server.inputs.reader import ItemReader
from trimtab_server.outputs import dense
from trimtab_server.outputs.kind import OutputKind
from trimtab_server.outputs.known import KINDS
from trimtab_server.spaces.route import Route, own


@dataclass(frozen=True, slots=True)
class ServedOutput:
    """An output of an encoder, as it is served."""

    name: str
    kind: OutputKind[Any]
    own: Route  # into its own space
    columns: Wanted  # the engine's
    labels: tuple[str, ...] = ()  # of the columns of scores


class RequestedOutput(NamedTuple):
    """A requested output, and its route into a space."""

    output: ServedOutput
    route: Route


@dataclass(frozen=True, eq=False)
class LoadedEncoder:
    """A loaded graph of a bundle: the first variant's, which is the encoder itself, or another one's.

    `manifest` is the bundle's; of another variant, that of the variant alone.
    """

    manifest: Manifest
    reader: ItemReader
    model: Model
    number: int  # of the model, in the engine
    outputs: Mapping[str, ServedOutput]  # by name; the first is the default
    variants: Mapping[str, "LoadedEncoder"] = field(default_factory=dict)  # other loaded variants, by name

    @cached_property
    def name(self) -> str:
        """The encoder's name."""
        return self.manifest.name

    @cached_property
    def version(self) -> int:
        """Its version."""
        return self.manifest.version

    @cached_property
    def variant(self) -> BundleVariant:
        """The variant whose graph this is."""
        return self.manifest.variants[0]

    @cached_property
    def prompts(self) -> Prompts:
        """The prefix of texts in each role."""
        return self.manifest.prompts

    @cached_property
    def output(self) -> ServedOutput:
        """The default output."""
        return next(iter(self.outputs.values()))

    @property
    def own(self) -> Route:
        """The way into its own space."""
        return self.output.own

    @cached_property
    def default(self) -> RequestedOutput:
        """The default output, in its own space."""
        return RequestedOutput(self.output, self.output.own)

    @cached_property
    def mapped(self) -> str:
        """The column of the vectors that adapters map; "" if the default output is not dense."""
        return self.output.columns[0] if self.output.kind.kind == "dense" else ""

    @property
    def vectors(self) -> str:
        """The column of its vectors. FailedPrecondition if the default output is not dense."""
        if not self.mapped:
            kind = self.output.kind.kind
            raise FailedPrecondition(f"encoder {self.name} gives {kind}, where dense vectors are needed")
        return self.mapped

    @cached_property
    def states_width(self) -> int:
        """How many components of inner states the model gives with the embedding; 0: none."""
        return sum(output.width for output in self.model.outputs if output.name == dense.STATES)

    def outputs_named(self, names: Sequence[str]) -> list[ServedOutput]:
        """The outputs of these names; without names, the default. InvalidArgument if it lacks one, or one is
        named twice."""
        if not names:
            return [self.output]
        if len(set(names)) < len(names):
            raise InvalidArgument("outputs names one twice: name each once")
        unknown = [name for name in names if name not in self.outputs]
        if unknown:
            raise InvalidArgument(
                f"encoder {self.name} has no output {unknown[0]!r}; it has {', '.join(self.outputs)}"
            )
        return [self.outputs[name] for name in names]

    def graphs(self) -> tuple["LoadedEncoder", ...]:
        """This one, and its loaded variants."""
        return (self, *self.variants.values())

    def choose(self, name: str, layers: int, dimensions: int) -> "LoadedEncoder":
        """The variant that a request asks for: by its name, by its number of layers, or this one.

        Of several with that depth, it is the one with the fewest dimensions that are enough for `dimensions`
        (0: the most); of equals, the first in the bundle. Raises NotFound, naming what there is, if the
        bundle has no such variant; FailedPrecondition if it is not loaded; InvalidArgument if name and layers
        contradict each other.
        """
        if not layers and (not name or name == self.variant.name):
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

    def _listed(self, listed: tuple[BundleVariant, ...] | list[BundleVariant]) -> str:
        depths = [(each.name, variants.depth(self.manifest, each)) for each in listed]
        return ", ".join(f"{name} ({depth} layers)" if depth else name for name, depth in depths)


def model_of(
    bundle: Bundle, variant: BundleVariant, given: GraphInput, *, with_states: bool = False
) -> Model:
    """The graph of a variant, as devices load it, with the graph's input `given`. `with_states`: its second
    graph."""
    manifest, states = variants.alone(bundle.manifest, variant), variant.states if with_states else None
    graph = states.file if states else variant.files[0]
    outputs = list(_specs(manifest, variant))
    if states:  # in one tensor, since ONNX Runtime computes every output, asked for or not
        vectors = outputs[0]
        outputs.append(OutputSpec(dense.STATES, vectors.tensor, states.width, start=vectors.width))
    return Model(
        encoder=manifest.name,
        version=manifest.version,
        variant=variant.name,
        folder=bundle.path,
        files=tuple(map(stored, (graph, *variant.files[1:]))),
        input=given,
        outputs=tuple(outputs),
        most_units=manifest.input.most_units,
        unpadded=variant.unpadded,
        precision=variant.precision,
        runner=variant.runner,
        engines=tuple(map(stored, variant.engines)),
    )


def given(manifest: Manifest) -> dict[str, ServedOutput]:
    """The outputs of an encoder, by name."""
    return {
        output.name: ServedOutput(
            output.name,
            KINDS[output.kind],
            own(manifest, output),
            tuple(column.name for column in OUTPUTS[output.kind].columns(output)),
            tuple(labels_of(output)),
        )
        for output in manifest.outputs_of(manifest.towers[0])
    }


def _specs(manifest: Manifest, variant: BundleVariant) -> Iterator[OutputSpec]:
    """The specs of a variant's columns."""
    for output in manifest.outputs_of(manifest.towers[0]):
        for column in OUTPUTS[output.kind].columns(output):
            tensor = variant.tensors[column.name]
            yield OutputSpec(
                column.name, tensor.name, column.width, dtype=column.dtype, unit=column.unit,
                several=column.several, most=column.most, offsets=tensor.offsets or "", places=column.places,
            )  # fmt: skip


def stored(file: File) -> HashedFile:
    """A file of a manifest, as devices read it."""
    return HashedFile(file.path, file.size, file.sha256)


def others(manifest: Manifest, wanted: tuple[str, ...]) -> list[BundleVariant]:
    """The variants of these names, without the first one, which is always loaded.

    Raises ConfigError if the bundle lacks one.
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
