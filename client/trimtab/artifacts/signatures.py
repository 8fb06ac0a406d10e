"""Signatures of bundles and adapters: Ed25519 (RFC 8032) over the manifest, which has every file's hash.

MANIFEST.sig, beside the manifest, holds the signature's 64 bytes in base64. Only servers that are configured
with trusted signers require it.
"""

import base64
import binascii
import re
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.artifacts import adapter, bundle, durable
from trimtab.artifacts.artifact import Kind
from trimtab.errors import ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SUFFIX = ".sig"
MOST_BYTES = 4096  # a signature has 64
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def sign(folder: Path, key: Path) -> Path:
    """Sign the bundle or adapter in `folder` with the private key in PEM, after hashing its files.

    Returns the signature's path; an existing signature is replaced. Raises BundleError or AdapterError if the
    folder is not complete, and ConfigError if the key cannot be used.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signed = b""

    def keep(kind: Kind, folder: Path, content: bytes) -> None:
        nonlocal signed
        signed = content

    if (folder / adapter.MANIFEST).exists():
        adapter.read(folder, trusted=keep)
        manifest = folder / adapter.MANIFEST
    else:
        bundle.read(folder, trusted=keep)
        manifest = folder / bundle.MANIFEST
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"the key {key} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{key} is no private key in PEM without a password: {error}") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(f"{key} is not of Ed25519: make one with `openssl genpkey -algorithm ed25519`")
    target = manifest.with_name(manifest.name + SUFFIX)
    durable.replace(target, base64.b64encode(private.sign(signed)) + b"\n")
    return target


class Signers:
    """The signers whose bundles and adapters are served: Ed25519 public keys in a PEM file."""

    def __init__(self, file: Path) -> None:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        try:
            found = [load_pem_public_key(each) for each in _PEM.findall(file.read_bytes())]
        except OSError as error:
            raise ConfigError(f"signatures.keys: {file} cannot be read: {error.strerror}") from None
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConfigError(f"signatures.keys: {file}: {error}") from None
        self._keys: list[Ed25519PublicKey] = [key for key in found if isinstance(key, Ed25519PublicKey)]
        if not self._keys or len(self._keys) < len(found):
            raise ConfigError(f"signatures.keys: {file} must hold public keys of Ed25519, and nothing else")

    def check(self, kind: Kind, folder: Path, content: bytes) -> None:
        """Raise the kind's error unless one of the signers signed this manifest."""
        name = kind.manifest_name + SUFFIX
        cure = "sign it with `trimtab sign`, or add its signer to signatures.keys"
        untrusted = "has no signature of a trusted signer, or was changed since it was signed"
        try:
            signed = base64.b64decode(kind.small_file(folder, name, MOST_BYTES), validate=False)
        except FileNotFoundError:
            raise kind.error(f"{folder} is not signed, and this server requires signatures: {cure}") from None
        except binascii.Error as error:
            raise kind.error(f"{folder / name} cannot be read: {error}") from None
        if not any(_verifies(key, signed, content) for key in self._keys):
            raise kind.error(f"{folder} {untrusted}: {cure}")


def _verifies(key: "Ed25519PublicKey", signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True
