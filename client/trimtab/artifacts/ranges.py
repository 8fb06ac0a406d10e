"""The allowed numbers and names of a manifest: its author may be mistaken, or hostile.

The types are checked when a manifest is decoded; `bundle.read` and `adapter.read` check what must hold
between several of its fields.
"""

from typing import Annotated, TypeAlias

from msgspec import Meta

Sha256: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Space: TypeAlias = Annotated[str, Meta(pattern=r"^[0-9a-f]{16}\Z")]
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}\Z")]
Label: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}\Z")]  # of an input or an output
Path: TypeAlias = Annotated[str, Meta(pattern=r"^[^\0]{1,1024}\Z")]

Version: TypeAlias = Annotated[int, Meta(ge=1, lt=10**18)]
Dimensions: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 16)]
Size: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 24)]  # of a vector, sparse ones included
Tokens: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 20)]  # of one text
TokenId: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 31)]
Layers: TypeAlias = Annotated[int, Meta(ge=1, le=10_000)]
Layer: TypeAlias = Annotated[int, Meta(ge=0, lt=10_000)]  # a layer's number
Width: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 24)]  # of the states of all layers
Bytes: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 42)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]
Some: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 40)]  # a count of at least one

Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]  # of what stays
Quality: TypeAlias = Annotated[float, Meta(ge=0, le=1)]  # a mean over queries
Kept: TypeAlias = Annotated[
    float, Meta(ge=0, le=1e9)
]  # of another quality, which may have been close to zero
Figure: TypeAlias = Annotated[float, Meta(ge=-1e9, le=1e9)]  # such a share, or a difference of two
Cosine: TypeAlias = Annotated[float, Meta(ge=-1.01, le=1.01)]  # with float32's rounding
Difference: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]
Duration: TypeAlias = Annotated[float, Meta(ge=0, le=1e9)]  # in any unit
Factor: TypeAlias = Annotated[float, Meta(gt=0, le=1e9)]
# The component that int8 maps to 127: a 127th of it, and the inverse of that, are normal float32 numbers.
Limit: TypeAlias = Annotated[float, Meta(ge=1e-6, le=1e6)]
