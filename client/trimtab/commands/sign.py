"""Sign a bundle or an adapter, so that servers that ask for signatures serve it.

  openssl genpkey -algorithm ed25519 -out signer.key
  openssl pkey -in signer.key -pubout -out signers.pem
  trimtab sign models/my-encoder/1 --key signer.key

Every file is hashed first; then the manifest, which names them all, is signed. A server's configuration names
signers.pem in `signatures.keys`.
"""

import argparse
import sys
from pathlib import Path

SUMMARY = "sign a bundle or an adapter"
EXTRA = "auth"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, nargs="+", help="REPOSITORY/NAME/VERSION, or REPOSITORY/NAME/adapters/ADAPTER"
    )
    parser.add_argument("--key", type=Path, required=True, metavar="PEM", help="the private key, of Ed25519")


def run(options: argparse.Namespace) -> int:
    from trimtab.artifacts import signatures

    for folder in options.folder:
        sys.stdout.write(f"{signatures.sign(folder, options.key)}\n")
    return 0
