"""Keys and tokens, right and wrong, for a server that asks for them."""

import hashlib
import secrets
import time
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

ISSUER, AUDIENCE = "https://issuer.example", "trimtab"


class Credentials:
    """A keys file and a JWK set in `folder`. What they open is said by each method's arguments."""

    def __init__(self, folder: Path) -> None:
        self.keys_file, self.jwks_file = folder / "keys.toml", folder / "jwks.json"
        self._entries: list[str] = []
        self.signer = ec.generate_private_key(ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self.signer.public_key(), as_dict=True)
        self.write_jwks([public | {"kid": "now", "alg": "ES256"}])
        self.keys_file.write_text("")

    def write_jwks(self, keys: list[dict[str, Any]]) -> None:
        self.jwks_file.write_text(str({"keys": keys}).replace("'", '"'))

    def pem(self) -> bytes:
        """The public key."""
        public = self.signer.public_key()
        return public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def key(self, name: str, encoders: str = '["*"]', *, admin: bool = False, expires: str = "") -> str:
        """A new key, and its entry in the file."""
        key = secrets.token_urlsafe(32)
        entry = f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
        entry += f"encoders = {encoders}\nadmin = {str(admin).lower()}\n"
        self._entries.append(entry + (f"expires = {expires}\n" if expires else ""))
        self.keys_file.write_text("\n".join(self._entries))
        return key

    def token(self, signer: Any = None, algorithm: str = "ES256", kid: str = "now", **claims: Any) -> str:
        """A token that opens every encoder for an hour; `claims` change it, None leaves one out."""
        standard = {
            "sub": "a-service", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 3600,
            "trimtab_encoders": ["*"],
        }  # fmt: skip
        kept = {name: value for name, value in (standard | claims).items() if value is not None}
        return jwt.encode(kept, signer or self.signer, algorithm=algorithm, headers={"kid": kid})

    def wrong(self) -> dict[str, str | None]:
        """Values of `authorization` that open nothing; None sends none at all."""
        late = time.time() - 3600
        return {
            "nothing": None,
            "empty": "",
            "no scheme": self.key("a"),
            "another scheme": f"Basic {self.key('b')}",
            "no key": "Bearer ",
            "a key of nobody's": f"Bearer {secrets.token_urlsafe(32)}",
            "a name": "Bearer a",
            "a hash of a key": f"Bearer {hashlib.sha256(self.key('c').encode()).hexdigest()}",
            "a key that is over": f"Bearer {self.key('d', expires='2020-01-01T00:00:00Z')}",
            "no token": "Bearer a.b.c",
            "a token that is over": f"Bearer {self.token(exp=late)}",
            "a token that never ends": f"Bearer {self.token(exp=None)}",
            "a token of nobody": f"Bearer {self.token(sub=None)}",
            "another issuer": f"Bearer {self.token(iss='https://elsewhere.example')}",
            "another audience": f"Bearer {self.token(aud='billing')}",
            "another signer": f"Bearer {self.token(ec.generate_private_key(ec.SECP256R1()))}",
            "an unknown signer": f"Bearer {self.token(kid='then')}",
            "unsigned": f"Bearer {jwt.encode({'sub': 'x'}, '', algorithm='none')}",
            "not yet": f"Bearer {self.token(nbf=time.time() + 3600)}",
            "claims of the wrong type": f"Bearer {self.token(trimtab_encoders='*')}",
            "signed with the public key": f"Bearer {forged(self)}",
        }

    def config(self) -> str:
        """The sections of the server's configuration."""
        return (
            f'[auth]\nkeys = "{self.keys_file}"\n[auth.jwt]\nkeys = "{self.jwks_file}"\n'
            f'issuer = "{ISSUER}"\naudience = "{AUDIENCE}"\n'
        )


def forged(credentials: Credentials) -> str:
    """A token signed by HMAC with the public key, which anyone knows: the old confusion of algorithms."""
    import base64
    import hmac
    import json

    def pack(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    header = pack(json.dumps({"alg": "HS256", "typ": "JWT", "kid": "now"}).encode())
    claims = {"sub": "x", "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 60, "trimtab_encoders": ["*"]}
    body = f"{header}.{pack(json.dumps(claims).encode())}"
    return f"{body}.{pack(hmac.digest(credentials.pem(), body.encode(), 'sha256'))}"
